"""A step of training: the student alone, with a live teacher, with cached targets, and what each
optimisation gives.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from attention_transfer.benchmark.document import Case, Measured
from attention_transfer.benchmark.figures import Spread, ratio, spread
from attention_transfer.benchmark.memory import in_use, peak, restart_peak
from attention_transfer.benchmark.modes import Setting, StepBenchmark, stepping
from attention_transfer.benchmark.processes import in_own_process
from attention_transfer.benchmark.timing import Action, Say, Times, in_turns, timed
from attention_transfer.config import BenchmarkConfig
from attention_transfer.environment import keep_freed_memory, resolve_precision
from attention_transfer.errors import InputError
from attention_transfer.models import build

__all__ = ["check_pairs", "measure", "pair_name"]

Kind = tuple[str, str, int, Setting]
"""A mode, the pair, images in the batch, and what is switched on."""

TURNED_OFF: dict[str, dict[str, object]] = {
    "teacher not folded": {"folded": False},
    "contiguous": {"channels_last": False},
    "fp32": {"precision": "fp32"},
    "map and loss by autograd": {"fused": False},
    "not compiled": {"compiled": False},
}
"""Each optimisation turned off -> what that changes."""

NOTES = (
    "a step is forward and backward; teacher is its forward pass alone: the whole network, not "
    "folded, in eval mode without gradients, as anybody would write it",
    "cached_over_student: with cached targets over the student alone, both compiled or both not, "
    "whichever is faster for the student",
    "live_over_floor: with a live teacher over (student alone + teacher)",
    "every pair has a process of its own, in which all kinds of step take turns",
    "peak memory is above that of a process that has imported everything, of steps that are "
    "not compiled",
)


def measure(config: BenchmarkConfig, say: Say) -> Measured:
    """Each pair in turn."""
    check_pairs(config.pairs)
    cases = {}
    for pair in config.pairs:
        say(f"step: {pair_name(pair)}")
        cases[pair_name(pair)] = _case(pair, config)
    return Measured(cases=cases, notes=NOTES)


def pair_name(pair: str) -> str:
    """What a pair is called in a document.

    >>> pair_name("wrn-16-1:wrn-16-2")
    'wrn-16-1 from wrn-16-2'
    """
    return pair.replace(":", " from ")


def check_pairs(pairs: tuple[str, ...]) -> None:
    """Whether attention can be transferred between the networks of each pair.

    Raises:
        InputError: a network is not known, or the two have not the same number of points.
    """
    for pair in pairs:
        with torch.device("meta"):
            networks = [build(name, classes=10) for name in pair.split(":")]
        points = [getattr(network, "attention_points", ()) for network in networks]
        if not points[0] or points[0] != points[1]:
            raise InputError(
                f"the networks of {pair} do not declare the same points of attention; give two of "
                "the product's own, such as wrn-16-1:wrn-16-2"
            )


def settings(config: BenchmarkConfig) -> dict[str, tuple[str, Setting]]:
    """Everything that is measured on a pair: name -> mode and setting."""
    full = Setting(resolve_precision(config.precision), compiled=config.compile)
    measured = {mode: (mode, full) for mode in ("student", "teacher", "live", "cached")}
    if config.compile:
        measured["student, not compiled"] = "student", replace(full, compiled=False)
    for name, change in TURNED_OFF.items():
        changed = replace(full, **change)  # type: ignore[arg-type]
        if changed == full:
            continue
        measured[f"live, {name}"] = "live", changed
        if changed.folded:  # folding is nothing to a step that has no teacher
            measured[f"cached, {name}"] = "cached", changed
    return measured


def _case(pair: str, config: BenchmarkConfig) -> Case:
    asked = {
        name: (mode, pair, config.batch_size, setting)
        for name, (mode, setting) in settings(config).items()
    }
    peaks = {
        name: in_own_process(peak_memory, *arguments)
        for name, arguments in asked.items()
        if config.memory
    }
    times = in_own_process(step_times, asked, config.repetitions)
    return Case(
        milliseconds={
            name: spread([1000 * time for time in seconds]) for name, seconds in times.items()
        },
        ratios=step_ratios(times),
        peak_megabytes=peaks,
    )


def step_ratios(times: Times) -> dict[str, Spread]:
    """The ratios of one pair's times."""
    best = ""
    if "student, not compiled" in times:
        medians = {
            suffix: spread(times[f"student{suffix}"]).median for suffix in ("", ", not compiled")
        }
        best = min(medians, key=lambda suffix: medians[suffix])
    student = times[f"student{best}"]
    ratios = {
        "cached_over_student": ratio(times[f"cached{best}"], student),
        "live_over_floor": ratio(times[f"live{best}"], student, times["teacher"]),
    }
    for name in times:
        mode, _, turned_off = name.partition(", ")
        if turned_off and mode != "student":
            ratios[f"{name} over {mode}"] = ratio(times[name], times[mode])
    return ratios


def peak_memory(mode: str, pair: str, batch_size: int, setting: Setting) -> float:
    """What this process holds at most in a step of a mode, above what it held at first."""
    setting = replace(setting, compiled=False)
    stepping(mode, StepBenchmark(pair, 2, setting))()  # imports what the step needs
    restart_peak()
    before = in_use()
    step = stepping(mode, StepBenchmark(pair, batch_size, setting))
    step()
    restart_peak()
    step()
    return peak() - before


def step_times(asked: Mapping[str, Kind], repetitions: int) -> Times:
    """Seconds of every kind of step, in turns; each right after another of its kind, as in
    training: what the step before it left in caches and free memory is its own.
    """
    keep_freed_memory()
    steps = {
        name: stepping(mode, StepBenchmark(pair, batch_size, setting))
        for name, (mode, pair, batch_size, setting) in asked.items()
    }

    def second(step: Action) -> float:
        step()
        return timed(step)()

    return in_turns({name: partial(second, step) for name, step in steps.items()}, repetitions)
