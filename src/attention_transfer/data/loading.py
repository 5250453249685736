"""Batches of images, decoded here or by workers."""

import os
from collections.abc import Generator, Iterable, Iterator
from itertools import tee
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from attention_transfer.data.augmentation import WithAugmentation, targets
from attention_transfer.data.images import AugmentedView, Images, ImageSet
from attention_transfer.data.randomness import permutation
from attention_transfer.errors import TrainingError, first_line

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

PREFETCHED = 4
"""Batches that each worker keeps ready."""

TIMEOUT = 300
"""Seconds to wait for a batch before a worker is taken to hang."""


GONE = ConnectionError, EOFError, FileNotFoundError
"""What comes of asking a worker that is no more for the tensor it made."""


class Batch(NamedTuple):
    """Images (N, 3, H, W) in [0, 1], float32 in channels_last; labels (N,), or of mixed images
    their shares of the classes (N, classes); sample indices; and how many images all processes'
    shares of the batch have together.
    """

    images: Tensor
    labels: Tensor
    indices: NDArray[np.int64]
    total: int


class EpochPass(NamedTuple):
    """One way through the images: indices in an order, and which view of each; None: the images as
    they are judged.
    """

    order: NDArray[np.int64]
    view: AugmentedView | None


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
    view: AugmentedView | None = None,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
    device: torch.device | None = None,
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
        device: where images and labels are to be; the CPU by default.

    Raises:
        TrainingError: an image cannot be decoded, or a worker died.
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
    """The batches of several passes, one after the other, as :func:`batches` gives those of one.

    Workers go on from one pass to the next: while somebody looks at what the last one taught, the
    next one's first batches are decoded. Close it to let the workers go before the end.

    Args:
        images: what the batches are made of.
        passes: asked for one by one, a few batches ahead.
        batch_size: images in a batch, over all processes.
        process: which of the processes this is.
        processes: how many there are.
        workers: processes that decode ahead; 0: decode here.
        device: where images and labels are to be; the CPU by default.

    Raises:
        TrainingError: an image cannot be decoded, or a worker died.
    """
    device = device or torch.device("cpu")
    shares, ahead = tee(_shares(passes, batch_size, process, processes))
    made = _made(images, ahead, workers, pinned=device.type == "cuda")
    for share, (pixels, labels) in zip(shares, made, strict=True):
        # As bytes, which are a quarter of the numbers to copy.
        given = as_input(_moved(pixels, device))
        yield Batch(given, _moved(torch.from_numpy(labels), device), share.indices, share.total)


def as_input(pixels: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [0, 1], in channels_last memory format."""
    return pixels.permute(0, 3, 1, 2).float().div_(255)


def resolve_workers(asked: int | None, images: Images) -> int:
    """How many processes are to make batches ahead.

    None where that takes no time: for images in memory, unless RandAugment changes or others are
    mixed into them. Else, by default, one for each core but one, from 1 to 8.

    >>> resolve_workers(4, ImageSet(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1)))
    0
    """
    slow = isinstance(images, WithAugmentation) and (images.mixes or images.randaugment is not None)
    if _in_memory(images) and not slow:
        return 0
    return min(8, max(1, _cores() - 1)) if asked is None else asked


def _cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_memory(images: Images) -> bool:
    return isinstance(images.images if isinstance(images, WithAugmentation) else images, ImageSet)


class _Share(NamedTuple):
    """What this process gets of a batch."""

    indices: NDArray[np.int64]
    view: AugmentedView | None
    total: int


_Made = tuple[Tensor, NDArray[Any]]
"""Pixels (n, H, W, 3) uint8, and what they are to be taken for. A tensor comes from a worker by way
of a file descriptor, an array in the message itself.
"""


def _shares(
    passes: Iterable[EpochPass], batch_size: int, process: int, processes: int
) -> Iterator[_Share]:
    for order, view in passes:
        for start, end in batch_bounds(len(order), batch_size, processes):
            yield _Share(order[start:end][process::processes], view, end - start)


def _moved(part: Tensor, device: torch.device) -> Tensor:
    """On its way to a device: a graphics processor fetches it from pinned memory by itself."""
    if device.type == "cuda":
        return part.pin_memory().to(device, non_blocking=True)
    return part.to(device)


class _Shares(Dataset[_Made | TrainingError]):
    """Shares of batches, for workers; or the fault, which would lose its name on its way out of
    the worker. Which sample each worker is at stands in shared memory.
    """

    def __init__(self, images: Images, workers: int) -> None:
        self.images = images
        self.at = torch.full((workers,), -1).share_memory_()  # type: ignore[no-untyped-call]

    def __getitem__(self, share: _Share) -> _Made | TrainingError:
        worker = get_worker_info()
        assert worker is not None
        parts = 1 if _in_memory(self.images) else len(share.indices)
        pixels = []
        try:
            for indices in np.array_split(share.indices, parts):
                self.at[worker.id] = int(indices[0])
                pixels.append(self.images.pixels(indices, share.view))
        except TrainingError as error:
            return error
        return torch.cat(pixels), targets(self.images, share.indices, share.view).numpy()


def _as_it_is(made: Any) -> Any:
    """For the loader, which would make tensors of arrays."""
    return made


def _made(images: Images, shares: Iterator[_Share], workers: int, pinned: bool) -> Iterator[_Made]:
    if workers == 0:
        for indices, view, _ in shares:
            yield images.pixels(indices, view), targets(images, indices, view).numpy()
        return
    dataset = _Shares(images, workers)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=shares,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=PREFETCHED,
        timeout=TIMEOUT,
        pin_memory=pinned,
    )
    try:
        for made in loader:
            if isinstance(made, TrainingError):
                raise made
            yield made
    except TrainingError:
        raise
    except (RuntimeError, *GONE) as error:
        at = [images.name(index) for index in dataset.at.tolist() if index >= 0]
        reason = "it exited" if isinstance(error, GONE) else first_line(error)
        raise TrainingError(
            f"a loader worker stopped at {' or '.join(at) or 'its start'}: {reason}; resume the "
            "run, with --workers 0 if it happens again"
        ) from None
