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
from attention_transfer.statistics import PairedErrors

__all__ = ["Verdict", "find_alone", "is_right", "paired_errors", "verdict"]

MOST_NEIGHBOURS = 200
"""Folders beside a run's in which the student alone is looked for."""

LARGEST_SHARE = 0.5
"""Of the loss that terms other than those over logits have, without a word about it."""

OF_LOGITS = ("cross_entropy", "binary_cross_entropy", "knowledge_distillation")

MAY_DIFFER = (
    "out", "probes", "probe_every", "report", "workers", "track", "masks", "terms", "timeout",
    "checkpoint_minutes", "checkpoint_steps", "test", "download",
)  # fmt: skip
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
    against_guessing = tuple(_against_guessing(run))
    if any("learned nothing" in sentence for sentence in against_guessing):
        return Verdict("untrained", against_guessing)
    if run.record.teacher is None:
        return Verdict("not compared", against_guessing)
    alone = alone or find_alone(run)
    notes = (*against_guessing, *_share_of_loss(run))
    if alone is None:
        unknown = (
            "Whether the teacher helped is not known, as no run of the student alone is beside it; "
            "--baseline trains one."
        )
        return Verdict("not compared", (unknown, *notes))
    outcome, sentence = _against_alone(run, alone)
    return Verdict(outcome, (sentence, *notes), str(alone.folder))


def _against_guessing(run: Run) -> Iterator[str]:
    """Yield what is wrong with a network that is no better than guessing."""
    split, _, error, confusion = run.record.final.held_out
    counts = [sum(row) for row in confusion]
    if not any(counts):
        return  # images of several classes each
    largest = max(range(len(counts)), key=counts.__getitem__)
    guessing = 100 * (1 - counts[largest] / sum(counts))
    if error >= guessing and len(counts) > 1:
        yield (
            f"The network has learned nothing: it errs on {error:.1f} % of the {split} images, and "
            f"always answering {run.class_names[largest]!r} errs on {guessing:.1f} %. Lower --lr, "
            "train longer, or check that images and labels belong together."
        )
        return
    final = run.record.final
    loss = final.validation_loss if final.test_loss is None else final.test_loss
    if loss > math.log(len(counts)):
        yield (
            f"Its loss on the {split} images, {loss:.2f}, is above that of guessing evenly, "
            f"{math.log(len(counts)):.2f} (ln {len(counts)}): where it is wrong, it is sure. Try "
            "--label-smoothing 0.1, fewer epochs, or more augmentation."
        )


def _share_of_loss(run: Run) -> Iterator[str]:
    """Yield which term is most of the loss in the end, if it is not one over logits."""
    terms = run.metrics[-1].terms if run.metrics else {}
    total = sum(terms.values())
    for name, value in terms.items():
        if name not in OF_LOGITS and total > 0 and value > LARGEST_SHARE * total:
            yield (
                f"In the last epoch {name} was {100 * value / total:.0f} % of the loss. If the "
                "error is too high, give it a smaller weight, or auto."
            )


def _against_alone(run: Run, alone: Run) -> tuple[Outcome, str]:
    paired = paired_errors(run, alone)
    if paired is None:
        return (
            "not compared",
            f"The student alone in {alone.folder} was evaluated on other images, or its answers "
            "were not kept, so the two cannot be compared.",
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
    names = sorted(os.listdir(parent))[:MOST_NEIGHBOURS]
    for other in (Run(parent / name) for name in names if name != run.name):
        try:
            if (
                other.is_finished
                and other.record.teacher is None
                and _settings(other.config) == own
            ):
                return other
        except InputError:
            continue  # another version's, or damaged: not this run's matter
    return None


def _settings(config: RunConfig) -> dict[str, object]:
    """Return the settings of a run that the student alone must have as well."""
    names = TrainingConfig.model_fields.keys() - set(MAY_DIFFER)
    return {name: getattr(config, name) for name in sorted(names)}
