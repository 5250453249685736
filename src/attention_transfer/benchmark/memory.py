"""Memory in use and its peak, in megabytes: the GPU's if there is one, else this process's RAM."""

import ctypes
import gc
import platform
import sys
from pathlib import Path

import torch

__all__ = ["memory_in_use", "peak_memory", "release_freed_blocks", "reset_peak_memory"]

STATUS = Path("/proc/self/status")


def memory_in_use() -> float:
    """Return the memory in use now (outside Linux and without a GPU: the peak so far)."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    return _status_entry("VmRSS") if STATUS.exists() else _peak_of_process()


def peak_memory() -> float:
    """Return the largest memory in use since the peak was reset.

    On Linux this reads ``/proc``: getrusage's peak starts, in a new process, at that of the
    process that started it.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return _status_entry("VmHWM") if STATUS.exists() else _peak_of_process()


def reset_peak_memory() -> None:
    """Release free memory, and restart the peak from the memory in use.

    Where the system does not allow it, the peak remains that of the whole process.
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


def release_freed_blocks() -> None:
    """Tell glibc to return freed blocks to the system at once; elsewhere, do nothing.

    Peaks then count the memory that is held, without malloc's free lists and fragmentation.
    """
    if platform.libc_ver()[0] == "glibc":
        m_mmap_threshold = -3
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**16)


def _status_entry(name: str) -> float:
    """Return one entry of Linux's status of this process, in megabytes."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def _peak_of_process() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)
