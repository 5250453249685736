"""Where a cache's targets come from: a teacher, and the views of images that it is shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from attention_transfer.cache.building import build
from attention_transfer.cache.contents import Contents, contents_of
from attention_transfer.cache.store import TargetCache
from attention_transfer.data import DataSet, Images, as_input, resolve_workers
from attention_transfer.environment import AUTOCAST
from attention_transfer.models import LoadedModel
from attention_transfer.network_inputs import preprocessing_for
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.transfer import (
    FrozenTeacher,
    MapFunction,
    PairingSide,
    TargetField,
    TargetSpec,
    frozen_teacher,
)

__all__ = ["TargetSource", "recommended_points"]


@dataclass(frozen=True)
class TargetSource:
    """A teacher that answers to views of images, and what is kept of its answers."""

    images: Images
    teachers: Sequence[tuple[nn.Module, Preprocessing | None]]
    contents: Contents
    precision: str
    workers: int | None = None

    @classmethod
    def of(
        cls,
        data: DataSet,
        teachers: Sequence[LoadedModel],
        points: Sequence[str],
        maps: Sequence[MapFunction],
        *,
        gradient: bool,
        data_seed: int,
        views: int,
        precision: str,
        workers: int | None = None,
    ) -> "TargetSource":
        """The source for a cache of some maps at some points, and of logits where the teacher puts
        out any (several have some if they have their classes in common).

        Args:
            data: whose training images are shown.
            teachers: one, or several that answer as one.
            points: of the teacher; of several, after a teacher's number and a dot.
            maps: taken at each point.
            gradient: whether J is kept.
            data_seed: of the views.
            views: of each image.
            precision: that the teacher computes in: fp32, bf16 or fp16.
            workers: processes that decode ahead; None: by the cores.

        Raises:
            InputError: an unknown point.
        """
        networks: list[tuple[nn.Module, Preprocessing | None]] = [
            (model.network, preprocessing_for(model, data)) for model in teachers
        ]
        readings = tuple(TargetField(point, map_) for point in points for map_ in maps)
        wanted = TargetSpec(readings, logits=True, gradient=gradient)
        teacher, example = _teacher(networks, points), as_input(data.train.pixels(np.arange(1)))
        answer = teacher.targets(example, data.train.labels[:1], wanted)
        common = answer.logits is not None and answer.logits.dim() == 2
        contents = contents_of(
            data.train,
            networks,
            answer,
            replace(wanted, logits=common),
            data_seed=data_seed,
            views=views,
            precision=precision,
        )
        return cls(data.train, networks, contents, precision, workers)

    def build(
        self,
        cache: TargetCache,
        done: Callable[[int, int], None],
        device: torch.device | None = None,
    ) -> None:
        """Makes what a cache lacks, and lets go of what it needs for that: see
        :func:`attention_transfer.cache.build`.
        """
        points = dict.fromkeys(reading.point for reading in cache.contents.wanted.readings)
        teacher = _teacher(self.teachers, list(points))
        example = as_input(self.images.pixels(np.arange(1)))
        if device is not None:
            teacher.network.to(device)
            example = example.to(device)
        teacher.optimize_for_inference(example, AUTOCAST.get(self.precision))
        build(
            cache,
            self.images,
            teacher,
            dtype=AUTOCAST.get(self.precision),
            device=device,
            workers=resolve_workers(self.workers, self.images),
            done=done,
        )


def _teacher(
    teachers: Sequence[tuple[nn.Module, Preprocessing | None]], points: Sequence[str]
) -> FrozenTeacher:
    teacher = frozen_teacher(teachers, points)
    assert teacher is not None
    return teacher


def recommended_points(teachers: Sequence[LoadedModel], data: DataSet) -> list[str]:
    """The points where a teacher's attention is read unless one says otherwise; of several, after a
    teacher's number and a dot.
    """
    points = []
    for number, model in enumerate(teachers):
        size = preprocessing_for(model, data).size or data.train.size
        prefix = f"{number}." if len(teachers) > 1 else ""
        points += [f"{prefix}{name}" for name in PairingSide(model.network, (3, *size)).recommended]
    return points
