"""Peak memory: the GPU's where one is there, else what this process has in RAM, in megabytes."""

import ctypes
import gc
import platform
import sys
from pathlib import Path

import torch

__all__ = ["give_back_at_once", "in_use", "peak", "restart_peak"]

STATUS = Path("/proc/self/status")


def in_use() -> float:
    """Memory in use now (outside Linux and without a GPU: the most so far)."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    return _account("VmRSS") if STATUS.exists() else _most_so_far()


def peak() -> float:
    """The most memory that was in use since the peak was restarted.

    Linux's own account is read, not getrusage's: the latter begins, in a new process, at what the
    process that started it had.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return _account("VmHWM") if STATUS.exists() else _most_so_far()


def restart_peak() -> None:
    """Gives back what is free, and lets the peak begin again from what is in use.

    Where the system does not let it, the peak is that since the process began.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (STATUS.parent / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def give_back_at_once() -> None:
    """Lets freed blocks go back to the system at once: peaks are then of what is held, without what
    malloc keeps or cannot put together. Elsewhere than on glibc this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        m_mmap_threshold = -3
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**16)


def _account(line: str) -> float:
    """A line of Linux's account of this process."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(text.split()[1]) for text in lines if text.startswith(line)) / 1024


def _most_so_far() -> float:
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 1024)
