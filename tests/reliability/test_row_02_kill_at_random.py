"""Rows 2, 3 and 8: killed at random moments, in the first epoch and while saving, too."""

import random
import signal
import time
from pathlib import Path

import pytest

from reliability.killing import (
    SLOW_STEPS,
    TINY,
    final_state,
    kill_all,
    run,
    start,
    wait_until,
)

KILLS = 20
OFTEN = ["--checkpoint-steps=1"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_at_random_moments_ends_bit_equal(tmp_path: Path, processes: int) -> None:
    """It is killed 20 times, and resumed each time; then it may end."""
    slow = SLOW_STEPS.format(seconds=0.1)
    arguments = ["train", "--model=wrn-10-1", *TINY, "--epochs=8", *OFTEN]
    whole = run(tmp_path, *arguments, "--out=whole", processes=processes)
    assert whole.returncode == 0, whole.stderr
    generator = random.Random(processes)
    arguments += ["--out=run", "--resume-or-start"]
    for _ in range(KILLS):
        kill_at_random(tmp_path, arguments, slow, processes, generator)
    last = run(tmp_path, *arguments, processes=processes)
    assert last.returncode == 0, last.stderr
    folder = tmp_path / "run"
    one, other = final_state(tmp_path / "whole"), final_state(folder)
    print(f"{processes} processes, {KILLS} kills: {one} and {other}")
    assert one == other
    assert len(list((folder / "checkpoints").iterdir())) == 2
    assert not list(folder.rglob("*.partial"))


def kill_at_random(
    folder: Path, arguments: list[str], before: str, processes: int, generator: random.Random
) -> None:
    """Start or resume a run, and kill it and all that it has started, soon after it trains."""
    process = start(folder, *arguments, before=before, processes=processes)
    output = folder / "output.txt"
    wait_until(lambda: "training" in output.read_text() or process.poll() is not None)
    assert process.poll() is None, output.read_text()
    time.sleep(generator.uniform(0, 0.6))
    kill_all(process)


@pytest.mark.slow
def test_killed_between_writing_syncing_and_renaming(tmp_path: Path) -> None:
    """The old checkpoint or the new one is there, never half of one."""
    dying = """
    import os
    from attention_transfer import files
    moment, left = sys.argv.pop(), [4]
    def after(name, function):
        def dying(*arguments):
            value = function(*arguments)
            if "checkpoints" in str(arguments[0]) and name == moment:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), 9)
            return value
        return dying
    files._flush = after("flush", files._flush)
    files.move_into_place = after("move", files.move_into_place)
    import attention_transfer.runs.checkpoints as checkpoints
    original = checkpoints.torch.save
    def save(state, writer):
        if moment == "write" and (tmp := left.__setitem__(0, left[0] - 1)) is None and left[0] == 0:
            writer.write(b"half of it")
            writer.flush()
            os.kill(os.getpid(), 9)
        return original(state, writer)
    checkpoints.torch.save = save
    """
    arguments = ["train", "--model=wrn-10-1", *TINY, "--epochs=1", *OFTEN]
    whole = run(tmp_path, *arguments, "--out=whole")
    assert whole.returncode == 0, whole.stderr
    for moment in ("write", "flush", "move"):
        killed = run(tmp_path, *arguments, f"--out={moment}", moment, before=dying)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        resumed = run(tmp_path, "resume", moment)
        assert resumed.returncode == 0, resumed.stderr
        assert final_state(tmp_path / moment) == final_state(tmp_path / "whole"), moment
        assert not list((tmp_path / moment).rglob("*.partial"))
