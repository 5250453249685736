"""What this machine is and can do, and what that means for a run."""

import ctypes
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch
from accelerate import Accelerator

from attention_transfer.config import Precision
from attention_transfer.errors import InputError

__all__ = [
    "AUTOCAST",
    "EXTRAS",
    "describe_machine",
    "devices_and_processes",
    "keep_freed_memory",
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
    "trackers": ("tensorboard", "wandb", "trackio", "mlflow"),
}
"""Extra -> the packages it brings."""


AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What a precision other than float32 computes in."""


def package_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """Installed versions by package; None for what is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def describe_machine() -> dict[str, object]:
    """The parts of the machine that figures depend on."""
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
    """Whether bf16 arithmetic is in the hardware: a GPU since Ampere, or AVX512-BF16 or AMX."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    supported = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in supported)


def resolve_precision(precision: Precision) -> Precision:
    """``auto`` as what it means here; the others as they are, if they can be had.

    Raises:
        InputError: fp16 without a GPU.
    """
    if precision == "auto":
        return "bf16" if fast_bf16() else "fp32"
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError("fp16 needs a GPU, and none is here; use --precision bf16 or fp32")
    return precision


def devices_and_processes() -> Accelerator:
    """Accelerate's; precision stays with us, so that one process can train several networks."""
    accelerators = torch.cuda.is_available() or torch.backends.mps.is_available()
    return Accelerator(cpu=not accelerators, mixed_precision="no")


def keep_freed_memory() -> None:
    """Tells glibc to keep what a step frees for the next step.

    By default large blocks go back to the kernel and come again page by page, zeroed, at every
    step: measured, a quarter of the time of a step on a CPU. Elsewhere than on glibc this does
    nothing.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_threshold, no_limit = -1, -3, 2**31 - 1
    libc.mallopt(m_trim_threshold, no_limit)
    libc.mallopt(m_mmap_threshold, 32 * 2**20)  # the largest value glibc takes
