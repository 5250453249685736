"""The images: embedded ones, CIFAR, and the batches made of them."""

from pathlib import Path
from typing import cast

from attention_transfer.data.augmentation import WithAugmentation
from attention_transfer.data.images import (
    Augmentation,
    AugmentedView,
    DataSet,
    Images,
    ImageSet,
)
from attention_transfer.data.loading import (
    Batch,
    EpochPass,
    as_input,
    batch_bounds,
    batches,
    epoch_order,
    resolve_workers,
    stream,
)
from attention_transfer.data.splitting import hold_out_test, hold_out_validation
from attention_transfer.errors import InputError, nearest

__all__ = [
    "Augmentation",
    "WithAugmentation",
    "Batch",
    "DataSet",
    "ImageSet",
    "Images",
    "EpochPass",
    "AugmentedView",
    "as_input",
    "batch_bounds",
    "batches",
    "epoch_order",
    "hold_out_test",
    "hold_out_validation",
    "load_data",
    "resolve_workers",
    "stream",
]


def load_data(
    data: str,
    *,
    validation: float = 0.1,
    data_seed: int = 0,
    download: bool = False,
    image_size: tuple[int, int] | None = None,
    own_size: tuple[int, int] = (224, 224),
    masks: Path | None = None,
) -> DataSet:
    """DATA as users write it, with a validation split held out of the training images.

    Args:
        data: ``cluttered-digits``; ``cifar10[:DIR]`` or ``cifar100[:DIR]``, where DIR is ``data``
            by default; ``folder:DIR``, a folder of images by class; ``imagenet:DIR``, the same in
            ImageNet's layout; ``hf:NAME`` or ``hf:NAME:CONFIGURATION``, a dataset of
            Hugging Face's; or ``package.module:factory``.
        validation: the share of each class's training images to hold out.
        data_seed: of the scenes and of the split.
        download: fetch what is missing.
        image_size: height and width to bring images in files to.
        own_size: the same, where nobody says.
        masks: a folder with masks of the objects, laid out as the images in a folder are.

    Raises:
        InputError: an unknown name, or images that cannot be had.
    """
    name, _, folder = data.partition(":")
    if name == "folder" and folder:
        from attention_transfer.data.folders import folder_data

        found = folder_data(Path(folder).expanduser(), image_size or own_size, data_seed=data_seed)
    elif name == "imagenet" and folder:
        from attention_transfer.data.folders import folder_data

        if not all((Path(folder) / split).is_dir() for split in ("train", "val")):
            raise InputError(
                f"{folder} is not laid out as ImageNet; expected {folder}/train and {folder}/val, "
                "each with a subfolder a class"
            )
        found = folder_data(Path(folder).expanduser(), image_size or own_size, data_seed=data_seed)
    elif name == "hf" and folder:
        from attention_transfer.data.datasets import hugging_face_data

        found = hugging_face_data(folder, image_size or own_size, data_seed=data_seed)
    elif name == "cluttered-digits" and not folder:
        from attention_transfer.data.cluttered_digits import cluttered_digits

        found = cluttered_digits(data_seed)
    elif name in ("cifar10", "cifar100"):
        from attention_transfer.data.cifar import CifarName, cifar

        found = cifar(cast("CifarName", name), Path(folder or "data"), download)
    elif folder and name.replace(".", "_").isidentifier():
        from attention_transfer.data.datasets import factory_data

        found = factory_data(data, image_size or own_size, data_seed=data_seed)
    else:
        known = ["cluttered-digits", "cifar10", "cifar100", "folder:DIR", "imagenet:DIR", "hf:NAME"]
        raise InputError(f"unknown data {data!r}; {nearest(data, known)}")
    if image_size not in (None, found.train.size):
        height, width = found.train.size
        raise InputError(f"{name} images are {height}x{width}; leave out the image size")
    if masks is not None:
        from attention_transfer.data.masks import with_masks

        found = with_masks(found, Path(folder).expanduser(), masks)
    return found if len(found.validation) else hold_out_validation(found, validation, data_seed)
