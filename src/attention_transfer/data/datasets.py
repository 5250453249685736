"""Any map-style dataset: one's own, by the name of a function, or Hugging Face's."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attention_transfer.data.decoding import fitted, turned_size
from attention_transfer.data.images import IMAGENET_MEAN, IMAGENET_STD, DataSet, View
from attention_transfer.data.splitting import hold_out_test
from attention_transfer.data.views import Recipe, centre
from attention_transfer.errors import InputError, TrainingError
from attention_transfer.factories import imported

__all__ = ["DatasetImages", "factory_data", "hugging_face_data"]

SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


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
    recipe: Recipe = field(default_factory=Recipe)

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, indices: NDArray[np.int64]) -> "DatasetImages":
        """The images at some indices, in that order."""
        labels = self.labels[torch.from_numpy(indices)]
        return replace(self, indices=self.indices[indices], labels=labels)

    def name(self, index: int) -> str:
        """Its number in the dataset."""
        return f"sample {self.indices[index]} of {type(self.dataset).__name__}"

    def pixels(self, indices: NDArray[np.int64], view: View | None = None) -> Tensor:
        """(n, H, W, 3) uint8: a random crop of each image, or without a view its middle.

        Raises:
            TrainingError: a sample cannot be had.
        """
        return torch.from_numpy(np.stack([self._one(int(index), view) for index in indices]))

    @property
    def fingerprint(self) -> str:
        """A hash of the labels and of a few images."""
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        spread = np.linspace(0, len(self) - 1, min(len(self), 16)).astype(np.int64)
        digest.update(self.pixels(spread).numpy().tobytes())
        return digest.hexdigest()

    def _one(self, index: int, view: View | None) -> NDArray[np.uint8]:
        try:
            image = as_pil(self.dataset[int(self.indices[index])][self.columns[0]])
            whole = turned_size(image)
            if view is None:
                return fitted(image, self.size, centre(whole, self.size))
            cropped = fitted(image, self.size, self.recipe.box(whole, self.size, view, index))
        except Exception as error:
            raise TrainingError(
                f"{self.name(index)} cannot be had: {type(error).__name__}: {error}"
            ) from error
        return self.recipe.finish(cropped, view, index)


def as_pil(image: Any) -> Image.Image:
    """An image of any of the kinds that datasets give, as PIL's.

    Raises:
        TypeError: it is none of them.

    Example:
        >>> as_pil(torch.ones(3, 4, 6)).size
        (6, 4)
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Mapping) and image.get("bytes"):
        image = image["bytes"]
    if isinstance(image, bytes):
        return Image.open(io.BytesIO(image))
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
        if image.ndim == 3 and image.shape[0] in (1, 3):
            image = image.transpose(1, 2, 0)
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
        raise TypeError(
            f"got a {type(image).__name__}, expected an image of PIL, an array (H, W, 3), a tensor "
            "(3, H, W) or the bytes of a file"
        )
    if np.issubdtype(image.dtype, np.floating):
        image = np.rint(image * 255)
    pixels = image.clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels)


def factory_data(
    name: str, size: tuple[int, int], *, data_seed: int = 0, recipe: Recipe | None = None
) -> DataSet:
    """The datasets that ``package.module:factory`` gives.

    The factory is called without arguments, and gives a :class:`DataSet`, a dictionary with
    ``train`` and perhaps ``test`` and ``validation``, or a pair (train, test). Without a test
    split, a fifth of each class is held out for it.

    Args:
        name: of the factory.
        size: height and width to bring the images to.
        data_seed: of the test split, where there is none.
        recipe: of the training views.

    Raises:
        InputError: it cannot be imported, or gives something else.
    """
    factory = imported(name)
    try:
        given = factory()
    except Exception as error:
        raise InputError(f"{name} failed: {type(error).__name__}: {error}") from error
    if isinstance(given, DataSet):
        return given
    if isinstance(given, tuple) and len(given) == 2:
        given = {"train": given[0], "test": given[1]}
    if not isinstance(given, Mapping):
        raise InputError(
            f"{name} gave a {type(given).__name__}, expected a dictionary with train and test, a "
            "pair of datasets, or an attention_transfer.data.DataSet"
        )
    return _data_set(name, given, size, data_seed, recipe or Recipe())


def hugging_face_data(
    name: str, size: tuple[int, int], *, data_seed: int = 0, recipe: Recipe | None = None
) -> DataSet:
    """A dataset of the Hugging Face hub, or of a folder that its library reads.

    Args:
        name: on the hub, or a path; with a configuration's name after a colon, if it has several.
        size: height and width to bring the images to.
        data_seed: of the test split, where the dataset has none.
        recipe: of the training views.

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
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"the dataset {name!r} cannot be had ({type(error).__name__}: {reason}); check its "
            "name and the network"
        ) from None
    return _data_set(name, splits, size, data_seed, recipe or Recipe())


def _data_set(
    name: str, given: Mapping[str, Any], size: tuple[int, int], data_seed: int, recipe: Recipe
) -> DataSet:
    splits = {
        split: given[known] for split, names in SPLITS.items() for known in names if known in given
    }
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    if "train" not in splits:
        raise InputError(
            f"{name} has the splits {', '.join(map(str, given)) or 'none'}, expected train (and "
            "test and validation, if there are any)"
        )
    sets = {split: _images(f"{name} {split}", part, size, recipe) for split, part in splits.items()}
    names = _class_names(splits["train"], sets["train"])
    for split, images in sets.items():
        if len(images) == 0 or int(images.labels.max()) >= len(names):
            raise InputError(
                f"{name} {split} has {len(images)} samples with labels up to "
                f"{int(images.labels.max()) if len(images) else 'none'}, expected some, with "
                f"labels below {len(names)}"
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


def _images(name: str, dataset: Any, size: tuple[int, int], recipe: Recipe) -> DatasetImages:
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise InputError(
            f"{name} is a {type(dataset).__name__}, expected a map-style dataset, with a length "
            "and samples by index"
        )
    columns = _columns(name, dataset)
    try:
        labels = torch.as_tensor(np.asarray(_labels(dataset, columns[1])).astype(np.int64))
    except (TypeError, ValueError) as error:
        raise InputError(f"the labels of {name} are no class indices: {error}") from None
    return DatasetImages(dataset, columns, np.arange(len(dataset)), labels, size, recipe)


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
        if isinstance(column, int) and len(getattr(dataset, attribute, ())) == len(dataset):
            return getattr(dataset, attribute)
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
