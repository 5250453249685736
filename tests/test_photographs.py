"""Crops of photographs, and the study that learns from them."""

from pathlib import Path

import numpy as np
import pytest

from attention_transfer.experiments.study.files import find_study
from attention_transfer.experiments.study.planning import make_plan

pytest.importorskip("skimage")
pytest.importorskip("sklearn")

from attention_transfer.experiments.photographs import SIZE, crops, crops_by_split, photographs


def test_crops_are_the_same_every_time_and_as_many_of_each_photograph() -> None:
    first, second = crops_by_split(images=4), crops_by_split(images=4)
    count = len(photographs())
    for split, images in (("train", 4), ("test", 2)):
        pixels, labels = first[split]
        assert labels == [label for label in range(count) for _ in range(images)]
        assert {crop.shape for crop in pixels} == {(SIZE, SIZE)}
        assert all(map(np.array_equal, pixels, second[split][0]))


def test_the_data_set_has_a_class_for_each_photograph() -> None:
    data = crops()
    assert data.class_names == tuple(photographs())
    assert len(data.train) == 2 * len(data.test) == 100 * len(data.class_names)


def test_photographs_have_a_learning_rate_at_which_strong_attention_trains() -> None:
    images = {"plain-digits": 500, "cluttered-digits": 3600, "photographs": 1440}
    made = make_plan(find_study("do-no-harm"), images)
    rates = {
        cell.arm: run.config(Path("s")).lr
        for cell, seeds in made.cells.items()
        for run in made.runs
        if cell.pair == "mobilenet from efficientnet" and run.folder == seeds[0]
    }
    assert rates == dict.fromkeys(
        ("alone", *(f"AT {b}" for b in (30, 100, 300, 1000, "auto"))), 0.1
    )
