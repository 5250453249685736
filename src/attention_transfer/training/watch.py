"""The watch over the processes of a run, and over torchrun's agent, by two threads."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from attention_transfer.torchrun import AGENT

__all__ = ["Watch"]

BEAT_SECONDS = 1.0
"""Between two signs of life of a process."""

SILENT_SECONDS = 15.0
"""Without a sign of life, after which a process counts as stopped. A busy one gives one each
second, from a thread; a stopped or dead one gives none. Also the limit of the store's answers.
"""

GRACE_SECONDS = 20.0
"""For a last checkpoint, when the agent that started this process has ended."""

ENDED = "ended"
"""The sign of a process that needs to be watched no longer."""


class Watch:
    """Ends this process if another one, or the store by which they meet, gives no sign of life.

    One thread writes this process's signs to the store and reads those of the others. Such calls
    have no limit where the store's machine is frozen, so another thread measures how long the
    first has been at it. It counts its own rounds in place of the clock: a process that was
    stopped itself does not blame the others when it goes on. Nor does it blame them while the
    store does not answer: their silence is counted in rounds in which it did.

    Args:
        name: of this start of the processes, by which they find each other's signs.
        index: of this process.
        count: of all processes.
        timeout: seconds that a process may be behind the others within a step.
        passed: returns how many points of its steps this process has passed.
        stop: called with SIGTERM if the agent that started this process (torchrun) has ended.
        advice: what to do after the end, for the user.
    """

    def __init__(
        self,
        name: str,
        index: int,
        count: int,
        timeout: float,
        passed: Callable[[], int],
        stop: Callable[[int], None],
        advice: str,
    ) -> None:
        self.name, self.index, self.count = name, index, count
        self.passed, self.stop, self.advice = passed, stop, advice
        self._signs = {rank: _Sign(timeout) for rank in range(count) if rank != index}
        self._exchanges = 0
        self._store_lost = count == 1
        self._over = threading.Event()
        threads = [self._watch] + ([self._exchange_signs] if count > 1 else [])
        self._threads = [threading.Thread(target=one, daemon=True) for one in threads]

    def start(self) -> None:
        """Start the threads that watch the other processes."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Tell the other processes that this one needs to be watched no longer, and end."""
        self._over.set()
        for thread in self._threads:
            thread.join(5 * BEAT_SECONDS)

    def _exchange_signs(self) -> None:
        try:
            store = _store()
            while store is not None:
                beat = self._exchanges + 1
                store.set(self._key(self.index), f"{beat} {self.passed()} {_where()}")
                for rank, sign in self._signs.items():
                    if store.check([self._key(rank)]):
                        sign.text = store.get(self._key(rank)).decode()
                self._exchanges = beat
                if self._over.wait(BEAT_SECONDS):
                    store.set(self._key(self.index), ENDED)
                    return
        except Exception:  # the store went with its process, which collective operations tell
            pass
        self._store_lost = True

    def _watch(self) -> None:
        now = orphaned_since = answered_at = answered_seconds = 0.0
        exchanges = 0
        while not self._over.wait(BEAT_SECONDS):
            now += BEAT_SECONDS
            if AGENT is not None and os.getppid() != AGENT:
                if not orphaned_since:
                    orphaned_since = now
                    self.stop(signal.SIGTERM)
                if now - orphaned_since > GRACE_SECONDS:
                    self._end("the agent that started this process has ended")
                continue
            if self._store_lost:
                continue
            if exchanges != self._exchanges:
                exchanges, answered_at = self._exchanges, now
                answered_seconds += BEAT_SECONDS
            if now - answered_at > SILENT_SECONDS:
                self._end(
                    f"the store of the processes on {os.environ.get('MASTER_ADDR')} has given no "
                    f"answer for {SILENT_SECONDS:.0f} s"
                )
            for rank, sign in self._signs.items():
                fault = sign.fault(answered_seconds, self.passed())
                if fault:
                    self._end(f"process {rank} ({sign.where or 'unknown'}) {fault}")

    def _end(self, why: str) -> None:
        """End this process at once: its main thread may wait for the others forever."""
        if self._over.is_set():
            return
        with suppress(OSError, ValueError):
            print(
                f"attention-transfer: {why}, so process {self.index} ends too; {self.advice}",
                file=sys.stderr,
                flush=True,
            )
        os._exit(1)

    def _key(self, rank: int) -> str:
        return f"attention-transfer/{self.name}/sign/{rank}"


class _Sign:
    """The last sign of life of another process."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.text = self.where = ""
        self._read, self._passed = "", -1
        self._changed = self._moved = 0.0

    def fault(self, now: float, passed: int) -> str | None:
        """Return what is wrong with the process, which others have passed more points than.

        Args:
            now: seconds that have been watched, without those in which the store was silent.
            passed: points of its steps that this process has passed.
        """
        text = self.text
        if text == ENDED:
            return None
        if text != self._read:
            self._read, self._changed = text, now
            _, points, self.where = text.split(" ", 2)
            if int(points) != self._passed:
                self._passed, self._moved = int(points), now
        # Processes may begin at different times: the first sign may take longer than the others.
        longest = SILENT_SECONDS if text else self.timeout
        if now - self._changed > longest:
            return f"has given no sign of life for {longest:.0f} s"
        if self._passed < passed and now - self._moved > self.timeout:
            return f"has been behind in a step for {self.timeout:.0f} s"
        return None


def _store() -> Any:
    """Return a connection, of the calling thread's own, to the store by which processes met."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if address is None or port is None:
        return None
    return dist.TCPStore(  # type: ignore[attr-defined]
        address, int(port), is_master=False, timeout=timedelta(seconds=SILENT_SECONDS)
    )


def _where() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
