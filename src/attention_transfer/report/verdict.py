"""What a finished run is worth, in plain sentences."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attention_transfer.config import RunConfig, TrainingConfig
from attention_transfer.errors import InputError
from attention_transfer.runs import Run
from attention_transfer.runs.attention import Arrays
from attention_transfer.runs.differences import FREE_SETTINGS
from attention_transfer.statistics import PairedErrors

__all__ = ["Verdict", "find_alone", "is_right", "paired_errors", "verdict"]

MOST_NEIGHBOURS = 200
"""Folders beside a run's in which the student alone is looked for."""

LARGEST_SHARE = 0.5
"""Of the loss that a term has which compares layers or input gradients, without a word about it."""

NOT_OVER_LOGITS = (
    "activation_attention", "full_activation", "class_attention", "attention_distillation",
    "gradient_attention", "flip_symmetry", "input_gradient_norm",
)  # fmt: skip
"""The built-in terms of that kind."""

MAY_DIFFER = {*FREE_SETTINGS, "probes", "probe_every", "masks", "terms", "test"}
"""Settings that may differ between a run and that of the student alone."""

Outcome = Literal["better", "no difference", "worse", "not compared", "untrained"]


@dataclass(frozen=True)
class Verdict:
    """What a run is worth: beside guessing, and beside the student alone."""

    outcome: Outcome
    sentences: tuple[str, ...]
    alone: str | None = None
    """The folder of the student alone, if it was found."""

    def __str__(self) -> str:
        return " ".join(self.sentences)


def verdict(run: Run, alone: Run | None = None) -> Verdict:
    """Return what a finished run is worth.

    Args:
        run: finished.
        alone: the run of the same student without a teacher; None: it is looked for in the run's
            folder, and in those beside it.

    Raises:
        InputError: a file of a run is damaged.
    """
    untrained = _untrained(run)
    if untrained is not None:
        return Verdict("untrained", (untrained,))
    if run.record.teacher is None:
        return Verdict("not compared", tuple(_about_loss(run)))
    alone = alone or find_alone(run)
    notes = (*_about_loss(run), *_about_shares(run))
    if alone is None:
        unknown = (
            "Whether the teacher helped is not known, as no run of the student alone is beside it; "
            "--baseline trains one."
        )
        return Verdict("not compared", (unknown, *notes))
    outcome, sentence = _against_alone(run, alone)
    return Verdict(outcome, (sentence, *notes), str(alone.folder))


def _untrained(run: Run) -> str | None:
    """Return what to say of a network that is no better than always answering one class."""
    split, images, error = run.record.final.held_out
    confusion = run.confusion(split)
    if confusion is None or confusion.classes < 2:
        return None  # images of several classes each have no confusion
    counts = confusion.images_by_class
    largest = int(counts.argmax())
    guessing = 100 * (1 - counts[largest] / images)
    if error < guessing:
        return None
    return (
        f"The network has learned nothing: it errs on {error:.1f} % of the {split} images, and "
        f"always answering {run.class_names[largest]!r} errs on {guessing:.1f} %. Lower --lr, "
        "train longer, or check that images and labels belong together."
    )


def _about_loss(run: Run) -> Iterator[str]:
    """Yield that the loss is above that of guessing evenly, if it is."""
    split = run.record.final.held_out.split
    confusion = run.confusion(split)
    if confusion is None:
        return  # as above
    final = run.record.final
    loss = final.validation_loss if final.test_loss is None else final.test_loss
    classes = confusion.classes
    if loss > math.log(classes):
        yield (
            f"Its loss on the {split} images, {loss:.2f}, is above that of guessing evenly, "
            f"{math.log(classes):.2f} (ln {classes}): where it is wrong, it is sure. Try "
            "--label-smoothing 0.1, fewer epochs, or more augmentation."
        )


def _about_shares(run: Run) -> Iterator[str]:
    """Yield which term is most of the loss in the end, if it compares layers or gradients."""
    terms = run.metrics[-1].terms if run.metrics else {}
    total = sum(terms.values())
    for name, value in terms.items():
        if name in NOT_OVER_LOGITS and total > 0 and value > LARGEST_SHARE * total:
            yield (
                f"In the last epoch {name} was {100 * value / total:.0f} % of the loss. If the "
                "error is too high, give it a smaller weight, or auto."
            )


def _against_alone(run: Run, alone: Run) -> tuple[Outcome, str]:
    try:
        paired = paired_errors(run, alone)
    except InputError:
        paired = None  # the other run's file is damaged, which is no fault of this one
    if paired is None:
        return (
            "not compared",
            f"The student alone in {alone.folder} was evaluated on other images, or its answers "
            "cannot be read, so the two cannot be compared.",
        )
    if not paired.established:
        return (
            "no difference",
            f"Beside the student alone: {paired.sentence}. More images, or several seeds "
            "(--seeds 0-4 --baseline), would tell more.",
        )
    if paired.difference < 0:
        return "better", f"Better than the student alone: {paired.sentence}."
    return "worse", f"Worse than the student alone: {paired.sentence}. {_advice(run)}"


def _advice(run: Run) -> str:
    config = run.config
    if run.record.teacher is not None and run.record.teacher.warnings:
        return f"Look at the teacher first: {run.record.teacher.warnings[0]}"
    if "activation" in config.attention and config.beta != "auto":
        return "Try --beta auto, which never pulls harder than the labels."
    return "Try fewer layer pairs (--pairs auto-1), another teacher, or more epochs."


def paired_errors(run: Run, alone: Run) -> PairedErrors | None:
    """Return the errors of both on the same images; None if there are none."""
    own, other = run.predictions, alone.predictions
    if own is None or other is None or run.test_set != alone.test_set:
        return None
    right, baseline = is_right(own), is_right(other)
    return PairedErrors.of(right, baseline) if len(right) == len(baseline) else None


def is_right(predictions: Arrays) -> NDArray[np.bool_]:
    """Return (N,): whether each image's class is predicted, or all of its several classes."""
    right: NDArray[np.bool_] = predictions["labels"] == predictions["predicted"]
    return np.asarray(right.reshape(len(right), -1).all(axis=1))


def find_alone(run: Run) -> Run | None:
    """Return the finished run of the same student without a teacher, if there is one.

    It is in the run's own folder (``--baseline``), or beside it, with the same settings and seed.
    """
    if run.alone.is_finished:
        return run.alone
    parent = run.folder.resolve().parent
    own = _settings(run.config)
    try:
        names = sorted(os.listdir(parent))[:MOST_NEIGHBOURS]
    except OSError:
        return None  # a folder that may not be read
    for other in (Run(parent / name) for name in names if name != run.name):
        try:
            if other.is_finished and _is_plain(other.config) and _settings(other.config) == own:
                return other
        except InputError:
            continue  # another version's, or damaged: not this run's matter
    return None


def _is_plain(config: RunConfig) -> bool:
    """Return whether a run has no teacher, and no loss but that of the labels."""
    fields = RunConfig.model_fields
    others = fields.keys() - TrainingConfig.model_fields.keys()
    return not config.terms and all(
        getattr(config, name) == fields[name].default for name in others
    )


def _settings(config: RunConfig) -> dict[str, object]:
    """Return the settings of a run that the student alone must have as well."""
    names = TrainingConfig.model_fields.keys() - set(MAY_DIFFER)
    return {name: getattr(config, name) for name in sorted(names)}
