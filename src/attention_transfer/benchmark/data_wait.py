"""The share of a training step that is spent waiting for data, in whole runs."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from attention_transfer.benchmark.document import Case, Measured
from attention_transfer.benchmark.figures import spread
from attention_transfer.benchmark.synthetic_images import cifar_files, photo_files
from attention_transfer.benchmark.timing import Progress
from attention_transfer.config import BenchmarkConfig, RunConfig
from attention_transfer.runs import EpochMetrics
from attention_transfer.training import run

__all__ = ["measure", "without_warm_up"]

CIFAR_IMAGES = 2_000
"""Synthetic images in each of CIFAR-10's files; the real ones have 10,000."""

PHOTOS = 1_600
SMALL, DEEP = "wrn-16-1", "wrn-40-2"
NOTES = ("epochs after the first; the images in CIFAR's layout and the JPEGs are synthetic",)


def measure(config: BenchmarkConfig, progress: Progress) -> Measured:
    """Train on each kind of images, and read the waiting times from the runs' records."""
    cases = {}
    with TemporaryDirectory() as folder, ExitStack() as files:
        for name, settings in _image_kinds(Path(folder), files):
            progress(f"data: {name}")
            rows: list[EpochMetrics] = []
            for number in range(config.runs):
                run_config = RunConfig(
                    epochs=config.epochs,
                    batch_size=config.batch_size,
                    precision=config.precision,
                    probes=0,
                    report=False,
                    out=Path(folder) / f"{name}, run {number}",
                    **settings,
                )
                rows += without_warm_up(run(run_config).metrics)
            cases[name] = _case(rows)
    return Measured(cases=cases, notes=NOTES)


def without_warm_up(metrics: list[EpochMetrics]) -> list[EpochMetrics]:
    """Return the epochs after the first, which warms up; a single epoch counts."""
    return metrics[1:] or metrics


def _image_kinds(folder: Path, files: ExitStack) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each case's name and run settings; its images are written just before."""
    yield f"cluttered-digits, {SMALL} at 32x32", {"student": SMALL, "data": "cluttered-digits"}
    files.enter_context(cifar_files(folder / "cifar", CIFAR_IMAGES))
    data = f"cifar10:{folder / 'cifar'}"
    yield f"CIFAR's layout, {SMALL} at 32x32", {"student": SMALL, "data": data}
    photo_files(folder / "photos", PHOTOS)
    yield (
        f"JPEGs of 500x375, 1 worker, {DEEP} at 64x64",
        {"student": DEEP, "data": f"folder:{folder / 'photos'}", "image_size": "64", "workers": 1},
    )


def _case(rows: list[EpochMetrics]) -> Case:
    shares = [row.seconds_waiting_for_data / row.seconds for row in rows]
    return Case(
        images_per_second={"training": spread([row.images_per_second for row in rows])},
        ratios={"waiting_over_step": spread(shares)},
    )
