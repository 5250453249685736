"""Scenes that mean the same when mirrored: each of cluttered-digits is shown both ways."""

from dataclasses import replace

import numpy as np
import torch

from attention_transfer.data import DataSet, ImageSet
from attention_transfer.data.cluttered_digits import cluttered_digits
from attention_transfer.data.images import Images
from attention_transfer.data.splitting import hold_out_validation

__all__ = ["few_mirrored_scenes", "mirrored_scenes"]

FEW = 25
"""Scenes of each class where training images are few."""


def mirrored_scenes() -> DataSet:
    """Return cluttered-digits with the mirror image of each scene beside it, under its label.

    Left and right are worth the same here, as on photographs of objects, so a flip changes no
    class. A scene and its mirror image are always in one split.

    Returns:
        7,200 training, 800 validation and 2,000 test images.

    Raises:
        InputError: the extra ``demo`` is not installed.
    """
    data = hold_out_validation(cluttered_digits(), share=0.1, data_seed=0)
    return replace(
        data,
        name="mirrored-scenes",
        train=_both_ways(data.train),
        validation=_both_ways(data.validation),
        test=_both_ways(data.test),
    )


def few_mirrored_scenes() -> DataSet:
    """Return the same with 500 training images: the first 25 scenes of each class, both ways.

    Raises:
        InputError: the extra ``demo`` is not installed.
    """
    data = mirrored_scenes()
    scenes = [np.flatnonzero(data.train.labels == label)[: 2 * FEW] for label in range(10)]
    few = data.train.subset(np.sort(np.concatenate(scenes)))
    return replace(data, name="few-mirrored-scenes", train=few)


def _both_ways(images: Images) -> ImageSet:
    """Return scenes, each followed by its mirror image."""
    assert isinstance(images, ImageSet)
    assert images.boxes is not None
    width = images.size[1]
    left, top, right, bottom = images.boxes.unbind(1)
    mirrored = torch.stack([width - right, top, width - left, bottom], dim=1)
    return ImageSet(
        torch.stack([images.images, images.images.flip(2)], dim=1).flatten(0, 1),
        images.labels.repeat_interleave(2),
        torch.stack([images.boxes, mirrored], dim=1).flatten(0, 1),
        images.augmentation,
    )
