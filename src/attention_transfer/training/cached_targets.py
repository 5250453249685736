"""A run's cache of teacher targets: found, checked against the run, built where it is missing."""

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
from attention_transfer.errors import InputError, first_problems
from attention_transfer.models import LoadedModel
from attention_transfer.training.processes import Processes
from attention_transfer.transfer import TargetField, Transfer, map_reduction

__all__ = ["CachedTargets", "cached_targets"]

ANNOUNCED_BYTES = 2**30
"""Bytes of the smallest cache whose check is announced."""


@dataclass(frozen=True)
class CachedTargets:
    """A run's cache of teacher targets, which may not exist yet."""

    folder: Path
    source: TargetSource
    cache: TargetCache | None
    """The cache on the disk, whole or not; None if there is none."""

    @property
    def views(self) -> int:
        """The number of views of each sample; more epochs cycle through them."""
        return (self.cache or self.source).contents.views

    def whole(
        self, say: Callable[[str], None], device: torch.device, processes: Processes
    ) -> tuple[TargetCache, float]:
        """Return the whole cache and the seconds that building took; processes share the work.

        Args:
            say: called with lines for the user.
            device: to compute missing targets on.
            processes: that train the run; all must call this.

        Raises:
            InputError: a shard that was there already is damaged.
        """
        began = time.perf_counter()
        cache = self.cache or TargetCache.create(self.folder, self.source.contents)
        check_room_for_rest(cache)
        missing = cache.missing()
        if missing:
            contents = cache.contents
            say(
                f"building the teacher's targets for {contents.views} views of {contents.samples} "
                f"images in {self.folder}, {contents.bytes / 1e6:.0f} MB"
            )
            self.source.build(
                cache, lambda whole, total: say(f"targets: {whole} of {total} shards"), device
            )
        processes.wait()
        seconds = time.perf_counter() - began
        self._check(cache, set(missing), say, processes)
        return cache, seconds

    def _check(
        self,
        cache: TargetCache,
        built: set[tuple[int, int]],
        say: Callable[[str], None],
        processes: Processes,
    ) -> None:
        """Check the shards that were there already: each process reads its share of them."""
        shards = [shard for shard in cache.contents.shards if shard not in built]
        if shards and cache.contents.bytes > ANNOUNCED_BYTES:
            say(f"checking the teacher's targets in {self.folder}")
        damaged = list(cache.damaged(shards[processes.index :: processes.count]))
        (anywhere,) = processes.agree(len(damaged))
        if anywhere:
            gathered = [fault for share in processes.gather(damaged) for fault in share]
            faults = first_problems([f"{path}: {fault}" for path, fault in gathered or damaged])
            faults = faults or "another process has found a damaged shard"
            raise InputError(
                f"{faults}; delete such a file, and it is built again: at the beginning of a run, "
                "or by attention-transfer cache build"
            )


def cached_targets(
    config: RunConfig,
    data: DataSet,
    teachers: Sequence[LoadedModel],
    transfer: Transfer,
    precision: str,
) -> CachedTargets | None:
    """Return a run's cache, checked; None without --cache or a term that needs the teacher.

    It writes nothing.

    Raises:
        InputError: the cache has another provenance, or lacks what the terms need; a term's
            targets are too large to keep.
    """
    if config.cache is None:
        return None
    if not transfer.target_spec:
        return None
    source = TargetSource.of(
        data,
        teachers,
        _fields(config, data, teachers, transfer),
        gradient=transfer.target_spec.gradient,
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
            f"run's epochs cycle through {config.cache_views}; give another folder, or for a new "
            "run leave out --cache-views"
        )
    lacking = list(cache.contents.missing_targets(transfer.target_spec))
    if lacking:
        raise InputError(
            f"the cache in {config.cache} lacks {' and '.join(lacking)}; give a new folder, which "
            "will be filled with what this run needs"
        )
    return CachedTargets(config.cache, source, cache)


def _fields(
    config: RunConfig, data: DataSet, teachers: Sequence[LoadedModel], transfer: Transfer
) -> list[TargetField]:
    """Return the fields of a new cache: what the terms need and, with automatic pairs, the
    teacher's recommended maps, so that the cache serves other students too.
    """
    needed = list(transfer.target_spec.fields)
    if "activation" not in config.attention or not config.pairs.startswith("auto"):
        return needed
    reduction = map_reduction(config.map, config.power)
    recommended = [TargetField(point, reduction) for point in recommended_points(teachers, data)]
    return list(dict.fromkeys([*recommended, *needed]))
