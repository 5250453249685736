"""Labels that are numbers: with gaps, from another number than 0, and missing ones."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attention_transfer.cli import main
from attention_transfer.data import load_data
from attention_transfer.errors import InputError
from test_labels_as_people_have_them import SMALL, images, samples, table


@pytest.mark.parametrize("kind", ["table", "samples"])
@pytest.mark.parametrize(("labels", "offset"), [((1, 2, 5), 1), ((0, 3, 4), 0), ((7, 8, 12), 1)])
def test_the_offset_that_a_notice_recommends_works(
    tmp_path: Path, kind: str, labels: tuple[int, ...], offset: int
) -> None:
    data: Any = {"train": samples([*labels] * 10)}
    if kind == "table":
        names = images(tmp_path, 30)
        rows = [f"{name},{labels[index % 3]}" for index, name in enumerate(names)]
        data = f"csv:{table(tmp_path, 'filename,label', rows)}"
    (recommended,) = re.findall(
        r"--label-offset (\d+) keeps", " ".join(load_data(data, **SMALL).notices)
    )
    assert int(recommended) == offset
    result = load_data(data, label_offset=offset, class_order="natural", **SMALL)
    assert result.class_names == tuple(map(str, range(offset, labels[-1] + 1)))
    for part, each in ((result.train, 7), (result.validation, 1), (result.test, 2)):
        found = np.bincount(part.labels.numpy(), minlength=len(result.class_names))
        expected = [each if label + offset in labels else 0 for label in range(len(found))]
        assert found.tolist() == expected
    absent = len(result.class_names) - 3
    said = " ".join(result.notices)
    assert f"no images of {absent} of {len(result.class_names)} classes" in said


def test_a_student_learns_from_labels_with_gaps(capsys: pytest.CaptureFixture[str]) -> None:
    names = images(Path("photos"), 30)
    rows = [f"{name},{(1, 2, 5)[index % 3]}" for index, name in enumerate(names)]
    file = table(Path("photos"), "filename,label", rows)
    command = ["train", "--model", "wrn-10-1", "--data", f"csv:{file}", "--label-offset", "1"]
    options = ["--image-size", "8", "--epochs", "1", "--batch-size", "8", "--no-report"]
    assert main([*command, *options, "--out", "run"]) == 0
    assert json.loads(Path("run/model.json").read_text())["class_names"] == list("12345")
    printed = capsys.readouterr()
    assert "train has no images of 2 of 5 classes: 3, 4" in printed.out + printed.err


@pytest.mark.parametrize("labels", [[-1, 1, None], [-1, 1, float("nan")]])
def test_a_missing_label_is_not_taken_for_a_class(labels: list[Any]) -> None:
    """-1 beside 1 alone is a class."""
    with pytest.raises(InputError, match=r"has 10 samples without a label among 30; give"):
        load_data((samples(labels * 10), samples([-1, 1] * 3)), **SMALL)


def test_a_table_counts_rows_without_a_label(tmp_path: Path) -> None:
    names = images(tmp_path, 30)
    rows = [f"{name},{('-1', '1', '')[index % 3]}" for index, name in enumerate(names)]
    file = table(tmp_path, "filename,label", rows)
    with pytest.raises(InputError, match=r"has 10 samples without a label among 30; give"):
        load_data(f"csv:{file}", **SMALL)
