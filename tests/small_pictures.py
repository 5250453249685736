"""A run on a small folder of pictures of every kind that evaluation converts."""

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["CLASSES", "picture", "write_pictures"]

CLASSES = ("crosses", "discs", "rings")


def picture(label: int, seed: int, size: tuple[int, int] = (40, 56)) -> Image.Image:
    """A colour image whose class is where it is bright, of another shape than the network's."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 90, (*size, 3), dtype=np.uint8)
    third = size[1] // 3
    pixels[10:30, label * third : (label + 1) * third] += 150
    return Image.fromarray(pixels)


def write_pictures(folder: Path) -> Path:
    """Write images of three classes: a large JPEG, a grey PNG, a transparent one, a turned one."""
    for split, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(CLASSES):
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(count):
                image = picture(label, 100 * label + index + (50 if split == "test" else 0))
                if index == 0:
                    image.resize((560, 400)).save(place / "large.jpg", quality=90)
                elif index == 1:
                    image.convert("L").save(place / "grey.png")
                elif index == 2:
                    image.putalpha(Image.fromarray(np.eye(40, 56, dtype=np.uint8) * 255))
                    image.save(place / "transparent.png")
                else:
                    turned = image.getexif()
                    turned[0x0112] = 6
                    image.save(place / f"{index}.jpg", exif=turned, quality=95)
    return folder
