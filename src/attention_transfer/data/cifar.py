"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) through torchvision, with the paper's augmentation."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from attention_transfer.data.images import DataSet, ImageSet
from attention_transfer.data.views import Augmentation
from attention_transfer.errors import InputError

__all__ = ["CifarName", "cifar"]

CifarName = Literal["cifar10", "cifar100"]


def cifar(name: CifarName, folder: Path, download: bool = False) -> DataSet:
    """Load the 50,000 training and 10,000 test images, 32x32; validation is empty.

    Augmentation and normalization are the paper's: random crops after padding by reflection of 4
    pixels, and flips; channel means (125.3, 123.0, 113.9) / 255 and standard deviations (63.0,
    62.1, 66.7) / 255.

    Args:
        name: ``cifar10`` or ``cifar100``.
        folder: the folder that holds the extracted archive's folder, or will after download.
        download: fetch the archive if it is missing.

    Raises:
        InputError: the files are missing or damaged.
    """
    source = CIFAR10 if name == "cifar10" else CIFAR100
    try:
        train = source(str(folder), train=True, download=download)
        test = source(str(folder), train=False, download=download)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"no whole {name} in {folder} ({reason}); expected the extracted "
            f"{source.base_folder} folder there: add --download, or name another folder with "
            f"--data {name}:DIR"
        ) from None
    augmentation = Augmentation(pad=4, flip=True)
    images = [
        ImageSet(torch.from_numpy(part.data), torch.tensor(part.targets), augmentation=augmentation)
        for part in (train, test)
    ]
    return DataSet(
        name=name,
        train=images[0],
        validation=images[0].subset(np.zeros(0, dtype=np.int64)),
        test=images[1],
        class_names=tuple(train.classes),
        mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
        std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
    )
