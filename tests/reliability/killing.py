"""Real runs in processes of their own that the tests interrupt: commands, and what they leave."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from attention_transfer.runs.checkpoints import load_last_checkpoint
from conftest import needed

TESTS = Path(__file__).parent.parent

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import attention_transfer.network_inputs as network_inputs
from conftest import small_data
from attention_transfer.cli import main
network_inputs.load_data = lambda name, **settings: small_data(images=45)
{before}
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""

TINY = [
    "--epochs=3",
    "--batch-size=8",
    "--precision=fp32",
    "--no-channels-last",
    "--probes=2",
    "--no-report",
]
"""Settings of a run of 3 epochs of 6 steps, the last step of an epoch with 5 images."""


SLOW_STEPS = """
import time
from attention_transfer.training.train_step import TrainStep
original = TrainStep.step
def slow(self, *arguments):
    time.sleep({seconds})
    return original(self, *arguments)
TrainStep.step = slow
"""
"""Code to run before a command: steps that last long enough to be interrupted."""


def command_line(folder: Path, *arguments: str, before: str = "", processes: int = 1) -> list[str]:
    """Return the command of ``attention-transfer`` on the small images, with code run before it."""
    path = folder / "command.py"
    text = SCRIPT.format(tests=str(TESTS), before=textwrap.dedent(before))
    if not path.exists() or path.read_text() != text:
        path = folder / f"command-{hashlib.sha256(text.encode()).hexdigest()[:8]}.py"
        path.write_text(text)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *(launcher if processes > 1 else []), str(path), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def run(
    folder: Path, *arguments: str, before: str = "", processes: int = 1, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command_line(folder, *arguments, before=before, processes=processes),
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start(
    folder: Path, *arguments: str, before: str = "", processes: int = 1
) -> subprocess.Popen[str]:
    """Start ``attention-transfer`` on the small images, as :func:`start_line` does."""
    return start_line(folder, command_line(folder, *arguments, before=before, processes=processes))


def start_line(folder: Path, line: Sequence[str]) -> subprocess.Popen[str]:
    """Start a command in a session of its own; its output goes to ``output.txt``."""
    with (folder / "output.txt").open("w") as output:
        return subprocess.Popen(
            line,
            env=environment(),
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill a process and all that it has started, by SIGKILL, and wait for their end."""
    everyone = [process.pid, *descendants(process.pid)]
    for pid in alive(everyone):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not alive(everyone))


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for a condition, at most so long."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def final_state(folder: Path) -> str:
    """Return a hash of what a finished run ends with: weights, optimizer, schedule, metrics."""
    checkpoint, damaged = load_last_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    assert not damaged
    digest = hashlib.sha256()
    for name in ("transfer", "optimizer", "scaler", "average"):
        _add(digest, checkpoint.state[name])
    _add(digest, timeless(folder))
    digest.update((folder / "model.safetensors").read_bytes())
    return digest.hexdigest()


def timeless(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without the figures of the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    clocks = {"images_per_second", "seconds", "seconds_waiting_for_data", "seconds_left"}
    rows = [json.loads(line) for line in lines]
    return [{name: row[name] for name in row if name not in clocks} for row in rows]


@cache
def need_mounts() -> None:
    """Skip the test, or fail it where CI is set, if this user may not mount file systems."""
    mount = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /dev/shm"]
    there = (
        shutil.which("unshare") is not None
        and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    )
    needed(there, "the right to mount in a namespace", "see unshare(1), user namespaces")


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and that these have."""
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def alive(pids: Sequence[int]) -> list[int]:
    """Return which of some processes are running."""
    import psutil

    return [
        pid
        for pid in pids
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _add(digest, value[key])
    elif isinstance(value, list | tuple):
        for one in value:
            _add(digest, one)
    else:
        digest.update(repr(value).encode())
