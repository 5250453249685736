"""Images made on the spot, in the layouts that data sets have on disk."""

import hashlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import CIFAR10

__all__ = ["cifar_files", "photo_files"]


@contextmanager
def cifar_files(folder: Path, images: int) -> Iterator[None]:
    """CIFAR-10's files with random pixels, taken for the real ones while a ``with`` block is open.

    Args:
        folder: where the extracted archive's folder is to be.
        images: in each of the five files to train on, and in the one to test on.
    """
    base = folder / CIFAR10.base_folder
    base.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def written(name: str, content: object) -> list[str]:
        bytes_ = pickle.dumps(content)
        (base / name).write_bytes(bytes_)
        return [name, hashlib.md5(bytes_, usedforsecurity=False).hexdigest()]

    def batch() -> dict[str, object]:
        pixels = generator.integers(0, 256, (images, 3 * 32 * 32), dtype=np.uint8)
        return {"data": pixels, "labels": [index % 10 for index in range(images)]}

    train = [written(name, batch()) for name, _ in CIFAR10.train_list]
    test = [written(name, batch()) for name, _ in CIFAR10.test_list]
    names = {CIFAR10.meta["key"]: [f"class {index}" for index in range(10)]}
    _, checksum = written(CIFAR10.meta["filename"], names)
    meta = {**CIFAR10.meta, "md5": checksum}
    with mock.patch.multiple(CIFAR10, train_list=train, test_list=test, meta=meta):
        yield


def photo_files(folder: Path, images: int, classes: int = 10) -> None:
    """JPEGs of 500x375, as large as photographs are, in a subfolder for each class."""
    generator = np.random.default_rng(0)
    for index in range(images):
        home = folder / f"class-{index % classes}"
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_scene(generator)).save(home / f"{index}.jpg", quality=90)


def _scene(generator: np.random.Generator) -> NDArray[np.uint8]:
    """(375, 500, 3): smooth shapes with a little grain."""
    coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC))
    grain = generator.normal(0, 8, smooth.shape)
    return (smooth + grain).clip(0, 255).astype(np.uint8)
