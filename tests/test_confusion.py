"""Confusions: counted by pair of classes, and written beside the record, not in it."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attention_transfer as at
from attention_transfer.errors import InputError
from attention_transfer.runs import Run, RunRecord
from attention_transfer.runs.confusion import Confusion
from conftest import SMALL
from made_runs import made_run

LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


def by_hand(pairs: list[tuple[int, int]]) -> np.ndarray:
    matrix = np.zeros((5, 5), dtype=int)
    for true, predicted in pairs:
        matrix[true, predicted] += 1
    return matrix


def confusion_of(pairs: list[tuple[int, int]]) -> Confusion:
    true, predicted = np.array(pairs).T
    return Confusion.of(true, predicted, classes=5)


@given(LABELS, LABELS)
def test_counts_are_those_by_hand(one: list[tuple[int, int]], two: list[tuple[int, int]]) -> None:
    confusion, both = confusion_of(one), Confusion.total([confusion_of(one), confusion_of(two)])
    assert np.array_equal(confusion.matrix(), by_hand(one))
    assert np.array_equal(confusion.images_by_class, by_hand(one).sum(axis=1))
    assert np.array_equal(both.matrix(), by_hand(one) + by_hand(two))
    mistakes = both.mistakes(100)
    assert [count for _, _, count in mistakes] == sorted(
        (count for _, _, count in mistakes), reverse=True
    )
    expected = by_hand(one) + by_hand(two)
    np.fill_diagonal(expected, 0)
    assert sum(count for _, _, count in mistakes) == expected.sum()


def test_a_records_size_does_not_grow_with_the_classes(tmp_path: Path) -> None:
    sizes = []
    for classes in (10, 1000):
        names = tuple(str(index) for index in range(classes))
        folder = made_run(tmp_path / str(classes), classes=names, images=2000)
        sizes.append((folder / "record.json").stat().st_size)
        assert (folder / "confusion.npz").stat().st_size < 100_000
    assert sizes[1] - sizes[0] < 100


def test_a_run_writes_the_confusions_of_its_last_and_of_its_averaged_weights(
    tmp_path: Path,
) -> None:
    run = at.train("wrn-10-1", out=tmp_path / "run", ema=0.9, **SMALL)
    record = json.loads((run.folder / "record.json").read_text())
    assert "confusion" not in json.dumps(record)
    assert run.record.ema is not None
    for split in ("validation", "test"):
        for averaged, final in ((False, run.record.final), (True, run.record.ema.final)):
            found = run.confusion(split, averaged)
            assert found is not None
            error = 100 * (1 - np.trace(found.matrix()) / found.images_by_class.sum())
            assert error == pytest.approx(getattr(final, f"{split}_error"))


def test_a_record_of_the_first_schema_is_read(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run")
    record = json.loads((folder / "record.json").read_text())
    final = {**record["final"], "validation_confusion": [[1]], "test_confusion": [[1]]}
    first = {**record, "schema_version": 1, "final": final}
    (folder / "record.json").write_text(json.dumps(first))
    assert Run(folder).record == RunRecord.from_json(json.dumps(record), "record.json")
    (folder / "record.json").write_text(json.dumps({**record, "schema_version": 3}))
    with pytest.raises(InputError, match="has schema version 3, expected 2"):
        _ = Run(folder).record


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run")
    (folder / "confusion.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputError, match=r"confusion\.npz"):
        Run(folder).confusion("test")
