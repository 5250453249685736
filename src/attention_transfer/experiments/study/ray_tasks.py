"""Run the runs of a study as tasks of a Ray cluster; results are in a folder that it shares."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attention_transfer.errors import InputError
from attention_transfer.experiments.study.plan import PlannedRun
from attention_transfer.experiments.study.workers import (
    Ended,
    failure,
    log_file,
    run_arguments,
    start,
)

__all__ = ["RayTasks"]

PATIENCE = 10.0
"""Seconds in which a cluster must answer."""

LOCAL = "local"
"""The address of a cluster of this machine alone, which is started for the study."""

PROBE = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR', log_to_driver=False)"


class RayTasks:
    """Runs on a Ray cluster, each a task of one CPU, and of one GPU where the cluster has any.

    Args:
        study: the study's folder, on a disk that all machines share.
        address: HOST:PORT or ray://HOST:PORT of the cluster, or local.
        processes: runs at once, of a local cluster; others have as many as they have CPUs.

    Raises:
        InputError: Ray is not installed, or the cluster does not answer within ten seconds.
    """

    def __init__(self, study: Path, address: str, processes: int) -> None:
        try:
            import ray
        except ImportError:
            raise InputError(
                "--ray needs Ray: pip install 'attention-transfer[ray]'; or use --processes"
            ) from None
        self.ray: Any = ray
        self.study = study
        if address == LOCAL:
            ray.init(num_cpus=processes, logging_level="ERROR", log_to_driver=False)
        else:
            _check_answers(address)
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        resources = ray.cluster_resources()
        gpus = 1 if resources.get("GPU") else 0
        self.slots = max(1, int(resources.get("GPU" if gpus else "CPU", 1)))
        self.task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_run)
        self.running: dict[Any, PlannedRun] = {}

    @property
    def free(self) -> bool:
        """Whether another run can be begun now."""
        return len(self.running) < self.slots

    def begin(self, run: PlannedRun) -> None:
        """Begin a run as a task."""
        log = log_file(run, self.study)
        task = self.task.remote(run_arguments(run, self.study), str(log), os.getcwd())
        self.running[task] = run

    def ended(self, timeout: float) -> Sequence[Ended]:
        """Return the runs that have ended since the last call, after at most some seconds."""
        done, _ = self.ray.wait(list(self.running), num_returns=1, timeout=timeout)
        ended = []
        for task in done:
            run = self.running.pop(task)
            try:
                error = self.ray.get(task)
            except Exception as fault:  # of the worker: killed, or its machine is gone
                error = f"the Ray worker ended: {type(fault).__name__}"
            ended.append(Ended(run, error))
        return ended

    def stop(self) -> None:
        """Ask all runs to save their state and end, and wait for them."""
        for task in self.running:
            self.ray.cancel(task, force=False)
        if self.running:
            with suppress(Exception):
                self.ray.wait(list(self.running), num_returns=len(self.running), timeout=120)
        self.running.clear()
        self.ray.shutdown()


def _run(arguments: list[str], log: str, folder: str) -> str:
    """Run a command line in a process of its own; return why it failed, or an empty text.

    Runs in a worker of the cluster. A cancelled task passes its interrupt on, so that the run
    saves its state.
    """
    path = Path(log)
    process = start(arguments, path, 1, folder)
    try:
        while (code := process.poll()) is None:
            time.sleep(0.2)  # Ray interrupts Python code, and no system call
    except BaseException:
        process.terminate()
        process.wait(100)
        raise
    return failure(code, path)


def _check_answers(address: str) -> None:
    """Raise an InputError unless a cluster answers at an address within ten seconds."""
    until = time.monotonic() + PATIENCE
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--ray is {address!r}, expected HOST:PORT, ray://HOST:PORT or local")
    silent = InputError(
        f"no Ray cluster answers at {address} within {PATIENCE:.0f} seconds; start one (ray start "
        "--head), or give its address, or --ray local"
    )
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE / 2).close()
        probe = [sys.executable, "-c", PROBE, address]
        left = until - time.monotonic()
        done = subprocess.run(probe, capture_output=True, timeout=left, check=False)
    except (OSError, OverflowError, subprocess.TimeoutExpired):
        raise silent from None
    if done.returncode != 0:
        raise silent
