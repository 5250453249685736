"""Classify images with the exported network beside this file.

    pip install numpy onnxruntime pillow
    python classify.py IMAGE...

The steps from an image to the network's input are those of the network's own evaluation. Images of
more than 8 bits are not read.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""


def read_pixels(path: str, card: dict[str, Any]) -> Any:
    """Return the pixels (H, W, 3) that the network sees of an image, uint8."""
    _, height, width = card["input_size"]
    with Image.open(path) as image:
        if image.mode[0] in "IF":
            raise ValueError("more than 8 bits a channel, which this script does not read")
        whole = image.size
        if image.getexif().get(0x0112, 1) in TURNED:
            whole = whole[1], whole[0]
        # The middle of the image, of the shape of the network's input.
        scale = card["crop_share"] * min(whole[0] / width, whole[1] / height)
        side_x, side_y = min(scale * width, whole[0]), min(scale * height, whole[1])
        left, top = (whole[0] - side_x) / 2, (whole[1] - side_y) / 2
        # A JPEG far larger than the input is decoded at a half, a quarter or an eighth of its size.
        finer = min(side_x / width, side_y / height)
        divisor = max(power for power in (1, 2, 4, 8) if power == 1 or power <= finer)
        if divisor > 1:
            image.draft(None, (image.width // divisor, image.height // divisor))
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        colours = upright.convert("RGB")
    across, down = colours.width / whole[0], colours.height / whole[1]
    box = (left * across, top * down, (whole[0] - left) * across, (whole[1] - top) * down)
    by = FILTERS[card["interpolation"]]
    return np.asarray(colours.resize((width, height), by, box, reducing_gap=3.0))


def normalize(pixels: Any, card: dict[str, Any]) -> Any:
    """Return pixels (H, W, 3) as the network takes them, (C, H, W)."""
    pixels = np.float32(pixels) / 255
    if card["input_size"][0] == 1:
        red, green, blue = pixels[..., :1], pixels[..., 1:2], pixels[..., 2:]
        pixels = green + 0.299 * (red - green) + 0.114 * (blue - green)
    normalized = (pixels - np.float32(card["mean"])) / np.float32(card["std"])
    return normalized.transpose(2, 0, 1)


def probabilities(logits: Any, card: dict[str, Any]) -> Any:
    """Return the probabilities (N, K) of logits (N, K)."""
    if card["probabilities"] == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def main(paths: list[str]) -> int:
    """Print the most probable class of each image, and its probability; return the exit code."""
    if not paths or paths[0] in ("-h", "--help"):
        print((__doc__ or "").strip(), file=sys.stdout if paths else sys.stderr)
        return 0 if paths else 2
    unreadable = 0
    folder = Path(__file__).parent
    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (network_input,) = session.get_inputs()
    for path in paths:
        try:
            pixels = read_pixels(path, card)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow raises these of bad files
            print(f"{path}: no image that can be read ({error})", file=sys.stderr)
            unreadable += 1
            continue
        if network_input.type != "tensor(uint8)":  # else the network normalizes by itself
            pixels = normalize(pixels, card)
        (logits,) = session.run(None, {network_input.name: pixels[None]})
        (found,) = probabilities(logits, card)
        print(f"{path}\t{card['class_names'][found.argmax()]}\t{found.max():.6f}")
    return 2 if unreadable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
