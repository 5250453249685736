"""Loader workers that are killed, raise, crash or have no shared memory."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from attention_transfer.data import AugmentedView, batches, loader_workers
from attention_transfer.data.files import FileImages
from attention_transfer.data.folders import folder_data
from attention_transfer.errors import TrainingError
from reliability.killing import (
    SLOW_STEPS,
    alive,
    descendants,
    environment,
    kill_all,
    need_mounts,
    start_line,
    wait_until,
)
from test_folders import fill


class Faulty(FileImages):
    """File images of which sample 9 does something to the process that decodes it."""

    fault = ""

    def pixels(self, indices: np.ndarray, view: AugmentedView | None = None) -> torch.Tensor:
        if 9 in indices:
            if self.fault == "raises":
                raise ZeroDivisionError("by the user's own code")
            if self.fault == "exits":
                os._exit(3)
            if self.fault == "crashes":
                os.kill(os.getpid(), signal.SIGSYS)
        return super().pixels(indices, view)


@pytest.mark.parametrize(
    ("fault", "workers", "expected"),
    [
        ("raises", 0, "01.png cannot be loaded: ZeroDivisionError: by the user's own code"),
        ("raises", 2, "01.png cannot be loaded: ZeroDivisionError: by the user's own code"),
        ("exits", 2, r"ended with exit code 3 while it loaded \S*01.png"),
        ("crashes", 2, r"ended by SIGSYS while it loaded \S*01.png"),
    ],
)
def test_the_sample_is_named_within_seconds(
    tmp_path: Path, fault: str, workers: int, expected: str
) -> None:
    whole = folder_data(fill(tmp_path), (16, 16)).train
    images = Faulty(whole.labels, whole.crop_resize, whole.root, whole.paths)
    object.__setattr__(images, "fault", fault)
    began = time.monotonic()
    with pytest.raises(TrainingError, match=expected):
        list(batches(images, np.arange(len(images)), 4, workers=workers))
    assert time.monotonic() - began < 30


def test_after_a_run_signals_of_children_are_handled_as_before(tmp_path: Path) -> None:
    images = folder_data(fill(tmp_path), (16, 16)).train
    list(batches(images, np.arange(8), 4, workers=1))
    before = signal.getsignal(signal.SIGCHLD)
    loaded = batches(images, np.arange(8), 4, workers=1)
    next(loaded)
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    list(loaded)
    assert signal.getsignal(signal.SIGCHLD) is before


def command(folder: Path, *arguments: str) -> list[str]:
    """Return the command that trains on a folder of images, with slow steps and two workers."""
    script = folder / "script.py"
    script.write_text(
        SLOW_STEPS.format(seconds=0.2)
        + "import sys\nfrom attention_transfer.cli import main\n"
        + "if __name__ == '__main__':\n    sys.exit(main(sys.argv[1:]))\n"
    )
    data = fill(folder / "images", count=12)
    return [
        *(sys.executable, str(script), "train", "--model=wrn-10-1", f"--data=folder:{data}"),
        *("--image-size=32x32", "--batch-size=4", "--epochs=30", "--precision=fp32"),
        *("--workers=2", "--out=run", "--no-report", "--probes=0", *arguments),
    ]


def training(folder: Path) -> subprocess.Popen[str]:
    """Start that command, and return once its workers run and steps are taken."""
    process = start_line(folder, command(folder))
    wait_until(lambda: len(descendants(process.pid)) >= 2)
    time.sleep(2)
    return process


@pytest.mark.slow
def test_a_worker_killed_from_outside_ends_the_run_in_a_line_and_its_state_is_saved(
    tmp_path: Path,
) -> None:
    process = training(tmp_path)
    workers = descendants(process.pid)
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(30) == 1
    text = (tmp_path / "output.txt").read_text()
    assert "a loader worker was killed (SIGKILL)" in text
    assert "Traceback" not in text
    assert list((tmp_path / "run/checkpoints").glob("epoch*"))
    wait_until(lambda: not alive(workers), 20)
    resumed = subprocess.run(
        [*command(tmp_path)[:2], "resume", "run", "--workers", "-1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert resumed.returncode == 2, resumed.stderr
    assert "workers" in resumed.stderr
    process = start_line(tmp_path, [*command(tmp_path)[:2], "resume", "run", "--workers", "0"])
    wait_until(lambda: "resumed after step" in (tmp_path / "output.txt").read_text())
    time.sleep(2)
    assert not descendants(process.pid)
    kill_all(process)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_the_whole_group_is_a_stop(tmp_path: Path, name: str) -> None:
    """As from a terminal or a scheduler: the workers get it too."""
    process = training(tmp_path)
    everyone = [process.pid, *descendants(process.pid)]
    number = getattr(signal, name)
    os.killpg(process.pid, number)
    assert process.wait(30) == 128 + number
    text = (tmp_path / "output.txt").read_text()
    assert f"stopped by {name} after step" in text
    assert "Traceback" not in text
    wait_until(lambda: not alive(everyone), 20)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_batches_are_not_in_the_shared_memory_file_system(tmp_path: Path) -> None:
    images = folder_data(fill(tmp_path), (64, 64)).train
    loaded = batches(images, np.arange(len(images)), 4, workers=1)
    next(loaded)
    workers = descendants(os.getpid())
    assert workers
    for pid in (os.getpid(), *workers):
        assert "/dev/shm/torch" not in Path(f"/proc/{pid}/maps").read_text()
    list(loaded)


def test_a_stopped_worker_is_noticed_and_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be asked to end, and would keep this process from ending."""
    monkeypatch.setattr(loader_workers, "TIMEOUT", 0.1)
    monkeypatch.setattr(loader_workers, "CHECK_SECONDS", 1)
    images = folder_data(fill(tmp_path), (16, 16)).train
    loaded = batches(images, np.arange(len(images)), 4, workers=1)
    next(loaded)
    workers = [child.pid or 0 for child in multiprocessing.active_children()]
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    with pytest.raises(TrainingError, match=r"no loader worker has finished .*; resume the run"):
        list(loaded)
    assert len(workers) == 1
    assert not alive(workers)


def test_batches_are_loaded_in_another_thread_too(tmp_path: Path) -> None:
    images = folder_data(fill(tmp_path), (16, 16)).train

    def all_indices() -> list[int]:
        loaded = batches(images, np.arange(len(images)), 4, workers=1)
        return [index for batch in loaded for index in batch.indices.tolist()]

    expected = all_indices()
    with ThreadPoolExecutor() as threads:
        assert threads.submit(all_indices).result() == expected


def test_workers_that_cannot_be_started_are_one_line(tmp_path: Path) -> None:
    """Without room for another open file; only a full disk is said to be one."""
    images = folder_data(fill(tmp_path), (16, 16)).train
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    free = next(number for number in count() if number not in used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"started: Too many open files; use fewer"):
            list(batches(images, np.arange(8), 4, workers=2))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("size", ["256k", "64k"])
def test_a_small_shared_memory_file_system(tmp_path: Path, size: str) -> None:
    """Batches (here of 221 kB) are not in /dev/shm; where locks have no room, a line says so."""
    need_mounts()
    line = command(tmp_path, "--epochs=1", "--image-size=96x96", "--batch-size=8")
    done = subprocess.run(
        [
            *("unshare", "-rm", "sh", "-c"),
            f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"',
            *("sh", *line),
        ],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if size == "256k":
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1, done.stderr
    assert "/dev/shm is full" in done.stderr
    assert "--workers 0" in done.stderr
    assert len(done.stderr.splitlines()) == 1
