"""Whole training runs with data: images a second, and after how many runs a cache pays off."""

import math
import statistics
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from attention_transfer import training
from attention_transfer.benchmark.data_wait import without_warm_up
from attention_transfer.benchmark.document import Case, Measured
from attention_transfer.benchmark.figures import ratio, spread
from attention_transfer.benchmark.processes import in_own_process
from attention_transfer.benchmark.steps import check_pairs, pair_name
from attention_transfer.benchmark.timing import Progress, interleave
from attention_transfer.cache import build_cache
from attention_transfer.config import (
    BenchmarkConfig,
    CacheConfig,
    DistillConfig,
    ImagesConfig,
    RunConfig,
)
from attention_transfer.data import load_data

__all__ = ["images_per_second", "measure", "run_configs", "seconds_to_build_cache"]

NOTES = (
    "images a second of training, with data and optimizer, in epochs after the first; every run "
    "has its own process, and the kinds of run are interleaved",
    "a run's seconds are those of its training; the cache is built once, for runs of that many "
    "epochs",
)


def measure(config: BenchmarkConfig, progress: Progress) -> Measured:
    """Measure the runs of each pair.

    Raises:
        InputError: a network or the data set is unknown, or the networks of a pair do not fit.
    """
    check_pairs(config.pairs)
    images = config.epochs * len(load_data(config.data).train)
    cases = {}
    for pair in config.pairs:
        progress(f"run: {pair_name(pair)}")
        cases[pair_name(pair)] = _measure_pair(pair, config, images)
    return Measured(cases=cases, notes=NOTES)


def _measure_pair(pair: str, config: BenchmarkConfig, images: int) -> Case:
    with TemporaryDirectory() as folder:
        configs = run_configs(pair, config, Path(folder) / "cache")
        cache_seconds = in_own_process(seconds_to_build_cache, configs["cached"])
        runs = {
            name: partial(in_own_process, images_per_second, run) for name, run in configs.items()
        }
        rates = interleave(runs, config.runs, warm_up=0)
    seconds = {
        name: statistics.median([images / rate for rate in values])
        for name, values in rates.items()
    }
    return Case(
        images_per_second={name: spread(values) for name, values in rates.items()},
        ratios={
            "cached_over_live": ratio(rates["cached"], rates["live"]),
            "cached over student": ratio(rates["cached"], rates["student"]),
            "live over student": ratio(rates["live"], rates["student"]),
        },
        figures={
            **{f"seconds of a run, {name}": value for name, value in seconds.items()},
            "seconds to build the cache": cache_seconds,
            "runs until the cache has paid": runs_until_paid(
                cache_seconds, seconds["live"], seconds["cached"]
            ),
        },
    )


def run_configs(pair: str, config: BenchmarkConfig, cache: Path) -> dict[str, RunConfig]:
    """Return the configurations of a pair's runs: student alone, live teacher, cached targets."""
    student, teacher = pair.split(":")
    common: dict[str, Any] = {
        "data": config.data,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "precision": config.precision,
        "compile": config.compile,
        "lr": 0.02,  # low enough that no run diverges with an untrained teacher
        "probes": 0,
        "report": False,
    }
    live = DistillConfig(teacher=f"{teacher}@random", student=student, **common)
    return {
        "student": RunConfig(student=student, **common),
        "live": live,
        "cached": live.replace(cache=cache),
    }


def seconds_to_build_cache(config: RunConfig) -> float:
    """Build the cache of a run with ``cache``, and return the seconds it took."""
    images = {name: getattr(config, name) for name in ImagesConfig.model_fields}
    cache = CacheConfig(cache=config.cache, teacher=config.teacher, views=config.epochs, **images)
    start = time.perf_counter()
    build_cache(cache)
    return time.perf_counter() - start


def images_per_second(config: RunConfig) -> float:
    """Train a run, and return the median images a second of its epochs after the first."""
    with TemporaryDirectory() as folder:
        rows = without_warm_up(training.run(config.replace(out=Path(folder) / "run")).metrics)
        return statistics.median(row.images_per_second for row in rows)


def runs_until_paid(cache: float, live: float, cached: float) -> int | None:
    """Return after how many runs a cache has saved its own build time, or None if never.

    Args:
        cache: seconds to build the cache.
        live: seconds of a run with a live teacher.
        cached: seconds of a run with cached targets.

    >>> runs_until_paid(cache=25.0, live=20.0, cached=10.0)
    3
    """
    saved = live - cached
    return math.ceil(cache / saved) if saved > 0 else None
