"""Run the runs of a study: in this process, or each in a process of its own."""

import ctypes
import hashlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from attention_transfer.experiments.study.plan import PlannedRun
from attention_transfer.report.command_line import command_line
from attention_transfer.trust import factories_in, trust_flags

__all__ = [
    "Ended",
    "Local",
    "Workers",
    "cores",
    "log_file",
    "run_arguments",
    "run_command",
    "start",
]

PATIENCE = 120.0
"""Seconds that runs have to save their state after a signal, before they are killed."""

LONGEST_LOG = 200
"""Characters of a log's name, without its digest and suffix."""


@dataclass(frozen=True)
class Ended:
    """A run that ended."""

    run: PlannedRun
    error: str = ""
    """Why it failed; empty if it did not."""


class Workers(Protocol):
    """Where runs of a study are run."""

    @property
    def free(self) -> bool:
        """Whether another run can be begun now."""
        ...

    def begin(self, run: PlannedRun) -> None:
        """Train or resume a planned run; it may end before this returns, or after."""
        ...

    def ended(self, timeout: float) -> Sequence[Ended]:
        """Return the runs that have ended since the last call, after at most some seconds."""
        ...

    def stop(self) -> None:
        """Ask all runs to save their state and end, and wait for them."""
        ...


def run_arguments(run: PlannedRun, study: Path) -> list[str]:
    """Return the arguments of the command line that trains or resumes a run of a study.

    Args:
        run: of the study.
        study: the study's folder.
    """
    settings = run.config(study).model_dump(exclude_unset=True, mode="json")
    words = shlex.split(command_line(settings))[1:]
    trust = trust_flags(factories_in(settings))
    return [*words, "--out", str(study / run.folder), "--resume-or-start", *trust]


def run_command(run: PlannedRun, study: Path) -> str:
    """Return the command line that trains or resumes a run of a study."""
    return shlex.join(["attention-transfer", *run_arguments(run, study)])


def log_file(run: PlannedRun, study: Path) -> Path:
    """Return the file that gets the output of a run of a study."""
    name = run.folder.replace("/", "--")
    if len(name) > LONGEST_LOG:
        name = f"{name[:LONGEST_LOG]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return study / "logs" / f"{name}.log"


def cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Local:
    """Runs on this machine, each in a process of its own, which share its cores.

    Args:
        study: the study's folder.
        processes: how many runs at once.
    """

    def __init__(self, study: Path, processes: int) -> None:
        self.study = study
        self.processes = processes
        self.running: dict[str, tuple[PlannedRun, subprocess.Popen[bytes]]] = {}

    @property
    def free(self) -> bool:
        """Whether another run can be begun now."""
        return len(self.running) < self.processes

    def begin(self, run: PlannedRun) -> None:
        """Begin a run; its output goes to the study's folder ``logs``."""
        threads = max(1, cores() // self.processes)
        process = start(run_arguments(run, self.study), log_file(run, self.study), threads)
        self.running[run.folder] = (run, process)

    def ended(self, timeout: float) -> Sequence[Ended]:
        """Return the runs that have ended since the last call, after at most some seconds."""
        until = time.monotonic() + timeout
        while True:
            ended = list(self._take_ended())
            if ended or time.monotonic() > until:
                return ended
            time.sleep(0.05)

    def stop(self) -> None:
        """Ask all runs to save their state and end, and wait for them."""
        for _, process in self.running.values():
            process.send_signal(signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        for _, process in self.running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            process.kill()
        list(self._take_ended())

    def _take_ended(self) -> Iterator[Ended]:
        for folder, (run, process) in list(self.running.items()):
            code = process.poll()
            if code is not None:
                del self.running[folder]
                yield Ended(run, failure(code, log_file(run, self.study)))


def start(
    arguments: Sequence[str], log: Path, threads: int, folder: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a command of this package in a process that ends with this one, however that ends.

    Args:
        arguments: the command and its flags.
        log: the file that its output is appended to.
        threads: that it may use.
        folder: to start it in; None: the current one.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "attention_transfer", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # an interrupt from the keyboard is for this process alone
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def failure(code: int, log: Path) -> str:
    """Return why a process failed: its last line and what ended it; empty for success.

    Args:
        code: of its end; minus the number of a signal that killed it.
        log: the file with its output.
    """
    if code == 0:
        return ""
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{last_line(log) or 'no output'} ({how}; {log})"


def last_line(log: Path) -> str:
    """Return the last line with text in a file; empty if there is none."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 4000))
        lines = file.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


def _end_with_parent() -> None:
    """Ask Linux to send this process a SIGTERM when its parent is gone, however that ended."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
