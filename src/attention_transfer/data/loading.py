"""Batches of images, decoded here or by workers."""

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from attention_transfer.data.augmentation import targets
from attention_transfer.data.images import Images, ImageSet, View
from attention_transfer.data.randomness import permutation
from attention_transfer.errors import TrainingError

__all__ = ["Batch", "as_input", "batch_bounds", "batches", "epoch_order", "resolve_workers"]

PREFETCHED = 4
"""Batches that each worker keeps ready."""

TIMEOUT = 300
"""Seconds to wait for a batch before a worker is taken to hang."""


class Batch(NamedTuple):
    """Images (N, 3, H, W) in [0, 1], float32 in channels_last; labels (N,), or of mixed images
    their shares of the classes (N, classes); sample indices; and how many images all processes'
    shares of the batch have together.
    """

    images: Tensor
    labels: Tensor
    indices: NDArray[np.int64]
    total: int


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch visits the samples: a function of (seed, epoch).

    >>> sorted(epoch_order(3, seed=0, epoch=1).tolist())
    [0, 1, 2]
    """
    return permutation(count, "order", seed, epoch)


def batch_bounds(count: int, batch_size: int, processes: int = 1) -> list[tuple[int, int]]:
    """Where each batch of an epoch starts and ends.

    A last batch that is too small to be shared (fewer samples than processes, or a single one,
    which batch norm may refuse) is joined to the one before it.

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
    view: View | None = None,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """The images in an order, batch by batch; every sample exactly once.

    A batch is the same set of samples for any number of processes, each of which gets its share,
    and holds the same pixels for any number of workers.

    Args:
        images: what the batches are made of.
        order: indices of the samples.
        batch_size: images in a batch, over all processes.
        view: which view of each sample; None: the images as they are judged.
        process: which of the processes this is.
        processes: how many there are.
        workers: processes that decode ahead; 0: decode here.

    Raises:
        TrainingError: an image cannot be decoded, or a worker died.
    """
    bounds = batch_bounds(len(order), batch_size, processes)
    shares = [order[start:end][process::processes] for start, end in bounds]
    loaded = _loaded(images, shares, view, workers)
    for (start, end), indices, pixels in zip(bounds, shares, loaded, strict=True):
        yield Batch(as_input(pixels), targets(images, indices, view), indices, end - start)


def as_input(pixels: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [0, 1], in channels_last memory format."""
    return pixels.permute(0, 3, 1, 2).float().div_(255)


def resolve_workers(asked: int | None, images: Images) -> int:
    """How many processes are to decode ahead: none for images in memory.

    >>> resolve_workers(4, ImageSet(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1)))
    0
    """
    if isinstance(images, ImageSet):
        return 0
    return min(8, max(1, (os.cpu_count() or 1) - 1)) if asked is None else asked


class _Batches(Dataset[Tensor | TrainingError]):
    """Batches by their samples' indices, for workers; or the fault, which would lose its name on
    its way out of the worker. Which sample each worker is at stands in shared memory.
    """

    def __init__(self, images: Images, view: View | None, workers: int) -> None:
        self.images, self.view = images, view
        self.at = torch.full((workers,), -1).share_memory_()  # type: ignore[no-untyped-call]

    def __getitem__(self, indices: NDArray[np.int64]) -> Tensor | TrainingError:
        worker = get_worker_info()
        assert worker is not None
        pixels = []
        try:
            for index in indices:
                self.at[worker.id] = int(index)
                pixels.append(self.images.pixels(np.array([index]), self.view))
        except TrainingError as error:
            return error
        return torch.cat(pixels)


def _loaded(
    images: Images, shares: list[NDArray[np.int64]], view: View | None, workers: int
) -> Iterator[Tensor]:
    if workers == 0:
        for indices in shares:
            yield images.pixels(indices, view)
        return
    made = _Batches(images, view, workers)
    loader = DataLoader(
        made,
        batch_size=None,
        sampler=shares,
        num_workers=workers,
        prefetch_factor=PREFETCHED,
        timeout=TIMEOUT,
    )
    try:
        for pixels in loader:
            if isinstance(pixels, TrainingError):
                raise pixels
            yield pixels
    except TrainingError:
        raise
    except RuntimeError as error:
        at = [images.name(index) for index in made.at.tolist() if index >= 0]
        reason = str(error).partition("\n")[0]
        raise TrainingError(
            f"a loader worker stopped at {' or '.join(at) or 'its start'}: {reason}; resume the "
            "run, with --workers 0 if it happens again"
        ) from None
