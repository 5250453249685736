"""The share of a step that is spent waiting for data, through the real training loop."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from attention_transfer.benchmark.document import Case, Measured
from attention_transfer.benchmark.figures import spread
from attention_transfer.benchmark.synthetic_images import cifar_files, photo_files
from attention_transfer.benchmark.timing import Say
from attention_transfer.config import BenchmarkConfig, RunConfig
from attention_transfer.runs import EpochMetrics
from attention_transfer.training import run

__all__ = ["counted", "measure"]

CIFAR_IMAGES = 2_000
"""In each of CIFAR-10's files; the real ones have 10,000."""

PHOTOS = 1_600
SMALL, DEEP = "wrn-16-1", "wrn-40-2"
NOTES = ("of each run's epochs after the first; CIFAR's layout and the JPEGs hold made images",)


def measure(config: BenchmarkConfig, say: Say) -> Measured:
    """Trains on each kind of images, and reads what the runs wrote down."""
    cases = {}
    with TemporaryDirectory() as folder, ExitStack() as files:
        for name, settings in _kinds(Path(folder), files):
            say(f"data: {name}")
            rows: list[EpochMetrics] = []
            for number in range(config.runs):
                asked = RunConfig(
                    epochs=config.epochs,
                    batch_size=config.batch_size,
                    precision=config.precision,
                    probes=0,
                    report=False,
                    out=Path(folder) / f"{name}, run {number}",
                    **settings,
                )
                rows += counted(run(asked).metrics)
            cases[name] = _case(rows)
    return Measured(cases=cases, notes=NOTES)


def counted(metrics: list[EpochMetrics]) -> list[EpochMetrics]:
    """The epochs of a run that count: of several all but the first, which warms up."""
    return metrics[1:] or metrics


def _kinds(folder: Path, files: ExitStack) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is trained on what; images are made when they are asked for."""
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
