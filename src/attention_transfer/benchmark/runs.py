"""Whole runs with data, through the real training loop: images a second, and what a cache saves."""

import math
import statistics
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from attention_transfer import training
from attention_transfer.benchmark.data_wait import counted
from attention_transfer.benchmark.document import Case, Measured
from attention_transfer.benchmark.figures import per, ratio, spread
from attention_transfer.benchmark.modes import cache_seconds, run_configs
from attention_transfer.benchmark.processes import in_own_process
from attention_transfer.benchmark.steps import check_pairs, pair_name
from attention_transfer.benchmark.timing import Say, in_turns
from attention_transfer.config import BenchmarkConfig, RunConfig
from attention_transfer.data import load_data

__all__ = ["measure", "run_rate", "runs_until_paid"]

NOTES = (
    "images a second of training, with data and optimizer, in epochs after the first; every run "
    "has a process of its own, and they take turns",
    "a run's time is that of its training; the cache is built once, for runs of that many epochs",
)


def measure(config: BenchmarkConfig, say: Say) -> Measured:
    """Each pair in turn."""
    check_pairs(config.pairs)
    images = config.epochs * len(load_data(config.data).train)
    cases = {}
    for pair in config.pairs:
        say(f"run: {pair_name(pair)}")
        cases[pair_name(pair)] = _case(pair, config, images)
    return Measured(cases=cases, notes=NOTES)


def run_rate(config: RunConfig) -> float:
    """Images a second of a run in the middle one of its epochs that count."""
    with TemporaryDirectory() as folder:
        rows = counted(training.run(config.replace(out=Path(folder) / "run")).metrics)
        return statistics.median(row.images_per_second for row in rows)


def runs_until_paid(cache: float, live: float, cached: float) -> int | None:
    """After how many runs a cache has saved the seconds that it took; None: never.

    >>> runs_until_paid(cache=25.0, live=20.0, cached=10.0)
    3
    """
    saved = live - cached
    return math.ceil(cache / saved) if saved > 0 else None


def _case(pair: str, config: BenchmarkConfig, images: int) -> Case:
    with TemporaryDirectory() as folder:
        asked = run_configs(pair, config, Path(folder) / "cache")
        cache = in_own_process(cache_seconds, asked["cached"])
        runs = {name: partial(in_own_process, run_rate, one) for name, one in asked.items()}
        found = in_turns(runs, config.runs, warm_up=0)
    seconds = {name: statistics.median(per(images, rate)) for name, rate in found.items()}
    paid = runs_until_paid(cache, seconds["live"], seconds["cached"])
    return Case(
        images_per_second={name: spread(rate) for name, rate in found.items()},
        ratios={
            "cached_over_live": ratio(found["cached"], found["live"]),
            "cached over student": ratio(found["cached"], found["student"]),
            "live over student": ratio(found["live"], found["student"]),
        },
        figures={
            **{f"seconds of a run, {name}": value for name, value in seconds.items()},
            "seconds to build the cache": cache,
            "runs until the cache has paid": paid,
        },
    )
