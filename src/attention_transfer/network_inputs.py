"""The images of particular networks: at the resolution and preprocessing their weights expect."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attention_transfer.config import ImagesConfig, height_and_width, low_and_high
from attention_transfer.data import DataSet, WithAugmentation, load_data
from attention_transfer.errors import InputError, first_line
from attention_transfer.models import LoadedModel, input_channels
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import call_network, evaluating, main_input
from attention_transfer.transfer import preprocess

__all__ = [
    "augmented",
    "channels_matched",
    "decoded_for",
    "images_of",
    "network_input_size",
    "preprocessing_for",
    "try_out",
]


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
        pixel_range=None if config.pixel_range is None else low_and_high(config.pixel_range),
    )


def preprocessing_for(model: LoadedModel, data: DataSet) -> Preprocessing:
    """Return the preprocessing that a network's trained weights expect, or else the data set's.

    Weights that were trained with another pixel range get the same numbers as in training.
    """
    expected = model.preprocessing or data.preprocessing
    return expected.on_scale(data.pixel_range)


def channels_matched(
    data: DataSet, models: Sequence[LoadedModel]
) -> tuple[DataSet, list[LoadedModel]]:
    """Return the data set and networks such that each network gets as many channels as it takes.

    A network of one channel gets grey images, one of three colours. Others take images of as many
    channels alone.

    Raises:
        InputError: the images have other channels than a network takes.
    """
    counts = [_channels_of(model, data) for model in models]
    matched = []
    for model, channels in zip(models, counts, strict=True):
        if channels not in (1, 3, data.channels):
            data = _with_channels(data, model.name, channels)
    for model, channels in zip(models, counts, strict=True):
        if channels != data.channels and not {channels, data.channels} <= {1, 3}:
            raise _other_channels(model.name, channels, data)
        expected = preprocessing_for(model, data)
        if not channels == data.channels == len(expected.mean) == 3:
            model = replace(model, preprocessing=expected.for_channels(channels))
        matched.append(model)
    return data, matched


def _channels_of(model: LoadedModel, data: DataSet) -> int:
    if model.card is not None:
        return model.card.input_size[0]
    size = preprocessing_for(model, data).size or data.input_size[1:]
    return input_channels(model.network, size, data.channels)


def _with_channels(data: DataSet, network: str, channels: int) -> DataSet:
    """Return the data set with all channels of its images, not only their colours."""
    try:
        return data.with_channels(channels)
    except InputError as error:
        raise _other_channels(network, channels, data) from error


def _other_channels(network: str, channels: int, data: DataSet) -> InputError:
    return InputError(
        f"{network} takes {channels} channels, the images of {data.name} have {data.channels}; "
        "give images of as many (arrays (C, H, W), of --data package.module:factory), or another "
        "network"
    )


def network_input_size(model: LoadedModel, data: DataSet) -> tuple[int, int, int]:
    """Return channels, height and width of the images that a network gets."""
    expected = preprocessing_for(model, data)
    return expected.channels or data.channels, *(expected.size or data.input_size[1:])


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
    """Return the data set with the stronger augmentation of a configuration, if any.

    Raises:
        InputError: an augmentation needs grey or colour images.
    """
    mixed = config.mixup > 0 or config.cutmix > 0
    if config.randaugment is None and not config.random_erasing and not mixed:
        return data
    if config.randaugment is not None and data.channels not in (1, 3):
        raise InputError(
            f"RandAugment changes colours, and the images of {data.name} have {data.channels} "
            "channels; leave out --randaugment"
        )
    views = WithAugmentation(
        data.train,
        len(data.class_names),
        config.randaugment,
        config.random_erasing,
        config.mixup,
        config.cutmix,
    )
    return replace(data, train=views)
