"""Any map-style dataset: one's own, by the name of a function, or Hugging Face's."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.config import Interpolation
from attention_transfer.data.corrupt_images import faults, skipped
from attention_transfer.data.decoding import (
    Box,
    BrokenImageError,
    as_pil,
    decode,
    encoded,
    fitted,
    image_size,
    turned_size,
)
from attention_transfer.data.images import IMAGENET_MEAN, IMAGENET_STD, AugmentedView, DataSet
from attention_transfer.data.splitting import by_split, hold_out_test
from attention_transfer.data.views import CropFlip, centre
from attention_transfer.errors import InputError, TrainingError, first_line
from attention_transfer.factories import import_object

__all__ = ["DatasetImages", "factory_data", "hugging_face_data"]

COMPARED = 1_000
"""Images that come decoded, of which all are in a data set's fingerprint."""


@dataclass(frozen=True)
class DatasetImages:
    """Samples of a map-style dataset: (image, label) pairs, or dictionaries with both.

    An image is PIL's, an array (H, W) or (H, W, 3), a tensor (3, H, W), or an encoded file's bytes;
    integers from 0 to 255 or floating-point numbers from 0 to 1.
    """

    dataset: Any
    columns: tuple[str | int, str | int]
    """Where image and label are in a sample."""
    indices: NDArray[np.int64]
    labels: Tensor
    size: tuple[int, int]
    """Height and width of what is made of them."""
    recipe: CropFlip = field(default_factory=CropFlip)
    interpolation: Interpolation = "bilinear"

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def provenance(self) -> str:
        """The recipe, and the size it ends at."""
        height, width = self.size
        return f"{self.recipe}, {self.interpolation} to {height}x{width}"

    def subset(self, indices: NDArray[np.int64]) -> "DatasetImages":
        """The images at some indices, in that order."""
        labels = self.labels[torch.from_numpy(indices)]
        return replace(self, indices=self.indices[indices], labels=labels)

    def resized(self, size: tuple[int, int], interpolation: Interpolation) -> "DatasetImages":
        """The same, decoded to another height and width."""
        return replace(self, size=size, interpolation=interpolation)

    def masks(self, indices: NDArray[np.int64]) -> Tensor | None:
        """Not known."""
        return None

    def name(self, index: int) -> str:
        """Its number in the dataset."""
        return f"sample {self.indices[index]} of {type(self.dataset).__name__}"

    def pixels(self, indices: NDArray[np.int64], view: AugmentedView | None = None) -> Tensor:
        """(n, H, W, 3) uint8: a random crop of each image, or without a view its middle.

        Raises:
            TrainingError: a sample cannot be had.
        """
        return torch.from_numpy(np.stack([self._one(int(index), view) for index in indices]))

    @property
    def in_files(self) -> bool:
        """Whether images come as what their files hold."""
        return isinstance(self._given(0), Mapping)

    def content(self, index: int) -> bytes:
        """What an image's file holds.

        Raises:
            BrokenImageError: it holds nothing.
        """
        found = encoded(self._given(index))
        if found is None:
            raise BrokenImageError("there is nothing in it")
        return found

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every label and image: of the file it comes as, or of its pixels; of more than
        COMPARED decoded images, of so many that are spread over all, as decoding takes long.

        Raises:
            TrainingError: an image cannot be had.
        """
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        count = len(self) if self.in_files else min(len(self), COMPARED)
        for index in np.linspace(0, len(self) - 1, count).astype(np.int64):
            digest.update(self._content_hash(index))
        return digest.hexdigest()

    def _content_hash(self, index: int) -> bytes:
        try:
            content = encoded(self._given(index))
        except BrokenImageError as error:
            raise TrainingError(f"{self.name(index)} cannot be had: {error}") from None
        return hashlib.sha256(
            self._one(index, None).tobytes() if content is None else content
        ).digest()

    def _one(self, index: int, view: AugmentedView | None) -> NDArray[np.uint8]:
        try:
            cropped = self._cropped(self._given(index), view, index)
        except Exception as error:
            raise TrainingError(
                f"{self.name(index)} cannot be had: {type(error).__name__}: {error}"
            ) from error
        return cropped if view is None else self.recipe.finish(cropped, view, index)

    def _given(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])][self.columns[0]]

    def _cropped(self, given: Any, view: AugmentedView | None, index: int) -> NDArray[np.uint8]:
        content = encoded(given)
        if content is not None:
            box = self._box(image_size(content), view, index)
            return decode(content, self.size, box, self.interpolation)
        image = as_pil(given)
        box = self._box(turned_size(image), view, index)
        return fitted(image, self.size, box, self.interpolation)

    def _box(self, whole: tuple[int, int], view: AugmentedView | None, index: int) -> Box:
        if view is None:
            return centre(whole, self.size)
        return self.recipe.box(whole, self.size, view, index)


def factory_data(name: str, size: tuple[int, int], *, data_seed: int = 0) -> DataSet:
    """The datasets that ``package.module:factory`` gives.

    The factory is called without arguments, and gives a dataset, a pair (train, test), a dictionary
    with ``train`` and perhaps ``test`` and ``validation``, or a :class:`DataSet`. Without a test
    split, a fifth of each class is held out for it.

    Args:
        name: of the factory.
        size: height and width to bring the images to.
        data_seed: of the test split, where there is none.

    Raises:
        InputError: it cannot be imported, or gives something else.
    """
    factory = import_object(name)
    try:
        given = factory()
    except Exception as error:
        raise InputError(f"{name} failed: {type(error).__name__}: {error}") from error
    if isinstance(given, DataSet):
        return given
    if isinstance(given, tuple) and len(given) == 2:
        given = {"train": given[0], "test": given[1]}
    elif _is_map_style(given) and not isinstance(given, Mapping | Sequence):
        given = {"train": given}
    if not isinstance(given, Mapping):
        raise InputError(
            f"{name} gave a {type(given).__name__}, expected a dataset, a pair of them, a "
            "dictionary with train and test, or an attention_transfer.data.DataSet"
        )
    return _data_set(name, given, size, data_seed)


def hugging_face_data(name: str, size: tuple[int, int], *, data_seed: int = 0) -> DataSet:
    """A dataset of the Hugging Face hub, or of a folder that its library reads.

    Args:
        name: on the hub, or a path; with a configuration's name after a colon, if it has several.
        size: height and width to bring the images to.
        data_seed: of the test split, where the dataset has none.

    Raises:
        InputError: the extra ``datasets`` is not installed, the dataset cannot be had, or it has
            no column of images or of class labels.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(
            "hf:NAME needs Hugging Face's library: pip install 'attention-transfer[datasets]'"
        ) from None
    try:
        path, _, configuration = name.partition(":")
        splits = datasets.load_dataset(path, configuration or None)
    except Exception as error:
        raise InputError(
            f"the dataset {name!r} cannot be had ({type(error).__name__}: {first_line(error)}); "
            "check its name and the network"
        ) from None
    undecoded = {split: _undecoded(datasets, part) for split, part in splits.items()}
    return _without_broken(_data_set(name, undecoded, size, data_seed))


def _undecoded(library: Any, dataset: Any) -> Any:
    """A dataset of Hugging Face's whose images come as they are in their files."""
    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, library.Image):
            dataset = dataset.cast_column(column, library.Image(decode=False))
    return dataset


def _without_broken(data: DataSet) -> DataSet:
    """The same without the images that are none, which are told of.

    Raises:
        InputError: there are too many.
    """
    splits = {name: getattr(data, name) for name in ("train", "validation", "test")}
    if not splits["train"].in_files:
        return data
    total = sum(len(images) for images in splits.values())
    lines: list[str] = []
    for name, images in splits.items():
        reasons = faults([partial(images.content, index) for index in range(len(images))], total)
        lines += [
            f"{images.name(index)}: {reason}" for index, reason in enumerate(reasons) if reason
        ]
        whole = [index for index, reason in enumerate(reasons) if reason is None]
        splits[name] = images.subset(np.array(whole, dtype=np.int64))
    return replace(data, **splits, notices=(*data.notices, *skipped(lines, total)))


def _data_set(
    name: str, given: Mapping[str, Any], size: tuple[int, int], data_seed: int
) -> DataSet:
    splits = by_split(given)
    if "train" not in splits:
        raise InputError(
            f"{name} has the splits {', '.join(map(str, given)) or 'none'}, expected train (and "
            "test and validation, if there are any)"
        )
    sets = {split: _images(f"{name} {split}", part, size) for split, part in splits.items()}
    names = _class_names(splits["train"], sets["train"])
    for split, images in sets.items():
        if len(images) == 0:
            raise InputError(f"{name} {split} has no samples, expected some")
        low, high = int(images.labels.min()), int(images.labels.max())
        if low < 0 or high >= len(names):
            raise InputError(
                f"{name} {split} has labels from {low} to {high}, expected class indices from 0 to "
                f"{len(names) - 1}"
            )
    if "test" not in sets:
        sets["train"], sets["test"] = hold_out_test(sets["train"], names, data_seed)
    none = np.zeros(0, dtype=np.int64)
    return DataSet(
        name=name,
        train=sets["train"],
        validation=sets.get("validation", sets["train"].subset(none)),
        test=sets["test"],
        class_names=names,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _is_map_style(dataset: Any) -> bool:
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")


def _images(name: str, dataset: Any, size: tuple[int, int]) -> DatasetImages:
    if not _is_map_style(dataset):
        raise InputError(
            f"{name} is a {type(dataset).__name__}, expected a map-style dataset, with a length "
            "and samples by index"
        )
    try:
        columns = _columns(name, dataset)
        labels = np.asarray(_labels(dataset, columns[1]))
        if labels.ndim != 1 or not np.array_equal(labels, labels.astype(np.int64)):
            raise ValueError(
                f"an array {labels.shape} of {labels.dtype}, expected whole numbers (N,)"
            )
        if len(dataset) and encoded(first := dataset[0][columns[0]]) is None:
            as_pil(first)
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{name} is no dataset of images and class indices: {reason}") from error
    return DatasetImages(
        dataset, columns, np.arange(len(dataset)), torch.from_numpy(labels.astype(np.int64)), size
    )


def _columns(name: str, dataset: Any) -> tuple[str | int, str | int]:
    """Where image and label are in a sample."""
    sample = dataset[0] if len(dataset) else (None, None)
    if isinstance(sample, Sequence) and len(sample) >= 2:
        return 0, 1
    if isinstance(sample, Mapping):
        images = [key for key in ("image", "img", "pixel_values") if key in sample]
        labels = [key for key in ("label", "labels", "fine_label", "target") if key in sample]
        if images and labels:
            return images[0], labels[0]
        got = f"a dictionary with {', '.join(map(str, sample))}"
    else:
        got = f"a {type(sample).__name__}"
    raise InputError(
        f"a sample of {name} is {got}, expected (image, label), or a dictionary with image and "
        "label"
    )


def _labels(dataset: Any, column: str | int) -> Any:
    """All labels, without decoding an image where the dataset allows."""
    for attribute in ("targets", "labels"):
        known = getattr(dataset, attribute, None)
        if isinstance(column, int) and isinstance(known, Sequence | np.ndarray | Tensor):
            if len(known) != len(dataset):
                continue
            # Not if samples have other labels, as those that a target_transform makes.
            looked_at = np.unique(np.linspace(0, len(dataset) - 1, 8).astype(int)).tolist()
            same = all(int(known[index]) == int(dataset[index][column]) for index in looked_at)
            if same and getattr(dataset, "target_transform", None) is None:
                return known
    if isinstance(column, str) and column in getattr(dataset, "column_names", ()):
        return dataset[column]
    return [dataset[index][column] for index in range(len(dataset))]


def _class_names(dataset: Any, images: DatasetImages) -> tuple[str, ...]:
    features = getattr(dataset, "features", {})
    column = images.columns[1]
    known = getattr(features[column], "names", None) if column in features else None
    names = known or getattr(dataset, "classes", None)
    if names:
        return tuple(map(str, names))
    return tuple(str(label) for label in range(int(images.labels.max()) + 1 if len(images) else 0))
