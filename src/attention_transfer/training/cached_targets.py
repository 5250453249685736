"""A run's teacher in a cache: found, checked against the run, and made where it is not there."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from attention_transfer.cache import (
    TargetCache,
    TargetSource,
    check_room_for_rest,
    recommended_points,
)
from attention_transfer.config import RunConfig
from attention_transfer.data import DataSet
from attention_transfer.errors import InputError
from attention_transfer.models import LoadedModel
from attention_transfer.transfer import MapFunction, Transfer

__all__ = ["CachedTargets", "cached_targets"]


@dataclass(frozen=True)
class CachedTargets:
    """The cache that a run asks for, there or not."""

    folder: Path
    source: TargetSource
    cache: TargetCache | None
    """What is there already."""

    @property
    def views(self) -> int:
        """Of each sample; epochs go round in them."""
        return (self.cache or self.source).contents.views

    def whole(self, say: Callable[[str], None], device: torch.device) -> tuple[TargetCache, float]:
        """The cache with nothing missing, and the seconds that took; processes share the work."""
        began = time.perf_counter()
        cache = self.cache or TargetCache.create(self.folder, self.source.contents)
        check_room_for_rest(cache)
        missing = cache.missing()
        if missing:
            contents = cache.contents
            say(
                f"the teacher's targets for {contents.views} views of {contents.samples} images "
                f"are built in {self.folder}, {contents.bytes / 1e6:.0f} MB"
            )
            self.source.build(
                cache, lambda whole, total: say(f"targets: {whole} of {total} shards"), device
            )
        return cache, time.perf_counter() - began


def cached_targets(
    config: RunConfig,
    data: DataSet,
    teachers: Sequence[LoadedModel],
    transfer: Transfer,
    precision: str,
) -> CachedTargets | None:
    """The cache that a run asks for, checked; None if it asks for none, or has no term that needs
    the teacher. Writes nothing.

    Raises:
        InputError: a cache of something else, one that lacks what the terms need, or terms whose
            targets are not kept.
    """
    if config.cache is None:
        return None
    if config.full_activation_beta is not None:
        raise InputError(
            "full activation transfer compares whole activations, which a cache does not keep; leave out "
            "--cache, or --full-activation-beta"
        )
    if not transfer.wanted:
        return None
    needed = list(dict.fromkeys(reading.point for reading in transfer.wanted.readings))
    by_hand = not config.pairs.startswith("auto")
    points = needed if by_hand else [*dict.fromkeys([*recommended_points(teachers, data), *needed])]
    source = TargetSource.of(
        data,
        teachers,
        points,
        [MapFunction(config.map, config.power)],
        gradient=transfer.wanted.gradient,
        data_seed=config.data_seed,
        views=config.cache_views or config.epochs,
        precision=precision,
        workers=config.workers,
    )
    cache = TargetCache.find(config.cache)
    if cache is None:
        return CachedTargets(config.cache, source, None)
    cache.check_made_like(source.contents)
    if config.cache_views not in (None, cache.contents.views):
        raise InputError(
            f"the cache in {config.cache} has {cache.contents.views} views of each image and this "
            f"run's epochs go round in {config.cache_views}; give another folder, or for a new run "
            "leave out --cache-views"
        )
    lacking = list(cache.contents.lacks(transfer.wanted))
    if lacking:
        raise InputError(
            f"the cache in {config.cache} lacks {' and '.join(lacking)}; give a new folder, which "
            "will be filled with what this run needs"
        )
    return CachedTargets(config.cache, source, cache)
