"""Runs of one setting together, whatever their seeds, and what each group is called."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from attention_transfer.runs import Run, RunAttention

__all__ = ["Group", "baseline_of", "grouped", "interval"]

SEPARATE = ("seed", "out", "probes", "probe_every", "report", "workers", "track", "masks")
"""Settings in which runs of one group may differ."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    runs: list[Run]
    label: str

    @property
    def first(self) -> Run:
        """The run that stands for all where one is shown: one with maps, if any has some."""
        return next((run for run in self.runs if run.attention is not None), self.runs[0])

    @property
    def shown_label(self) -> str:
        """The label where one run stands for all."""
        if len(self.runs) == 1:
            return self.label
        return f"{self.label}, seed {self.first.config.seed}"

    @property
    def attention(self) -> RunAttention | None:
        """The maps of the run that stands for all."""
        return self.first.attention

    @property
    def student(self) -> str:
        """The network that was trained."""
        return self.first.record.student.name

    @property
    def teacher(self) -> str | None:
        """The network that it learned from, if any."""
        teacher = self.first.record.teacher
        return None if teacher is None else teacher.name

    @property
    def errors(self) -> list[float]:
        """Test errors, in percent."""
        return [run.test_error for run in self.runs]

    @property
    def error(self) -> float:
        """Their mean."""
        return statistics.mean(self.errors)

    @property
    def spread(self) -> str:
        """Their standard deviation; of one run, the 95 % interval that its images leave."""
        if len(self.runs) > 1:
            seeds = len({run.config.seed for run in self.runs})
            over = f"{seeds} seeds" if seeds == len(self.runs) else f"{len(self.runs)} runs"
            return f"± {statistics.stdev(self.errors):.2f} over {over}"
        low, high = interval(self.error, self.first.record.final.test_images)
        return f"{low:.1f} to {high:.1f}"

    @property
    def shown_error(self) -> str:
        """The error as it is told: to a tenth, or a hundredth over several seeds."""
        return f"{self.error:.{2 if len(self.runs) > 1 else 1}f} %"


def interval(error: float, images: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of an error rate in percent: where the rate over all images of this kind
    lies, with 95 % confidence.

    >>> tuple(round(bound, 1) for bound in interval(10.0, 1000))
    (8.3, 12.0)
    """
    rate = error / 100
    middle = (rate + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images)
    half *= math.sqrt(rate * (1 - rate) / images + z * z / (4 * images**2))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The runs by setting, in the order given, each group with a label of its own."""
    together: dict[str, list[Run]] = {}
    for run in runs:
        together.setdefault(repr((_settings(run), *run.test_set)), []).append(run)
    groups = list(together.values())
    methods = [_method(group[0]) for group in groups]
    alike = {
        method: [group[0] for group, other in zip(groups, methods, strict=True) if other == method]
        for method in methods
    }
    labels = [
        f"{method}{_difference(group[0], alike[method])}"
        for method, group in zip(methods, groups, strict=True)
    ]
    counts = Counter(labels)
    return [
        Group(group, label if counts[label] == 1 else f"{label} ({group[0].name})")
        for group, label in zip(groups, labels, strict=True)
    ]


def baseline_of(group: Group, groups: Sequence[Group]) -> Group | None:
    """The student of a taught group, alone; if there are several, one trained for as long."""
    if group.teacher is None:
        return None
    alone = [other for other in groups if other.teacher is None and other.student == group.student]
    epochs = group.first.config.epochs
    return next(
        (other for other in alone if other.first.config.epochs == epochs),
        alone[0] if alone else None,
    )


def _settings(run: Run) -> list[tuple[str, str]]:
    settings = run.config.model_dump(mode="json")
    return sorted((name, str(value)) for name, value in settings.items() if name not in SEPARATE)


def _difference(run: Run, others: Sequence[Run]) -> str:
    """The settings in which a run differs from others of its method."""
    settings = [dict(_settings(other)) for other in others]
    own = dict(_settings(run))
    differing = [
        name for name in own if len({other.get(name) for other in settings}) > 1 and own[name]
    ]
    return "".join(f", {name.replace('_', ' ')} {own[name]}" for name in differing)


def _method(run: Run) -> str:
    """The student, and how it learned."""
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
