"""Attention maps and their loss in one pass over the features, with a hand-written gradient.

The plain functions of ``at.maps`` and ``at.losses`` define what is computed; this computes the same
so that a training step hardly notices. Autograd would keep float32 copies of the features and make
five passes over them; here they are read once for the loss and once for its gradient, and kept as
they are, with one number for each position.
"""

from typing import Any

import torch
from torch import Tensor

from attention_transfer.functional.kernels import features_gradient, is_moderate, scaled_map
from attention_transfer.functional.losses import TransferForm, attention_distance, check_transfer
from attention_transfer.functional.maps import MapKind, common_size, normalize, resize

__all__ = ["attention_transfer"]


def attention_transfer(
    features: Tensor,
    teacher_map: Tensor,
    kind: MapKind = "sum",
    power: float = 2.0,
    form: TransferForm = "code",
    norm: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Return the attention transfer loss of one layer pair, from the student's features.

    Equal to ``losses.attention_transfer(maps.activation_map(features, kind, power), teacher_map,
    form, norm)``, and right for every finite input, as ``maps.normalized_map`` is.

    Args:
        features: the student's, (N, C, *S), one to three spatial axes, any floating dtype and
            memory format.
        teacher_map: (N, *S') with as many axes, at any scale; a constant.
        kind: ``"sum"`` or ``"max"`` over channels.
        power: p > 0, real.
        form: as of :func:`attention_transfer.functional.losses.attention_transfer`.
        norm: the same.

    Returns:
        The loss, a scalar, and the student's map (N, *S), a constant: normalized, unless it had to
        be pooled. Both in at least float32. The loss's gradient has the features' dtype and
        memory format; there is no second derivative.

    Raises:
        ValueError: the maps do not fit, or kind, power, form or norm is unknown.

    Example:
        >>> features = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]]], requires_grad=True)
        >>> loss, student_map = attention_transfer(features, torch.tensor([[[9.0, 16.0]]]))
        >>> round(loss.item(), 6)
        0.0
    """
    check_transfer(form, norm)
    if teacher_map.dim() != features.dim() - 1 or len(teacher_map) != len(features):
        raise ValueError(
            "the teacher's map must be (N, H, W) of the features' N images, or have their one or "
            f"three axes, got {tuple(teacher_map.shape)} for features {tuple(features.shape)}"
        )
    result: tuple[Tensor, Tensor] = _AttentionTransfer.apply(
        features, teacher_map.detach(), kind, power, form, norm
    )
    return result


class _AttentionTransfer(torch.autograd.Function):
    """The loss of one pair, whose backward pass is one pass over the features.

    The forward pass works out the loss's slope at each position of the map; the backward pass
    multiplies the features by it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        teacher_map: Tensor,
        kind: MapKind,
        power: float,
        form: TransferForm,
        norm: float,
    ) -> tuple[Tensor, Tensor]:
        student_map, divisors = scaled_map(features, kind, power)
        size = common_size(student_map.shape[1:], teacher_map.shape[1:])
        whole = size == tuple(features.shape[2:])
        # In place: the whole map is nobody else's, and a pooled one is new.
        unit, inverse = _unit_vectors(resize(student_map, size).flatten(1), in_place=True)
        teacher, _ = _unit_vectors(resize(teacher_map, size).flatten(1).to(unit.dtype))
        loss, slope = _loss_and_slope(unit, teacher, form, norm)
        # The normalisation's own derivative: what lies along the map changes its length only.
        with torch.autocast(features.device.type, enabled=False):
            along = torch.linalg.vecdot(unit, slope).unsqueeze(1)
        slope.addcmul_(unit, along, value=-1)
        slope = slope.mul_(inverse).view(-1, *size)
        if not whole:
            slope = _spread(slope, features)
        ctx.save_for_backward(features, divisors, slope)
        ctx.kind, ctx.power = kind, power
        if whole:
            student_map = unit.view(-1, *size)
        ctx.mark_non_differentiable(student_map)
        return loss, student_map

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        features, divisors, slope = ctx.saved_tensors
        result = features_gradient(features, divisors, slope, ctx.kind, ctx.power, gradient)
        return result, None, None, None, None, None


def _unit_vectors(vectors: Tensor, in_place: bool = False) -> tuple[Tensor, Tensor]:
    """Return vectors (N, L) at length 1, or 0 where they are zero, and each one's factor."""
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    if is_moderate(lengths):
        return vectors.div_(lengths) if in_place else vectors / lengths, 1 / lengths
    unit = normalize(vectors.unsqueeze(1))
    return unit, torch.where(lengths > 0, 1 / lengths, 0)


def _loss_and_slope(
    student: Tensor, teacher: Tensor, form: TransferForm, norm: float
) -> tuple[Tensor, Tensor]:
    """Return the loss of unit vectors (N, L), and its gradient at the student's."""
    difference = torch.sub(student, teacher, out=teacher)  # nobody else has this teacher
    if form == "code":
        loss = torch.linalg.vector_norm(difference).square() / difference.numel()
        return loss, difference.mul_(2 / difference.numel())
    with torch.enable_grad():
        leaf = difference.requires_grad_()
        loss = attention_distance(leaf, form, norm)
        (slope,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), slope


def _spread(slope: Tensor, features: Tensor) -> Tensor:
    """Return the gradient of adaptive average pooling, from the pooled size to the features'."""
    like = features.new_empty((len(features), 1, *features.shape[2:]), dtype=slope.dtype)
    above = slope.unsqueeze(1)
    if features.dim() == 5:
        spread: Tensor = torch.ops.aten._adaptive_avg_pool3d_backward(above, like)
    elif features.dim() == 4:
        spread = torch.ops.aten._adaptive_avg_pool2d_backward(above, like)
    else:  # pooling a signal is pooling an image of one row
        rows = torch.ops.aten._adaptive_avg_pool2d_backward(above.unsqueeze(2), like.unsqueeze(2))
        spread = rows.squeeze(2)
    return spread.squeeze(1)
