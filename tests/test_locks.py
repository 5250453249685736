"""Locks: held by one process and by one call of it, and free when the process ends."""

import multiprocessing
import os
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from attention_transfer.errors import InputError
from attention_transfer.runs.lock import locked


def test_a_lock_is_free_again_after_its_block_and_after_an_error_in_it(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="mine"), locked(tmp_path):
            raise ValueError("mine")
    with locked(tmp_path), pytest.raises(InputError, match="already trains"), locked(tmp_path):
        pass


def hold(folder: Path, held: Event) -> None:
    """Take a lock, start a child as a loader worker is started, and wait to be killed."""
    with locked(folder):
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
        held.set()
        time.sleep(60)


@pytest.mark.skipif(os.name == "nt", reason="processes are forked")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_child_that_outlives_a_killed_process_does_not_keep_its_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path, held))
    process.start()
    assert held.wait(30)
    refused = pytest.raises(InputError, match=f"process {process.pid} on .* trains the run")
    with refused, locked(tmp_path):
        pass
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with locked(tmp_path):
        assert os.listdir(tmp_path) == [".lock"]
    assert os.listdir(tmp_path) == []
