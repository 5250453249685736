"""The images of particular networks: at the resolution and preprocessing their weights expect."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attention_transfer.config import ImagesConfig, height_and_width
from attention_transfer.data import DataSet, WithAugmentation, load_data
from attention_transfer.errors import InputError, first_line
from attention_transfer.models import LoadedModel
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import call_network, evaluating, main_input
from attention_transfer.transfer import preprocess

__all__ = ["augmented", "decoded_for", "images_of", "preprocessing_for", "try_out"]


def images_of(
    config: ImagesConfig,
    default_size: tuple[int, int],
    masks: Path | None = None,
    data: Any = None,
) -> DataSet:
    """Load the data set of a configuration.

    Args:
        config: the configuration.
        default_size: height and width in pixels of images in files, unless configured.
        masks: a folder with object masks.
        data: the data set as a Python object, in place of the configuration's name.

    Raises:
        InputError: an unknown name, or images that cannot be read.
    """
    return load_data(
        config.data if data is None else data,
        validation=config.validation,
        data_seed=config.data_seed,
        download=config.download,
        image_size=None if config.image_size is None else height_and_width(config.image_size),
        default_size=default_size,
        masks=masks,
        columns=config.columns,
        label_offset=config.label_offset,
        class_order=config.class_order,
    )


def preprocessing_for(model: LoadedModel, data: DataSet) -> Preprocessing:
    """Return the preprocessing that a network's trained weights expect, or else the data set's."""
    return model.preprocessing or data.preprocessing


def decoded_for(data: DataSet, student: LoadedModel, teachers: list[LoadedModel]) -> DataSet:
    """Return the data set, decoded at the resolution that the networks need.

    Training images have the student's aspect ratio at the finest network's resolution; images to
    evaluate on have the student's own. Both use the student's interpolation.
    """
    height, width = data.input_size[1:]
    finer = max(
        [1.0]
        + [
            max(size[0] / height, size[1] / width)
            for teacher in teachers
            if (size := preprocessing_for(teacher, data).size) is not None
        ]
    )
    finest = round(height * finer), round(width * finer)
    by = preprocessing_for(student, data).interpolation
    return replace(
        data,
        train=data.train.resized(finest, by),
        validation=data.validation.resized((height, width), by),
        test=data.test.resized((height, width), by),
    )


def try_out(model: LoadedModel, data: DataSet, images: Tensor) -> object:
    """Run a network on images and return its output.

    Raises:
        InputError: the network does not run on them.
    """
    inputs = preprocess(model.network, images, preprocessing_for(model, data))
    try:
        with evaluating(model.network), torch.no_grad():
            return call_network(model.network, inputs)
    except InputError:
        raise
    except Exception as error:
        height, width = main_input(inputs).shape[-2:]
        raise InputError(
            f"{model.name} does not run on images {height}x{width} ({type(error).__name__}: "
            f"{first_line(error)}); give another --image-size, or another network"
        ) from error


def augmented(data: DataSet, config: ImagesConfig) -> DataSet:
    """Return the data set with the stronger augmentation of a configuration, if any."""
    mixed = config.mixup > 0 or config.cutmix > 0
    if config.randaugment is None and not config.random_erasing and not mixed:
        return data
    views = WithAugmentation(
        data.train,
        len(data.class_names),
        config.randaugment,
        config.random_erasing,
        config.mixup,
        config.cutmix,
    )
    return replace(data, train=views)
