"""Losses that later papers call attention: class maps, and the attention of transformers."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from attention_transfer.functional.kernels import in_one_dtype
from attention_transfer.functional.maps import normalize, pool, to_float32

__all__ = ["attention_distillation", "class_attention", "class_maps", "token_relations"]


def class_maps(features: Tensor, weight: Tensor | None, size: int = 2) -> Tensor:
    r"""Return class activation maps, pooled to a small size (Guo et al., CVPR 2023).

    .. math:: CAM_k(x) = \sum_c w_{kc} A_c(x)

    for a linear classifier of weights w on the mean over positions of the features A: the mean of a
    class's map is its logit, less its bias. Pooled by adaptive averages, which costs less before
    the sum.

    Args:
        features: (N, C, *S), those that the network pools.
        weight: (K, C), the classifier's; None: the features are class maps already.
        size: of each axis of the pooled maps.

    Returns:
        (N, K, *size) in at least float32.

    Raises:
        ValueError: weights of other channels, or a size below 1.

    Example:
        >>> features = torch.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]]])  # N=1, C=2, H=1, W=2
        >>> class_maps(features, torch.tensor([[1.0, 10.0]]), size=1)
        tensor([[[[41.5000]]]])
    """
    if size < 1:
        raise ValueError(f"class maps have a size of at least 1, got {size}")
    pooled = pool(to_float32(features), [size] * (features.dim() - 2))
    if weight is None:
        return pooled
    if weight.dim() != 2 or weight.shape[1] != pooled.shape[1]:
        raise ValueError(
            f"the classifier's weights must be (classes, {pooled.shape[1]}) for features "
            f"{tuple(features.shape)}, got {tuple(weight.shape)}"
        )
    return torch.einsum("nc...,kc->nk...", pooled, weight.to(pooled.dtype))


def class_attention(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    r"""Return class attention transfer, CAT-KD (Guo et al., CVPR 2023).

    .. math:: \frac{1}{N K P} \sum_{n, k} \Big\| \frac{CAM^S_{nk}}{\|CAM^S_{nk}\|_2}
              - \frac{CAM^T_{nk}}{\|CAM^T_{nk}\|_2} \Big\|_2^2

    over N images, K classes and the P positions of the pooled maps, as in the authors' code, whose
    default weight is 400.

    Args:
        student_maps: (N, K, *S), of :func:`class_maps`.
        teacher_maps: the same shape; a constant.

    Returns:
        A scalar, at least float32. Maps that are all zero count as zero vectors.

    Raises:
        ValueError: the shapes differ, or maps have no positions.

    Example:
        >>> student = torch.tensor([[[3.0, 4.0]]])
        >>> class_attention(student, torch.tensor([[[8.0, 6.0]]]))  # (0.2^2 + 0.2^2) / 2
        tensor(0.0400)
    """
    if student_maps.dim() < 3 or student_maps.shape != teacher_maps.shape:
        raise ValueError(
            "class maps must be (N, classes, H, W), or have one or three axes of positions, the "
            f"same for both networks, got student {tuple(student_maps.shape)} and teacher "
            f"{tuple(teacher_maps.shape)}"
        )
    student, teacher = (
        normalize(maps.flatten(2).flatten(0, 1)) for maps in (student_maps, teacher_maps.detach())
    )
    return functional.mse_loss(*in_one_dtype(student, teacher))


def token_relations(queries: Tensor, keys: Tensor) -> Tensor:
    r"""Return the scores between tokens whose softmax is attention, Q K^T / sqrt(d).

    Args:
        queries: (N, heads, L, d) for L tokens.
        keys: the same shape; the queries themselves give MiniLMv2's relations (Wang et al. 2021).

    Returns:
        (N, heads, L, L) in at least float32.

    Example:
        >>> token_relations(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4))
        tensor([[[[2., 2.],
                  [2., 2.]]]])
    """
    queries, keys = to_float32(queries), to_float32(keys)
    return queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])


def attention_distillation(student_scores: Tensor, teacher_rows: Tensor) -> Tensor:
    r"""Return the divergence of attention between tokens, head by head (MiniLM).

    Wang et al., *MiniLM: Deep Self-Attention Distillation*, NeurIPS 2020:

    .. math:: \frac{1}{N A L} \sum_{n, a, t} KL\big(A^T_{nat} \,\|\, softmax(s^S_{nat})\big)

    over N images, A heads and the L tokens whose row of attention is compared.

    Args:
        student_scores: (N, A, L, L), before the softmax over the last axis.
        teacher_rows: the same shape, after it; a constant.

    Returns:
        A scalar, at least float32, at least 0.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> scores = torch.zeros(1, 1, 1, 2)
        >>> attention_distillation(scores, torch.tensor([[[[1.0, 0.0]]]]))  # log 2
        tensor(0.6931)
    """
    if student_scores.dim() != 4 or student_scores.shape != teacher_rows.shape:
        raise ValueError(
            "attention must be (N, heads, tokens, tokens), the same for both networks, got student "
            f"{tuple(student_scores.shape)} and teacher {tuple(teacher_rows.shape)}"
        )
    student = functional.log_softmax(to_float32(student_scores), dim=-1)
    teacher = to_float32(teacher_rows.detach())
    return functional.kl_div(student, teacher, reduction="sum") / student[..., 0].numel()
