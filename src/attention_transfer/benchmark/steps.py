"""Training steps: the student alone, live and cached, and each optimization turned off in turn."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from attention_transfer.benchmark.document import Case, Measured
from attention_transfer.benchmark.figures import Spread, milliseconds, ratio, spread
from attention_transfer.benchmark.memory import memory_in_use, peak_memory, reset_peak_memory
from attention_transfer.benchmark.modes import Setting, StepBenchmark, make_step
from attention_transfer.benchmark.processes import in_own_process
from attention_transfer.benchmark.timing import Action, Progress, Times, interleave, timed
from attention_transfer.config import BenchmarkConfig
from attention_transfer.environment import keep_freed_memory, resolve_precision
from attention_transfer.errors import InputError
from attention_transfer.models import build

__all__ = ["check_pairs", "measure", "pair_name"]

Kind = tuple[str, str, int, Setting]
"""A kind of step: mode, pair, batch size and setting."""

TURNED_OFF: dict[str, dict[str, object]] = {
    "teacher not folded": {"folded": False},
    "contiguous": {"channels_last": False},
    "fp32": {"precision": "fp32"},
    "map and loss by autograd": {"fused": False},
    "not compiled": {"compiled": False},
}
"""Name -> the change of the setting that turns one optimization off."""

NOTES = (
    "a step is forward and backward; teacher is its forward pass alone: the whole network, not "
    "folded, in eval mode without gradients",
    "cached_over_student: cached targets over the student alone, both compiled or both not, "
    "whichever is faster for the student",
    "live_over_floor: a live teacher over (student alone + teacher)",
    "every pair has its own process, in which all kinds of step are interleaved",
    "peak memory is that of uncompiled steps, above a process that has imported everything",
)


def measure(config: BenchmarkConfig, progress: Progress) -> Measured:
    """Measure the steps of each pair.

    Raises:
        InputError: a network is unknown, or the networks of a pair do not fit.
    """
    check_pairs(config.pairs)
    cases = {}
    for pair in config.pairs:
        progress(f"step: {pair_name(pair)}")
        cases[pair_name(pair)] = _measure_pair(pair, config)
    return Measured(cases=cases, notes=NOTES)


def pair_name(pair: str) -> str:
    """Return a pair's name in a document.

    >>> pair_name("wrn-16-1:wrn-16-2")
    'wrn-16-1 from wrn-16-2'
    """
    return pair.replace(":", " from ")


def check_pairs(pairs: tuple[str, ...]) -> None:
    """Check that the networks of each pair declare the same attention points.

    Raises:
        InputError: a network is unknown, or the points differ.
    """
    for pair in pairs:
        with torch.device("meta"):
            networks = [build(name, classes=10) for name in pair.split(":")]
        points = [getattr(network, "attention_points", ()) for network in networks]
        if not points[0] or points[0] != points[1]:
            raise InputError(
                f"the networks of {pair} do not declare the same attention points; choose two "
                "built-in networks of one family, such as wrn-16-1:wrn-16-2"
            )


def step_kinds(config: BenchmarkConfig) -> dict[str, tuple[str, Setting]]:
    """Return the mode and the setting of each kind of step, by its name in the document."""
    full = Setting(resolve_precision(config.precision), compiled=config.compile)
    kinds = {mode: (mode, full) for mode in ("student", "teacher", "live", "cached")}
    if config.compile:
        kinds["student, not compiled"] = "student", replace(full, compiled=False)
    for name, change in TURNED_OFF.items():
        setting = replace(full, **change)  # type: ignore[arg-type]
        if setting == full:
            continue
        kinds[f"live, {name}"] = "live", setting
        if setting.folded:  # folding does not affect a step without a teacher pass
            kinds[f"cached, {name}"] = "cached", setting
    return kinds


def _measure_pair(pair: str, config: BenchmarkConfig) -> Case:
    kinds = {
        name: (mode, pair, config.batch_size, setting)
        for name, (mode, setting) in step_kinds(config).items()
    }
    peaks = {
        name: in_own_process(added_memory, *kind) for name, kind in kinds.items() if config.memory
    }
    times = in_own_process(step_times, kinds, config.repetitions)
    return Case(milliseconds=milliseconds(times), ratios=step_ratios(times), peak_megabytes=peaks)


def step_ratios(times: Times) -> dict[str, Spread]:
    """Return the ratios of one pair's step times."""
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


def added_memory(mode: str, pair: str, batch_size: int, setting: Setting) -> float:
    """Return the megabytes that a step adds at its peak to this process, networks included."""
    setting = replace(setting, compiled=False)
    make_step(mode, StepBenchmark(pair, 2, setting))()  # loads the code that a step needs
    reset_peak_memory()
    before = memory_in_use()
    step = make_step(mode, StepBenchmark(pair, batch_size, setting))
    step()
    reset_peak_memory()
    step()
    return peak_memory() - before


def step_times(kinds: Mapping[str, Kind], repetitions: int) -> Times:
    """Return the seconds of each kind of step, interleaved.

    Each timed step follows another of its kind, as in training, so that it finds its own data in
    the CPU's caches and in malloc's free lists.
    """
    keep_freed_memory()
    steps = {
        name: make_step(mode, StepBenchmark(pair, batch_size, setting))
        for name, (mode, pair, batch_size, setting) in kinds.items()
    }

    def second_step(step: Action) -> float:
        step()
        return timed(step)()

    return interleave(
        {name: partial(second_step, step) for name, step in steps.items()}, repetitions
    )
