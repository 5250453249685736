"""Training speed beside other ways to the same training: torchdistill, and the usual loop.

    pip install 'torchdistill>=1.1.5'
    python benchmarks/peers.py [--pairs S:T ...] [--runs 3] [--repetitions 20] [--out FILE]

Prints one JSON document, in the format of ``attention-transfer benchmark``. Every competitor has
its own process, and their measurements are interleaved.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Literal

from pydantic import Field

from attention_transfer.benchmark.document import Case, Document, Measured, Summary
from attention_transfer.benchmark.figures import Spread, milliseconds, ratio, spread
from attention_transfer.benchmark.processes import OwnProcess, in_own_process
from attention_transfer.benchmark.runs import (
    images_per_second,
    run_configs,
    seconds_to_build_cache,
)
from attention_transfer.benchmark.steps import check_pairs, pair_name
from attention_transfer.benchmark.timing import Times, interleave
from attention_transfer.config import BenchmarkConfig
from attention_transfer.data import load_data
from attention_transfer.environment import package_versions
from attention_transfer.errors import InputError
from competitors import OTHERS, OURS, check_installed, epoch_rate, first_loss, step_seconds


class PeersConfig(BenchmarkConfig):
    """The settings of this script, which are those of ``benchmark step`` and ``run``."""

    what: Literal["peers"] = Field("peers")  # type: ignore[assignment]


class PeersDocument(Document):
    """The JSON document of this script, checked like those of the command."""

    SUMMARIES: ClassVar[Mapping[str, Summary]] = {
        "peers": {f"{ours}_over_{other}": min for ours in OURS for other in OTHERS}
    }
    OF_PAIRS: ClassVar[tuple[str, ...]] = ("peers",)

    settings: PeersConfig


def main() -> None:
    """Measure each pair, print the JSON document, and write it if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--pairs", nargs="+", metavar="STUDENT:TEACHER")
    for flag in ("batch-size", "repetitions", "runs", "precision", "data", "epochs", "out"):
        parser.add_argument(f"--{flag}")
    parser.add_argument("--compile", action="store_true")
    try:
        config = PeersConfig.checked(vars(parser.parse_args()))
        document = PeersDocument.create(config, measure(config))
    except InputError as error:
        parser.error(str(error))
    text = json.dumps(document.as_json(), indent=2)
    if config.out is not None:
        config.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(config: PeersConfig) -> Measured:
    """Measure the steps and the runs of each pair.

    Raises:
        InputError: torchdistill is not installed, a network or the data set is unknown, or the
            networks of a pair do not fit.
    """
    check_installed()
    check_pairs(config.pairs)
    load_data(config.data)
    cases = {pair_name(pair): _measure_pair(pair, config) for pair in config.pairs}
    version = package_versions(("torchdistill",))["torchdistill"]
    notes = (
        f"torchdistill {version} and the plain loop: float32 and contiguous, as they come, on the "
        "same networks, batches and optimizer; the teacher in eval mode",
        "ratios are of images a second in runs with data; those of steps are on a ready batch, "
        "with the optimizer's step",
        "every competitor has its own process, and their measurements are interleaved",
    )
    return Measured(cases=cases, notes=notes)


def _measure_pair(pair: str, config: PeersConfig) -> Case:
    with ExitStack() as stack:
        processes = {name: stack.enter_context(OwnProcess()) for name in (*OTHERS, *OURS)}
        losses: dict[str, float | None] = {
            f"first loss, {name}": process.call(first_loss, name, pair, config)
            for name, process in processes.items()
        }
        steps = {
            name: partial(process.call, step_seconds, name, pair, config)
            for name, process in processes.items()
        }
        times = interleave(steps, config.repetitions)
        rates = _rates(pair, config, {name: processes[name] for name in OTHERS})
    return Case(
        milliseconds=milliseconds(times),
        images_per_second={name: spread(values) for name, values in rates.items()},
        ratios=peer_ratios(times, rates),
        figures=losses,
    )


def _rates(pair: str, config: PeersConfig, others: dict[str, OwnProcess]) -> Times:
    """Return images a second by round: of the others' epochs, and of our runs."""
    epochs = {name: count() for name in others}
    with TemporaryDirectory() as folder:
        configs = run_configs(pair, config, Path(folder) / "cache")
        in_own_process(seconds_to_build_cache, configs["cached"])
        measurements: dict[str, Callable[[], float]] = {
            name: lambda name=name, process=process: process.call(  # type: ignore[misc]
                epoch_rate, name, pair, config, next(epochs[name])
            )
            for name, process in others.items()
        }
        for name in OURS:
            measurements[name] = partial(in_own_process, images_per_second, configs[name])
        return interleave(measurements, config.runs, warm_up=0)


def peer_ratios(times: Times, rates: Times) -> dict[str, Spread]:
    """Return how many times as fast ours is as the others, in runs and in steps alone."""
    ratios = {
        f"{ours}_over_{other}": ratio(rates[ours], rates[other])
        for ours in OURS
        for other in OTHERS
    }
    for ours in OURS:
        for other in OTHERS:
            ratios[f"steps: {ours} over {other}"] = ratio(times[other], times[ours])
    return ratios


if __name__ == "__main__":
    main()
