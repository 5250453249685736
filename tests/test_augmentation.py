"""Random erasing of whole batches: as the paper says, as torchvision does, and by sample."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

from attention_transfer.data import AugmentedView
from attention_transfer.data.augmentation import erased
from attention_transfer.data.randomness import integers, uniform

VIEW = AugmentedView(3, 5)


def white(count: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.full((count, *size, 3), 255, dtype=torch.uint8)


def by_the_paper(
    image: NDArray[np.uint8], index: int, probability: float, view: AugmentedView
) -> NDArray[np.uint8]:
    """Zhong et al., algorithm 1, for one image, step by step."""
    key = view.data_seed, view.number, index
    if uniform("erase", *key) >= probability:
        return image
    height, width = image.shape[:2]
    for attempt in range(10):
        area = height * width * (0.02 + (0.33 - 0.02) * uniform("erase area", *key, attempt))
        shift = uniform("erase ratio", *key, attempt)
        upright = math.exp(math.log(1 / 3.3) + (math.log(1 / 0.3) - math.log(1 / 3.3)) * shift)
        tall, wide = round(math.sqrt(area / upright)), round(math.sqrt(area * upright))
        if tall < height and wide < width:
            top = int(integers(0, height - tall, "erase top", *key))
            left = int(integers(0, width - wide, "erase left", *key))
            changed = image.copy()
            changed[top : top + tall, left : left + wide] = 127
            return changed
    return image


@pytest.mark.parametrize("size", [(32, 32), (20, 48), (7, 3)])
@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_erasing_is_the_papers(size: tuple[int, int], probability: float) -> None:
    pixels = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (200, *size, 3), dtype=np.uint8)
    )
    before = pixels.clone()
    indices = np.random.default_rng(1).permutation(1000)[:200]
    found = erased(pixels, indices, VIEW, probability).numpy()
    for image, index, view in zip(pixels.numpy(), indices.tolist(), found, strict=True):
        assert np.array_equal(view, by_the_paper(image, index, probability, VIEW))
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_erased_parts_are_spread_as_torchvisions(size: tuple[int, int]) -> None:
    """Quantiles of their heights, widths and areas over 3,000 images, within two pixels or 2 %."""
    count = 3000
    ours = erased(white(count, size), np.arange(count), VIEW, 1.0).numpy() == 127
    torch.manual_seed(0)
    erase = v2.RandomErasing(1.0, value=127)
    images = white(count, size).permute(0, 3, 1, 2)
    theirs = torch.stack([erase(image) for image in images]).permute(0, 2, 3, 1).numpy() == 127
    for axes, tolerance in (((2, 3), 1), ((1, 3), 1), ((), 0)):
        spreads = []
        for hidden in (ours, theirs):
            figure = hidden.any(axis=axes).sum(axis=1) if axes else hidden.mean(axis=(1, 2, 3))
            spreads.append(np.quantile(figure, [0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98]))
        assert np.abs(spreads[0] - spreads[1]).max() <= (tolerance or 0.02)


def test_a_grey_rectangle_is_erased_of_as_many_images_as_were_asked_for() -> None:
    hidden = erased(white(4000, (32, 32)), np.arange(4000), VIEW, 0.25).numpy() == 127
    chosen = hidden.any(axis=(1, 2, 3))
    assert abs(chosen.mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    rows, columns = hidden[chosen].any(axis=(2, 3)), hidden[chosen].any(axis=(1, 3))
    assert np.array_equal(
        hidden[chosen], (rows[:, :, None] & columns[:, None])[..., None].repeat(3, 3)
    )
    for sides in (rows, columns):
        assert (np.diff(sides.astype(int), axis=1) == 1).sum(axis=1).max() == 1  # in one piece
    areas = hidden[chosen].mean(axis=(1, 2, 3))
    assert 0.01 < areas.min() < 0.03
    assert 0.3 < areas.max() < 0.35
    heights, widths = rows.sum(axis=1), columns.sum(axis=1)
    assert 0.25 < (heights / widths).min() < (heights / widths).max() < 4
    everywhere = hidden[chosen].mean(axis=(0, 3))
    assert everywhere.min() > 0  # corners too


def test_erasing_depends_on_seed_view_and_sample_alone() -> None:
    indices = np.arange(60)
    whole = erased(white(60, (16, 16)), indices, VIEW, 0.5)
    torch.manual_seed(9)
    picked = np.array([41, 3, 17])
    assert torch.equal(erased(white(3, (16, 16)), picked, VIEW, 0.5), whole[picked])
    for other in (AugmentedView(4, 5), AugmentedView(3, 6)):
        assert not torch.equal(erased(white(60, (16, 16)), indices, other, 0.5), whole)


def test_nothing_is_erased_where_nothing_is_to_be_or_fits() -> None:
    indices = np.arange(50)
    assert torch.equal(erased(white(50, (8, 8)), indices, VIEW, 0.0), white(50, (8, 8)))
    assert torch.equal(erased(white(50, (1, 1)), indices, VIEW, 1.0), white(50, (1, 1)))
    assert erased(white(0, (8, 8)), indices[:0], VIEW, 1.0).shape == (0, 8, 8, 3)
