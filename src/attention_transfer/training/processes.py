"""The processes of one run: what they agree on after each step, and whether all of them answer."""

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn

from attention_transfer.errors import TrainingError, first_line

__all__ = ["Processes"]

BEAT_SECONDS = 1.0
"""Between two signs of life of a process."""

SILENT_SECONDS = 15.0
"""Without a sign of life, after which a process counts as stopped. A busy one gives one each
second, from a thread; a stopped or dead one gives none.
"""

GRACE_SECONDS = 20.0
"""For a last checkpoint, when the agent that started this process has ended."""

ENDED = "ended"
"""The sign of a process that needs to be watched no longer."""

LOST = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|socket", re.IGNORECASE)
"""Errors of a collective operation whose other side has ended."""


class Processes:
    """The processes that train one run together; with one process everything here is free.

    After each step they agree on what to do (:meth:`agree`), over a group of their own on the CPU,
    so that a GPU is not waited for. In each process a thread gives a sign of life every second, in
    the store by which the processes met, and watches those of the others. A process that gives
    none, or stays behind the others in a step for longer than ``timeout``, is named, and all end.

    Args:
        accelerator: of this process.
        timeout: seconds that a process may be behind the others within a step.
        stop: called with SIGTERM if the agent that started this process (torchrun) has ended.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        timeout: float = 300.0,
        stop: Callable[[int], None] = lambda _signal: None,
    ) -> None:
        self.count, self.index = accelerator.num_processes, accelerator.process_index
        self.timeout, self.stop = timeout, stop
        self._passed = 0
        self._group: Any = None
        if self.count > 1:
            # Its own limit is out of the way: the watch is quicker, and names the process.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(days=1))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return bool(self.index == 0)

    def passed(self) -> None:
        """Count a point of a step that this process has passed, for the others to see."""
        self._passed += 1

    def agree(self, *values: int) -> tuple[int, ...]:
        """Return the largest of all processes' values, place by place."""
        return self.agreeing(*values)()

    def agreeing(self, *values: int) -> Callable[[], tuple[int, ...]]:
        """Begin to agree in the background; what is returned waits for what :meth:`agree` does."""
        if self._group is None:
            return lambda: values
        largest = torch.tensor(values)
        self.passed()
        exchange = dist.all_reduce(largest, dist.ReduceOp.MAX, self._group, async_op=True)

        def agreed() -> tuple[int, ...]:
            exchange.wait()
            return tuple(largest.tolist())

        return agreed

    def gather(self, value: Any) -> list[Any]:
        """Return all processes' values, in order, in the main one; an empty list elsewhere."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.count if self.is_main else []
        dist.gather_object(value, values or None, dst=0, group=self._group)
        return values

    def share_buffers(self, network: nn.Module) -> None:
        """Give all processes the main one's buffers, such as batch norm's running statistics.

        Each process updates its own in a step; the main one's are saved and evaluated.
        """
        if self._group is not None:
            self.passed()
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    @contextmanager
    def reporting_lost_processes(self) -> Iterator[None]:
        """Turn the error of a collective operation whose other side has ended into a line.

        Raises:
            TrainingError: another process has ended.
        """
        try:
            yield
        except RuntimeError as error:
            if self._group is None or not LOST.search(str(error)):
                raise
            raise TrainingError(
                f"another process of the run has ended ({first_line(error)[:80]}); resume the run "
                "from its last checkpoint"
            ) from None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the other processes inside the block, and the agent that started this one."""
        agent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        if self.count == 1 and agent is None:
            yield
            return
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(over, agent), daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join(5 * BEAT_SECONDS)

    def _watch(self, over: threading.Event, agent: int | None) -> None:
        store = _store() if self.count > 1 else None
        others = {rank: _Sign(self.timeout) for rank in range(self.count) if rank != self.index}
        beat, orphaned_since = 0, 0.0
        while not over.wait(BEAT_SECONDS if beat else 0):
            beat += 1
            if agent is not None and os.getppid() != agent:
                if not orphaned_since:
                    orphaned_since = time.monotonic()
                    self.stop(signal.SIGTERM)
                if time.monotonic() - orphaned_since > GRACE_SECONDS:
                    self._end("the agent that started this process has ended")
                continue
            if store is None:
                continue
            try:
                store.set(_key(self.index), f"{beat} {self._passed} {_where()}")
                for rank, sign in others.items():
                    if store.check([_key(rank)]):
                        sign.read(store.get(_key(rank)).decode())
            except Exception:  # the store went with its process, which collective operations tell
                store = None
                continue
            for rank, sign in others.items():
                fault = sign.fault(self._passed)
                if fault and not over.is_set():
                    self._end(f"process {rank} ({sign.where or 'unknown'}) {fault}")
        if store is not None:
            with suppress(Exception):
                store.set(_key(self.index), ENDED)

    def _end(self, why: str) -> None:
        """End this process at once: its main thread may wait for the others forever."""
        with suppress(OSError, ValueError):
            print(
                f"attention-transfer: {why}, so process {self.index} ends too; resume the run "
                "from its last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        os._exit(1)


class _Sign:
    """The last sign of life of another process."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.where = ""
        self._text, self._passed = "", -1
        self._changed = self._moved = time.monotonic()

    def read(self, text: str) -> None:
        """Take in what the process says of itself."""
        if text == self._text:
            return
        self._text, self._changed = text, time.monotonic()
        if text == ENDED:
            return
        _, passed, self.where = text.split(" ", 2)
        if int(passed) != self._passed:
            self._passed, self._moved = int(passed), time.monotonic()

    def fault(self, passed: int) -> str | None:
        """Return what is wrong with the process, which others have passed more points than."""
        now = time.monotonic()
        if self._text == ENDED:
            return None
        # Processes may begin at different times: the first sign may take longer than the others.
        longest = SILENT_SECONDS if self._text else self.timeout
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
    try:
        wait = timedelta(seconds=SILENT_SECONDS)
        return dist.TCPStore(  # type: ignore[attr-defined]
            address, int(port), is_master=False, timeout=wait
        )
    except (RuntimeError, ValueError):
        return None


def _key(rank: int) -> str:
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return f"attention-transfer/sign/{restart}/{rank}"


def _where() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
