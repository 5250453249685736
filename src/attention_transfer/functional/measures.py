"""Measures of attention: pure functions from attention maps (N, *S) to one number per image, (N,).

How alike two networks' maps are (:func:`cosine`, :func:`rank_correlation`), how evenly one is
spread (:func:`entropy`), and whether it lies on the object (:func:`energy_pointing_game`,
:func:`pointing_game`). Maps have one to three spatial axes S, written (H, W) below; maps that are
compared have the same number. No measure depends on a map's scale, 1e-30 or 1e30, and all are
computed in at least float32, whatever the state of autocast.

An all-zero map counts as evenly spread; its cosine and its correlation with any map are 0. A NaN in
a map makes the measure of its own image NaN, and no other's.

    >>> student = torch.tensor([[[0.0, 1.0], [1.0, 2.0]]])
    >>> teacher = torch.tensor([[[0.0, 0.0], [1.0, 3.0]]])
    >>> at.measures.cosine(student, teacher)
    tensor([0.9037])
    >>> masks = at.measures.box_masks(torch.tensor([[16, 16, 32, 32]]), size=(32, 32))
    >>> at.measures.energy_pointing_game(teacher, masks), at.measures.pointing_game(teacher, masks)
    (tensor([0.7500]), tensor([1.]))
"""

import math

import torch
from torch import Tensor

from attention_transfer.functional.kernels import over_scale, power_of_two
from attention_transfer.functional.maps import common_size, normalize, resize, to_float32

__all__ = [
    "box_masks",
    "cosine",
    "entropy",
    "pointing_game",
    "rank_correlation",
    "energy_pointing_game",
]


def cosine(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    r"""Return how alike two networks' attention is: the cosine of their maps.

    .. math:: \left\langle \frac{Q_S}{\|Q_S\|_2}, \frac{Q_T}{\|Q_T\|_2} \right\rangle
              \qquad Q = vec(F)

    Args:
        student_maps: (N, H, W), non-negative as F is.
        teacher_maps: (N, H', W'), of the same images. Axis by axis, the larger map is
            average-pooled to the length of the smaller.

    Returns:
        (N,): 1 for maps equal up to scale, 0 for maps that overlap nowhere or are all zero.

    Raises:
        ValueError: maps are not (N, H, W), or not of the same N images.

    Example:
        >>> cosine(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0]]]))
        tensor([0.9600])
    """
    return _cosine(*_at_common_size(student_maps, teacher_maps))


def rank_correlation(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    r"""Return Spearman's rho: whether two maps put positions in the same order of importance.

    It is the correlation of ranks r, where equal values share their mean rank.

    .. math:: \rho = \frac{\sum_i (r^S_i - \bar r)(r^T_i - \bar r)}
                          {\|r^S - \bar r\|_2 \|r^T - \bar r\|_2}

    Args:
        student_maps: (N, H, W), any values.
        teacher_maps: (N, H', W'), of the same images; pooled as for :func:`cosine`.

    Returns:
        (N,): 1 for the same order, -1 for the reverse; 0 where either map is constant (or 1x1),
        which is no order. There is no gradient.

    Raises:
        ValueError: maps are not (N, H, W), or not of the same N images.

    Example:
        >>> student = torch.tensor([[[1.0, 2.0, 3.0]], [[1.0, 1.0, 1.0]]])
        >>> rank_correlation(student, torch.tensor([[[1.0, 10.0, 100.0]], [[1.0, 2.0, 3.0]]]))
        tensor([1.0000, 0.0000])
    """
    student, teacher = _at_common_size(student_maps, teacher_maps)
    return _cosine(_centred_ranks(student), _centred_ranks(teacher))


def entropy(maps: Tensor) -> Tensor:
    r"""Return how evenly attention is spread: the map's entropy over the largest possible one.

    .. math:: -\frac{1}{\log H W} \sum_i p_i \log p_i \qquad p = F / \sum_i F_i

    Args:
        maps: (N, H, W), non-negative.

    Returns:
        (N,): 1 for a constant map, also an all-zero one or one of a single position (1x1); 0 for
        attention at one of several positions alone. The gradient at a value of zero is zero.

    Raises:
        ValueError: maps are not (N, H, W), or have negative values.

    Example:
        >>> entropy(torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[2.0, 0.0], [2.0, 0.0]]]))
        tensor([1.0000, 0.5000])
    """
    shares = _shares(maps).flatten(1)
    positions = shares.shape[1]
    if positions == 1:
        return shares[:, 0]
    logarithms = torch.where(shares > 0, shares, 1).log()
    return ((shares * -logarithms).sum(dim=1) / math.log(positions)).clamp(0, 1)


def energy_pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    r"""Return the share of a network's attention that lies on the object, inside the mask.

    Of class activation maps this is the energy-based pointing game (Wang et al., Score-CAM, CVPR
    Workshops 2020).

    .. math:: \sum_i p_i m_i \qquad p = F / \sum_i F_i

    Each position of the map stands for a cell, an H-th of the image's height by a W-th of its
    width, over which its attention is spread evenly; m_i is the exact share of that cell's area
    which the mask covers. So even attention scores the mask's share of the image.

    Args:
        maps: (N, H, W), non-negative.
        masks: (N, H', W'), of the same images, in pixels or any other resolution: bool, or
            numbers from 0 to 1. See :func:`box_masks`.

    Returns:
        (N,), from 0 (an empty mask too) to 1. An all-zero map counts as evenly spread.

    Raises:
        ValueError: maps have negative values, or no spatial axis; masks have other axes, are of
            other images, or are not between 0 and 1.

    Example:
        >>> mask = torch.tensor([[[True, False, False]]])  # a third of the image, left
        >>> energy_pointing_game(torch.tensor([[[3.0, 1.0]]]), mask)  # 2/3 of the left half's 3/4
        tensor([0.5000])
    """
    shares = _shares(maps)
    _check_masks(masks, maps)
    return (shares * _covered(masks, shares)).flatten(1).sum(dim=1).clamp(0, 1)


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """Return 1 where the map's maximum lies inside the mask, else 0.

    After Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV 2016, with no
    tolerance around the object. A position is the centre of its cell of the image (see
    :func:`energy_pointing_game`); a centre on the border of two pixels belongs to the right or
    lower one.

    Args:
        maps: (N, H, W).
        masks: (N, H', W'), of the same images: bool, or numbers from 0 to 1, of which those above
            one half are inside.

    Returns:
        (N,): 0 or 1; between them, the share of hits among several equal maxima (for an all-zero
        map, the share of all positions that lie inside).

    Raises:
        ValueError: as :func:`energy_pointing_game`, but for negative values, which do no harm.

    Example:
        >>> mask = torch.tensor([[[True, True, False, False]]])
        >>> pointing_game(torch.tensor([[[3.0, 1.0]]]), mask)
        tensor([1.])
    """
    _check_maps(maps)
    _check_masks(masks, maps)
    values = to_float32(maps)
    maxima = values == _by_image(values, values.flatten(1).amax(dim=1))
    inside = masks > 0.5
    for axis in range(1, maps.dim()):
        centres = _centres(maps.shape[axis], masks.shape[axis], masks.device)
        inside = inside.index_select(axis, centres)
    hits = (maxima & inside).flatten(1).sum(dim=1)
    return hits.to(values.dtype) / maxima.flatten(1).sum(dim=1)


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes as masks: a pixel is inside where its centre is; boxes are cut at the border.

    Args:
        boxes: (N, 4): left, top, right and bottom in pixels, right and bottom excluded.
        size: height and width of the image, in pixels.

    Returns:
        (N, height, width), bool.

    Raises:
        ValueError: boxes are not (N, 4), or have their right or bottom before left or top.

    Example:
        >>> box_masks(torch.tensor([[1, 0, 3, 1]]), size=(2, 4)).int()
        tensor([[[0, 1, 1, 0],
                 [0, 0, 0, 0]]], dtype=torch.int32)
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"boxes must be (N, 4): left, top, right, bottom; got {tuple(boxes.shape)}"
        )
    left, top, right, bottom = to_float32(boxes)[:, :, None].unbind(dim=1)
    if not ((left <= right) & (top <= bottom)).all():
        raise ValueError(
            "boxes must be left, top, right, bottom with left <= right and top <= bottom; "
            "give corners, not width and height"
        )
    y, x = (torch.arange(length, device=boxes.device) + 0.5 for length in size)
    rows, columns = (top <= y) & (y < bottom), (left <= x) & (x < right)
    return rows[:, :, None] & columns[:, None, :]


def _check_maps(maps: Tensor, name: str = "maps") -> None:
    if not 2 <= maps.dim() <= 4 or 0 in maps.shape[1:]:
        raise ValueError(
            f"{name} must be (N, H, W), (N, L) or (N, D, H, W), got {tuple(maps.shape)}"
        )


def _check_masks(masks: Tensor, maps: Tensor) -> None:
    _check_maps(masks, "masks")
    if masks.dim() != maps.dim():
        raise ValueError(
            f"maps and masks must have the same axes, got maps {tuple(maps.shape)} and masks "
            f"{tuple(masks.shape)}"
        )
    if len(masks) != len(maps):
        raise ValueError(
            f"maps and masks must be of the same N images, got {len(maps)} maps and "
            f"{len(masks)} masks"
        )
    if not ((masks >= 0) & (masks <= 1)).all():
        raise ValueError(
            "masks must be bool or numbers from 0 to 1, got "
            f"{masks.min().item():g} to {masks.max().item():g}"
        )


def _at_common_size(student_maps: Tensor, teacher_maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps at their common size, in at least float32."""
    _check_maps(student_maps, "student_maps")
    _check_maps(teacher_maps, "teacher_maps")
    if len(student_maps) != len(teacher_maps):
        raise ValueError(
            "student_maps and teacher_maps must be of the same N images, got "
            f"{len(student_maps)} and {len(teacher_maps)}"
        )
    size = common_size(student_maps.shape[1:], teacher_maps.shape[1:])
    return _pooled(student_maps, size), _pooled(teacher_maps, size)


def _pooled(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    return resize(_scaled(maps), size)


def _scaled(maps: Tensor) -> Tensor:
    """Return each map over the power of two at its largest magnitude, so that sums stay finite.

    A power of two rounds nothing, and equal sums stay equal.
    """
    values = to_float32(maps)
    largest = _by_image(values, values.detach().abs().flatten(1).amax(dim=1))
    return over_scale(values, torch.where(largest == 0, 1, power_of_two(largest)), maps.dtype)


def _by_image(maps: Tensor, numbers: Tensor) -> Tensor:
    """Return one number per image (N,), shaped to be combined with its map."""
    return numbers.view(-1, *(1,) * (maps.dim() - 1))


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    return (normalize(student) * normalize(teacher)).sum(dim=1).clamp(-1, 1)


def _centred_ranks(maps: Tensor) -> Tensor:
    """Return twice each position's rank less the mean; equal values share their mean rank."""
    values = maps.flatten(1).contiguous()
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    ranks = (below + up_to - values.shape[1]).to(values.dtype)
    return ranks.masked_fill(values.isnan(), math.nan).view(maps.shape)


def _shares(maps: Tensor) -> Tensor:
    """Return the maps as distributions over positions: each sums to 1; zeros become even."""
    _check_maps(maps)
    if (maps < 0).any():
        raise ValueError(f"maps must not be negative, got {maps.min().item():g}")
    values = _scaled(maps)
    total = _by_image(values, values.flatten(1).sum(dim=1))
    even = 1 / math.prod(maps.shape[1:])
    return torch.where(total == 0, even, values / torch.where(total == 0, 1, total))


def _covered(masks: Tensor, maps: Tensor) -> Tensor:
    """Return the share of each cell that the mask covers, in the maps' shape."""
    covered = masks.to(maps.dtype)
    with torch.autocast(masks.device.type, enabled=False):
        for axis in range(1, maps.dim()):
            overlap = _overlap(maps.shape[axis], masks.shape[axis], maps)
            covered = torch.tensordot(covered, overlap, dims=([1], [1]))  # the axis goes last
    return covered


def _overlap(cells: int, pixels: int, like: Tensor) -> Tensor:
    """Return the share of each cell that lies in each pixel, along one axis: (cells, pixels).

    >>> _overlap(2, 3, like=torch.zeros(1))
    tensor([[0.6667, 0.3333, 0.0000],
            [0.0000, 0.3333, 0.6667]])
    """
    # In units of 1 / (cells * pixels) of the axis, every border is a whole number.
    cell = torch.arange(cells, device=like.device)[:, None] * pixels
    pixel = torch.arange(pixels, device=like.device) * cells
    end = torch.minimum(cell + pixels, pixel + cells)
    return (end - torch.maximum(cell, pixel)).clamp(min=0).to(like.dtype) / pixels


def _centres(cells: int, pixels: int, device: torch.device) -> Tensor:
    """Return the pixel in which the centre of each cell lies, along one axis: (cells,).

    >>> _centres(2, 6, torch.device("cpu"))
    tensor([1, 4])
    """
    return (2 * torch.arange(cells, device=device) + 1) * pixels // (2 * cells)
