"""A cache's source: a teacher, and the augmented views of its images."""

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
from attention_transfer.errors import InputError
from attention_transfer.models import LoadedModel
from attention_transfer.network_inputs import network_input_size, preprocessing_for
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.transfer import (
    FrozenTeacher,
    PairingSide,
    TargetField,
    TargetSpec,
    frozen_teacher,
    reduction_named,
)

__all__ = ["TargetSource", "recommended_points"]


@dataclass(frozen=True)
class TargetSource:
    """A teacher with the images it answers, and which of its answers are kept."""

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
        fields: Sequence[TargetField],
        *,
        gradient: bool,
        data_seed: int,
        views: int,
        precision: str,
        workers: int | None = None,
    ) -> "TargetSource":
        """Return the source for a cache of some fields, and of logits where there are any.

        (Several teachers have logits if they have their classes in common.)

        Args:
            data: the data set whose training images are used.
            teachers: one, or several that answer as one.
            fields: what is kept of the features at the teacher's points; of several teachers a
                point begins with the teacher's number and a dot.
            gradient: whether J is kept.
            data_seed: of the augmented views.
            views: of each image.
            precision: that the teacher computes in: fp32, bf16 or fp16.
            workers: processes that decode ahead; None: by the cores.

        Raises:
            InputError: an unknown point, or a field that is too large to keep.
        """
        networks: list[tuple[nn.Module, Preprocessing | None]] = [
            (model.network, preprocessing_for(model, data)) for model in teachers
        ]
        spec = TargetSpec(tuple(fields), logits=True, gradient=gradient)
        points = list(dict.fromkeys(target.point for target in fields))
        teacher, example = _teacher(networks, points), as_input(data.train.pixels(np.arange(1)))
        answer = teacher.targets(example, data.train.labels[:1], spec)
        contents = contents_of(
            data.train,
            networks,
            answer,
            replace(spec, logits=answer.logits is not None),
            data_seed=data_seed,
            views=views,
            precision=precision,
        )
        contents.check_size()
        return cls(data.train, networks, contents, precision, workers)

    def build(
        self,
        cache: TargetCache,
        done: Callable[[int, int], None],
        device: torch.device | None = None,
    ) -> None:
        """Compute the targets that a cache lacks, and release what that takes.

        See :func:`attention_transfer.cache.build`.
        """
        spec = self._spec_of(cache)
        points = dict.fromkeys(target.point for target in spec.fields)
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
            spec,
            dtype=AUTOCAST.get(self.precision),
            device=device,
            workers=resolve_workers(self.workers, self.images),
            done=done,
        )

    def _spec_of(self, cache: TargetCache) -> TargetSpec:
        """Return the cache's targets with the reductions of this source, as files hold names.

        Raises:
            InputError: the cache has a reduction that this source does not know.
        """
        known = {target.reduction: target.reduction for target in self.contents.spec.fields}
        fields = []
        for target in cache.contents.spec.fields:
            assert target.reduction is not None
            reduction = known.get(target.reduction) or reduction_named(target.reduction.name)
            if reduction != target.reduction:
                raise InputError(
                    f"the cache in {cache.folder} is not whole, and this run cannot compute its "
                    f"{target}; give a new folder"
                )
            fields.append(TargetField(target.point, reduction))
        return replace(cache.contents.spec, fields=tuple(fields))


def _teacher(
    teachers: Sequence[tuple[nn.Module, Preprocessing | None]], points: Sequence[str]
) -> FrozenTeacher:
    teacher = frozen_teacher(teachers, points)
    assert teacher is not None
    return teacher


def recommended_points(teachers: Sequence[LoadedModel], data: DataSet) -> list[str]:
    """Return the attention points of the teachers that are kept by default.

    Of several teachers a point begins with the teacher's number and a dot.
    """
    points = []
    for number, model in enumerate(teachers):
        size = network_input_size(model, data)
        prefix = f"{number}." if len(teachers) > 1 else ""
        points += [f"{prefix}{name}" for name in PairingSide(model.network, size).recommended]
    return points
