"""The losses: pure functions of maps, features and logits, without weights or state.

Weights (beta, alpha) belong to the terms of :mod:`attention_transfer.transfer`. Every loss is a
mean over the batch and computed in at least float32. Maps and features have one to three spatial
axes S: (L,), (H, W) or (D, H, W).
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from attention_transfer.functional.attention_losses import (
    attention_distillation,
    class_attention,
    class_maps,
    token_relations,
)
from attention_transfer.functional.kernels import in_one_dtype, largest_magnitude, power_of_two
from attention_transfer.functional.label_targets import cross_entropy_targets
from attention_transfer.functional.logit_losses import (
    dist,
    dkd,
    knowledge_distillation,
    logit_standardization,
    standardize,
)
from attention_transfer.functional.maps import common_size, normalize, pool, resize, to_float32

__all__ = [
    "GradientForm",
    "TransferForm",
    "attention_distance",
    "attention_distillation",
    "attention_transfer",
    "check_transfer",
    "class_attention",
    "class_maps",
    "cross_entropy",
    "dist",
    "dkd",
    "effective_weight",
    "full_activation_transfer",
    "half_l2_norm",
    "knowledge_distillation",
    "logit_standardization",
    "standardize",
    "summed_cross_entropy",
    "token_relations",
]

GradientForm = Literal["paper", "squared"]
TransferForm = Literal["code", "paper", "paper-eq2"]


def attention_transfer(
    student_map: Tensor, teacher_map: Tensor, form: TransferForm = "code", norm: float = 2.0
) -> Tensor:
    r"""Return the attention transfer loss of one layer pair, without its weight beta.

    With q = vec(F) / ||vec(F)||_2 on either side and d = q_S - q_T, per image:

    - ``"code"``: ||d||_2^2 / (H W), the mean over batch and positions of the squared difference,
      as the authors' published code has it (with beta = 1000).
    - ``"paper"``: 1/2 ||d||_norm, Eq. 2 of Zagoruyko & Komodakis (ICLR 2017).
    - ``"paper-eq2"``: the same divided by H W, so that beta = 1000 is the paper's own weight,
      10^3 / (elements of the map x batch size), on the sum over the batch.

    Where the sizes differ, each axis of the larger map is average-pooled to the smaller one's
    length before normalization, and H and W are those lengths.

    Args:
        student_map: (N, H, W), or (N, L) or (N, D, H, W): an attention map F, normalized or not.
        teacher_map: the same number of axes, for the same images. It is a constant: no gradient.
        form: see above.
        norm: the norm of the two paper forms, at least 1; the experiments used 2.

    Returns:
        A scalar, at least float32. Zero, with zero gradient, where the normalized maps agree.

    Raises:
        ValueError: the maps do not fit, or form or norm is unknown.

    Example:
        >>> student = torch.tensor([[[3.0, 4.0]]])
        >>> teacher = torch.tensor([[[4.0, 3.0]]])
        >>> attention_transfer(student, teacher, form="code")  # d = (-0.2, 0.2): 0.08 / 2
        tensor(0.0400)
        >>> attention_transfer(student, teacher, form="paper")
        tensor(0.1414)
    """
    check_transfer(form, norm)
    axes = student_map.dim()
    if not 2 <= axes <= 4 or teacher_map.dim() != axes or len(student_map) != len(teacher_map):
        raise ValueError(
            "the maps must be (N, H, W), or both (N, L) or (N, D, H, W), of the same N images, got "
            f"student {tuple(student_map.shape)} and teacher {tuple(teacher_map.shape)}"
        )
    size = common_size(student_map.shape[1:], teacher_map.shape[1:])
    student = normalize(resize(student_map, size))
    teacher = normalize(resize(teacher_map.detach(), size))
    return attention_distance(student - teacher, form, norm)


def attention_distance(difference: Tensor, form: TransferForm, norm: float = 2.0) -> Tensor:
    """Return the loss of :func:`attention_transfer` from differences (N, L) of normalized maps.

    >>> attention_distance(torch.tensor([[-0.2, 0.2]]), form="code")
    tensor(0.0400)
    """
    if form == "code":
        return difference.square().mean()
    distance: Tensor = torch.linalg.vector_norm(difference, norm, dim=1).mean() / 2
    return distance if form == "paper" else distance / difference.shape[1]


def check_transfer(form: str, norm: float) -> None:
    """Raise a ValueError unless the form is known and the norm is at least 1.

    >>> check_transfer("paper", 2.0)
    """
    if form not in get_args(TransferForm):
        raise ValueError(f"form must be one of {', '.join(get_args(TransferForm))}, got {form!r}")
    if not norm >= 1:
        raise ValueError(f"norm must be at least 1, got {norm}")


def effective_weight(beta: float, form: TransferForm, size: tuple[int, ...]) -> tuple[float, str]:
    """Return beta's weight on one image's difference d of normalized maps, and the unit.

    Args:
        beta: the weight of :func:`attention_transfer`.
        form: the same.
        size: of the maps that are compared, by axis.

    >>> effective_weight(1000.0, "code", (32, 32))
    (0.9765625, '||d||^2')
    >>> effective_weight(0.1, "paper", (32, 32))
    (0.05, '||d||')
    """
    positions = math.prod(size)
    if form == "code":
        return beta / positions, "||d||^2"
    return (beta / 2 if form == "paper" else beta / 2 / positions), "||d||"


def full_activation_transfer(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    r"""Return an l2 loss on whole activations (F-ActT), the baseline that attention beats.

    .. math:: \frac{1}{N C H W} \sum (A_S - A_T)^2

    Args:
        student_features: (N, C, *S), of the teacher's channels (a 1x1 convolution makes them so
            where they differ: see :class:`attention_transfer.FullActivation`).
        teacher_features: (N, C, *S'); a constant. Sizes are matched as for maps, axis by axis by
            average pooling.

    Returns:
        A scalar, at least float32.

    Raises:
        ValueError: batch, channels or number of axes differ.

    Example:
        >>> full_activation_transfer(torch.zeros(1, 2, 4, 4), torch.full((1, 2, 8, 8), 3.0))
        tensor(9.)
    """
    shapes = tuple(student_features.shape), tuple(teacher_features.shape)
    same_axes = len(shapes[0]) == len(shapes[1]) and 3 <= len(shapes[0]) <= 5
    if not same_axes or shapes[0][:2] != shapes[1][:2]:
        raise ValueError(
            "features must be (N, C, H, W), or both (N, C, L) or (N, C, D, H, W), with the same N "
            f"and C, got student {shapes[0]} and teacher {shapes[1]}"
        )
    size = common_size(shapes[0][2:], shapes[1][2:])
    student, teacher = (
        pool(to_float32(features), size)
        if tuple(features.shape[2:]) != size
        else to_float32(features)
        for features in (student_features, teacher_features.detach())
    )
    return functional.mse_loss(*in_one_dtype(student, teacher))


def half_l2_norm(difference: Tensor, form: GradientForm = "paper") -> Tensor:
    r"""Return half the l2 norm of each image's difference, or half its square (Eq. 4 and 6).

    .. math:: \tfrac12 \|d\|_2 \;\text{(paper)} \qquad \tfrac12 \|d\|_2^2 \;\text{(squared)}

    Args:
        difference: (N, ...), of two gradients at the input, say; the norm is over all but N.
        form: ``"paper"``, or ``"squared"``, whose gradient is the one the paper gives.

    Returns:
        (N,), at least float32. The gradient is zero where the difference is zero.

    Raises:
        ValueError: an unknown form.

    Example:
        >>> half_l2_norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([2.5000, 0.0000])
        >>> half_l2_norm(torch.tensor([[3.0, 4.0]]), form="squared")
        tensor([12.5000])
    """
    if form not in get_args(GradientForm):
        raise ValueError(f"form must be one of {', '.join(get_args(GradientForm))}, got {form!r}")
    vectors = to_float32(difference).flatten(1)
    if form == "squared":
        return vectors.square().sum(dim=1) / 2
    # At any scale: the squares inside the norm neither overflow nor vanish.
    scale = power_of_two(largest_magnitude(vectors))
    norms: Tensor = torch.linalg.vector_norm(vectors / scale, dim=1) * scale.squeeze(1)
    return norms / 2


def cross_entropy(
    logits: Tensor,
    labels: Tensor | None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the cross-entropy of logits with labels, a mean over the batch and positions.

    Args:
        logits: (N, K) for K classes, or (N, K, ...) with logits for every position, as in semantic
            segmentation.
        labels: class indices (N,) or (N, ...), of any integer type; or probabilities in the logits'
            shape, which sum to 1 over the classes.
        ignore_index: labels with this value do not count.
        label_smoothing: the share of each label that is spread evenly over all classes.

    Returns:
        A scalar, at least float32; 0 where no label counts.

    Raises:
        ValueError: no labels, or labels that are neither of the two.

    Example:
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([3, -100]))
        tensor(1.3863)
    """
    targets = cross_entropy_targets(logits, labels, ignore_index)
    logits = to_float32(logits)
    if targets.is_floating_point():
        return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    total = functional.cross_entropy(
        logits,
        targets,
        ignore_index=ignore_index,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / (targets != ignore_index).sum().clamp(min=1)


def summed_cross_entropy(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Return the cross-entropy summed over the batch, whose gradient at the images is attention.

    Of a sum, unlike a mean, each image's gradient does not depend on the batch.

    Args:
        logits: (N, classes).
        labels: class indices (N,), or probabilities (N, classes).

    Returns:
        A scalar, at least float32.

    Raises:
        ValueError: no labels, or labels that are neither of the two.

    Example:
        >>> summed_cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]))
        tensor(1.3863)
    """
    if logits.dim() != 2:
        raise ValueError(
            f"gradient attention needs logits (N, classes), got {tuple(logits.shape)}; return one "
            "row of logits for each image, or leave the gradient terms out"
        )
    targets = cross_entropy_targets(logits, labels)
    return functional.cross_entropy(to_float32(logits), targets, reduction="sum")
