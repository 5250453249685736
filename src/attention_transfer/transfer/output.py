"""The output of a Transfer for one batch, and the description of its layer pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

from torch import Tensor
from torch.utils._pytree import register_pytree_node

from attention_transfer.errors import InputError, input_errors
from attention_transfer.functional.maps import common_size
from attention_transfer.transfer.terms.base import Term
from attention_transfer.transfer.terms.inputs import PairedMaps, PairInputs

__all__ = ["PairDescription", "TransferOutput", "describe_pair"]


@dataclass(frozen=True)
class TransferOutput:
    """The loss, terms, outputs and attention maps of one batch."""

    loss: Tensor
    """The scalar to call ``backward()`` on: the sum of ``terms``."""
    terms: dict[str, Tensor]
    """Each term times its weight, detached."""
    raw_terms: dict[str, Tensor]
    """Each term without its weight, detached."""
    output: object
    """The student's output, as it is."""
    logits: Tensor | None
    """The logits found in it, (N, K) or (N, K, ...); None if there are none."""
    maps: dict[str, dict[str, PairedMaps]]
    """Term -> "student point:teacher point" -> both attention maps, (N, *S), detached."""
    teacher_logits: Tensor | None
    """The teacher's logits, where a term needs them."""
    betas: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Term -> "student point:teacher point" -> the weight of that layer pair in this batch, where
    the term's beta is "auto".
    """


def _parts(out: TransferOutput) -> tuple[list[Any], None]:
    return [getattr(out, one.name) for one in fields(out)], None


# Whatever looks for tensors in a module's output finds them: DistributedDataParallel with
# static_graph=True, which otherwise never synchronizes gradients, and others.
register_pytree_node(
    TransferOutput,
    _parts,
    lambda parts, _: TransferOutput(*parts),
    serialized_type_name="attention_transfer.TransferOutput",
)


@dataclass(frozen=True)
class PairDescription:
    """A layer pair of a term, and what the term's weight amounts to on it."""

    term: str
    student: str
    teacher: str
    student_shape: tuple[int, ...]
    """Of the student's features, (C, *S)."""
    teacher_shapes: tuple[tuple[int, ...], ...]
    """Of the teacher's features at each of the pair's teacher points, (C, *S)."""
    effective_weight: float | None
    """The weight on ``unit``, for one image; None where the term does not say."""
    unit: str | None


def describe_pair(
    term: Term, pair: PairInputs, teacher_features: Mapping[str, Tensor]
) -> PairDescription:
    """Describe a layer pair, from the features of an example."""
    of_teacher = [teacher_features[point] for point in pair.pair.teacher_points]
    shapes = [tuple(features.shape[1:]) for features in (pair.raw_student_features, *of_teacher)]
    weight: tuple[float, str] | None = None
    if len({len(shape) for shape in shapes}) == 1:
        weight = _effective_weight(term, common_size(*(shape[1:] for shape in shapes)))
    return PairDescription(
        pair.term, *pair.pair, shapes[0], tuple(shapes[1:]), *(weight or (None, None))
    )


def _effective_weight(term: Term, size: tuple[int, ...]) -> tuple[float, str] | None:
    with input_errors(f"the term {term.name} failed in effective_weight"):
        weight: object = term.effective_weight(size)
    match weight:
        case None:
            return None
        case (Real() as number, str(unit)):
            return float(number), unit
    raise InputError(
        f"the term {term.name} must return a number and its unit from effective_weight, such as "
        f"(0.5, '||d||^2'), or None, got {weight!r}"
    )
