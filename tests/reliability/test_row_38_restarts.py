"""Row 38: torchrun starts the processes again, in any order, and they resume one checkpoint."""

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from attention_transfer import environment, torchrun
from attention_transfer.cli import main
from reliability.killing import TINY, command_line, final_state, kill_all, run, start_line

TRAIN = ["train", "--model=wrn-10-1", *TINY, "--checkpoint-steps=1"]

DYING = """
import os, time
from attention_transfer.training.train_step import TrainStep
restart, rank = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("RANK", "1")
if restart != "0" and rank == "0":
    time.sleep(3)
original, left = TrainStep.step, [8]
def dying(self, *arguments):
    left[0] -= 1
    if left[0] == 0 and restart == "0" and rank == "1":
        os.kill(os.getpid(), 9)
    return original(self, *arguments)
TrainStep.step = dying
"""
"""Code to run before a command: process 1 dies at step 8, and process 0 is late afterwards."""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_restart_goes_on_though_the_first_process_is_late(tmp_path: Path) -> None:
    command = command_line(tmp_path, *TRAIN, "--out=run", before=DYING, processes=2)
    command.insert(command.index("--standalone"), "--max-restarts=2")
    process = start_line(tmp_path, command)
    try:
        assert process.wait(200) == 0, (tmp_path / "output.txt").read_text()
    finally:
        kill_all(process)
    output = (tmp_path / "output.txt").read_text()
    assert output.count("resumed after step") == 1
    whole = run(tmp_path, *TRAIN, "--out=whole", processes=2)
    assert whole.returncode == 0, whole.stderr
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_process_that_sees_another_checkpoint_is_named(tmp_path: Path) -> None:
    """Process 1 looks at an older copy of the folder, as of a disk that is not shared."""
    killed = run(tmp_path, *TRAIN, "--out=run", before=DYING)
    assert killed.returncode == -9
    shutil.copytree(tmp_path / "run", tmp_path / "other/run")
    newest = max((tmp_path / "other/run/checkpoints").iterdir())
    shutil.rmtree(newest)
    elsewhere = "import os\nif os.environ['RANK'] == '1': os.chdir('other')"
    resumed = run(tmp_path, "resume", "run", before=elsewhere, processes=2)
    assert resumed.returncode != 0
    assert "process 1 cannot resume from the checkpoint of process 0" in resumed.stderr
    assert newest.name in resumed.stderr
    assert "resumed after step" not in resumed.stderr + resumed.stdout


def met(stores: Sequence[dist.Store], late: float = 0) -> list[str]:
    """Return what the processes of one start call it."""
    with ThreadPoolExecutor() as pool:
        others = [
            pool.submit(environment._name_of_start, store, rank, len(stores))
            for rank, store in enumerate(stores)
            if rank > 0
        ]
        for other in others:
            with pytest.raises(TimeoutError):
                other.result(late / len(others))
        name = environment._name_of_start(stores[0], 0, len(stores))
        return [name, *(other.result() for other in others)]


def test_starts_in_one_store_have_names_of_their_own() -> None:
    wait = timedelta(seconds=20)
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=wait)
    stores = [
        dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=wait) for _ in range(3)
    ]
    server.set("attention-transfer/hello/2", "a process that died before it was answered")
    first, second, third = (met(stores, late=0.2) for _ in range(3))
    for names in (first, second, third):
        assert len(set(names)) == 1
    assert len({first[0], second[0], third[0]}) == 3


def test_a_run_that_may_be_restarted_needs_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchrun, "AGENT", 1)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert main(["train", "--model=wrn-10-1", "--data=cluttered-digits"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("give --out DIR")
    assert "up to 3 times" in error
    assert not list(tmp_path.iterdir())
