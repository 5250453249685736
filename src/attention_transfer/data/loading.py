"""Batches of images, decoded in this process or by loader workers."""

import math
import mmap
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count, tee
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from attention_transfer.data.augmentation import WithAugmentation, targets
from attention_transfer.data.images import Images, ImageSet
from attention_transfer.data.randomness import AugmentedView, permutation
from attention_transfer.data.views import Augmentation
from attention_transfer.errors import TrainingError, first_line, first_problems

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
"""Batches that each worker prepares ahead."""

TIMEOUT = 300
"""Seconds to wait for a batch before the workers count as hanging."""

CHECK_SECONDS = 2
"""Between two looks at whether the workers are alive, while a batch is waited for."""


LOCKS = 3
"""Of a queue; a loader has a queue for each worker, one more, and an event as large as two."""


class Batch(NamedTuple):
    """One process's share of a batch."""

    images: Tensor
    """(N, 3, H, W) float32 in [0, 1], in channels_last memory format."""
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
    loaded = _loaded(images, ahead, workers, samples)
    for share, (pixels, labels) in zip(shares, loaded, strict=True):
        # Bytes are copied to the device, and become floating-point there: a quarter of the traffic.
        inputs = as_input(_moved(pixels, device))
        yield Batch(inputs, _moved(torch.from_numpy(labels), device), share.indices, share.total)


def as_input(pixels: Tensor) -> Tensor:
    """Convert (N, H, W, 3) uint8 to (N, 3, H, W) float32 in [0, 1], channels_last in memory."""
    return pixels.permute(0, 3, 1, 2).float().div_(255)


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


def _in_memory(images: Images) -> bool:
    """Return whether an image takes microseconds, so that a batch is made in one go."""
    return isinstance(images.images if isinstance(images, WithAugmentation) else images, ImageSet)


class _Share(NamedTuple):
    """The samples of a batch that this process loads."""

    indices: NDArray[np.int64]
    view: AugmentedView | None
    total: int


_Loaded = tuple[Tensor, NDArray[Any]]
"""Pixels (n, H, W, 3) uint8, and labels (n,) or (n, classes). Labels are an array because an array
comes from a worker in the message itself, and a tensor by way of a file descriptor.
"""


def _shares(
    passes: Iterable[EpochPass], batch_size: int, process: int, processes: int
) -> Iterator[_Share]:
    for order, view, first_batch in passes:
        for start, end in batch_bounds(len(order), batch_size, processes)[first_batch:]:
            yield _Share(order[start:end][process::processes], view, end - start)


def _moved(part: Tensor, device: torch.device) -> Tensor:
    """Start to copy a tensor to a device; from pinned memory a GPU copies it by itself."""
    if device.type == "cuda":
        return part.pin_memory().to(device, non_blocking=True)
    return part.to(device)


def _load(images: Images, share: _Share, reached: Callable[[int], None]) -> _Loaded:
    """Load the samples of a share, after telling the index of each.

    Raises:
        TrainingError: one cannot be loaded.
    """
    parts = 1 if _in_memory(images) else len(share.indices)
    pixels = []
    for indices in np.array_split(share.indices, parts):
        reached(int(indices[0]))
        try:
            pixels.append(images.pixels(indices, share.view))
        except TrainingError:
            raise
        except Exception as error:  # code of the user's: a data set, a transform
            names = first_problems([images.name(int(index)) for index in indices])
            raise TrainingError(
                f"{names} cannot be loaded: {type(error).__name__}: {first_line(error)}"
            ) from error
    return torch.cat(pixels), targets(images, share.indices, share.view).numpy()


class _ShareDataset(Dataset[tuple[tuple[int, ...] | Tensor, NDArray[Any]] | TrainingError]):
    """Load shares of batches in workers, into memory that they share with the main process.

    Share number k is written to slot k modulo their number. When a worker gets that share, the one
    before it in the slot has been used: there is a slot more than shares are prepared ahead.

    A TrainingError is returned rather than raised: the loader would replace it by another error.
    Each worker notes its process id and the sample that it loads, to be named if it exits.
    """

    def __init__(self, images: Images, workers: int, samples: int) -> None:
        self.images = images
        self.slot_count = workers * PREFETCHED + 1
        size = samples * math.prod(images.size) * 3
        self.slots = _shared_bytes(self.slot_count * size).view(self.slot_count, size)
        self.current = _shared_bytes(workers * 16).view(torch.int64).view(workers, 2)

    def __getitem__(
        self, numbered: tuple[int, _Share]
    ) -> tuple[tuple[int, ...] | Tensor, NDArray[Any]] | TrainingError:
        number, share = numbered
        worker = get_worker_info()
        assert worker is not None
        current = self.current[worker.id]
        current[0] = os.getpid()
        try:
            pixels, labels = _load(self.images, share, partial(current.__setitem__, 1))
        except TrainingError as error:
            return TrainingError(str(error))  # without its cause, which may not be picklable
        finally:
            current[1] = -1
        slot = self.slots[number % self.slot_count]
        if pixels.dtype != torch.uint8 or pixels.numel() > len(slot):
            return pixels, labels
        slot[: pixels.numel()].copy_(pixels.flatten())
        return tuple(pixels.shape), labels

    def read(self, number: int, pixels: tuple[int, ...] | Tensor) -> Tensor:
        """Return the pixels of a share, which a later one overwrites."""
        if isinstance(pixels, Tensor):
            return pixels
        return self.slots[number % self.slot_count][: math.prod(pixels)].view(pixels)

    def fault(self, number: int, exit_code: int | None) -> str:
        """Describe how a worker with a process id ended."""
        samples = {pid: sample for pid, sample in self.current.tolist() if sample >= 0}
        at = f" while it loaded {self.images.name(samples[number])}" if number in samples else ""
        if exit_code is None or exit_code >= 0:
            return f"a loader worker ended with exit code {exit_code}{at}"
        name = signal.Signals(-exit_code).name
        if name == "SIGKILL":
            return (
                f"a loader worker was killed (SIGKILL){at}, as the system does where memory runs "
                "out; fewer --workers or a smaller --batch-size need less"
            )
        return f"a loader worker was ended by {name}{at}"


def _shared_bytes(size: int) -> Tensor:
    """Return bytes that worker processes share with this one.

    Of forked workers, anonymous memory, which nothing bounds but the machine's; elsewhere, where
    only a file can be shared, PyTorch's files in /dev/shm.
    """
    if multiprocessing.get_start_method() == "fork":
        return torch.frombuffer(mmap.mmap(-1, max(1, size)), dtype=torch.uint8)[:size]
    shared: Tensor = torch.empty(size, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    return shared


def _unchanged(loaded: Any) -> Any:
    """Collate nothing: the loader would convert arrays to tensors."""
    return loaded


def _loaded(
    images: Images, shares: Iterator[_Share], workers: int, samples: int
) -> Iterator[_Loaded]:
    """Yield the pixels and labels of each share, in order; pixels are valid until the next."""
    if workers == 0:
        for share in shares:
            yield _load(images, share, lambda _: None)
        return
    try:
        dataset = _ShareDataset(images, workers, samples)
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=enumerate(shares),
            collate_fn=_unchanged,
            num_workers=workers,
            prefetch_factor=PREFETCHED,
            timeout=CHECK_SECONDS,
        )
        # The loader's locks: one that fails halfway would write a traceback.
        locks = [multiprocessing.Semaphore() for _ in range(LOCKS * (workers + 3))]
        del locks
        iterator = iter(loader)
        with _no_child_handler():
            processes = {child.pid or 0: child for child in multiprocessing.active_children()}
            for number in count():
                loaded = _next(iterator, dataset, processes)
                if loaded is None:
                    return
                if isinstance(loaded, TrainingError):
                    raise loaded
                pixels, labels = loaded
                yield dataset.read(number, pixels), labels
    except OSError as error:
        raise TrainingError(
            f"loader workers cannot be started: {error.strerror or error}; /dev/shm may be full "
            "(docker run --shm-size 1g makes it larger), or use --workers 0"
        ) from None


def _next(iterator: Iterator[Any], dataset: _ShareDataset, processes: Mapping[int, Any]) -> Any:
    """Return what the loader has next, or None at its end.

    Raises:
        TrainingError: a worker has exited, or hangs.
    """
    began = time.monotonic()
    while True:
        try:
            return next(iterator, None)
        except RuntimeError as error:
            text = str(error)
            ended = [
                dataset.fault(int(pid), processes[int(pid)].exitcode)
                for pid in re.findall(r"\d+", text)
                if "exited unexpectedly" in text and int(pid) in processes
            ]
            if ended:
                reason = ended[0]
            elif "timed out" not in text:
                reason = f"a loader worker failed: {first_line(error)}"
            elif time.monotonic() - began < TIMEOUT:
                continue
            else:
                at = [sample for _, sample in dataset.current.tolist() if sample >= 0]
                names = first_problems([dataset.images.name(sample) for sample in at])
                reason = f"no loader worker has finished a batch in {TIMEOUT} s; at {names}"
            raise TrainingError(
                f"{reason}; resume the run, with --workers 0 if it happens again"
            ) from None


@contextmanager
def _no_child_handler() -> Iterator[None]:
    """Leave out PyTorch's handler of SIGCHLD, which raises wherever the main process is.

    A worker that has exited is noticed when its batch is waited for.
    """
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    if getattr(handler, "__module__", "") != "torch.utils.data._utils.signal_handling":
        yield
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
