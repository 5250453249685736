"""Row 15: data sets that are empty, smaller than a batch, or leave one image for the last batch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import attention_transfer as at
from attention_transfer.data import DataSet, ImageSet, from_datasets
from attention_transfer.errors import InputError
from conftest import SMALL, rectified, small_data
from reliability.killing import TINY, run

BATCH = 4
SETTINGS: dict[str, Any] = {**SMALL, "epochs": 2, "batch_size": BATCH, "probes": 0}


def samples(count: int) -> list[tuple[np.ndarray, int]]:
    generator = np.random.default_rng(0)
    return [(generator.integers(0, 256, (16, 16, 3), np.uint8), n % 3) for n in range(count)]


def in_memory(count: int) -> DataSet:
    data = small_data()
    return replace(data, train=data.train.subset(np.arange(count)))


def by_split(count: int) -> dict[str, Any]:
    return {"train": samples(count), "validation": samples(6), "test": samples(6)}


def empty_factory() -> dict[str, Any]:
    return by_split(0)


def normalized_vectors() -> nn.Module:
    """Return a network whose batch norm has one value a channel and image: it needs two images."""
    return nn.Sequential(rectified(3), nn.BatchNorm1d(3))


@pytest.mark.parametrize("make", [in_memory, by_split])
@pytest.mark.parametrize(
    ("count", "steps"),
    [(BATCH - 1, 1), (BATCH, 1), (BATCH + 1, 1), (BATCH + 2, 2), (2 * BATCH + 1, 2)],
)
def test_every_image_is_trained_on_and_no_batch_has_one(
    make: Callable[[int], Any], count: int, steps: int
) -> None:
    """A last batch of one image is joined to the one before it."""
    finished = at.train(normalized_vectors(), data=make(count), out="run", **SETTINGS)
    assert finished.record.data.train.images == count
    assert finished.metrics[-1].step == 2 * steps


def test_a_single_image_is_trained_on_where_the_network_allows() -> None:
    finished = at.train(rectified(3), data=in_memory(1), out="run", **SETTINGS)
    assert finished.metrics[-1].step == 2
    message = "one image at a time.*at least 2 images in each process: more training images"
    with pytest.raises(InputError, match=message):
        at.train(normalized_vectors(), data=in_memory(1), out="other", **SETTINGS)
    with pytest.raises(InputError, match="--batch-size of at least 2"):
        settings = {**SETTINGS, "batch_size": 1}
        at.train(normalized_vectors(), data=in_memory(5), out="other", **settings)
    assert not Path("other").exists()


def empty() -> ImageSet:
    return small_data().train.subset(np.zeros(0, dtype=np.int64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: in_memory(0), "small has no training images, expected at least one"),
        (lambda: replace(small_data(), test=empty()), "small has no test images"),
        (lambda: by_split(0), "data train has no samples, expected at least one"),
        (lambda: {**by_split(20), "validation": []}, "data validation has no samples"),
        (lambda: (samples(20), []), "data test has no samples"),
        (lambda: (samples(0), samples(6)), "data train has no samples"),
        (lambda: f"{__name__}:empty_factory", "empty_factory train has no samples"),
        (lambda: (samples(3), samples(6)), "leaves 3 to train and 0 to validate on"),
        (lambda: replace(small_data(6), validation=empty()), "leaves 6 to train and 0 to validate"),
    ],
)
def test_an_empty_split_is_refused_before_anything_is_written(
    make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        at.train("wrn-10-1", data=make(), out="run", **SETTINGS)
    assert not Path("run").exists()


def test_an_empty_data_set_cannot_be_made_of_datasets() -> None:
    for arguments in ([samples(0)], [samples(20), samples(0)], [samples(20), None, samples(0)]):
        with pytest.raises(InputError, match=r"data (train|test|validation) has no samples"):
            from_datasets(*arguments)


@pytest.mark.slow
def test_processes_that_would_get_no_image_or_one_are_refused(tmp_path: Path) -> None:
    for batch_size, model, message in (
        (1, "wrn-10-1", "a batch has 1 images and 2 processes share it"),
        (2, f"{__name__}:normalized_vectors", "--batch-size of at least 4"),
    ):
        arguments = [*TINY, f"--batch-size={batch_size}", "--out=run"]
        ended = run(tmp_path, "train", f"--model={model}", *arguments, processes=2)
        assert ended.returncode != 0
        assert message in ended.stderr
        assert not (tmp_path / "run").exists()
