"""Row 27: a long run, also one that is killed on its way: memory, files and threads stay flat."""

import random
import time
from pathlib import Path

import numpy as np
import pytest

from reliability.killing import TINY, final_state, kill_all, run, start, wait_until

EPOCHS, KILLS = 200, 5

MOST_GROWTH = 16 * 1024
"""Bytes an epoch by which resident memory may grow over the second half. The rows of metrics that a
run keeps, and writes into each checkpoint, are some kB an epoch; a state that is not freed is more
than 300 kB.
"""

WATCHED = """
import os, psutil
from attention_transfer.training.trainer import Trainer
network_inputs.load_data = lambda name, **settings: small_data(images=16, size=8)
end_epoch = Trainer._end_epoch
def watched(self):
    end_epoch(self)
    main = psutil.Process()
    everyone = [main, *main.children(recursive=True)]
    memory = sum(one.memory_info().rss for one in everyone)
    files, threads = (sum(getattr(one, name)() for one in everyone)
                      for name in ("num_fds", "num_threads"))
    with open("watched.txt", "a") as lines:
        print(os.getpid(), self.epoch, memory, files, threads, len(everyone), file=lines)
Trainer._end_epoch = watched
"""

DISTILL = [
    "distill",
    "--teacher=wrn-10-1@random",
    "--student=wrn-10-1",
    *TINY,
    f"--epochs={EPOCHS}",
    "--probes=0",
    "--randaugment=1",
    "--workers=1",
]
"""A run with each part that could pile up: teacher, augmentation in a worker, a checkpoint an
epoch.
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_epochs_stay_flat_and_end_bit_equal_however_often_killed(
    tmp_path: Path,
) -> None:
    whole = run(tmp_path, *DISTILL, "--out=whole", before=WATCHED, timeout=600)
    assert whole.returncode == 0, whole.stderr
    _, epochs, memory, files, threads, processes = watched(tmp_path).T
    assert epochs.tolist() == list(range(1, EPOCHS + 1))
    second = slice(EPOCHS // 2, None)
    growth = np.polyfit(epochs[second], memory[second], 1)[0]
    print(
        f"{memory[second].mean() / 2**20:.0f} MiB, {growth / 1024:+.2f} KiB an epoch; "
        f"{files.min()} to {files.max()} files, {threads.min()} to {threads.max()} threads"
    )
    assert growth < MOST_GROWTH
    for figures in (files, threads, processes):  # fewer at the end, when nothing is read ahead
        assert figures[second].max() <= figures[second][0] == figures[second.start // 2], figures

    generator = random.Random(27)
    arguments = [*DISTILL, "--out=run", "--resume-or-start"]
    for kill in range(1, KILLS + 1):
        reached = kill * EPOCHS // (KILLS + 1)
        kill_after(tmp_path, arguments, reached, generator)
    last = run(tmp_path, *arguments, before=WATCHED, timeout=600)
    assert last.returncode == 0, last.stderr
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


def watched(folder: Path) -> np.ndarray:
    """Return what the processes wrote of themselves at each epoch's end, (epochs, 6)."""
    return np.loadtxt(folder / "watched.txt", dtype=np.int64, ndmin=2)


def kill_after(folder: Path, arguments: list[str], epochs: int, generator: random.Random) -> None:
    """Start or resume a run, and kill it at a random moment after so many epochs."""
    process = start(folder, *arguments, before=WATCHED)
    metrics = folder / "run/metrics.jsonl"
    wait_until(
        lambda: (
            process.poll() is not None
            or (metrics.exists() and metrics.read_bytes().count(b"\n") >= epochs)
        ),
        seconds=300,
    )
    assert process.poll() is None, (folder / "output.txt").read_text()
    time.sleep(generator.uniform(0, 0.3))
    kill_all(process)
