"""Other ways to the same training: torchdistill, and the authors' formula in the usual loop."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from attention_transfer.benchmark.competitors import (
    OTHERS,
    OURS,
    check_installed,
    epoch_rate,
    first_loss,
    step_seconds,
)
from attention_transfer.benchmark.document import Case, Measured
from attention_transfer.benchmark.figures import Spread, ratio, spread
from attention_transfer.benchmark.modes import cache_seconds, run_configs
from attention_transfer.benchmark.processes import OwnProcess, in_own_process
from attention_transfer.benchmark.runs import run_rate
from attention_transfer.benchmark.steps import check_pairs, pair_name
from attention_transfer.benchmark.timing import Say, Times, in_turns
from attention_transfer.config import BenchmarkConfig
from attention_transfer.data import load_data
from attention_transfer.environment import package_versions

__all__ = ["measure"]


def measure(config: BenchmarkConfig, say: Say) -> Measured:
    """Each pair in turn.

    Raises:
        InputError: torchdistill is not installed.
    """
    check_installed()
    check_pairs(config.pairs)
    load_data(config.data)
    cases = {}
    for pair in config.pairs:
        cases[pair_name(pair)] = _case(pair, config, say)
    return Measured(cases=cases, notes=_notes())


def _case(pair: str, config: BenchmarkConfig, say: Say) -> Case:
    with ExitStack() as stack:
        processes = {name: stack.enter_context(OwnProcess()) for name in (*OTHERS, *OURS)}
        say(f"peers: {pair_name(pair)}, steps")
        losses: dict[str, float | None] = {
            f"first loss, {name}": process.call(first_loss, name, pair, config)
            for name, process in processes.items()
        }
        steps = {
            name: partial(process.call, step_seconds, name, pair, config)
            for name, process in processes.items()
        }
        times = in_turns(steps, config.repetitions)
        say(f"peers: {pair_name(pair)}, runs")
        rates = _rates(pair, config, {name: processes[name] for name in OTHERS})
    return Case(
        milliseconds={
            name: spread([1000 * time for time in seconds]) for name, seconds in times.items()
        },
        images_per_second={name: spread(found) for name, found in rates.items()},
        ratios=peer_ratios(times, rates),
        figures=losses,
    )


def _rates(pair: str, config: BenchmarkConfig, others: dict[str, OwnProcess]) -> Times:
    """Images a second by contestant and round: epochs of the others, runs of ours."""
    epochs = {name: count() for name in others}
    with TemporaryDirectory() as folder:
        asked = run_configs(pair, config, Path(folder) / "cache")
        in_own_process(cache_seconds, asked["cached"])
        measured: dict[str, Callable[[], float]] = {
            name: lambda name=name, process=process: process.call(  # type: ignore[misc]
                epoch_rate, name, pair, config, next(epochs[name])
            )
            for name, process in others.items()
        }
        measured |= {name: partial(in_own_process, run_rate, asked[name]) for name in OURS}
        return in_turns(measured, config.runs, warm_up=0)


def peer_ratios(times: Times, rates: Times) -> dict[str, Spread]:
    """How many times the images a second ours has: of runs, and of steps alone."""
    ratios = {
        f"{ours}_over_{other}": ratio(rates[ours], rates[other])
        for ours in OURS
        for other in OTHERS
    }
    for ours in OURS:
        for other in OTHERS:
            ratios[f"steps: {ours} over {other}"] = ratio(times[other], times[ours])
    return ratios


def _notes() -> tuple[str, ...]:
    version = package_versions(("torchdistill",))["torchdistill"]
    return (
        f"torchdistill {version} and the plain loop: float32, contiguous, as they come, on the "
        "same networks, batches and optimizer; the teacher in eval mode",
        "ratios are of images a second, in runs with data; those of steps are on a batch that is "
        "there, with the optimizer's step",
        "everyone has a process of its own, and they take turns",
    )
