"""Map-style datasets of images, given in Python or by the name of a function."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attention_transfer.data.arrays import as_pil
from attention_transfer.data.columns import Columns
from attention_transfer.data.decoding import (
    CorruptImageError,
    file_content,
    open_image,
)
from attention_transfer.data.deep_images import array_of, is_deep_array
from attention_transfer.data.images import IMAGENET_MEAN, IMAGENET_STD, DataSet, DecodedImages
from attention_transfer.data.label_values import CodedLabels, as_labels, code_labels
from attention_transfer.data.pixel_ranges import on_one_scale
from attention_transfer.data.randomness import AugmentedView
from attention_transfer.data.samples import (
    class_names_of,
    is_map_style,
    labels_of,
    reading,
    sample_columns,
)
from attention_transfer.data.splitting import (
    hold_out_test,
    hold_out_validation,
    named_splits,
    split_of,
    with_test_split,
)
from attention_transfer.data.views import CropResize, Pixels, Transform, size_and_channels
from attention_transfer.errors import InputError, TrainingError, nearest
from attention_transfer.factories import import_object
from attention_transfer.preprocessing import PixelRange

__all__ = ["DatasetImages", "as_data_set", "data_set_of_splits", "factory_data", "from_datasets"]

MOST_HASHED = 1_000
"""Decoded images of the largest set whose fingerprint covers all of them."""


@dataclass(frozen=True)
class DatasetImages(DecodedImages):
    """Samples of a map-style dataset: (image, label) pairs, or dictionaries with both.

    Images are of the kinds that :func:`~attention_transfer.data.decoding.as_pil` takes, or the
    bytes of encoded files.
    """

    dataset: Any
    columns: tuple[str | int, str | int]
    """The keys of image and label in a sample."""
    indices: NDArray[np.int64]
    """(N,) positions in the dataset."""

    def subset(self, indices: NDArray[np.int64]) -> "DatasetImages":
        """Return the images at some indices, in that order."""
        labels = self.labels[torch.from_numpy(indices)]
        return replace(self, indices=self.indices[indices], labels=labels)

    def masks(self, indices: NDArray[np.int64]) -> Tensor | None:
        """Return None: masks of the objects are unknown."""
        return None

    def name(self, index: int) -> str:
        """Return the sample's number in the dataset."""
        return f"sample {self.indices[index]} of {type(self.dataset).__name__}"

    @property
    def in_files(self) -> bool:
        """Whether the dataset returns files' contents or paths, as Hugging Face's does."""
        return isinstance(self._image(0), Mapping)

    def content(self, index: int) -> bytes:
        """Return the bytes of an image's file.

        Raises:
            CorruptImageError: there are none.
        """
        content = file_content(self._image(index))
        if content is None:
            raise CorruptImageError("it is empty")
        return content

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every label and image: of a file's content, or of the pixels of decoded images.

        As decoding takes long, only MOST_HASHED of the decoded images are hashed, evenly spread.

        Raises:
            TrainingError: an image cannot be read.
        """
        return self._hash(len(self) if self.in_files else MOST_HASHED)

    @cached_property
    def identity(self) -> str:
        """A hash of every label, and of MOST_HASHED images, evenly spread.

        Raises:
            TrainingError: an image cannot be read.
        """
        return self._hash(MOST_HASHED)

    def _hash(self, most: int) -> str:
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        count = min(len(self), most)
        for index in np.linspace(0, len(self) - 1, count).astype(np.int64):
            digest.update(self._content_hash(index))
        return digest.hexdigest()

    def _content_hash(self, index: int) -> bytes:
        try:
            content = file_content(self._image(index))
        except CorruptImageError as error:
            raise TrainingError(f"{self.name(index)} cannot be read: {error}") from None
        if content is None:
            content = self._decoded(index, None).tobytes()
        return hashlib.sha256(content).digest()

    def source(self, index: int) -> Any:
        """Return what the dataset holds as an image."""
        return self._image(index)

    def _decoded(self, index: int, view: AugmentedView | None) -> Pixels:
        try:
            image = self._image(index)
            content = file_content(image)
            if content is None:
                pixels = self.crop_resize.decode(self._opened(image), view, index, draft=False)
            else:
                with open_image(content) as opened:
                    pixels = self.crop_resize.decode(opened, view, index, draft=True)
        except Exception as error:
            raise TrainingError(
                f"{self.name(index)} cannot be read: {type(error).__name__}: {error}"
            ) from error
        return self.crop_resize.finish(pixels, view, index)

    def _opened(self, image: Any) -> Image.Image | NDArray[Any]:
        """Return a decoded image as PIL's; or, of other channels or more than 8 bits, its array."""
        array = array_of(image)
        if array is None:
            return as_pil(image)
        if self.channels == 3 and (self.dtype == torch.uint8 or not is_deep_array(array)):
            return as_pil(array)
        return array

    def _image(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])][self.columns[0]]


def from_datasets(
    train: Any,
    test: Any = None,
    validation: Any = None,
    *,
    class_names: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    transform: Transform | None = None,
    validation_share: float = 0.1,
    data_seed: int = 0,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    name: str = "data",
    pixel_range: tuple[float, float] | None = None,
) -> DataSet:
    """Make a data set from map-style datasets, such as torchvision's or your own.

    A map-style dataset has a length, and samples by index: pairs (image, label), or dictionaries
    with ``image`` and ``label``. An image is one of PIL, an array (H, W, 3), (H, W) or (3, H, W), a
    tensor (3, H, W), each uint8 or floating-point from 0 to 1, or the bytes of an encoded file;
    before augmentation and normalization, and of any size. A label is a class index, from 0.
    Arrays and tensors may have other channels than grey and colour images, as (C, H, W) or
    (H, W, C), and integers of more than 8 bits, which have one scale for all images.

    Evaluation takes the middle of each image, 7/8 of its sides. Training takes a random crop of 8
    to 100 % of the area and flips half of them, or what ``transform`` makes of the image.

    Args:
        train: the training images.
        test: the test images; None: a fifth of each class of ``train``.
        validation: the validation images; None: ``validation_share`` of each class of ``train``.
        class_names: by class index; None: the dataset's ``classes``, or the numbers.
        size: height and width in pixels to bring images to; None: those of the first image.
        transform: see :meth:`DataSet.with_transform`.
        validation_share: from 0 to 1; unused if there are validation images.
        data_seed: seed of the splits.
        mean: by channel, on a scale of 0 to 1, for normalization; ImageNet's by default.
        std: standard deviation by channel.
        name: what records and messages call the data.
        pixel_range: the values that become 0 and 1, of images of more than 8 bits; None: found from
            the images.

    Raises:
        InputError: a dataset is not map-style, holds no images and class indices, is empty or has
            labels outside the classes; or the transform fails.

    Example:
        >>> samples = [(np.full((32, 32, 3), n, dtype=np.uint8), n % 2) for n in range(40)]
        >>> data = from_datasets(samples, class_names=("even", "odd"))
        >>> len(data.train), len(data.validation), len(data.test), data.input_size
        (28, 4, 8, (3, 32, 32))
    """
    datasets = {"train": train, "test": test, "validation": validation}
    splits = {split: part for split, part in datasets.items() if part is not None}
    data = data_set_of_splits(name, splits, size, data_seed, class_names)
    given = None if pixel_range is None else PixelRange(*pixel_range)
    data = on_one_scale(replace(data, mean=mean, std=std), given)
    if transform is not None:
        data = data.with_transform(transform)
    return (
        data if validation is not None else hold_out_validation(data, validation_share, data_seed)
    )


def as_data_set(
    data: Any,
    name: str,
    size: tuple[int, int],
    data_seed: int = 0,
    *,
    columns: Columns | None = None,
    label_offset: int | None = None,
) -> DataSet:
    """Convert what users give as data to a data set, whose validation split may be empty.

    Args:
        data: a :class:`DataSet`, which keeps its size; a map-style dataset; a pair of them, train
            and test; or a dictionary with ``train`` and perhaps ``test`` and ``validation``.
        name: what records and messages call the data.
        size: height and width in pixels to bring images to.
        data_seed: seed of the test split, if there is none: a fifth of each class.
        columns: the keys of image and label in samples that are dictionaries.
        label_offset: see :func:`~attention_transfer.data.label_values.code_labels`.

    Raises:
        InputError: it is none of these; see :func:`from_datasets`.
    """
    if isinstance(data, DataSet):
        if columns is not None or label_offset is not None:
            raise InputError(
                f"{name} is a DataSet, whose labels are class indices; leave out columns and the "
                "label offset"
            )
        return data
    if isinstance(data, tuple) and len(data) == 2:
        data = {"train": data[0], "test": data[1]}
    elif is_map_style(data) and not isinstance(data, Mapping | Sequence):
        data = {"train": data}
    if not isinstance(data, Mapping):
        raise InputError(
            f"{name}: got a {type(data).__name__}, expected a map-style dataset, a pair of them "
            "(train, test), a dictionary with train and test, or an attention_transfer.data.DataSet"
        )
    unknown = [str(split) for split in data if split_of(split) is None]
    if unknown:
        raise InputError(
            f"{name}: unknown split {unknown[0]!r}, expected train, validation and test; "
            f"{nearest(unknown[0], ['train', 'validation', 'val', 'test'])}"
        )
    return data_set_of_splits(
        name, data, size, data_seed, columns=columns, label_offset=label_offset
    )


def factory_data(name: str, size: tuple[int, int], data_seed: int = 0, **reading: Any) -> DataSet:
    """Call a user's factory without arguments, and convert what it returns to a data set.

    Args:
        name: ``package.module:factory``; it returns what :func:`as_data_set` takes.
        size: height and width in pixels to bring images to.
        data_seed: seed of the test split, if there is none.
        reading: further arguments of :func:`as_data_set`.

    Raises:
        InputError: the factory cannot be imported, fails, or returns something else.
    """
    factory = import_object(name)
    try:
        data = factory()
    except Exception as error:
        raise InputError(f"{name} failed: {type(error).__name__}: {error}") from error
    return as_data_set(data, name, size, data_seed, **reading)


def data_set_of_splits(
    name: str,
    datasets: Mapping[str, Any],
    size: tuple[int, int] | None,
    data_seed: int,
    class_names: Sequence[str] | None = None,
    *,
    columns: Columns | None = None,
    label_offset: int | None = None,
) -> DataSet:
    """Make a data set from map-style datasets by split; without a test split it is held out.

    Args:
        name: what records and messages call the data.
        datasets: by the names of their splits; others are left out, with a notice.
        size: height and width in pixels to bring images to; None: those of the first image.
        data_seed: seed of the test split, if there is none.
        class_names: by class index; None: the dataset's own, or its labels.
        columns: the keys of image and label in samples that are dictionaries.
        label_offset: see :func:`~attention_transfer.data.label_values.code_labels`.

    Raises:
        InputError: see :func:`from_datasets`.
    """
    named = named_splits(name, datasets)
    if "train" not in named:
        raise InputError(
            f"{name} has the splits {', '.join(map(str, datasets)) or 'none'}, expected train (and "
            "test and validation, if there are any)"
        )
    splits = {split: datasets[key] for split, key in named.items()}
    others = [str(key) for key in datasets if key not in named.values()]
    notices = [f"{name} also has {', '.join(others)}, left out"] if others else []
    keys = {
        split: sample_columns(f"{name} {split}", part, columns) for split, part in splits.items()
    }
    names = class_names or class_names_of(splits["train"], keys["train"][1])
    coded = _coded(name, splits, keys, names, label_offset)
    images: dict[str, DatasetImages] = {}
    for split, labels in with_test_split(coded.labels).items():
        source = "validation" if split == "test" and "test" not in coded.labels else split
        images[split] = _images(f"{name} {source}", splits[source], keys[source], labels, size)
        size = images[split].size
    if "test" not in images:
        images["train"], images["test"] = hold_out_test(
            images["train"], coded.class_names, data_seed
        )
    return DataSet(
        name=name,
        train=images["train"],
        validation=images.get("validation", images["train"].subset(np.zeros(0, dtype=np.int64))),
        test=images["test"],
        class_names=coded.class_names,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        notices=(*notices, *coded.notices),
    )


def _coded(
    name: str,
    splits: Mapping[str, Any],
    keys: Mapping[str, tuple[str | int, str | int]],
    class_names: Sequence[str] | None,
    label_offset: int | None,
) -> CodedLabels:
    """Read the labels of all splits, as class indices."""
    raw = {}
    for split, part in splits.items():
        with reading(f"{name} {split}"):
            raw[split] = as_labels(labels_of(part, keys[split][1]))
    return code_labels(name, raw, class_names, label_offset)


def _images(
    name: str,
    dataset: Any,
    columns: tuple[str | int, str | int],
    labels: Tensor,
    size: tuple[int, int] | None,
) -> DatasetImages:
    """Return a split's images with their labels."""
    with reading(name):
        image = dataset[0][columns[0]]
        first_size, channels = size_and_channels(image)
    return DatasetImages(
        labels,
        CropResize(size or first_size, channels=channels),
        dataset,
        columns,
        np.arange(len(dataset)),
    )
