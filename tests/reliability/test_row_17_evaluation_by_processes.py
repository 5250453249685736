"""Row 17, of evaluate: several processes print one table, with the figures of one process."""

import json
from pathlib import Path

import pytest

from reliability.killing import TINY, run

COUNTED = """
import os
from dataclasses import replace
from attention_transfer.training import model_evaluation, shared_evaluation
data = small_data(images=45)
model_evaluation.load_data = lambda name, **settings: replace(data, test=data.train)
predict = shared_evaluation.predict
def counted(network, images, *arguments, **settings):
    with open("judged.txt", "a") as lines:
        lines.write(f"{len(images)}\\n")
    return predict(network, images, *arguments, **settings)
shared_evaluation.predict = counted
"""
"""Code to run before evaluate: 45 test images, and a line of how many a process judges."""


@pytest.mark.slow
def test_each_process_judges_its_share_and_one_prints(tmp_path: Path) -> None:
    trained = run(tmp_path, "train", "--model=wrn-10-1", *TINY, "--probes=0", "--out=run")
    assert trained.returncode == 0, trained.stderr
    documents, judged = [], []
    for processes in (1, 2):
        for flags in (["--json"], []):
            ended = run(tmp_path, "evaluate", "run", *flags, before=COUNTED, processes=processes)
            assert ended.returncode == 0, ended.stderr
            if flags:
                documents.append(json.loads(ended.stdout))  # one document and nothing else
            else:
                assert ended.stdout.count("calibration error") == 1
                assert ended.stdout.count("predicted") == 1
            shares = sorted(map(int, (tmp_path / "judged.txt").read_text().split()))
            (tmp_path / "judged.txt").unlink()
            judged.append(shares)
    assert judged == [[45], [45], [22, 23], [22, 23]]
    one, two = documents
    assert one["images"] == two["images"] == 45
    assert one["confusion"] == two["confusion"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert {**two, "loss": 0, "calibration_error": 0} == {**one, "loss": 0, "calibration_error": 0}


@pytest.mark.slow
def test_a_model_that_is_missing_ends_all_processes(tmp_path: Path) -> None:
    ended = run(tmp_path, "evaluate", "nowhere", before=COUNTED, processes=2)
    assert ended.returncode != 0
    assert "nowhere" in ended.stderr
    assert "error %" not in ended.stdout
