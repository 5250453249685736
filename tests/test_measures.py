"""Measures of attention against scipy, numpy, counts on fine grids, and named edge cases."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.autograd import gradcheck
from torchmetrics import Metric, MetricCollection

from attention_transfer import metrics
from attention_transfer.functional import measures

Array = NDArray[np.float64]
sides = st.integers(1, 6)
seeds = st.integers(0, 999)
some = settings(max_examples=40, deadline=None)


def attention(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Positive, unlike at every place."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.05).to(dtype)


def tied(*shape: int, seed: int = 0) -> Tensor:
    """Few values, zero among them, so that many places share one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, shape, generator=generator).double()


def masks_for(*shape: int, seed: int = 0) -> Tensor:
    return attention(*shape, seed=seed) > 0.6


def reference_pooled(maps: Array, size: tuple[int, int]) -> Array:
    """Adaptive average pooling, a window at a time."""
    count, height, width = maps.shape
    result = np.empty((count, *size))
    for y, x in np.ndindex(*size):
        rows = slice(y * height // size[0], -(-(y + 1) * height // size[0]))
        columns = slice(x * width // size[1], -(-(x + 1) * width // size[1]))
        result[:, y, x] = maps[:, rows, columns].mean(axis=(1, 2))
    return result


def at_common_size(student: Tensor, teacher: Tensor) -> tuple[Array, Array]:
    size = (
        min(student.shape[1], teacher.shape[1]),
        min(student.shape[2], teacher.shape[2]),
    )
    pooled = (
        reference_pooled(maps.numpy(), size).reshape(len(maps), -1) for maps in (student, teacher)
    )
    return next(pooled), next(pooled)


def reference_inside(map_: Array, mask: Array) -> float:
    """Both spread over a grid on which cells and pixels are whole."""
    height, width = (math.lcm(*lengths) for lengths in zip(map_.shape, mask.shape, strict=True))
    fine_map, fine_mask = (
        grid.repeat(height // grid.shape[0], axis=0).repeat(width // grid.shape[1], axis=1)
        for grid in (map_, mask.astype(float))
    )
    return float((fine_map * fine_mask).sum() / fine_map.sum())


# Pairs of maps

SIZES = [((4, 6), (4, 6)), ((4, 6), (8, 3)), ((7, 5), (3, 2)), ((1, 9), (4, 4)), ((5, 1), (3, 1))]


@pytest.mark.parametrize(("student_size", "teacher_size"), SIZES)
def test_cosine_is_the_formula(
    student_size: tuple[int, int], teacher_size: tuple[int, int]
) -> None:
    student, teacher = attention(3, *student_size), attention(3, *teacher_size, seed=1)
    a, b = at_common_size(student, teacher)
    expected = (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    np.testing.assert_allclose(measures.cosine(student, teacher), expected, rtol=1e-12)


@pytest.mark.parametrize("maps", [attention, tied])
@pytest.mark.parametrize(("student_size", "teacher_size"), SIZES)
def test_rank_correlation_is_scipys(
    maps: Callable[..., Tensor], student_size: tuple[int, int], teacher_size: tuple[int, int]
) -> None:
    student, teacher = maps(3, *student_size, seed=2), maps(3, *teacher_size, seed=3)
    pairs = zip(*at_common_size(student, teacher), strict=True)
    expected = [stats.spearmanr(a, b).statistic for a, b in pairs]
    np.testing.assert_allclose(measures.rank_correlation(student, teacher), expected, rtol=1e-12)


def test_places_of_one_value_share_their_mean_rank() -> None:
    # Ranks 1.5 1.5 3.5 3.5 and 1 2 3 4: 4 / sqrt(4 * 5).
    student, teacher = torch.tensor([[[0.0, 0, 5, 5]]]), torch.tensor([[[1.0, 2, 3, 4]]])
    assert measures.rank_correlation(student, teacher).item() == pytest.approx(4 / math.sqrt(20))


def test_what_is_pooled_to_the_same_value_stays_tied() -> None:
    # Both windows sum to 5, whatever rounding there is on the way.
    student = torch.tensor([[[1.0, 4, 2, 3, 7, 7]]])
    teacher = torch.tensor([[[1.0, 1.0, 2.0]]])
    assert measures.rank_correlation(student, teacher).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("measure", [measures.cosine, measures.rank_correlation])
@some
@given(height=sides, width=sides, other=sides, seed=seeds)
def test_pairs_are_symmetric_within_range_and_full_at_identity(
    measure: Callable[[Tensor, Tensor], Tensor], height: int, width: int, other: int, seed: int
) -> None:
    student = attention(2, height, width, seed=seed, dtype=torch.float32)
    teacher = attention(2, other, width, seed=seed + 1, dtype=torch.float32)
    value = measure(student, teacher)
    assert torch.equal(value, measure(teacher, student))
    assert ((value >= -1) & (value <= 1)).all()
    ordered = measure is measures.cosine or height * width > 1
    identical = measure(student, 3 * student)
    torch.testing.assert_close(identical, torch.full((2,), float(ordered)))
    assert (identical <= 1).all()


def test_ranks_see_the_order_alone() -> None:
    student, teacher = attention(2, 4, 4), attention(2, 4, 4, seed=1)
    value = measures.rank_correlation(student, teacher)
    assert torch.equal(measures.rank_correlation(student.exp(), teacher**3), value)
    torch.testing.assert_close(measures.rank_correlation(student, -teacher), -value)
    pooled = measures.rank_correlation(student, teacher[:, :2])
    torch.testing.assert_close(measures.rank_correlation(-student, teacher[:, :2]), -pooled)
    reverse = measures.rank_correlation(student, 1 / student)
    torch.testing.assert_close(reverse, -torch.ones(2, dtype=torch.float64))


def test_maps_without_a_direction_or_an_order_agree_with_none() -> None:
    other = attention(1, 2, 2)
    assert measures.cosine(torch.zeros(1, 2, 2), other).tolist() == [0]
    assert measures.rank_correlation(torch.full((1, 2, 2), 0.1), other).tolist() == [0]
    assert measures.cosine(torch.ones(1, 1, 1), other).tolist() == [1]
    assert measures.rank_correlation(torch.ones(1, 1, 1), other).tolist() == [0]


# One map


@pytest.mark.parametrize("maps", [attention, lambda *shape: tied(*shape) + tied(1, *shape[1:])])
def test_entropy_is_scipys(maps: Callable[..., Tensor]) -> None:
    values = maps(3, 4, 6)
    expected = stats.entropy(values.numpy().reshape(3, -1), axis=1) / math.log(24)
    np.testing.assert_allclose(measures.entropy(values), expected, rtol=1e-12)


def test_entropy_by_hand() -> None:
    value = measures.entropy(torch.tensor([[[1.0, 3.0]], [[0.0, 7.0]], [[2.0, 2.0]]]))
    assert value.tolist() == pytest.approx([2 - 0.75 * math.log2(3), 0, 1])


@some
@given(height=sides, width=sides, seed=seeds)
def test_entropy_is_from_zero_at_one_place_to_one_where_even(
    height: int, width: int, seed: int
) -> None:
    maps = attention(3, height, width, seed=seed, dtype=torch.float32)
    maps[1] = 0.3
    maps[2] = 0
    maps[2, height - 1, width // 2] = 5
    some, even, one = measures.entropy(maps)
    assert 0 <= some <= 1
    assert even == pytest.approx(1)
    assert even <= 1
    assert one == (1 if height * width == 1 else 0)


# A map and a mask


@some
@given(cells=st.tuples(sides, sides), pixels=st.tuples(sides, sides), seed=seeds)
def test_the_share_inside_is_that_of_a_finer_grid(
    cells: tuple[int, int], pixels: tuple[int, int], seed: int
) -> None:
    maps = attention(2, *cells, seed=seed)
    for masks in (masks_for(2, *pixels, seed=seed + 1), attention(2, *pixels, seed=seed) / 1.05):
        pairs = zip(maps.numpy(), masks.numpy(), strict=True)
        expected = [reference_inside(map_, mask) for map_, mask in pairs]
        np.testing.assert_allclose(measures.energy_pointing_game(maps, masks), expected, atol=1e-12)


def test_the_share_inside_a_box_on_an_uneven_grid() -> None:
    # Three columns of 10/3 pixels and two rows of 2; the box is columns 2 to 5 of rows 1 to 3.
    maps = torch.tensor([[[6.0, 3.0, 1.0], [2.0, 8.0, 4.0]]])
    masks = measures.box_masks(torch.tensor([[2, 1, 6, 4]]), size=(4, 10))
    first, second = (10 / 3 - 2) / (10 / 3), (6 - 10 / 3) / (10 / 3)
    expected = ((6 * first + 3 * second) / 2 + 2 * first + 8 * second) / 24
    assert measures.energy_pointing_game(maps, masks).item() == pytest.approx(expected)


def test_parts_of_an_image_share_all_of_its_attention() -> None:
    maps, masks = attention(3, 7, 5), masks_for(3, 16, 12)
    inside, outside = (
        measures.energy_pointing_game(maps, masks),
        measures.energy_pointing_game(maps, ~masks),
    )
    torch.testing.assert_close(inside + outside, torch.ones(3, dtype=torch.float64))
    assert measures.energy_pointing_game(maps, torch.ones(3, 9, 9)).tolist() == pytest.approx(
        [1] * 3
    )
    assert measures.energy_pointing_game(maps, torch.zeros(3, 9, 9)).tolist() == [0] * 3
    even = measures.energy_pointing_game(torch.full((3, 7, 5), 0.2), masks)
    torch.testing.assert_close(even, masks.float().mean(dim=(1, 2)))


@pytest.mark.parametrize(
    ("cells", "pixels", "hit"),
    [
        (2, 8, [2, 6]),  # a centre on a border is the right pixel's
        (3, 8, [1, 4, 6]),  # 4/3, 4, 20/3
        (4, 4, [0, 1, 2, 3]),
        (5, 2, [0, 0, 1, 1, 1]),  # 0.2, 0.6, 1, 1.4, 1.8
        (1, 5, [2]),
    ],
)
def test_the_pointing_game_looks_at_the_centre_of_the_highest_cell(
    cells: int, pixels: int, hit: list[int]
) -> None:
    maps = torch.eye(cells)[:, None, :].repeat_interleave(pixels, dim=0) + 0.5
    masks = torch.eye(pixels).bool()[:, None, :].repeat(cells, 1, 1)
    expected = torch.tensor(
        [[float(pixel == hit[cell]) for pixel in range(pixels)] for cell in range(cells)]
    )
    assert torch.equal(measures.pointing_game(maps, masks).view(cells, pixels), expected)
    upright = measures.pointing_game(maps.mT, masks.mT)
    assert torch.equal(upright.view(cells, pixels), expected)


def test_the_pointing_game_keeps_rows_from_columns() -> None:
    maps = torch.zeros(1, 2, 3)
    maps[0, 0, 2] = 1
    masks = measures.box_masks(torch.tensor([[20, 0, 30, 10]]), size=(20, 30))
    assert measures.pointing_game(maps, masks).item() == 1
    assert measures.pointing_game(maps, masks.flip(1)).item() == 0
    assert measures.pointing_game(maps, masks.flip(2)).item() == 0


def test_equal_maxima_share_the_hit() -> None:
    maps = torch.tensor([[[4.0, 1.0], [4.0, 4.0]]])
    masks = torch.tensor([[[True, True], [False, True]]])
    assert measures.pointing_game(maps, masks).item() == pytest.approx(2 / 3)


def test_half_covered_is_not_inside() -> None:
    masks = torch.tensor([[[0.5, 0.0]], [[0.51, 0.0]]])
    assert measures.pointing_game(torch.tensor([[[2.0, 1.0]]] * 2), masks).tolist() == [0, 1]


def test_boxes_hold_the_pixels_from_left_to_before_right() -> None:
    boxes = torch.tensor([[1, 0, 4, 2], [2, 3, 2, 5], [-3, 3, 2, 9]])
    expected = np.zeros((3, 5, 6), dtype=bool)
    expected[0, 0:2, 1:4] = True
    expected[2, 3:, :2] = True
    assert np.array_equal(measures.box_masks(boxes, (5, 6)), expected)
    fractions = measures.box_masks(torch.tensor([[0.5, 0.5, 2.5, 1.5]]), (2, 4))
    assert fractions.int().tolist() == [[[1, 1, 0, 0], [0, 0, 0, 0]]]


# Edges that all share

EVERY: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda maps: measures.cosine(maps, attention(len(maps), 4, 6, seed=1).float()),
    "cosine, pooled": lambda maps: measures.cosine(maps, attention(len(maps), 2, 4).float()),
    "rank": lambda maps: measures.rank_correlation(maps, attention(len(maps), 4, 6, seed=1)),
    "rank, pooled": lambda maps: measures.rank_correlation(maps, attention(len(maps), 2, 4)),
    "entropy": measures.entropy,
    "inside": lambda maps: measures.energy_pointing_game(maps, masks_for(len(maps), 7, 9)),
    "pointing": lambda maps: measures.pointing_game(maps, masks_for(len(maps), 7, 9)),
}
every = pytest.mark.parametrize("measure", EVERY.values(), ids=EVERY.keys())


@every
@pytest.mark.parametrize("exponent", [-120, -100, 100, 127])
def test_scale_changes_nothing(measure: Callable[[Tensor], Tensor], exponent: int) -> None:
    maps = attention(3, 4, 6, seed=5, dtype=torch.float32)
    torch.testing.assert_close(measure(maps * 2.0**exponent), measure(maps), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(measure(maps * 7e-30), measure(maps), rtol=1e-6, atol=1e-6)
    mixed = torch.cat([maps[:1] * 1e30, maps[1:2] * 1e-30, maps[2:]])
    torch.testing.assert_close(measure(mixed), measure(maps), rtol=1e-6, atol=1e-6)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted_first(
    measure: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    maps = attention(3, 4, 6, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = measure(maps)
    assert value.dtype in (torch.float32, torch.float64)
    assert torch.equal(value, measure(maps.float()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_ranks_for_many_places(dtype: torch.dtype) -> None:
    student, teacher = attention(1, 60, 60, dtype=dtype), attention(1, 60, 60, seed=1, dtype=dtype)
    value = measures.rank_correlation(student, teacher)
    assert torch.equal(value, measures.rank_correlation(student.float(), teacher.float()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_maps_stays(dtype: torch.dtype) -> None:
    maps, masks = attention(2, 4, 6, dtype=dtype), masks_for(2, 7, 9)
    values = [
        measures.cosine(maps, maps[:, :2]),
        measures.rank_correlation(maps, maps[:, :2]),
        measures.entropy(maps),
        measures.energy_pointing_game(maps, masks),
        measures.pointing_game(maps, masks),
    ]
    assert {value.dtype for value in values} == {dtype}
    assert {value.shape for value in values} == {(2,)}


@every
def test_a_nan_is_its_own_images_alone(measure: Callable[[Tensor], Tensor]) -> None:
    maps = attention(3, 4, 6)
    clean = measure(maps)
    maps[1, 2, 3] = math.nan
    assert measure(maps).isnan().tolist() == [False, True, False]
    torch.testing.assert_close(measure(maps)[::2], clean[::2], rtol=0, atol=0)


@every
def test_maps_may_be_strided_or_none(measure: Callable[[Tensor], Tensor]) -> None:
    maps = attention(3, 6, 4).mT
    torch.testing.assert_close(measure(maps), measure(maps.contiguous()))
    every_other = attention(6, 4, 6)[::2]
    torch.testing.assert_close(measure(every_other), measure(every_other.contiguous()))
    assert measure(maps[:0]).shape == (0,)


def test_zeros_are_even_attention() -> None:
    masks = measures.box_masks(torch.tensor([[0, 0, 3, 2]]), size=(4, 4))
    zeros = torch.zeros(1, 2, 4)
    assert measures.entropy(zeros).item() == pytest.approx(1)
    assert measures.energy_pointing_game(zeros, masks).item() == pytest.approx(6 / 16)
    assert measures.pointing_game(zeros, masks).item() == pytest.approx(3 / 8)


def test_one_place_holds_all_attention() -> None:
    maps = torch.tensor([[[3.0]], [[0.0]]])
    masks = measures.box_masks(torch.tensor([[0, 0, 2, 3]] * 2), size=(4, 4))
    assert measures.entropy(maps).tolist() == [1, 1]
    assert measures.energy_pointing_game(maps, masks).tolist() == pytest.approx([6 / 16] * 2)
    assert measures.pointing_game(maps, masks).tolist() == [0, 0]


def test_gradients_are_those_of_finite_differences_and_finite_at_zero() -> None:
    maps, teacher, masks = attention(2, 3, 4), attention(2, 2, 4, seed=1), masks_for(2, 5, 5)
    zeros = torch.zeros(2, 3, 4, dtype=torch.float64)
    zeros[0, 1, 1] = 2
    for measure in (
        lambda maps: measures.cosine(maps, teacher),
        measures.entropy,
        lambda maps: measures.energy_pointing_game(maps, masks),
    ):
        assert gradcheck(measure, maps.clone().requires_grad_())
        edge = zeros.clone().requires_grad_()
        measure(edge).sum().backward()
        assert edge.grad is not None
        assert edge.grad.isfinite().all()
    assert not measures.rank_correlation(maps.requires_grad_(), teacher).requires_grad


@pytest.mark.parametrize("shape", [(5,), (3, 4, 5)])
def test_maps_of_one_and_three_axes_are_measured_like_images(shape: tuple[int, ...]) -> None:
    """A signal is an image of one row; a volume's figures are those of its positions in a row."""
    student, teacher = attention(3, 60).view(3, -1)[:, : math.prod(shape)], attention(3, 60, seed=1)
    teacher = teacher.view(3, -1)[:, : math.prod(shape)]
    maps, others = student.reshape(3, *shape), teacher.reshape(3, *shape)
    masks = teacher > teacher.median()
    for measure, second in (
        (measures.cosine, (others, teacher)),
        (measures.rank_correlation, (others, teacher)),
        (measures.energy_pointing_game, (masks.reshape(3, *shape), masks)),
        (measures.pointing_game, (masks.reshape(3, *shape), masks)),
    ):
        row = measure(student.unsqueeze(1), second[1].unsqueeze(1))
        torch.testing.assert_close(measure(maps, second[0]), row)
    torch.testing.assert_close(measures.entropy(maps), measures.entropy(student.unsqueeze(1)))


def test_volumes_of_other_sizes_are_compared_and_covered_axis_by_axis() -> None:
    maps, others = attention(2, 4, 4 * 6).view(2, 4, 4, 6), attention(2, 2, 4 * 3).view(2, 2, 4, 3)
    pooled = maps.view(2, 2, 2, 4, 3, 2).mean(dim=(2, 5))
    torch.testing.assert_close(measures.cosine(maps, others), measures.cosine(pooled, others))
    masks = torch.zeros(2, 8, 8, 12)
    masks[:, :4] = 1  # the front half
    share = maps[:, :2].sum(dim=(1, 2, 3)) / maps.sum(dim=(1, 2, 3))
    torch.testing.assert_close(measures.energy_pointing_game(maps, masks), share)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: measures.entropy(m[0, 0]), r"maps must be \(N, H, W\).* got \(4,\)"),
        (lambda m: measures.entropy(m[:, :0]), r"maps must be \(N, H, W\).* got \(2, 0, 4\)"),
        (lambda m: measures.entropy(-m), "maps must not be negative, got -"),
        (lambda m: measures.energy_pointing_game(-m, m > 0), "maps must not be negative"),
        (
            lambda m: measures.cosine(m[None, None], m),
            r"student_maps must be \(N, H, W\).* got \(1, 1, 2,",
        ),
        (lambda m: measures.cosine(m, m[0, 0]), r"teacher_maps must be \(N, H, W\).* got \(4,\)"),
        (lambda m: measures.cosine(m, m[:, 0]), "different numbers of spatial axes"),
        (lambda m: measures.rank_correlation(m, m[:1]), "same N images, got 2 and 1"),
        (lambda m: measures.energy_pointing_game(m, m[:, 0]), "must have the same axes"),
        (lambda m: measures.pointing_game(m[0, 0], m), r"maps must be \(N, H, W\)"),
        (lambda m: measures.pointing_game(m, m[:1]), "same N images, got 2 maps and 1 masks"),
        (
            lambda m: measures.energy_pointing_game(m, m * 255),
            "masks must be .* 0 to 1, got .* to 2",
        ),
        (lambda m: measures.pointing_game(m, m - 1), "masks must be bool or numbers"),
        (lambda m: measures.pointing_game(m, m * math.nan), "masks must be .* got nan"),
        (lambda m: measures.box_masks(m, (4, 4)), r"boxes must be \(N, 4\): left, top"),
        (lambda m: measures.box_masks(torch.tensor([[5, 0, 4, 9]]), (9, 9)), "left <= right"),
        (lambda m: measures.box_masks(torch.tensor([[0, 5, 9, 4]]), (9, 9)), "give corners"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Callable[[Tensor], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(attention(2, 4, 4))


# Over a data set

METRICS: dict[type[Metric], tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    metrics.AttentionCosineSimilarity: (measures.cosine, ("student_maps", "teacher_maps")),
    metrics.AttentionRankCorrelation: (
        measures.rank_correlation,
        ("student_maps", "teacher_maps"),
    ),
    metrics.AttentionEntropy: (measures.entropy, ("maps",)),
    metrics.EnergyPointingGame: (measures.energy_pointing_game, ("maps", "masks")),
    metrics.PointingGame: (measures.pointing_game, ("maps", "masks")),
}
each_metric = pytest.mark.parametrize("kind", METRICS)
BATCH = {
    "student_maps": attention(8, 4, 6, seed=7).float(),
    "teacher_maps": attention(8, 2, 3, seed=8).float(),
    "maps": attention(8, 4, 6, seed=9).float(),
    "masks": masks_for(8, 7, 9, seed=10),
}


def images(start: int, stop: int) -> dict[str, Tensor]:
    return {name: values[start:stop] for name, values in BATCH.items()}


def test_every_metric_is_tested() -> None:
    assert sorted(kind.__name__ for kind in METRICS) == metrics.__all__


@each_metric
def test_a_metric_is_the_mean_over_images_of_all_batches(kind: type[Metric]) -> None:
    measure, inputs = METRICS[kind]
    expected = measure(*(BATCH[name] for name in inputs)).mean()
    metric, other = kind(), kind()
    for part, (start, stop) in ((metric, (0, 3)), (metric, (3, 5)), (other, (5, 8))):
        part.update(*(values for name, values in images(start, stop).items() if name in inputs))
    metric.merge_state(other)  # as between processes
    torch.testing.assert_close(metric.compute(), expected)
    metric.reset()
    last = measure(*(BATCH[name][5:] for name in inputs)).mean()
    on_batch = metric(*(values for name, values in images(5, 8).items() if name in inputs))
    torch.testing.assert_close(on_batch, last)
    torch.testing.assert_close(metric.compute(), last)


def test_a_metrics_dtype_is_its_own() -> None:
    metric = metrics.AttentionEntropy()
    metric.update(attention(2, 3, 3, dtype=torch.float64))
    assert metric.compute().dtype == torch.float32
    assert metric.set_dtype(torch.float64).compute().dtype == torch.float64


@each_metric
def test_without_images_a_metric_is_no_number(kind: type[Metric]) -> None:
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert kind().compute().isnan()


def test_metrics_in_a_collection_stay_apart_where_they_start_equal() -> None:
    collection = MetricCollection([kind() for kind in METRICS])
    same = torch.ones(1, 1, 2)
    same[0, 0, 1] = 0
    collection.update(student_maps=same, teacher_maps=same, maps=same, masks=same.bool())
    collection.update(**BATCH)
    for kind, (measure, inputs) in METRICS.items():
        first = measure(*({"masks": same.bool()}.get(name, same) for name in inputs))
        every_image = torch.cat([first, measure(*(BATCH[name] for name in inputs))])
        torch.testing.assert_close(collection.compute()[kind.__name__], every_image.mean())


def test_metrics_say_what_they_are() -> None:
    flags = {kind: (kind.higher_is_better, kind.is_differentiable) for kind in METRICS}
    assert flags == {
        metrics.AttentionCosineSimilarity: (True, True),
        metrics.AttentionRankCorrelation: (True, False),
        metrics.AttentionEntropy: (None, True),
        metrics.EnergyPointingGame: (True, True),
        metrics.PointingGame: (True, False),
    }
