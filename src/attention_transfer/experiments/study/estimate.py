"""What the missing runs of a study will take: time by measured steps, and disk."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention_transfer.config import RunConfig
from attention_transfer.experiments.study.plan import Plan, PlannedRun
from attention_transfer.model_names import run_folder, split_name
from attention_transfer.runs import Run

__all__ = ["Estimate", "KindCost", "Measure", "estimate", "kind_of"]

NOT_OF_A_KIND = (
    *("seed", "lr", "beta", "beta_schedule", "epochs", "probes", "probe_every", "test", "report"),
    *("weight_decay", "momentum", "temperature", "label_smoothing", "warmup", "schedule"),
)
"""Settings that do not change what a step costs."""

STATES_KEPT = 5
"""Weights, and two checkpoints of weights and momentum, in a run's folder."""


@dataclass(frozen=True)
class KindCost:
    """What runs of one kind take."""

    seconds_an_epoch: float
    seconds_a_view: float
    """Of building one view of the images in a cache; 0 without a cache."""
    bytes_a_view: float
    parameters: int
    """Of the student."""


Measure = Callable[[RunConfig], KindCost]


@dataclass(frozen=True)
class Estimate:
    """What the missing runs take."""

    runs: int
    kinds: int
    """Kinds of run: student, teacher, data, batch and terms."""
    seconds: float | None
    """Of all runs one after the other on this machine; None if nothing was measured."""
    cache_bytes: int | None
    run_bytes: int | None


def kind_of(run: PlannedRun) -> tuple[tuple[str, str], ...]:
    """Return what decides the cost of a step of a run."""
    settings = {name: str(value) for name, value in run.settings.items()}
    alpha = {"kd_alpha": "set"} if "kd_alpha" in settings else {}
    if settings.get("beta") == "auto":  # which measures gradients
        alpha["beta"] = "auto"
    kept = {name: text for name, text in settings.items() if name not in NOT_OF_A_KIND}
    return tuple(sorted({**kept, **alpha, "cache": str(run.cache is not None)}.items()))


def estimate(plan: Plan, finished: set[str], folder: Path, measure: Measure | None) -> Estimate:
    """Return what the runs of a study that are not finished take.

    Args:
        plan: of the study.
        finished: folders of finished runs.
        folder: of the study.
        measure: measures a few steps of a run; None: no times.
    """
    missing = [run for run in plan.all_runs if run.folder not in finished]
    kinds: dict[tuple[tuple[str, str], ...], KindCost | None] = {}
    for run in missing:
        kind = kind_of(run)
        if kind not in kinds:
            kinds[kind] = None if measure is None else measure(_measurable(run, plan, folder))
    if measure is None:
        return Estimate(len(missing), len(kinds), None, None, None)
    costs = [(run, kinds[kind_of(run)]) for run in missing]
    known = [(run, cost) for run, cost in costs if cost is not None]
    caches = {
        run.cache: (_views(run), cost)
        for run, cost in known
        if run.cache is not None and not (folder / run.cache).exists()
    }
    return Estimate(
        len(missing),
        len(kinds),
        sum(_epochs(run) * cost.seconds_an_epoch for run, cost in known)
        + sum(views * cost.seconds_a_view for views, cost in caches.values()),
        round(sum(views * cost.bytes_a_view for views, cost in caches.values())),
        sum(4 * STATES_KEPT * cost.parameters for _, cost in known),
    )


def _epochs(run: PlannedRun) -> int:
    return int(run.settings.get("epochs", RunConfig.model_fields["epochs"].default))


def _views(run: PlannedRun) -> int:
    return int(run.settings.get("cache_views") or _epochs(run))


def _measurable(run: PlannedRun, plan: Plan, folder: Path) -> RunConfig:
    """Return a run's configuration with untrained networks for those that would be downloaded or
    are yet to be trained: a step costs the same.
    """
    settings: dict[str, Any] = run.resolved(folder)
    del settings["out"]
    teachers: Mapping[str, PlannedRun] = {one.folder: one for one in plan.teachers}
    for needed in run.needs:
        if not Run(folder / needed).is_finished:
            settings["teacher"] = _untrained(teachers[needed].settings["student"])
            settings["trust_teacher"] = True
    if split_name(settings["student"])[1] == "pretrained":
        settings["student"] = _untrained(settings["student"])
    return RunConfig.checked(settings)


def _untrained(model: str) -> str:
    return model if run_folder(model) else f"{split_name(model)[0]}@random"
