"""What a run's teachers answer before the first step: a teacher at chance teaches nothing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from attention_transfer.data import DataSet, Images
from attention_transfer.data.classes import abridged
from attention_transfer.data.randomness import permutation, seeded_generators
from attention_transfer.errors import InputError, first_problems
from attention_transfer.models import LoadedModel
from attention_transfer.network_inputs import preprocessing_for
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.training.agreement import Agreement, agreement
from attention_transfer.training.class_order import (
    AS_NUMBERS,
    AS_TEXT,
    ClassOrder,
    find_class_order,
)
from attention_transfer.training.evaluation import BATCH_SIZE
from attention_transfer.training.monitoring.progress import RunProgress
from attention_transfer.training.setup import RunSetup
from attention_transfer.training.shared_evaluation import SharedEvaluation
from attention_transfer.waiting import waiting_for

__all__ = ["TeacherCheck", "check_teachers"]

MOST_IMAGES = 512
"""Validation images that a teacher answers: fewer than it answers at the end, and enough to know
its error within a few percent.
"""

LISTED_CLASSES = 20
"""Up to so many classes, a warning holds their whole order."""

INPUT_RANGES = {
    "pixels from 0 to 1": ((0.0,), (1.0,)),
    "pixels from 0 to 255": ((0.0,), (1 / 255,)),
    "pixels from -1 to 1": ((0.5,), (0.5,)),
    "ImageNet's mean and standard deviation": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation of the inputs that published networks expect."""


@dataclass(frozen=True)
class TeacherCheck:
    """The teachers' answers to validation images, and what is wrong with them."""

    error: float | None = None
    """Of the teachers' mean logits, in percent; None if one has other classes than the data."""
    images: int = 0
    warnings: list[str] = field(default_factory=list)


def check_teachers(
    setup: RunSetup, evaluation: SharedEvaluation, progress: RunProgress
) -> TeacherCheck:
    """Let the teachers answer validation images, and print their errors and what is wrong.

    The answers are computed, even with a cache, which holds training images alone. No random
    state and no network changes. All processes must call this; the result is the main one's.

    Args:
        setup: of the run.
        evaluation: shares the images among the processes.
        progress: prints the lines.
    """
    data, images = setup.data, _some(setup.data.validation)
    processes = evaluation.processes
    part = setup.config.batch_size // (processes.count * setup.config.accumulate)
    batch_size = min(BATCH_SIZE, max(1, part))  # which is what the teacher gets in a step
    if not setup.teachers or images.labels.dim() != 1:  # an image may have several classes
        return TeacherCheck()
    warnings: list[str] = []
    logits = []
    for teacher in setup.teachers:
        with seeded_generators(0), waiting_for("the teacher answers validation images"):
            answers = _Answers.of(teacher, data, images, evaluation, batch_size)
        logits.append(answers.logits)
        if processes.is_main:
            progress.write_line(answers.line())
            if not setup.config.trust_teacher:
                warnings += answers.warnings(setup)
    for warning in warnings:
        progress.warn(warning)
    known = [one for one in logits if one is not None]
    if len(known) < len(logits):
        return TeacherCheck(warnings=warnings)
    joint = agreement(_predicted(torch.stack(known).mean(0)), images.labels)
    return TeacherCheck(joint.error, len(images), warnings)


@dataclass(frozen=True)
class _Answers:
    """One teacher's answers to validation images; without logits in all but the main process."""

    teacher: LoadedModel
    data: DataSet
    images: Images
    logits: Tensor | None = None
    fault: str | None = None
    """Why there is no error."""
    better_input: tuple[str, float] | None = None
    """Another range of inputs and the lower error with it, in percent."""

    @classmethod
    def of(
        cls,
        teacher: LoadedModel,
        data: DataSet,
        images: Images,
        evaluation: SharedEvaluation,
        batch_size: int,
    ) -> "_Answers":
        """Compute a teacher's answers; of a weak teacher also those to other ranges of inputs."""

        def logits_with(preprocessing: Preprocessing | None = None) -> Tensor | None:
            return evaluation.teacher_logits(
                teacher, data, images, preprocessing, batch_size=batch_size, finite=False
            )

        try:
            logits = logits_with()
        except InputError as error:
            return cls(teacher, data, images, fault=str(error).partition(";")[0])
        answers = cls(teacher, data, images, logits)
        (weak,) = evaluation.processes.agree(int(logits is not None and answers.agreement.weak))
        if not weak:
            return answers
        return replace(answers, better_input=_better_input(answers, logits_with))

    @property
    def predicted(self) -> Tensor:
        """The predicted classes (N,); -1 where logits are not finite."""
        assert self.logits is not None
        return _predicted(self.logits)

    @property
    def agreement(self) -> Agreement:
        """How far the answers agree with the labels."""
        return agreement(self.predicted, self.images.labels)

    def line(self) -> str:
        """Return the line that tells the teacher's error."""
        if self.logits is None:
            return f"teacher {self.teacher.name}: its error is unknown ({self.fault})"
        return (
            f"teacher {self.teacher.name}: error {self.agreement.error:.1f} % on "
            f"{len(self.images)} validation images, before the first step"
        )

    def warnings(self, setup: RunSetup) -> Iterator[str]:
        """Yield what is wrong with the answers, with what to do."""
        if self.logits is None:
            return
        lost = int((self.predicted < 0).sum())
        if lost:
            yield self._warning(
                f"answers {lost} of {len(self.images)} validation images with logits that are not "
                "finite: its weights are damaged, or too large for --precision "
                f"{setup.precision}; give other weights, or --precision fp32",
                setup,
            )
            return
        order = find_class_order(self.predicted, self.images.labels, self.data.class_names)
        if order is not None:
            yield self._warning(self._other_order(order), setup)
        elif self.better_input is not None:
            yield self._warning(self._other_input(*self.better_input), setup)
        elif self.agreement.at_chance:
            yield self._warning(self._chance(), setup)

    def _warning(self, fact: str, setup: RunSetup) -> str:
        taught = [
            name
            for name, term in setup.transfer.named_terms.items()
            if term.weight and (term.needs_teacher_logits or term.needs_teacher_gradient)
        ]
        harm = f"; {' and '.join(taught)} would teach the student its answers" if taught else ""
        return (
            f"the teacher {self.teacher.name} {fact}{harm}; if it is meant to be so, "
            "--trust-teacher goes on without this warning"
        )

    def _chance(self) -> str:
        preprocessing = preprocessing_for(self.teacher, self.data)
        height, width = preprocessing.size or self.images.size
        mean, std = (
            " ".join(f"{value:.3g}" for value in values)
            for values in (preprocessing.mean, preprocessing.std)
        )
        return (
            f"tells the classes apart no better than chance: error {self.agreement.error:.1f} % on "
            f"{len(self.images)} validation images, chance {self.agreement.chance_error:.1f} %; "
            "check that it is trained, that its classes are the data's and in their order "
            f"({abridged(self.data.class_names)}), and that it was trained on inputs as it gets "
            f"here: {height}x{width} images of pixels 0 to 1, less the mean {mean}, over the "
            f"standard deviation {std} (not pixels 0 to 255, another normalisation, or another "
            "size)"
        )

    def _other_input(self, name: str, error: float) -> str:
        return (
            f"seems to expect another normalisation: error {self.agreement.error:.1f} % on "
            f"{len(self.images)} validation images, but {error:.1f} % with {name}; give a "
            "package.module:factory of a network that brings pixels from 0 to 1 to that range first"
        )

    def _other_order(self, order: ClassOrder) -> str:
        names = self.data.class_names
        moved = [
            f"class {index}, {names[index]}, is its output {order.outputs[index]}"
            for index in order.moved
        ]
        reason = f", {order.reason}" if order.reason else ""
        rows = f" into the order {order.outputs}" if len(names) <= LISTED_CLASSES else ""
        flag = {AS_NUMBERS: "natural", AS_TEXT: "string"}.get(
            order.reason, "FILE, a text file with their names in the teacher's order"
        )
        return (
            f"has the classes in another order{reason}: error {self.agreement.error:.1f} % on "
            f"{len(self.images)} validation images, and {order.error:.1f} % with its outputs "
            f"matched to the classes ({first_problems(moved)}); bring the data's classes into "
            f"that order (--class-order {flag}), or give the teacher as a package.module:factory "
            f"that brings the rows of its last layer{rows}"
            f"{'' if rows else ' into the order of the classes'}"
        )


def _better_input(
    answers: _Answers, logits_with: Callable[[Preprocessing], Tensor | None]
) -> tuple[str, float] | None:
    """Return the range of inputs with which a teacher is far better, and its error with it."""
    images, usual = answers.images, preprocessing_for(answers.teacher, answers.data)
    of_data = {"the data set's mean and standard deviation": answers.data.preprocessing[:2]}
    found: list[tuple[float, str]] = []
    for name, (mean, std) in {**INPUT_RANGES, **of_data}.items():
        if _alike(mean, usual.mean) and _alike(std, usual.std):
            continue
        other = usual._replace(mean=mean, std=std)
        if usual.channels is not None:
            other = other.for_channels(usual.channels)
        logits = logits_with(other)
        if logits is not None:
            found.append((agreement(_predicted(logits), images.labels).error, name))
    if answers.logits is None or not found:
        return None
    error, name = min(found)
    before = answers.agreement.error
    # Chance does not halve an error, unless there are few images.
    far_better = error < before / 2 and (before - error) * len(images) > 1000
    return (name, error) if far_better else None


def _some(images: Images) -> Images:
    """Return up to MOST_IMAGES of the images, chosen at random, always the same."""
    if len(images) <= MOST_IMAGES:
        return images
    return images.subset(np.sort(permutation(len(images), "teacher check")[:MOST_IMAGES]))


def _predicted(logits: Tensor) -> Tensor:
    return torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), -1)


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether means or standard deviations, one for each channel or for all, are equal."""
    first, second = np.atleast_1d(one), np.atleast_1d(other)
    comparable = len(first) == len(second) or 1 in (len(first), len(second))
    return comparable and bool(np.allclose(first, second, atol=1e-3))
