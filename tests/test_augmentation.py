"""Augmented views: torchvision's transforms, and users' own, as functions of a sample's key."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from attention_transfer.data import AugmentedView, DataSet, ImageSet, WithAugmentation, batches
from attention_transfer.data.folders import folder_data
from attention_transfer.data.randomness import sample_seeds, seeded_torch
from attention_transfer.data.views import CropResize, random_crop_and_flip
from attention_transfer.errors import InputError, TrainingError
from test_folders import fill

VIEW = AugmentedView(3, 5)


@pytest.mark.parametrize("whole", [(100, 100), (60, 140), (37, 11)])
@pytest.mark.parametrize("size", [(32, 32), (24, 48)])
def test_a_crop_is_the_one_that_torchvision_draws(
    whole: tuple[int, int], size: tuple[int, int]
) -> None:
    """Each pixel holds its own row and column, which the crop of the whole must agree on."""
    rows, columns = np.mgrid[0 : whole[0], 0 : whole[1]]
    image = Image.fromarray(np.stack([rows, columns, 0 * rows], axis=2).astype(np.uint8))
    aspect = size[1] / size[0]
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, ratio=(3 / 4 * aspect, 4 / 3 * aspect)),
            v2.RandomHorizontalFlip(),
        ]
    )
    indices, views = np.arange(40), CropResize(size)
    for index, seed in enumerate(sample_seeds("crop and flip", VIEW, indices)):
        torch.manual_seed(seed)
        expected = np.asarray(transform(image)).astype(int)
        pixels = views.finish(views.decode(image, VIEW, index, draft=False), VIEW, index)
        # torchvision cuts before it resizes; here the filter reaches over the crop's border.
        assert np.abs(pixels.astype(int) - expected).max() <= 3


def test_half_of_the_views_are_flipped() -> None:
    flips = [random_crop_and_flip((50, 50), (8, 8), seed)[1] for seed in range(1000)]
    assert 440 < sum(flips) < 560


@pytest.mark.parametrize(
    ("settings", "transform"),
    [
        ({"randaugment": 9}, v2.RandAugment(2, 9, fill=[127] * 3)),
        ({"random_erasing": 0.4}, v2.RandomErasing(0.4, value=127)),
        (
            {"randaugment": 20, "random_erasing": 1.0},
            v2.Compose([v2.RandAugment(2, 20, fill=[127] * 3), v2.RandomErasing(1.0, value=127)]),
        ),
    ],
    ids=str,
)
def test_stronger_augmentation_is_torchvisions(
    settings: dict[str, Any], transform: Callable[[torch.Tensor], torch.Tensor], data: DataSet
) -> None:
    indices = np.array([5, 3, 30, 17])
    views = WithAugmentation(data.train, 3, **settings).pixels(indices, VIEW)
    crops = data.train.pixels(indices, VIEW)
    for view, crop, seed in zip(
        views, crops, sample_seeds("transforms", VIEW, indices), strict=True
    ):
        torch.manual_seed(seed)
        assert torch.equal(view, transform(crop.permute(2, 0, 1)).permute(1, 2, 0))


def test_as_many_images_are_erased_as_the_setting_says() -> None:
    white = ImageSet(torch.full((2000, 16, 16, 3), 255, dtype=torch.uint8), torch.zeros(2000))
    views = WithAugmentation(white, 1, random_erasing=0.25).pixels(np.arange(2000), VIEW)
    assert abs(float((views == 127).flatten(1).any(1).float().mean()) - 0.25) < 0.04
    assert WithAugmentation(white, 1, random_erasing=0.25).pixels(np.arange(0), VIEW).shape == (
        *(0, 16, 16, 3),
    )


def test_seeding_leaves_torchs_generator_as_it_was() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with pytest.raises(KeyError), seeded_torch(5):
        torch.rand(1)
        raise KeyError
    assert torch.equal(torch.rand(3), expected)


class Noise:
    """A user's transform that draws from all three generators, and counts its calls."""

    def __repr__(self) -> str:
        return f"Noise() at {hex(id(self))}"

    def __call__(self, image: Image.Image) -> Image.Image:
        pixels = np.asarray(image).astype(int)
        shift = int(torch.randint(0, 9, ())) + random.randrange(9)
        noise = np.random.randint(0, 9, pixels.shape) + shift
        return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def folder_images(folder: Path, data: DataSet) -> DataSet:
    return folder_data(fill(folder), (16, 16))


def images_in_memory(folder: Path, data: DataSet) -> DataSet:
    return data


@pytest.mark.parametrize("source", [folder_images, images_in_memory])
def test_a_users_transform_is_a_function_of_seed_view_and_sample(
    source: Callable[[Path, DataSet], DataSet], tmp_path: Path, data: DataSet
) -> None:
    images = source(tmp_path, data).with_transform(Noise()).train
    order = np.arange(len(images))
    whole = images.pixels(order, VIEW)
    random.seed(9)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index,union-attr]
    assert torch.equal(images.pixels(order[[7, 2]], VIEW), whole[[7, 2]])
    assert state == (
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[index,union-attr]
        torch.get_rng_state().tolist(),
    )
    for other in (AugmentedView(4, 5), AugmentedView(3, 6)):
        assert not torch.equal(images.pixels(order, other), whole)
    (batch,) = batches(images, order, len(order), view=VIEW, workers=1)
    assert torch.equal((batch.images * 255).round().byte(), whole.permute(0, 3, 1, 2))
    assert not torch.equal(images.pixels(order), whole)


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (v2.Compose([v2.RandomResizedCrop(16), v2.RandomHorizontalFlip()]), "as asked"),
        (v2.Compose([v2.ToImage(), v2.RandomCrop(20, padding=4)]), "resized"),
        (v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]), "floating-point"),
        (np.asarray, "an array"),
        (v2.Grayscale(), "one channel"),
    ],
    ids=str,
)
def test_transforms_may_return_images_of_any_size_and_kind(
    transform: Callable[[Image.Image], Any], shape: str, tmp_path: Path
) -> None:
    images = folder_data(fill(tmp_path), (16, 16)).with_transform(transform).train
    pixels = images.pixels(np.arange(4), VIEW)
    assert pixels.shape == (4, 16, 16, 3)
    if shape == "as asked":
        path = images.root / images.paths[2]  # type: ignore[attr-defined]
        (seed,) = sample_seeds("transform", VIEW, np.array([2]))
        torch.manual_seed(seed)
        assert np.array_equal(pixels[2], np.asarray(transform(Image.open(path))))


def test_a_transform_that_fails_is_refused_before_training(data: DataSet) -> None:
    normalize = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.2] * 3)]
    )
    with pytest.raises(InputError, match=r"Normalize.*failed on .*before they are normalized"):
        data.with_transform(normalize)
    with pytest.raises(InputError, match=r"failed on an image 16x16 \(TypeError: got a NoneType"):
        data.with_transform(lambda image: None)


def test_a_transform_that_fails_later_names_itself(data: DataSet) -> None:
    def fragile(image: Image.Image) -> Image.Image:
        if random.random() < 0.01:
            raise ValueError("too dark")
        return image

    images = data.with_transform(fragile).train
    with pytest.raises(TrainingError, match=r"fragile.* failed on an image .*too dark"):
        for number in range(20):
            images.pixels(np.arange(len(images)), AugmentedView(0, number))


def test_a_cache_knows_a_transform_by_its_repr_without_addresses(data: DataSet) -> None:
    first, second = (data.with_transform(Noise()).train.provenance for _ in range(2))
    assert first == second == "Noise()"
    crops = [data.with_transform(v2.RandomCrop(16, pad)).train.provenance for pad in (1, 2)]
    assert crops[0] != crops[1]
