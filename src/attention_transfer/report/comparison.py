"""What was gained: each taught student beside the same network alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attention_transfer.report.groups import Group, baseline_of
from attention_transfer.runs.attention import Arrays

__all__ = ["Changes", "changes", "headline"]


def headline(groups: Sequence[Group]) -> str:
    """What was asked and what came out, in a sentence for each student and teacher."""
    first = groups[0].first
    where = f" of {first.record.final.test_images:,} unseen test images of {first.record.data.name}"
    lessons: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        if group.teacher is not None:
            lessons.setdefault((group.student, group.teacher), []).append(group)
    sentences = [_lesson(taught, groups) for taught in lessons.values()]
    if not sentences:
        sentences = [
            f"{group.label} is wrong on {group.shown_error}{{where}} after "
            f"{group.first.config.epochs} epochs."
            for group in groups
        ]
    rest = [sentence.replace("{where}", "") for sentence in sentences[1:]]
    return " ".join([sentences[0].replace("{where}", where), *rest])


def _lesson(taught: Sequence[Group], groups: Sequence[Group]) -> str:
    """Of one student from one teacher."""
    student, teacher = taught[0].student, taught[0].teacher
    alone = baseline_of(taught[0], groups)
    if alone is None:
        told = "; ".join(f"{group.label} is wrong on {group.shown_error}" for group in taught)
        return f"Taught by {teacher}, {told}{{where}}."
    told = ", ".join(
        f"{group.label.removeprefix(f'{student} ')} on {group.shown_error} "
        f"({_change(group, alone)})"
        for group in taught
    )
    return (
        f"Alone, {student} is wrong on {alone.shown_error}{{where}}; taught by {teacher}, {told}."
    )


def _change(group: Group, alone: Group) -> str:
    if group.error == alone.error:
        return "as many mistakes"
    if alone.error == 0:
        return "alone it makes no mistake"
    share = 100 * (group.error / alone.error - 1)
    return f"{abs(share):.0f} % {'fewer' if share < 0 else 'more'} mistakes"


@dataclass(frozen=True)
class Changes:
    """How a taught student's answers differ from those it gives alone."""

    alone: Group
    taught: Group
    images: int
    mended: int
    """Wrong alone, right when taught."""
    broken: int
    """The other way round."""
    examples: list[tuple[int, bool]]
    """Test images whose maps were kept: their place among the examples, and whether mended."""


def changes(groups: Sequence[Group]) -> Iterator[Changes]:
    """Of each taught group against its student alone, where both kept their answers."""
    for group in groups:
        alone = baseline_of(group, groups)
        before = None if alone is None else alone.first.predictions
        after = group.first.predictions
        if alone is None or before is None or after is None:
            continue
        was, now = (_right(predictions) for predictions in (before, after))
        if len(was) != len(now) or (was == now).all():
            continue
        changed = {int(index): bool(now[index]) for index in np.flatnonzero(was != now)}
        kept = group.attention
        indices = [] if kept is None else kept.examples.get("indices", np.zeros(0)).tolist()
        yield Changes(
            alone,
            group,
            len(was),
            mended=int((now & ~was).sum()),
            broken=int((was & ~now).sum()),
            examples=[
                (place, changed[index]) for place, index in enumerate(indices) if index in changed
            ],
        )


def _right(predictions: Arrays) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = predictions["labels"] == predictions["predicted"]
    return right
