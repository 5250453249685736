"""This machine: installed packages, processor, precision, devices and memory allocation."""

import atexit
import ctypes
import os
import platform
import sys
import time
import uuid
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.constants import default_pg_timeout
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from attention_transfer.config import Precision
from attention_transfer.errors import InputError, TrainingError
from attention_transfer.torchrun import AGENT
from attention_transfer.version import __version__

__all__ = [
    "AUTOCAST",
    "EXTRAS",
    "describe_machine",
    "fast_bf16",
    "keep_freed_memory",
    "make_accelerator",
    "package_versions",
    "resolve_precision",
]

PACKAGES = (
    "attention-transfer",
    "torch",
    "torchvision",
    "accelerate",
    "timm",
    "safetensors",
    "pydantic",
    "numpy",
    "pillow",
)

EXTRAS = {
    "datasets": ("datasets",),
    "demo": ("mlxtend", "scikit-learn"),
    "metrics": ("torchmetrics",),
    "ray": ("ray",),
    "trackers": ("tensorboard", "wandb", "trackio", "mlflow"),
}
"""Extra of this package -> the packages that it installs."""

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision -> the data type of autocast; fp32 has none."""


def package_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """Return the installed version of each package; None for a missing one."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    if package == "attention-transfer":  # of the code that runs, installed or not
        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_machine() -> dict[str, object]:
    """Return the properties of this machine that speed and rounding depend on."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpus": gpus,
        "fast_bf16": fast_bf16(),
    }


def fast_bf16() -> bool:
    """Return whether the hardware computes in bf16: a GPU since Ampere, or AVX512-BF16 or AMX."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    supported = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in supported)


def resolve_precision(precision: Precision) -> Precision:
    """Return the precision to compute in: ``auto`` becomes bf16 where it is fast, else fp32.

    Raises:
        InputError: fp16 is configured and there is no GPU.
    """
    if precision == "auto":
        return "bf16" if fast_bf16() else "fp32"
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError("fp16 needs a GPU, but there is none; use --precision bf16 or fp32")
    return precision


def make_accelerator() -> Accelerator:
    """Return Accelerate's handle of devices and processes.

    Autocast is left to the training step, so that one process can train several networks in
    different precisions.
    """
    has_device = torch.cuda.is_available() or torch.backends.mps.is_available()
    if AGENT is not None and not dist.is_initialized() and not torch.backends.mps.is_available():
        _join_processes()
    accelerator = Accelerator(cpu=not has_device, mixed_precision="no")
    if accelerator.num_processes > 1:
        atexit.unregister(_leave_processes)
        atexit.register(_leave_processes)
    return accelerator


def _join_processes() -> None:
    """Join the processes that torchrun has started together with this one.

    Its agents keep one store over all restarts. A name of each start keeps what ended processes
    have left there, such as their addresses, from the processes of the next start.
    """
    store, rank, count = next(rendezvous("env://"))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    named = PrefixStore(_name_of_start(store, rank, count), store)
    dist.init_process_group(backend, store=named, rank=rank, world_size=count)


def _name_of_start(store: Store, rank: int, count: int) -> str:
    """Return a new name that all processes of this start agree on.

    The agents' counts of restarts would be none: they differ between machines. Each process says
    hello by a name that no other process had, which the first one answers with its own.

    Raises:
        TrainingError: a process did not come in time.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"attention-transfer/hello/{rank}", own)
        start: str = store.get(f"attention-transfer/answer/{own}").decode()
        store.set(f"attention-transfer/{start}/joined/{rank}", "")
        return start
    until = time.monotonic() + default_pg_timeout.total_seconds()
    missing = list(range(1, count))
    while missing:
        if time.monotonic() > until:
            raise TrainingError(f"process {missing[0]} of {count} did not start; start all again")
        for other in missing:
            if store.check([f"attention-transfer/hello/{other}"]):
                name = store.get(f"attention-transfer/hello/{other}").decode()
                store.set(f"attention-transfer/answer/{name}", own)
        time.sleep(0.02)
        missing = [
            other
            for other in missing
            if not store.check([f"attention-transfer/{own}/joined/{other}"])
        ]
    return own


def _leave_processes() -> None:
    """Close the connections to the other processes: gloo's threads can abort Python's exit."""
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def keep_freed_memory() -> None:
    """Tell glibc to keep memory that a training step frees for the next step.

    By default glibc returns large blocks to the kernel, which zeroes them page by page when they
    are needed again: measured, a quarter of a step's time on a CPU. Without glibc this does
    nothing.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_threshold, no_limit = -1, -3, 2**31 - 1
    libc.mallopt(m_trim_threshold, no_limit)
    libc.mallopt(m_mmap_threshold, 32 * 2**20)  # the largest value glibc takes
