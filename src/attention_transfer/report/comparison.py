"""Compare each distilled student with the same network trained alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from attention_transfer.report.groups import Group, find_baseline
from attention_transfer.report.verdict import is_right, paired_errors
from attention_transfer.statistics import paired_difference

__all__ = ["AnswerChanges", "compare_answers", "headline"]


def headline(groups: Sequence[Group]) -> str:
    """Return the main result: a sentence for each pair of student and teacher."""
    record = groups[0].representative.record
    distilled: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        if group.teacher is not None:
            distilled.setdefault((group.student, group.teacher), []).append(group)
    sentences = [_distillation_sentence(members, groups) for members in distilled.values()]
    if not sentences:
        sentences = [
            f"{group.label} has {group.error_text} error after "
            f"{group.representative.record.trained_epochs} epochs."
            for group in groups
        ]
    text = " ".join(sentences)
    split, images, *_ = record.final.held_out
    return f"On {images:,} {split} images of {record.data.name}, {text}"


def _distillation_sentence(distilled: Sequence[Group], groups: Sequence[Group]) -> str:
    """Return the results of one student with one teacher, beside the student alone if known."""
    student, teacher = distilled[0].student, distilled[0].teacher
    alone = find_baseline(distilled[0], groups)
    if alone is None:
        errors = ", ".join(f"{group.label} has {group.error_text} error" for group in distilled)
        return f"{errors} (teacher {teacher})."
    errors = ", ".join(
        f"{group.error_text} {group.label.removeprefix(f'{student} ')} "
        f"({_change_in_mistakes(group, alone)})"
        for group in distilled
    )
    return (
        f"{student} has {alone.error_text} error alone; distilled from {teacher}, it has {errors}."
    )


def _change_in_mistakes(group: Group, alone: Group) -> str:
    """Return how many fewer mistakes a group makes, if that is more than chance."""
    if not _differ(group, alone):
        return "no difference can be told"
    if alone.error == 0:
        return "alone it makes no mistakes"
    change = 100 * (group.error / alone.error - 1)
    return f"{abs(change):.0f} % {'fewer' if change < 0 else 'more'} mistakes"


def _differ(group: Group, alone: Group) -> bool:
    """Return whether the errors of two groups differ by more than chance: over seeds, or, with one
    seed in common, over images.
    """
    errors, others = (
        {run.config.seed: run.record.final.held_out.error for run in one.runs}
        for one in (group, alone)
    )
    difference = paired_difference(errors, others)
    if difference is not None and difference.n > 1:
        return difference.established
    paired = paired_errors(group.representative, alone.representative)
    return paired is not None and paired.established


@dataclass(frozen=True)
class AnswerChanges:
    """How a distilled student's answers to the test images differ from the student's alone."""

    alone: Group
    distilled: Group
    images: int
    """Number of test images."""
    corrected: int
    """Images that the student alone gets wrong and the distilled student right."""
    newly_wrong: int
    """Images that the student alone gets right and the distilled student wrong."""
    examples: list[tuple[int, bool]]
    """The changed images whose maps were kept: index among the examples, and whether corrected."""


def compare_answers(groups: Sequence[Group]) -> Iterator[AnswerChanges]:
    """Yield the changed answers of each distilled group whose answers and baseline's were kept."""
    for group in groups:
        alone = find_baseline(group, groups)
        before = None if alone is None else alone.representative.predictions
        after = group.representative.predictions
        if alone is None or before is None or after is None:
            continue
        right_before, right_after = is_right(before), is_right(after)
        if len(right_before) != len(right_after) or (right_before == right_after).all():
            continue
        changed = {
            int(index): bool(right_after[index])
            for index in np.flatnonzero(right_before != right_after)
        }
        examples = {} if group.attention is None else group.attention.examples
        yield AnswerChanges(
            alone,
            group,
            len(right_before),
            corrected=int((right_after & ~right_before).sum()),
            newly_wrong=int((right_before & ~right_after).sum()),
            examples=[
                (number, changed[int(index)])
                for number, index in enumerate(examples.get("indices", ()))
                if int(index) in changed
            ],
        )
