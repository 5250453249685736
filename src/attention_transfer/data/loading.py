"""Batches of images, decoded in this process or by loader workers."""

import math
import os
from collections.abc import Generator, Iterable, Iterator
from itertools import tee
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.data.images import Images, ImageSet
from attention_transfer.data.loader_workers import Share, loaded
from attention_transfer.data.randomness import AugmentedView, permutation
from attention_transfer.data.views import Augmentation

__all__ = [
    "Batch",
    "EpochPass",
    "as_input",
    "batch_bounds",
    "batches",
    "epoch_order",
    "resolve_workers",
    "stream",
]


class Batch(NamedTuple):
    """One process's share of a batch."""

    images: Tensor
    """(N, C, H, W) float32 in [0, 1], in channels_last memory format."""
    labels: Tensor
    """(N,) class indices; of mixed images (N, classes), their shares of the classes."""
    indices: NDArray[np.int64]
    """(N,) the samples' indices in their set."""
    total: int
    """The number of images in the batch over all processes."""


class EpochPass(NamedTuple):
    """One pass over images."""

    order: NDArray[np.int64]
    """Indices of the samples, in the order of the pass."""
    view: AugmentedView | None
    """The augmented view of each; None: the images as they are evaluated."""
    first_batch: int = 0
    """The batch to begin with, from 0; those before it are left out."""


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order in which an epoch visits the samples: a function of (seed, epoch).

    >>> sorted(epoch_order(3, seed=0, epoch=1).tolist())
    [0, 1, 2]
    """
    return permutation(count, "order", seed, epoch)


def batch_bounds(count: int, batch_size: int, processes: int = 1) -> list[tuple[int, int]]:
    """Return where each batch of an epoch starts and ends.

    A last batch of fewer samples than processes, or of a single one, which batch norm may refuse,
    is joined to the one before it.

    >>> batch_bounds(9, batch_size=4)
    [(0, 4), (4, 9)]
    """
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and count - starts[-1] < max(2, processes):
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


def batches(
    images: Images,
    order: NDArray[np.int64],
    batch_size: int,
    *,
    view: AugmentedView | None = None,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Yield the images in an order, batch by batch, every sample exactly once.

    A batch is the same set of samples for any number of processes, each of which gets its share,
    and the same pixels for any number of workers.

    Args:
        images: the images.
        order: indices of the samples.
        batch_size: images in a batch, over all processes.
        view: the augmented view of each sample; None: the images as they are evaluated.
        process: index of this process.
        processes: number of processes that share each batch.
        workers: loader workers, which decode ahead; 0: decode in this process.
        device: where to put images and labels; the CPU by default.

    Raises:
        TrainingError: an image cannot be decoded, or a worker exits or hangs.
    """
    return stream(
        images,
        [EpochPass(order, view)],
        batch_size,
        process=process,
        processes=processes,
        workers=workers,
        device=device,
    )


def stream(
    images: Images,
    passes: Iterable[EpochPass],
    batch_size: int,
    *,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
    device: torch.device | None = None,
) -> Generator[Batch]:
    """Yield the batches of several passes, one after the other, as :func:`batches` does of one.

    Workers continue from one pass to the next: during evaluation after an epoch they decode the
    next epoch's first batches. Close the generator to stop the workers before the end.

    Args:
        images: the images.
        passes: read one by one, a few batches ahead.
        batch_size: images in a batch, over all processes.
        process: index of this process.
        processes: number of processes that share each batch.
        workers: loader workers, which decode ahead; 0: decode in this process.
        device: where to put images and labels; the CPU by default.

    Raises:
        TrainingError: an image cannot be decoded, or a worker exits or hangs.
    """
    device = device or torch.device("cpu")
    shares, ahead = tee(_shares(passes, batch_size, process, processes))
    samples = math.ceil((batch_size + max(2, processes)) / processes)  # the most of a share
    each = loaded(images, ahead, workers, samples)
    for share, (pixels, labels) in zip(shares, each, strict=True):
        # Bytes are copied to the device, and become floating-point there: a quarter of the traffic.
        inputs = as_input(_moved(pixels, device))
        yield Batch(inputs, _moved(torch.from_numpy(labels), device), share.indices, share.total)


def as_input(pixels: Tensor) -> Tensor:
    """Convert pixels to float32 in [0, 1], channels_last in memory.

    Args:
        pixels: (N, H, W, C), uint8 or floating-point from 0 to 1.

    Returns:
        (N, C, H, W), a copy.
    """
    images = pixels.permute(0, 3, 1, 2).float()
    return images.div_(255) if pixels.dtype == torch.uint8 else images.clone()


def resolve_workers(workers: int | None, images: Images) -> int:
    """Return the number of loader workers.

    Images in memory without more than crops and flips need none. Otherwise it is the number that
    the user set, or by default one less than there are cores, from 1 to 8.

    >>> resolve_workers(4, ImageSet(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1)))
    0
    """
    if isinstance(images, ImageSet) and isinstance(images.augmentation, Augmentation):
        return 0
    return min(8, max(1, _cores() - 1)) if workers is None else workers


def _cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _shares(
    passes: Iterable[EpochPass], batch_size: int, process: int, processes: int
) -> Iterator[Share]:
    for order, view, first_batch in passes:
        for start, end in batch_bounds(len(order), batch_size, processes)[first_batch:]:
            yield Share(order[start:end][process::processes], view, end - start)


def _moved(part: Tensor, device: torch.device) -> Tensor:
    """Start to copy a tensor to a device; from pinned memory a GPU copies it by itself."""
    if device.type == "cuda":
        return part.pin_memory().to(device, non_blocking=True)
    return part.to(device)
