"""Loader workers: processes that decode images ahead, into memory shared with the main one."""

import errno
import math
import mmap
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from attention_transfer.data.augmentation import WithAugmentation, targets
from attention_transfer.data.images import Images, ImageSet
from attention_transfer.data.randomness import AugmentedView
from attention_transfer.errors import TrainingError, first_line, first_problems

__all__ = ["LoaderWorkerError", "Share", "loaded"]

PREFETCHED = 4
"""Batches that each worker prepares ahead."""

TIMEOUT = 300
"""Seconds to wait for a batch before the workers count as hanging."""

CHECK_SECONDS = 2
"""Between two looks at whether the workers are alive, while a batch is waited for."""

LOCKS = 3
"""Locks in a queue. A loader has a queue for each worker, one for the results, and an event, which
has as many locks as two queues.
"""


class LoaderWorkerError(TrainingError):
    """A loader worker ended or hangs, or none can be started."""


class Share(NamedTuple):
    """The samples of a batch that this process loads."""

    indices: NDArray[np.int64]
    view: AugmentedView | None
    total: int


_Loaded = tuple[Tensor, NDArray[Any]]
"""Pixels (n, H, W, C), and labels (n,) or (n, classes). A worker sends arrays, which are in
the message itself; a tensor would come by way of a file descriptor.
"""


def _in_memory(images: Images) -> bool:
    """Return whether an image takes microseconds, so that a batch is made in one go."""
    return isinstance(images.images if isinstance(images, WithAugmentation) else images, ImageSet)


def _load(images: Images, share: Share, reached: Callable[[int], None]) -> _Loaded:
    """Load the samples of a share; ``reached`` is called with the index of each before that.

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


class _ShareDataset(Dataset[tuple[tuple[int, ...] | NDArray[Any], NDArray[Any]] | TrainingError]):
    """Load shares of batches in workers, into memory that they share with the main process.

    Share number k is written to slot k modulo their number. When a worker gets that share, the one
    before it in the slot has been used: there is a slot more than shares are prepared ahead.

    A TrainingError is returned rather than raised: the loader would replace it by another error.
    Each worker notes its process id and the sample that it loads, to be named if it exits.
    """

    def __init__(self, images: Images, workers: int, samples: int) -> None:
        self.images = images
        self.slot_count = workers * PREFETCHED + 1
        self.dtype = images.dtype
        size = samples * math.prod(images.size) * images.channels * self.dtype.itemsize
        self.slots = _shared_bytes(self.slot_count * size).view(self.slot_count, size)
        self.current = _shared_bytes(workers * 16).view(torch.int64).view(workers, 2)

    def __getitem__(
        self, numbered: tuple[int, Share]
    ) -> tuple[tuple[int, ...] | NDArray[Any], NDArray[Any]] | TrainingError:
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
        if pixels.dtype != self.dtype or pixels.nbytes > len(slot):
            return pixels.numpy(), labels
        slot[: pixels.nbytes].copy_(pixels.flatten().view(torch.uint8))
        return tuple(pixels.shape), labels

    def read(self, number: int, pixels: tuple[int, ...] | NDArray[Any]) -> Tensor:
        """Return the pixels of a share, which a later one overwrites.

        Args:
            number: of the share.
            pixels: their shape; or themselves, if they did not fit into the slot.
        """
        if isinstance(pixels, np.ndarray):
            return torch.from_numpy(pixels)
        size = math.prod(pixels) * self.dtype.itemsize
        return self.slots[number % self.slot_count][:size].view(self.dtype).view(pixels)

    def fault(self, number: int, exit_code: int | None) -> str:
        """Describe how a worker with a process id ended."""
        samples = {pid: sample for pid, sample in self.current.tolist() if sample >= 0}
        at = f" while it loaded {self.images.name(samples[number])}" if number in samples else ""
        if exit_code is None or exit_code >= 0:
            return f"a loader worker ended with exit code {exit_code}{at}"
        name = signal.Signals(-exit_code).name
        if name == "SIGKILL":
            return (
                f"a loader worker was killed (SIGKILL){at}, as happens when memory runs out; "
                "fewer --workers or a smaller --batch-size need less"
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


def loaded(
    images: Images, shares: Iterator[Share], workers: int, samples: int
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
        # The loader's locks and pipes: one that fails halfway would write a traceback.
        locks = [multiprocessing.Semaphore() for _ in range(LOCKS * (workers + 3))]
        pipes = [multiprocessing.Pipe() for _ in range(workers + 3)]
        del locks, pipes
        iterator = iter(loader)
        with _no_child_handler():
            processes = {child.pid or 0: child for child in multiprocessing.active_children()}
            for number in count():
                try:
                    loaded = _next(iterator, dataset, processes)
                except LoaderWorkerError:
                    # One that hangs or is stopped would keep this process from ending. Its end is
                    # waited for here, where PyTorch's handler of it is off.
                    for process in processes.values():
                        process.kill()
                        process.join(CHECK_SECONDS)
                    raise
                if loaded is None:
                    return
                if isinstance(loaded, TrainingError):
                    raise loaded
                pixels, labels = loaded
                yield dataset.read(number, pixels), labels
    except OSError as error:
        full = "/dev/shm is full (docker run --shm-size 1g makes it larger); "
        raise LoaderWorkerError(
            f"loader workers cannot be started: {error.strerror or error}; "
            f"{full if error.errno == errno.ENOSPC else ''}use fewer --workers, or --workers 0"
        ) from None


def _next(iterator: Iterator[Any], dataset: _ShareDataset, processes: Mapping[int, Any]) -> Any:
    """Return what the loader has next, or None at its end.

    Raises:
        LoaderWorkerError: a worker has exited, or hangs.
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
                reason = f"no loader worker has finished a batch in {TIMEOUT} s"
                reason += f"; at {names}" if at else ""
            raise LoaderWorkerError(
                f"{reason}; resume the run, with --workers 0 if it happens again"
            ) from None


@contextmanager
def _no_child_handler() -> Iterator[None]:
    """Leave out PyTorch's handler of SIGCHLD, which raises wherever the main process is.

    A worker that has exited is noticed when its batch is waited for. Other threads than the main
    one cannot change handlers.
    """
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    ours = getattr(handler, "__module__", "") == "torch.utils.data._utils.signal_handling"
    if not ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
