"""Handwritten digits without clutter as a data set of its own: few images, easily learnt."""

import numpy as np
import torch
from numpy.typing import NDArray

from attention_transfer.data import Augmentation, DataSet, ImageSet
from attention_transfer.data.cluttered_digits import sources, training_digits

__all__ = ["plain_digits"]

IMAGES = {"train": 50, "validation": 100, "test": 100}
"""Images of each class. Training and validation images are among the training digits of
cluttered-digits, test images among its test digits.
"""


def plain_digits() -> DataSet:
    """Return 500 training, 1,000 validation and 1,000 test images, 32x32, of ten classes.

    Raises:
        InputError: the extra ``demo`` is not installed.
    """
    pixels, labels, _ = sources()
    for_training = training_digits(labels)
    chosen: dict[str, list[int]] = {split: [] for split in IMAGES}
    for label in range(10):
        own = np.flatnonzero((labels == label) & for_training)
        bounds = IMAGES["train"], IMAGES["train"] + IMAGES["validation"]
        chosen["train"] += own[: bounds[0]].tolist()
        chosen["validation"] += own[bounds[0] : bounds[1]].tolist()
        others = np.flatnonzero((labels == label) & ~for_training)
        chosen["test"] += others[: IMAGES["test"]].tolist()
    splits = {split: _images(pixels[indices], labels[indices]) for split, indices in chosen.items()}
    return DataSet(
        name="plain-digits",
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        class_names=tuple("0123456789"),
        mean=(0.1, 0.1, 0.1),
        std=(0.28, 0.28, 0.28),
    )


def _images(digits: NDArray[np.uint8], labels: NDArray[np.int64]) -> ImageSet:
    padded = np.pad(digits, [(0, 0), (2, 2), (2, 2)])
    colour = torch.from_numpy(padded)[..., None].expand(-1, -1, -1, 3).contiguous()
    return ImageSet(colour, torch.from_numpy(labels), augmentation=Augmentation(pad=3))
