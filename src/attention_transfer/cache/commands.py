"""The command ``cache``: plan and build a cache of teacher targets."""

import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import SpawnProcess

import numpy as np
import torch

from attention_transfer.cache.building import check_room_for_rest
from attention_transfer.cache.source import TargetSource, recommended_points
from attention_transfer.cache.store import TargetCache
from attention_transfer.class_alignment import aligned
from attention_transfer.config import CacheConfig
from attention_transfer.data import as_input
from attention_transfer.data.label_values import is_multi_label
from attention_transfer.environment import resolve_precision
from attention_transfer.errors import InputError, TrainingError
from attention_transfer.models import default_input_size, load, split_models
from attention_transfer.network_inputs import (
    augmented,
    channels_matched,
    decoded_for,
    images_of,
    try_out,
)
from attention_transfer.taps import to_channels_last
from attention_transfer.transfer import TargetField, map_reduction
from attention_transfer.trust import trusted, trusting

__all__ = ["build_cache", "target_source"]


def target_source(config: CacheConfig) -> TargetSource:
    """Load and check a cache's teacher and images; write nothing.

    Raises:
        InputError: bad settings, or a teacher that does not fit the images.
    """
    names = split_models(config.teacher)
    precision = resolve_precision(config.precision)
    data = images_of(config, default_input_size(names[0])[1:])
    classes = len(data.class_names)
    teachers = [
        load(name, classes, trained=True, seed=0, image_size=data.input_size[1:]) for name in names
    ]
    data = aligned(data, list(zip(names, teachers, strict=True)))
    if config.gradient and is_multi_label(data.train.labels):
        raise InputError(
            f"the images of {data.name} are of several classes each, and the gradient is of the "
            "loss of one; leave --gradient out"
        )
    data, teachers = channels_matched(data, teachers)
    data = augmented(decoded_for(data, teachers[0], teachers[1:]), config)
    example = as_input(data.train.pixels(np.arange(1)))
    for teacher in teachers:
        try_out(teacher, data, example)
        if config.channels_last:
            to_channels_last(teacher.network)
    points = recommended_points(teachers, data)
    if config.points != "auto":
        points = [point.strip() for point in config.points.split(",")]
    return TargetSource.of(
        data,
        teachers,
        [TargetField(point, map_reduction(config.map, config.power)) for point in points],
        gradient=config.gradient,
        data_seed=config.data_seed,
        views=config.views,
        precision=precision,
        workers=config.workers,
    )


def build_cache(
    config: CacheConfig, done: Callable[[int, int], None] = lambda _whole, _all: None
) -> TargetCache:
    """Build a cache, or the rest of one that was begun, and return it.

    Args:
        config: of the cache.
        done: called with the number of whole shards and of all shards, after each.

    Raises:
        InputError: bad settings, a folder with something else in it, or too small a disk.
        TrainingError: the disk became full, or an image cannot be read.
    """
    source = target_source(config)
    cache = TargetCache.create(config.cache, source.contents)
    check_room_for_rest(cache)
    if cache.missing():
        with _helped(config):
            source.build(cache, done)
    return cache


@contextmanager
def _helped(config: CacheConfig) -> Iterator[None]:
    """Start helping processes for the block; all share the threads and build until all is done."""
    threads = torch.get_num_threads()
    share = max(1, threads // config.processes)
    context = multiprocessing.get_context("spawn")
    others: list[SpawnProcess] = []
    try:
        for _ in range(config.processes - 1):
            arguments = (config.replace(processes=1), share, trusted())
            other = context.Process(target=_help, args=arguments)
            other.start()
            others.append(other)
        torch.set_num_threads(share)
        yield
        for other in others:
            other.join(timeout=10)
    finally:
        torch.set_num_threads(threads)
        for other in others:
            other.terminate()
            other.join()


def _help(config: CacheConfig, threads: int, trust: frozenset[str]) -> None:
    """Build in a helping process; it ends with its parent, which reports any fault."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with suppress(InputError, TrainingError), trusting(trust):
        build_cache(config)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)  # whatever the main thread is doing; loader workers end with this process
