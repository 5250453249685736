"""Losses that compare the logits of a student with a teacher's.

Logits are (N, K) for K classes, or (N, K, ...) with logits for every position, as in semantic
segmentation; a position then counts as a sample. The teacher's are constants.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from attention_transfer.functional.label_targets import class_indices
from attention_transfer.functional.maps import normalize, to_float32

__all__ = ["dist", "dkd", "knowledge_distillation", "logit_standardization", "standardize"]


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


def standardize(logits: Tensor) -> Tensor:
    r"""Return the z-scores of each sample's logits over the classes (Sun et al., CVPR 2024).

    .. math:: Z(z) = \frac{z - \bar z}{\sigma(z)}, \qquad
              \sigma(z)^2 = \frac{1}{K - 1} \sum_k (z_k - \bar z)^2

    with K - 1, as in the authors' code. (Scores with 1 / K over a temperature tau are these over
    tau * sqrt((K - 1) / K).)

    Args:
        logits: (N, K, ...), any finite values.

    Returns:
        The same shape, in at least float32. Logits that are all equal give zeros, with zero
        gradient.

    Raises:
        ValueError: fewer than two classes.

    Example:
        >>> standardize(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
        tensor([[-1.0000,  0.0000,  1.0000],
                [ 0.0000,  0.0000,  0.0000]])
    """
    _check_logits(logits, logits)
    rows = _by_sample(logits)
    scores = math.sqrt(rows.shape[1] - 1) * _centred(rows)
    return scores.view(len(logits), *logits.shape[2:], -1).movedim(-1, 1)


def logit_standardization(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0
) -> Tensor:
    r"""Return distillation of standardized logits (Sun et al., *Logit Standardization in Knowledge
    Distillation*, CVPR 2024, Algorithm 1).

    .. math:: \tau^2 \, KL\big(softmax(Z(z_T) / \tau) \,\|\, softmax(Z(z_S) / \tau)\big)

    with the z-scores Z of :func:`standardize`: shift and scale of the logits do not matter.

    Args:
        student_logits: (N, K, ...).
        teacher_logits: the same shape; a constant.
        temperature: tau > 0, the paper's base temperature.

    Returns:
        A scalar, the mean over samples, at least float32, at least 0.

    Raises:
        ValueError: the shapes differ, fewer than two classes, or tau is not positive.

    Example:
        >>> logit_standardization(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 5.0, 10.0]]))
        tensor(0.)
    """
    _check_logits(student_logits, teacher_logits)
    return knowledge_distillation(
        standardize(student_logits), standardize(teacher_logits.detach()), temperature
    )


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    r"""Return DIST, which compares relations of the predictions (Huang et al., *Knowledge
    Distillation from A Stronger Teacher*, NeurIPS 2022).

    With the predictions Y = softmax(z / tau), N rows of K classes, and Pearson's distance
    d_p(u, v) = 1 - rho(u, v):

    .. math:: \tau^2 \Big(\frac{\beta}{N} \sum_i d_p(Y^S_{i:}, Y^T_{i:})
              + \frac{\gamma}{K} \sum_k d_p(Y^S_{:k}, Y^T_{:k})\Big)

    The first sum is over samples (inter-class), the second over classes (intra-class). Each is
    invariant to a shift and a positive scale of either network's predictions. The factor tau^2 is
    that of the authors' code.

    Args:
        student_logits: (N, K, ...).
        teacher_logits: the same shape; a constant.
        beta: the weight of the inter-class relation.
        gamma: the weight of the intra-class relation.
        temperature: tau > 0.

    Returns:
        A scalar, at least float32, at least 0. A row or column that is constant up to rounding has
        no correlation: it counts 0 if both networks' are constant, and 1/2, without a gradient, if
        one is (the authors' code counts 1). So of one sample, the intra-class relation is 0.

    Raises:
        ValueError: the shapes differ, fewer than two classes, or a setting is out of its range.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
        >>> dist(logits, logits + 5.0)
        tensor(0.)
        >>> dist(logits, -logits) > 1
        tensor(True)
    """
    _check_logits(student_logits, teacher_logits)
    _check_weights(temperature, beta=beta, gamma=gamma)
    student, teacher = (
        functional.softmax(_by_sample(logits) / temperature, dim=1)
        for logits in (student_logits, teacher_logits.detach())
    )
    inter = _pearson_distance(student, teacher).mean()
    intra = _pearson_distance(student.T, teacher.T).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    r"""Return decoupled knowledge distillation, DKD (Zhao et al., CVPR 2022).

    .. math:: T^2 \big(\alpha \, KL(b^T \| b^S) + \beta \, KL(\hat p^T \| \hat p^S)\big)

    b = (p_t, 1 - p_t) with the probability p_t = softmax(z / T)_t of the label (target-class,
    TCKD), and p-hat is the softmax over the other classes (non-target, NCKD). With alpha = 1 and
    beta = 1 - p_t of the teacher, it is :func:`knowledge_distillation`.

    Args:
        student_logits: (N, K, ...).
        teacher_logits: the same shape; a constant.
        labels: class indices (N, ...); -100 does not count.
        alpha: the weight of TCKD.
        beta: the weight of NCKD.
        temperature: T > 0.

    Returns:
        A scalar, the mean over the samples that count, at least float32, at least 0.

    Raises:
        ValueError: the shapes differ, fewer than two classes, labels are no class indices, or a
            setting is out of its range.

    Example:
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[4.0, 4.0, 0.0]])
        >>> dkd(student, teacher, torch.tensor([2]), beta=0.0)  # TCKD alone
        tensor(1.3001)
        >>> dkd(student, teacher, torch.tensor([2]), alpha=0.0)  # the other two agree
        tensor(0.)
    """
    _check_logits(student_logits, teacher_logits)
    _check_weights(temperature, alpha=alpha, beta=beta)
    target = class_indices("dkd", student_logits, labels).flatten()
    counted = target != -100
    target = target.where(counted, 0).unsqueeze(1)
    student, teacher = (
        _decoupled(_by_sample(logits) / temperature, target)
        for logits in (student_logits, teacher_logits.detach())
    )
    target_class, other_classes = (
        functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
        for ours, theirs in zip(student, teacher, strict=True)
    )
    loss = alpha * target_class + beta * other_classes
    total = torch.where(counted, loss, 0).sum()
    return temperature**2 * total / counted.sum().clamp(min=1)


def _decoupled(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return log (p_t, 1 - p_t), (N, 2), and the log-softmax over the other classes, 0 at t."""
    others = logits.scatter(1, target, -math.inf)
    binary = torch.cat([logits.gather(1, target), others.logsumexp(dim=1, keepdim=True)], dim=1)
    log_others = functional.log_softmax(others, dim=1).scatter(1, target, 0.0)
    return functional.log_softmax(binary, dim=1), log_others


def _pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 - rho of rows (M, L): half the squared distance of the centred unit vectors."""
    return (_centred(student) - _centred(teacher)).square().sum(dim=1) / 2


def _centred(rows: Tensor) -> Tensor:
    """Return rows (M, L) less their means, as unit vectors; zeros where a row is constant."""
    deviation = rows - rows.mean(dim=1, keepdim=True)
    rounding = 8 * torch.finfo(rows.dtype).eps * rows.detach().abs().amax(dim=1, keepdim=True)
    constant = deviation.detach().abs().amax(dim=1, keepdim=True) <= rounding
    return normalize(deviation.masked_fill(constant, 0.0))


def _by_sample(logits: Tensor) -> Tensor:
    """Return logits (N, K, ...) as rows (M, K), one for each sample and position."""
    return to_float32(logits).movedim(1, -1).flatten(0, -2)


def _check_logits(student: Tensor, teacher: Tensor) -> None:
    if student.dim() < 2 or student.shape != teacher.shape or student.shape[1] < 2:
        raise ValueError(
            "logits must be (N, classes) or (N, classes, ...), of at least two classes, the same "
            f"for both networks, got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}"
        )


def _check_weights(temperature: float, **weights: float) -> None:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a finite number above 0, got {temperature}")
    for name, weight in weights.items():
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"{name} must be a finite number of at least 0, got {weight}")
