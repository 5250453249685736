"""Random images, written in the layouts that data sets have on disk."""

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
    """Write random images as CIFAR-10's files, and accept them as CIFAR-10 while open.

    torchvision compares the checksums of the files with the real ones', which are patched.

    Args:
        folder: parent of the extracted archive's folder.
        images: number of images in each of the five training files and in the test file.
    """
    base = folder / CIFAR10.base_folder
    base.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def write(name: str, content: object) -> list[str]:
        pickled = pickle.dumps(content)
        (base / name).write_bytes(pickled)
        return [name, hashlib.md5(pickled, usedforsecurity=False).hexdigest()]

    def batch() -> dict[str, object]:
        pixels = generator.integers(0, 256, (images, 3 * 32 * 32), dtype=np.uint8)
        return {"data": pixels, "labels": [index % 10 for index in range(images)]}

    train = [write(name, batch()) for name, _ in CIFAR10.train_list]
    test = [write(name, batch()) for name, _ in CIFAR10.test_list]
    names = {CIFAR10.meta["key"]: [f"class {index}" for index in range(10)]}
    _, checksum = write(CIFAR10.meta["filename"], names)
    meta = {**CIFAR10.meta, "md5": checksum}
    with mock.patch.multiple(CIFAR10, train_list=train, test_list=test, meta=meta):
        yield


def photo_files(folder: Path, images: int, classes: int = 10) -> None:
    """Write JPEGs of 500x375, a typical photograph's size, in one subfolder for each class."""
    generator = np.random.default_rng(0)
    for index in range(images):
        subfolder = folder / f"class-{index % classes}"
        subfolder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_photo(generator)).save(subfolder / f"{index}.jpg", quality=90)


def _photo(generator: np.random.Generator) -> NDArray[np.uint8]:
    """Return (375, 500, 3) pixels: smooth shapes with a little grain."""
    coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC))
    grain = generator.normal(0, 8, smooth.shape)
    return (smooth + grain).clip(0, 255).astype(np.uint8)
