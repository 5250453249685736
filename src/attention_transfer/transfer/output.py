"""What a batch gives, and what there is to say of a pair before the first one."""

from dataclasses import dataclass

from torch import Tensor

from attention_transfer.transfer.terms.base import PairedMaps, PairFeatures, Term

__all__ = ["PairDescription", "TransferOutput", "describe"]


@dataclass(frozen=True)
class TransferOutput:
    """What one batch gave."""

    loss: Tensor
    """The scalar to call ``backward()`` on: the sum of ``terms``."""
    terms: dict[str, Tensor]
    """Each term times its weight, detached."""
    raw_terms: dict[str, Tensor]
    """Each term without its weight, detached."""
    logits: Tensor
    """The student's, (N, classes)."""
    maps: dict[str, dict[str, PairedMaps]]
    """Term -> "student point:teacher point" -> both attention maps, (N, H, W), detached."""
    teacher_logits: Tensor | None
    """The teacher's, where a term needs them."""


@dataclass(frozen=True)
class PairDescription:
    """Who meets whom in which term: features (C, H, W), and the weight on what of one image."""

    term: str
    student: str
    teacher: str
    student_shape: tuple[int, ...]
    teacher_shapes: tuple[tuple[int, ...], ...]
    """One for each of the pair's teacher points."""
    effective_weight: float
    unit: str


def describe(name: str, term: Term, seen: PairFeatures) -> PairDescription:
    """A pair, from the features of an example."""
    weight, unit = term.effective_weight(seen.map_size)
    student = tuple(seen.student.shape[1:])
    teachers = tuple(tuple(features.shape[1:]) for features in seen.teachers)
    return PairDescription(name, *seen.pair, student, teachers, weight, unit)
