"""Keyed randomness, batches, the embedded scenes, and CIFAR from files in its real layout."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.datasets import CIFAR10, CIFAR100

from attention_transfer.data import (
    Augmentation,
    AugmentedView,
    DataSet,
    batch_bounds,
    batches,
    epoch_order,
    hold_out_validation,
    load_data,
)
from attention_transfer.data.cluttered_digits import (
    _share,
    cluttered_digits,
    sources,
    training_digits,
)
from attention_transfer.data.randomness import integers, permutation, uniform
from attention_transfer.errors import InputError


@pytest.fixture(scope="module")
def scenes() -> DataSet:
    return cluttered_digits()


def test_draws_are_uniform_and_independent_between_keys() -> None:
    count = 100_000
    first, second = uniform("a", 0, np.arange(count)), uniform("b", 0, np.arange(count))
    assert first.min() >= 0
    assert first.max() < 1
    histogram = np.bincount((first * 20).astype(int), minlength=20)
    assert ((histogram - count / 20) ** 2 / (count / 20)).sum() < 45  # chi-squared, 19 degrees
    for other in (second, np.roll(first, 1), uniform("a", 1, np.arange(count))):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.015


def test_a_draw_depends_on_its_key_alone() -> None:
    assert uniform("crop", 1, 5) == uniform("crop", 1, np.arange(10))[5]
    assert uniform("crop", 1, 5) != uniform("crop", 5, 1)
    # The very numbers, so that data, orders and runs stay what they were.
    assert uniform("crop", 1, 5).item() == 0.4696086154188933
    assert permutation(6, "order", 0, 0).tolist() == [0, 3, 4, 2, 5, 1]


@given(low=st.integers(-5, 5), span=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_integers_fill_their_range(low: int, span: int) -> None:
    drawn = integers(low, low + span, "range", np.arange(600))
    assert set(drawn.tolist()) == set(range(low, low + span + 1))


def test_orders_are_permutations_that_differ_by_seed_and_epoch() -> None:
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4


@given(
    count=st.integers(1, 60), batch_size=st.integers(1, 20), processes=st.sampled_from([1, 2, 3])
)
@settings(max_examples=60, deadline=None)
def test_every_sample_once_and_the_same_batches_for_any_number_of_processes(
    count: int, batch_size: int, processes: int
) -> None:
    bounds = batch_bounds(count, batch_size, processes)
    assert [start for start, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    assert bounds[-1][1] == count
    if len(bounds) > 1:
        assert all(end - start >= min(processes, batch_size) for start, end in bounds)


def test_processes_share_the_batches(data: DataSet) -> None:
    order = epoch_order(len(data.train), 0, 0)
    alone = [batch.indices.tolist() for batch in batches(data.train, order, 10)]
    shares = [
        [b.indices.tolist() for b in batches(data.train, order, 10, process=p, processes=2)]
        for p in (0, 1)
    ]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(b) for b in alone]
    assert sorted(index for batch in alone for index in batch) == list(range(len(data.train)))


@pytest.mark.parametrize("size", [1, 9, 10, 11])
def test_sets_of_about_one_batch(data: DataSet, size: int) -> None:
    part = data.train.subset(np.arange(size))
    lengths = [len(batch.labels) for batch in batches(part, np.arange(size), 10)]
    assert lengths == [size]


def test_images_come_in_order_scaled_and_in_channels_last(data: DataSet) -> None:
    batch = next(batches(data.train, np.array([5, 2]), 2))
    expected = data.train.images[[5, 2]].permute(0, 3, 1, 2) / 255
    assert torch.equal(batch.images, expected)
    assert torch.equal(batch.labels, data.train.labels[[5, 2]])
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("flip", [False, True])
def test_an_augmented_image_is_a_crop_of_its_padded_self(data: DataSet, flip: bool) -> None:
    indices = np.arange(20)
    images = data.train.images[:20]
    pad = 3
    views = Augmentation(pad, flip)(images, indices, AugmentedView(7, 2)).numpy()
    flips = 0
    for image, view in zip(images.numpy(), views, strict=True):
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, image.shape)[:, :, 0]
        straight = (windows == view).all(axis=(2, 3, 4)).any()
        mirrored = (windows == view[:, ::-1]).all(axis=(2, 3, 4)).any()
        assert straight or (flip and mirrored)
        flips += mirrored and not straight
    assert (2 < flips < 18) if flip else flips == 0


def test_crop_and_flip_are_drawn_by_the_samples_key(data: DataSet) -> None:
    indices = np.array([30, 3, 17, 8, 44])
    views = Augmentation(3, flip=True)(
        data.train.images[indices], indices, AugmentedView(7, 2)
    ).numpy()
    for index, view in zip(indices.tolist(), views, strict=True):
        top, left = (int(integers(-3, 3, f"crop {side}", 7, 2, index)) for side in ("top", "left"))
        padded = np.pad(data.train.images[index].numpy(), ((3, 3), (3, 3), (0, 0)), mode="reflect")
        crop = padded[3 + top :, 3 + left :][: view.shape[0], : view.shape[1]]
        flipped = uniform("flip", 7, 2, index) < 0.5
        assert np.array_equal(view, crop[:, ::-1] if flipped else crop)


def test_a_view_is_a_function_of_seed_view_and_sample(data: DataSet) -> None:
    augmentation = Augmentation(pad=3, flip=True)
    whole = augmentation(data.train.images, np.arange(48), AugmentedView(0, 4))
    picked = np.array([30, 3])
    assert torch.equal(
        augmentation(data.train.images[picked], picked, AugmentedView(0, 4)), whole[picked]
    )
    for other in (AugmentedView(1, 4), AugmentedView(0, 5)):
        assert not torch.equal(augmentation(data.train.images, np.arange(48), other), whole)


def test_validation_is_a_share_of_each_class_and_of_training_alone(data: DataSet) -> None:
    split = hold_out_validation(data, 0.25, data_seed=0)
    assert len(split.validation) == 12
    assert np.bincount(split.validation.labels).tolist() == [4, 4, 4]
    parts = [
        {image.tobytes() for image in part.images.numpy()}
        for part in (split.train, split.validation, data.train)
    ]
    assert parts[0] | parts[1] == parts[2]
    assert not parts[0] & parts[1]
    assert hold_out_validation(data, 0.25, 1).validation.fingerprint != split.validation.fingerprint
    with pytest.raises(InputError, match="validation share"):
        hold_out_validation(data, 0.001, 0)


def test_the_scenes_are_as_described(scenes: DataSet) -> None:
    assert (len(scenes.train), len(scenes.test)) == (4000, 1000)
    assert scenes.train.images.shape[1:] == (32, 32, 3)
    for part, count in ((scenes.train, 400), (scenes.test, 100)):
        assert np.bincount(part.labels).tolist() == [count] * 10
        assert part.boxes is not None
        left, top, right, bottom = part.boxes.numpy().T
        longer = np.maximum(right - left, bottom - top)
        assert set(longer.tolist()) == set(range(16, 25))
        assert left.min() == 0
        assert top.min() == 0
        assert right.max() == bottom.max() == 32


def test_the_digit_is_in_its_box() -> None:
    """The same scene with another colour differs inside the box alone."""
    from attention_transfer.data import cluttered_digits as module

    digits, labels, photographs = sources()
    tight = [module._tight(digit) for digit in digits[::50]]
    material = module._Material(tight, labels[::50], [_share(p, "train") for p in photographs])
    painted = module._scenes(material, 0, "train")
    blank = [np.zeros_like(digit) for digit in tight]
    large = {id(digit) for digit in blank}
    assert len(large) == 100
    original = module._paint
    calls: list[int] = []

    def all_but_the_digit(*arguments: object) -> None:
        calls.append(1)
        if len(calls) <= module.FRAGMENTS:
            original(*arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_paint", all_but_the_digit)
        without = module._scenes(material, 0, "train")
    changed = (painted.images != without.images).any(dim=3).numpy()
    assert painted.boxes is not None
    for difference, (left, top, right, bottom) in zip(changed, painted.boxes, strict=True):
        assert difference.sum() >= 16
        difference[top:bottom, left:right] = False
        assert not difference.any()


def test_the_splits_share_no_digit_and_no_part_of_a_photograph() -> None:
    digits, labels, photographs = sources()
    train = training_digits(labels)
    inks = [{digit.tobytes() for digit in digits[part]} for part in (train, ~train)]
    assert not inks[0] & inks[1]
    for photograph in photographs:
        columns = np.broadcast_to(np.arange(photograph.shape[1])[None, :, None], photograph.shape)
        parts = [set(np.unique(_share(columns, split))) for split in ("train", "test")]  # type: ignore[arg-type]
        assert not parts[0] & parts[1]
        assert min(map(len, parts)) >= 32


def test_scenes_are_a_function_of_the_seed(scenes: DataSet) -> None:
    assert cluttered_digits(0).test.fingerprint == scenes.test.fingerprint
    other = cluttered_digits(1)
    assert other.test.fingerprint != scenes.test.fingerprint
    assert torch.equal(other.test.labels, scenes.test.labels)


def test_unknown_data_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean cifar10"):
        load_data("cifar11")


def _write_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch, source: type[CIFAR10]) -> None:
    """Small files in the real layout: pickled dictionaries of (N, 3072) bytes, channel first."""
    base = folder / source.base_folder
    base.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def write(name: str, content: object) -> str:
        (base / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((base / name).read_bytes()).hexdigest()

    key = "labels" if source is CIFAR10 else "fine_labels"
    classes = 10 if source is CIFAR10 else 100
    for attribute in ("train_list", "test_list"):
        listed = []
        for name, _ in getattr(source, attribute):
            pixels = generator.integers(0, 256, (2 * classes, 3072), dtype=np.uint8)
            labels = [index % classes for index in range(2 * classes)]
            listed.append([name, write(name, {"data": pixels, key: labels})])
        monkeypatch.setattr(source, attribute, listed)
    names = {source.meta["key"]: [f"class {index}" for index in range(classes)]}
    meta = {**source.meta, "md5": write(source.meta["filename"], names)}
    monkeypatch.setattr(source, "meta", meta)


@pytest.mark.parametrize(("name", "source"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifar_is_read_from_its_own_files(
    name: str, source: type[CIFAR10], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_cifar(tmp_path, monkeypatch, source)
    loaded = load_data(f"{name}:{tmp_path}", validation=0.5)
    classes = 10 if name == "cifar10" else 100
    assert len(loaded.class_names) == classes
    assert len(loaded.train) == len(loaded.validation)
    assert len(loaded.test) == 2 * classes
    with (tmp_path / source.base_folder / source.test_list[0][0]).open("rb") as file:
        first = pickle.load(file)["data"][0]
    assert np.array_equal(
        loaded.test.images[0].numpy(), first.reshape(3, 32, 32).transpose(1, 2, 0)
    )
    assert loaded.train.augmentation == Augmentation(pad=4, flip=True)
    assert loaded.mean[0] * 255 == pytest.approx(125.3)


def test_damaged_cifar_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_cifar(tmp_path, monkeypatch, CIFAR10)
    damaged = tmp_path / CIFAR10.base_folder / "data_batch_1"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(InputError, match="no whole cifar10"):
        load_data(f"cifar10:{tmp_path}")
