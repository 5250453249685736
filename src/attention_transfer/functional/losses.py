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

from attention_transfer.functional.kernels import largest_magnitude, power_of_two
from attention_transfer.functional.maps import common_size, normalize, pool, resize, to_float32

__all__ = [
    "GradientForm",
    "TransferForm",
    "attention_distance",
    "attention_transfer",
    "check_transfer",
    "cross_entropy",
    "effective_weight",
    "full_activation_transfer",
    "half_l2_norm",
    "knowledge_distillation",
    "summed_cross_entropy",
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
    return functional.mse_loss(student, teacher)


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


def cross_entropy(logits: Tensor, labels: Tensor | None, ignore_index: int = -100) -> Tensor:
    """Return the cross-entropy of logits with labels, a mean over the batch and positions.

    Args:
        logits: (N, K) for K classes, or (N, K, ...) with logits for every position, as in semantic
            segmentation.
        labels: class indices (N,) or (N, ...), of any integer type; or probabilities in the logits'
            shape, which sum to 1 over the classes.
        ignore_index: labels with this value do not count.

    Returns:
        A scalar, at least float32; 0 where no label counts.

    Raises:
        ValueError: no labels, or labels that are neither of the two.

    Example:
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([3, -100]))
        tensor(1.3863)
    """
    targets = _cross_entropy_targets(logits, labels, ignore_index)
    logits = to_float32(logits)
    if targets.is_floating_point():
        return functional.cross_entropy(logits, targets)
    total = functional.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum")
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
    targets = _cross_entropy_targets(logits, labels)
    return functional.cross_entropy(to_float32(logits), targets, reduction="sum")


def _cross_entropy_targets(
    logits: Tensor, labels: Tensor | None, ignore_index: int = -100
) -> Tensor:
    """Return labels as torch's cross-entropy takes them: int64 indices, or probabilities.

    Raises:
        ValueError: they are neither.
    """
    indices, shape = (logits.shape[0], *logits.shape[2:]), tuple(logits.shape)
    expected = (
        f"cross-entropy takes labels of class indices {indices} or of probabilities {shape} for "
        f"logits {shape}"
    )
    if not isinstance(labels, Tensor):
        got = "None" if labels is None else f"a {type(labels).__name__}"
        raise ValueError(
            f"{expected}, got {got}; call transfer(images, labels) with labels as a tensor"
        )
    got = f"{labels.dtype} of shape {tuple(labels.shape)}"
    if tuple(labels.shape) == indices:
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"{expected}, got {got}; indices are integers: give labels.long()")
        labels = labels.long()
        # Elsewhere than on a CPU, looking at them would make the CPU wait for the device.
        if labels.device.type == "cpu":
            wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= shape[1]))]
            if len(wrong):
                first, classes = int(wrong[0]), shape[1]
                hint = "; if they count from 1, give labels - 1" if first == classes else ""
                raise ValueError(
                    f"{expected}, got the index {first}, expected 0 to {classes - 1}, or "
                    f"{ignore_index} for a label that does not count{hint}"
                )
        return labels
    if tuple(labels.shape) != shape:
        raise ValueError(f"{expected}, got {got}; give labels of the logits' batch and positions")
    if not labels.is_floating_point() or labels.device.type == "cpu":
        _check_probabilities(labels, f"{expected}, got {got}", ignore_index)
    if ignore_index != -100:
        raise ValueError(
            f"ignore_index {ignore_index} needs labels of class indices, got probabilities; give "
            "indices, or leave ignore_index out"
        )
    return labels


def _check_probabilities(labels: Tensor, got: str, ignore_index: int) -> None:
    """Raise a ValueError unless labels (N, K, ...) are probabilities."""
    values = to_float32(labels) if labels.is_floating_point() else labels
    if labels.is_floating_point() and not bool((values >= 0).all()):
        raise ValueError(f"{got} with negative values or nan; give probabilities from 0 to 1")
    sums = values.sum(dim=1)
    tolerance = 1e-3 if labels.itemsize >= 4 else 1e-2
    wrong = (sums - 1).abs() > tolerance
    if not labels.is_floating_point() or bool(wrong.any()):
        first = f" (the first such row to {float(sums[wrong][0]):g})" if wrong.any() else ""
        raise ValueError(
            f"{got} that do not sum to 1{first}; give labels.argmax(dim=1) of one-hot labels, or "
            "use BinaryCrossEntropy for images of several classes each, or of none; class indices "
            f"of {ignore_index} do not count"
        )


def knowledge_distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 4.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Return Hinton's knowledge distillation with soft targets, a mean over batch and positions.

    .. math:: T^2 \, KL\big(softmax(z_T / T) \,\|\, softmax(z_S / T)\big)

    Args:
        student_logits: (N, K) for K classes, or (N, K, ...) with logits for every position, as in
            semantic segmentation.
        teacher_logits: the same shape; a constant.
        temperature: T > 0. The factor T^2 keeps the gradient's size when T changes.
        mask: (N, ...) of the logits without their class axis: True where a position counts. None:
            all of them.

    Returns:
        A scalar, at least float32, at least 0; 0 where the mask leaves nothing.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.

    Example:
        >>> knowledge_distillation(torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]]))
        tensor(1.7751)
    """
    if student_logits.dim() < 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            "logits must be (N, classes) or (N, classes, ...), the same for both networks, got "
            f"student {tuple(student_logits.shape)} and teacher {tuple(teacher_logits.shape)}"
        )
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a finite number above 0, got {temperature}")
    student = functional.log_softmax(to_float32(student_logits) / temperature, dim=1)
    teacher = functional.log_softmax(to_float32(teacher_logits.detach()) / temperature, dim=1)
    if mask is None and student.dim() == 2:
        divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return temperature**2 * divergence
    by_position = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
    if mask is None:
        return temperature**2 * by_position.mean()
    if mask.shape != by_position.shape:
        raise ValueError(
            f"the mask must be {tuple(by_position.shape)}, as the logits without their class axis, "
            f"got {tuple(mask.shape)}"
        )
    total = torch.where(mask, by_position, 0).sum()
    return temperature**2 * total / mask.sum().clamp(min=1)
