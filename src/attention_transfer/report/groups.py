"""Group the runs that differ only in their seed, and label each group."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from attention_transfer.runs import Run, RunAttention

__all__ = ["Group", "find_baseline", "group_runs", "wilson_interval"]

IGNORED_SETTINGS = ("seed", "out", "probes", "probe_every", "report", "workers", "track", "masks")
"""Settings in which runs of one group may differ."""


@dataclass(frozen=True)
class Group:
    """Runs of one method, which differ only in their seed."""

    runs: list[Run]
    label: str

    @property
    def representative(self) -> Run:
        """Return the run shown where only one can be: the first with attention maps, if any."""
        return next((run for run in self.runs if run.attention is not None), self.runs[0])

    @property
    def representative_label(self) -> str:
        """Return the label of the representative run, with its seed if there are several runs."""
        if len(self.runs) == 1:
            return self.label
        return f"{self.label}, seed {self.representative.config.seed}"

    @property
    def attention(self) -> RunAttention | None:
        """Return the raw maps of the representative run."""
        return self.representative.attention

    @property
    def student(self) -> str:
        """Return the name of the trained network."""
        return self.representative.record.student.name

    @property
    def teacher(self) -> str | None:
        """Return the teacher's name, or None if the network was trained alone."""
        teacher = self.representative.record.teacher
        return None if teacher is None else teacher.name

    @property
    def errors(self) -> list[float]:
        """Return the test error of each run, in percent; validation errors with --no-test."""
        return [run.record.final.held_out.error for run in self.runs]

    @property
    def error(self) -> float:
        """Return the mean of ``errors``, in percent."""
        return statistics.mean(self.errors)

    @property
    def error_text(self) -> str:
        """Return the error for readers: to a tenth, or to a hundredth for several runs."""
        return self.text_of(self.errors)

    def text_of(self, errors: Sequence[float]) -> str:
        """Return the mean of one error of each run, as ``error_text`` has it."""
        return f"{statistics.mean(errors):.{2 if len(self.runs) > 1 else 1}f} %"

    @property
    def spread_text(self) -> str:
        """Return the standard deviation over runs, or a single run's 95 % confidence interval."""
        return self.spread_of(self.errors)

    def spread_of(self, errors: Sequence[float]) -> str:
        """Return the spread of one error of each run, as ``spread_text`` has it."""
        if len(self.runs) > 1:
            seeds = len({run.config.seed for run in self.runs})
            over = f"{seeds} seeds" if seeds == len(self.runs) else f"{len(self.runs)} runs"
            return f"± {statistics.stdev(errors):.2f} over {over}"
        images = self.representative.record.final.held_out.images
        low, high = wilson_interval(statistics.mean(errors), images)
        return f"{low:.1f} to {high:.1f}"


def wilson_interval(error: float, images: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's confidence interval of an error rate, in percent.

    Args:
        error: the measured error rate, in percent.
        images: the number of test images it was measured on.
        z: standard normal quantile of the confidence; 1.96 is 95 %.

    >>> tuple(round(bound, 1) for bound in wilson_interval(10.0, 1000))
    (8.3, 12.0)
    """
    rate = error / 100
    middle = (rate + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images)
    half *= math.sqrt(rate * (1 - rate) / images + z * z / (4 * images**2))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs by their settings, in the given order, each group with a label of its own."""
    by_settings: dict[str, list[Run]] = {}
    for run in runs:
        by_settings.setdefault(repr((_settings(run), *run.test_set)), []).append(run)
    groups = list(by_settings.values())
    methods = [_method(group[0]) for group in groups]
    of_method: dict[str, list[Run]] = {}
    for method, group in zip(methods, groups, strict=True):
        of_method.setdefault(method, []).append(group[0])
    labels = [
        f"{method}{_differences(group[0], of_method[method])}"
        for method, group in zip(methods, groups, strict=True)
    ]
    counts = Counter(labels)
    return [
        Group(group, label if counts[label] == 1 else f"{label} ({group[0].name})")
        for group, label in zip(groups, labels, strict=True)
    ]


def find_baseline(group: Group, groups: Sequence[Group]) -> Group | None:
    """Return the group of a distilled student trained alone, preferably for as many epochs."""
    if group.teacher is None:
        return None
    alone = [other for other in groups if other.teacher is None and other.student == group.student]
    epochs = group.representative.config.epochs
    equal = [other for other in alone if other.representative.config.epochs == epochs]
    return next(iter([*equal, *alone]), None)


def _settings(run: Run) -> list[tuple[str, str]]:
    """Return the settings that tell groups apart."""
    return sorted(
        (name, str(value))
        for name, value in run.config.model_dump(mode="json").items()
        if name not in IGNORED_SETTINGS
    )


def _differences(run: Run, same_method: Sequence[Run]) -> str:
    """Return the settings in which a run differs from others of its method."""
    settings = [dict(_settings(other)) for other in same_method]
    differing = [
        (name, value)
        for name, value in _settings(run)
        if value and len({other.get(name) for other in settings}) > 1
    ]
    return "".join(f", {name.replace('_', ' ')} {value}" for name, value in differing)


def _method(run: Run) -> str:
    """Return the student's name and the terms that it was trained with."""
    config = run.config
    student = run.record.student.name
    if run.record.teacher is None:
        return f"{student} alone"
    used = {
        "AT": "activation" in config.attention,
        "gradient AT": config.gradient_beta is not None,
        "F-ActT": config.full_activation_beta is not None,
        "flip symmetry": config.flip_symmetry_beta is not None,
        "min-l2": config.input_gradient_norm_beta is not None,
        "KD": config.kd_alpha is not None,
    }
    return f"{student} with {' + '.join(name for name, is_used in used.items() if is_used)}"
