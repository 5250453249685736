"""Rows 5, 6, 17, 37 and 38: two processes of torchrun; signals, deaths, restarts."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from reliability.killing import (
    SLOW_STEPS,
    TINY,
    alive,
    command_line,
    descendants,
    environment,
    final_state,
    run,
    start,
    timeless,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TRAIN = ["train", "--model=wrn-10-1", "--out=run", *TINY]

SLOW = (
    SLOW_STEPS.format(seconds=0.3)
    + """
import os
restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
with open(f"pid-{os.environ.get('RANK', '0')}-{restart}", "w") as file:
    file.write(str(os.getpid()))
"""
)


def pid_of(folder: Path, rank: int, restart: int = 0) -> int:
    return int((folder / f"pid-{rank}-{restart}").read_text())


def training(folder: Path, before: str = SLOW) -> subprocess.Popen[str]:
    process = start(folder, *TRAIN, before=before, processes=2)
    output = folder / "output.txt"
    wait_until(lambda: "training," in output.read_text() or process.poll() is not None)
    assert process.poll() is None, output.read_text()
    time.sleep(1)
    return process


def ended(process: subprocess.Popen[str], everyone: list[int], seconds: float) -> int:
    """Wait until a job has ended, with all its processes, and return its exit code."""
    code = process.wait(seconds)
    wait_until(lambda: not alive(everyone), 15)
    return code


@pytest.mark.parametrize("target", ["process 0", "process 1", "agent"])
def test_all_processes_stop_at_the_same_step(tmp_path: Path, target: str) -> None:
    process = training(tmp_path)
    everyone = [process.pid, *descendants(process.pid)]
    pid = process.pid if target == "agent" else pid_of(tmp_path, int(target[-1]))
    os.kill(pid, signal.SIGTERM)
    assert ended(process, everyone, 30) != 0
    assert list((tmp_path / "run/checkpoints").glob("epoch*"))
    output = (tmp_path / "output.txt").read_text()
    stops = re.findall(r"stopped by SIGTERM after (step \d+ of epoch \d+)", output)
    assert len(set(stops)) == 1, output
    resumed = run(tmp_path, "resume", "run", processes=2)
    assert resumed.returncode == 0, resumed.stderr
    whole = run(tmp_path, "train", "--model=wrn-10-1", "--out=whole", *TINY, processes=2)
    assert whole.returncode == 0, whole.stderr
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


def _raises(step: str) -> str:
    return f"""
    import os, time
    from attention_transfer.training.train_step import TrainStep
    original, left = TrainStep._step, [4]
    def failing(self, *arguments):
        left[0] -= 1
        if left[0] == 0 and os.environ["RANK"] == "1":
            {step}
        return original(self, *arguments)
    TrainStep._step = failing
    open(f"pid-{{os.environ['RANK']}}-0", "w").write(str(os.getpid()))
    """


@pytest.mark.parametrize(
    ("step", "timeout", "expected"),
    [
        ("raise ValueError('crash')", 60, "crash"),
        ("os.kill(os.getpid(), 9)", 60, "another process of the run has ended"),
        ("time.sleep(1000)", 5, r"process 1 .* has been behind in a step for 5 s"),
        ("os.kill(os.getpid(), 19)", 60, r"process 1 .* has given no sign of life for 15 s"),
    ],
)
def test_a_process_that_fails_ends_the_job_and_is_named(
    tmp_path: Path, step: str, timeout: int, expected: str
) -> None:
    process = start(tmp_path, *TRAIN, f"--timeout={timeout}", before=_raises(step), processes=2)
    wait_until(lambda: (tmp_path / "pid-0-0").exists() and (tmp_path / "pid-1-0").exists())
    everyone = [process.pid, *descendants(process.pid)]
    assert ended(process, everyone, 90) != 0
    output = (tmp_path / "output.txt").read_text()
    assert re.search(expected, output), output


def test_no_process_outlives_a_killed_agent_and_the_state_is_saved(tmp_path: Path) -> None:
    process = training(tmp_path)
    everyone = descendants(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: not alive(everyone), 30)
    assert list((tmp_path / "run/checkpoints").glob("epoch*"))
    resumed = run(tmp_path, "resume", "run", processes=2)
    assert resumed.returncode == 0, resumed.stderr


def test_an_elastic_restart_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    arguments = [*TRAIN, "--checkpoint-steps=1"]
    command = command_line(tmp_path, *arguments, before=SLOW, processes=2)
    command.insert(command.index("--standalone"), "--max-restarts=2")
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command, env=environment(), cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT
        )
    checkpoints = tmp_path / "run/checkpoints"
    wait_until(lambda: checkpoints.is_dir() and len(list(checkpoints.glob("epoch*"))) == 2)
    os.kill(pid_of(tmp_path, 1), signal.SIGKILL)
    assert process.wait(120) == 0, (tmp_path / "output.txt").read_text()
    assert "resumed after step" in (tmp_path / "output.txt").read_text()
    whole = run(tmp_path, "train", "--model=wrn-10-1", "--out=whole", *TINY, processes=2)
    assert whole.returncode == 0, whole.stderr
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """Without batch norm, whose statistics are a process's own: the figures are nearly equal."""
    arguments = ["train", "--model=wrn-10-1-nobn", "--lr=0.01", *TINY]
    process = start(
        tmp_path,
        *arguments,
        "--out=run",
        before=SLOW,
    )
    output = tmp_path / "output.txt"
    wait_until(lambda: "training," in output.read_text())
    time.sleep(1)
    process.terminate()
    assert process.wait(30) == 143
    resumed = run(tmp_path, "resume", "run", processes=2)
    assert resumed.returncode == 0, resumed.stderr
    assert "begun by 1 and resumed by 2 processes" in resumed.stdout + resumed.stderr
    whole = run(tmp_path, *arguments, "--out=whole")
    assert whole.returncode == 0
    for one, other in zip(timeless(tmp_path / "run"), timeless(tmp_path / "whole"), strict=True):
        assert one["terms"] == pytest.approx(other["terms"], rel=1e-3)


RECORDED = """
import os
from attention_transfer.training.train_step import TrainStep
network_inputs.load_data = lambda name, **settings: small_data(images=42)
recorded = TrainStep._step
def recording(self, batch, targets, index, wishes):
    result = recorded(self, batch, targets, index, wishes)
    with open("samples.txt", "a") as file:
        file.write("".join(f"{{index.epoch}} {{sample}}\\n" for sample in batch.indices.tolist()))
    if (index.epoch, index.step) == (0, {signalled}):
        os.kill(os.getpid(), 15)
    return result
TrainStep._step = recording
"""


@pytest.mark.parametrize("steps", [3, 4])
def test_each_sample_is_used_once_though_an_epoch_has_fewer_steps(
    tmp_path: Path, steps: int
) -> None:
    """42 images are 5 batches of 10 for one process; for three, the last 2 join the fourth."""
    arguments = ["--batch-size=10", "--epochs=2", "--precision=fp32", "--probes=0", "--no-report"]
    stopping = RECORDED.format(signalled=steps - 2)  # the next step still ends
    train = ["train", "--model=wrn-10-1", "--out=run", *arguments]
    assert run(tmp_path, *train, before=stopping).returncode == 143
    samples = tmp_path / "samples.txt"
    assert len(samples.read_text().splitlines()) == 10 * steps
    resumed = run(tmp_path, "resume", "run", before=RECORDED.format(signalled=-1), processes=3)
    assert resumed.returncode == 0, resumed.stderr
    output = resumed.stdout + resumed.stderr
    assert "an epoch now has 4 steps in place of 5" in output
    assert f"resumed after step {steps} of epoch 1 of 2" in output
    assert ("2 images of epoch 1 are left out" in output) == (steps == 4)
    used = samples.read_text().splitlines()
    assert len(used) == len(set(used)) == 84 - (2 if steps == 4 else 0)


def test_processes_evaluate_the_same_network_though_killed_before_an_evaluation(
    tmp_path: Path,
) -> None:
    """Each process has moved batch norm's running statistics by its own images."""
    dying = """
    import os
    from attention_transfer.training.trainer import Trainer
    original = Trainer._end_epoch
    def dying(self):
        if self.epoch == 0:
            os.kill(os.getpid(), 9)
        original(self)
    Trainer._end_epoch = dying
    """
    arguments = ["train", "--model=wrn-10-1", *TINY, "--checkpoint-steps=6"]
    killed = run(tmp_path, *arguments, "--out=run", before=dying, processes=2)
    assert killed.returncode != 0
    (checkpoint,) = (tmp_path / "run/checkpoints").glob("epoch*")
    assert checkpoint.name == "epoch-0000-step-0000006"
    resumed = run(tmp_path, "resume", "run", processes=2)
    assert resumed.returncode == 0, resumed.stderr
    whole = run(tmp_path, *arguments, "--out=whole", processes=2)
    assert whole.returncode == 0, whole.stderr
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")
