"""Build a cache's missing shards, beside other processes that do the same."""

import errno
import time
from collections.abc import Callable

import numpy as np
import torch

from attention_transfer.cache.store import Shard, TargetCache, check_room
from attention_transfer.data import AugmentedView, Images, batches
from attention_transfer.errors import InputError, TrainingError
from attention_transfer.transfer import FrozenTeacher, TargetSpec

__all__ = ["build", "check_room_for_rest"]

BATCH = 256


def build(
    cache: TargetCache,
    images: Images,
    teacher: FrozenTeacher,
    spec: TargetSpec,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    workers: int = 0,
    done: Callable[[int, int], None] = lambda _whole, _all: None,
) -> None:
    """Compute every missing shard, each in the first process to claim it; return when all exist.

    A process that ends in between leaves whole shards alone: the next build computes the rest.

    Args:
        cache: of the images' augmented views and the teacher's answers.
        images: the training images; their views are those of training.
        teacher: the network that answers.
        spec: the cache's targets.
        dtype: of autocast; None: no autocast.
        device: to compute on.
        workers: processes that decode ahead.
        done: called with the number of whole shards and of all shards, after each.

    Raises:
        InputError: the targets would not fit on the disk, or the folder cannot be written.
        TrainingError: the disk is full, or an image cannot be read.
    """
    check_room_for_rest(cache)
    device = device or torch.device("cpu")
    total = cache.contents.shard_count
    while missing := cache.missing():
        before = len(missing)
        for shard in missing:
            try:
                with cache.claim(shard) as mine:
                    if mine:
                        rows = _rows(cache, shard, images, teacher, spec, dtype, device, workers)
                        cache.write(shard, rows)
            except OSError as error:
                raise _not_written(cache, error) from None
            if mine:
                done(total - len(cache.missing()), total)
        if len(cache.missing()) == before:
            time.sleep(0.2)  # other processes work on all that is missing


def check_room_for_rest(cache: TargetCache) -> None:
    """Raise an InputError if the missing shards would fill the disk."""
    rows = sum(map(cache.contents.rows_in, cache.missing()))
    check_room(cache.folder, rows * cache.contents.row.itemsize)


def _rows(
    cache: TargetCache,
    shard: Shard,
    images: Images,
    teacher: FrozenTeacher,
    spec: TargetSpec,
    dtype: torch.dtype | None,
    device: torch.device,
    workers: int,
) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Compute the rows of one shard."""
    contents = cache.contents
    number, start = shard
    indices = np.arange(start, start + contents.rows_in(shard))
    seed = int(contents.provenance["data seed"])
    rows = np.empty(len(indices), contents.row)
    filled = 0
    for batch in batches(images, indices, BATCH, view=AugmentedView(seed, number), workers=workers):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            targets = teacher.targets(batch.images.to(device), batch.labels.to(device), spec)
        rows[filled : filled + len(batch.indices)] = contents.pack(targets)
        filled += len(batch.indices)
    return rows


def _not_written(cache: TargetCache, error: OSError) -> InputError | TrainingError:
    total = cache.contents.shard_count
    whole = total - len(cache.missing())
    if whole == 0 or error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(
            f"cannot write to {cache.folder}: {error.strerror}; choose another folder"
        )
    return TrainingError(
        f"cannot write to {cache.folder}: {error.strerror}; {whole} of {total} shards are whole, "
        "and the same command builds the rest"
    )
