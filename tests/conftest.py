"""Fixtures that several tests share: small images, short runs, and the golden option."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

import attention_transfer as at
from attention_transfer import network_inputs
from attention_transfer.data import Augmentation, DataSet, ImageSet
from attention_transfer.runs import Run
from attention_transfer.training import RunProgress

# The first example of a test may import a library; how long it takes is no property of the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="store the golden run's losses anew"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Share the cores among pytest-xdist's workers, and among the processes that tests start."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


def small_data(images: int = 48, classes: int = 3, size: int = 16) -> DataSet:
    """Images whose class is the position of a bright quarter: learnable within a few steps."""
    generator = np.random.default_rng(0)

    def split(count: int) -> ImageSet:
        labels = np.arange(count) % classes
        pixels = generator.integers(0, 60, (count, size, size, 3), dtype=np.uint8)
        half = size // 2
        for image, label in zip(pixels, labels, strict=True):
            top, left = divmod(int(label), 2)
            image[top * half : (top + 1) * half, left * half : (left + 1) * half] += 150
        return ImageSet(
            torch.from_numpy(pixels),
            torch.from_numpy(labels),
            augmentation=Augmentation(pad=2),
        )

    return DataSet(
        name="small",
        train=split(images),
        validation=split(classes * 2),
        test=split(classes * 2),
        class_names=tuple(f"class {index}" for index in range(classes)),
        mean=(0.4, 0.4, 0.4),
        std=(0.3, 0.3, 0.3),
    )


def network_of(activation: nn.Module, classes: int) -> nn.Module:
    """Return a network with one attention point; its state dict does not name the activation."""
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    return nn.Sequential(
        convolution, activation, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    )


def rectified(num_classes: int = 3) -> nn.Module:
    return network_of(nn.ReLU(), num_classes)


def bounded(num_classes: int = 3) -> nn.Module:
    return network_of(nn.Tanh(), num_classes)


def two_classes() -> nn.Module:
    return network_of(nn.ReLU(), 2)


@pytest.fixture(scope="session")
def data() -> DataSet:
    return small_data()


SMALL: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 10,
    "lr": 0.05,
    "precision": "fp32",
    "report": False,
}
"""Settings of short runs on the small images."""


def needed(there: bool, what: str, remedy: str = "'make test' installs it where it can") -> None:
    """Skip the test if a program or a right is missing, or fail it where CI is set."""
    if there:
        return
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing; {remedy}")
    pytest.skip(f"{what} is missing; {remedy}")


class Listening(RunProgress):
    """Collects the lines that are written."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def write_line(self, line: str) -> None:
        self.lines.append(line)


class CrashError(Exception):
    """What :class:`CrashAfter` raises."""


class CrashAfter(RunProgress):
    """Raises after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def step(self, images: int, figures: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise CrashError


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch, data: DataSet) -> None:
    """Make whole runs train on the small images."""
    monkeypatch.setattr(network_inputs, "load_data", lambda *_, **__: data)


@pytest.fixture
def teacher(small_runs: None) -> Run:
    return at.train(model="wrn-10-1", out="teacher", **SMALL)


@pytest.fixture(autouse=True)
def _own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Run every test in its own empty folder."""
    if not isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path)
