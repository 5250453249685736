"""Distillation of the attention between tokens, for vision transformers."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError, nearest
from attention_transfer.functional import losses
from attention_transfer.taps import Inputs
from attention_transfer.transfer.attention_layers import (
    AttentionLayer,
    Projection,
    attention_layers,
)
from attention_transfer.transfer.pairing import Pairs
from attention_transfer.transfer.schedule import Schedule
from attention_transfer.transfer.targets import Reduction
from attention_transfer.transfer.terms.base import (
    PairTerm,
    Weight,
    check_choice,
    one_teacher,
    refuse_another,
)
from attention_transfer.transfer.terms.inputs import PairInputs, TermInputs

__all__ = ["AttentionDistillation"]

Compared = Literal["auto", "attention", "relations"]


class AttentionDistillation(PairTerm):
    """weight * the sum over layer pairs of attention distillation between vision transformers. See
    :func:`attention_transfer.functional.losses.attention_distillation`.

    - ``"attention"``: rows of softmax(Q K^T / sqrt(d)) per head, class token included (MiniLM, Wang
      et al., NeurIPS 2020); both layers have as many heads.
    - ``"relations"``: the queries of all heads side by side are split into ``heads`` relation
      heads, and rows of softmax(Q Q^T / sqrt(d)) compared; the same of keys and values, and the
      mean of the three (MiniLMv2, Wang et al., Findings of ACL 2021).

    The networks are timm's or torchvision's VisionTransformer with equally many tokens. Of the
    teacher the rows are kept, heads * tokens^2 numbers (three times as many of relations): a cache
    holds up to 128 KiB for a view. A term belongs to one Transfer.

    Args:
        weight: finite, at least 0; or ``"auto"``, as of :class:`attention_transfer.PairTerm`.
        pairs: ``"auto"``, the last layer of each network as in both papers; ``"auto-N"``, the last
            N; or names of attention layers, ``"blocks.5.attn:blocks.11.attn,..."``.
        compare: ``"attention"`` or ``"relations"``; ``"auto"``: attention where the numbers of
            heads agree, relations where they differ.
        heads: relation heads; None: as many as the student's layer has.
        schedule: of the weight, as of :class:`attention_transfer.Term`.
        name: the key in the output.

    Example:
        >>> AttentionDistillation(pairs="auto-2").name
        'attention_distillation'
    """

    name = "attention_distillation"

    def __init__(
        self,
        weight: Weight = 1.0,
        pairs: Pairs = "auto",
        compare: Compared = "auto",
        heads: int | None = None,
        schedule: Schedule = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(weight, pairs, schedule, name)
        check_choice("compare", compare, get_args(Compared))
        if heads is not None and (not isinstance(heads, int) or heads < 1):
            raise InputError(f"heads must be an integer of at least 1, or None, got {heads!r}")
        self.compare, self.heads = compare, heads
        self._wanted = pairs
        # In a tuple: the layers are the student's, and no modules of the term.
        self._student: tuple[nn.Module, ...] = ()
        self._rows: dict[str, _Rows] = {}
        self._reductions: dict[str, Reduction] = {}

    def bind(self, networks: Sequence[tuple[nn.Module, Inputs | None]]) -> None:
        """Find both networks' attention layers, and pair them."""
        student, teacher = (network for network, _ in one_teacher(self, networks))
        refuse_another(self, self._student, student)
        found = _paired(self._wanted, attention_layers(student), attention_layers(teacher))
        self._student = (student,)
        self.pairs = [(ours.point, theirs.point) for ours, theirs in found]
        self._rows, self._reductions = {}, {}
        for ours, theirs in found:
            heads = self._relation_heads(ours, theirs)
            self._rows[f"{ours.point}:{theirs.point}"] = _Rows(ours.projection, heads)
            rows = _TeacherRows(_Rows(deepcopy(theirs.projection).requires_grad_(False), heads))
            what = "attention" if heads is None else f"relations in {heads} heads"
            reduction = Reduction(f"{what} of {theirs.name}", rows)
            other = self._reductions.setdefault(theirs.point, reduction)
            if other != reduction:
                raise InputError(
                    f"the teacher's layer {theirs.name} is in two pairs that compare its {other} "
                    f"and {reduction}; give compare= and heads= for both"
                )

    def reduction_at(self, point: str) -> Reduction | None:
        return self._reductions[point]

    def check(self, inputs: TermInputs) -> None:
        for pair in inputs.pairs:
            student, teacher = self._scores(pair), pair.teacher_target
            if student.shape != teacher.shape:
                raise InputError(
                    f"pair {pair.pair} compares attention token by token, got {student.shape[-1]} "
                    f"tokens of the student and {teacher.shape[-1]} of the teacher; choose "
                    "networks of equally many, by the size of their patches or of their images"
                )

    def loss(self, pair: PairInputs) -> Tensor:
        return losses.attention_distillation(self._scores(pair), pair.teacher_target)

    def _scores(self, pair: PairInputs) -> Tensor:
        return self._rows[str(pair.pair)].scores(pair.student_features)

    def _relation_heads(self, student: AttentionLayer, teacher: AttentionLayer) -> int | None:
        """Return the number of relation heads of a pair; None: attention is compared."""
        ours, theirs = student.projection.heads, teacher.projection.heads
        if self.compare == "attention" and ours != theirs:
            raise InputError(
                f"attention is compared head by head, got {ours} heads of {student.name} and "
                f'{theirs} of {teacher.name}; give compare="relations"'
            )
        if self.compare == "attention" or (self.compare == "auto" and ours == theirs):
            return None
        return self.heads or ours


class _Rows:
    """Attention between tokens, or the relations of queries, keys and values."""

    def __init__(self, projection: Projection, heads: int | None) -> None:
        self.projection, self.heads = projection, heads

    def scores(self, output: Tensor) -> Tensor:
        """Return (N, heads, L, L), before the softmax, of a tapped output (N, L, C)."""
        queries, keys, values = self.projection(output)
        if self.heads is None:
            return losses.token_relations(queries, keys)
        relations = []
        for vectors in (queries, keys, values):
            width = vectors.shape[1] * vectors.shape[-1]
            if width % self.heads:
                raise InputError(
                    f"{self.heads} relation heads do not divide the width {width}; give heads= "
                    "that divides the width of both networks"
                )
            side_by_side = vectors.transpose(1, 2).flatten(2)
            split = side_by_side.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            relations.append(losses.token_relations(split, split))
        return torch.cat(relations, dim=1)


class _TeacherRows:
    """The teacher's rows of a tapped output, with its weights as constants."""

    def __init__(self, rows: _Rows) -> None:
        self.rows = rows

    def __call__(self, output: Tensor) -> Tensor:
        weight = next(self.rows.projection.parameters(), output)
        if weight.device != output.device:
            self.rows.projection.to(output.device)
        return self.rows.scores(output).softmax(dim=-1)


def _paired(
    pairs: Pairs, student: list[AttentionLayer], teacher: list[AttentionLayer]
) -> list[tuple[AttentionLayer, AttentionLayer]]:
    """Return pairs of layers, by name or from the end."""
    if isinstance(pairs, str) and (pairs == "auto" or pairs.startswith("auto-")):
        number = pairs.partition("-")[2] or "1"
        most = min(len(student), len(teacher))
        if not number.isdecimal() or not 1 <= int(number) <= most:
            raise InputError(
                f"got the pairs {pairs!r}, expected auto-1 to auto-{most}: the networks have "
                f"{len(student)} and {len(teacher)} attention layers"
            )
        last = int(number)
        return list(zip(student[-last:], teacher[-last:], strict=True))
    names = (
        [tuple(pair.split(":")) for pair in pairs.split(",")] if isinstance(pairs, str) else pairs
    )
    found = []
    for pair in names:
        if len(pair) != 2:
            raise InputError(
                f"got the pair {':'.join(pair)!r}, expected student.layer:teacher.layer"
            )
        found.append((_named(pair[0].strip(), student), _named(pair[1].strip(), teacher)))
    return found


def _named(name: str, layers: list[AttentionLayer]) -> AttentionLayer:
    known = {layer.name: layer for layer in layers}
    if name not in known:
        raise InputError(f"no attention layer is named {name!r}; {nearest(name, known)}")
    return known[name]
