"""The processes of one run: what they agree on, and whether all of them answer."""

import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from attention_transfer.errors import TrainingError, first_line
from attention_transfer.torchrun import AGENT
from attention_transfer.training.signals import StopRequest
from attention_transfer.training.watch import Watch

__all__ = ["Processes", "StepAgreement"]

T = TypeVar("T")

LOST = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|socket", re.IGNORECASE)
"""Errors of a collective operation whose other side has ended."""

SECONDS_TO_ANSWER = 1.0
"""Within which the processes agree on what one of them wishes, such as to stop. The exchange takes
some 2 ms on CPUs: 0.2 % of a second, as a whole hundredth of a short step.
"""

MOST_STEPS_ALONE = 32
"""Between two agreements."""


class Processes:
    """The processes that train one run together; with one process everything here is free.

    After each step they agree on what to do (:meth:`agree`), over a group of their own on the CPU,
    so that a GPU is not waited for. Inside :meth:`watched`, a process that gives no sign of life,
    or stays behind the others in a step for longer than ``timeout``, is named, and all end.

    Args:
        accelerator: of this process.
        timeout: seconds that a process may be behind the others within a step.
        advice: what to do when a process has been lost, for the user.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        timeout: float = 300.0,
        advice: str = "resume the run from its last checkpoint",
    ) -> None:
        self.count, self.index = accelerator.num_processes, accelerator.process_index
        self.timeout, self.advice = timeout, advice
        self.stop = StopRequest()
        self._passed = 0
        self._group: Any = None
        if self.count > 1:
            # Its own limit is out of the way: the watch is quicker, and names the process.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        self._name = self.from_main(uuid.uuid4().hex)

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

    def gather_in_all(self, value: T) -> list[T]:
        """Return all processes' values, in order, in each of them."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._group)
        return values

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of all processes' tensors."""
        if self._group is not None:
            dist.all_reduce(values)
        return values

    def from_main(self, value: T) -> T:
        """Return the main process's value."""
        if self._group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def wait(self) -> None:
        """Wait for the other processes, however long they take for what they do alone."""
        if self._group is not None:
            dist.barrier(self._group)

    def share_buffers(self, network: nn.Module) -> None:
        """Give all processes the main one's buffers, such as batch norm's running statistics.

        Each process updates its own in a step; the main one's are saved and evaluated.
        """
        if self._group is not None:
            self.passed()
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    @contextmanager
    def watched(self) -> Iterator["Processes"]:
        """Watch the other processes inside the block, and the agent that started this one.

        Raises:
            TrainingError: another process has ended.
        """
        if self.count == 1 and AGENT is None:
            yield self
            return
        watch = Watch(
            self._name,
            self.index,
            self.count,
            self.timeout,
            lambda: self._passed,
            self.stop.receive,
            self.advice,
        )
        watch.start()
        try:
            with self._reporting_lost_processes():
                yield self
        finally:
            watch.end()

    @contextmanager
    def _reporting_lost_processes(self) -> Iterator[None]:
        """Turn the error of a collective operation whose other side has ended into a line."""
        try:
            yield
        except RuntimeError as error:
            if self._group is None or not LOST.search(str(error)):
                raise
            raise TrainingError(
                f"another process of the run has ended ({first_line(error)[:80]}); {self.advice}"
            ) from None


class StepAgreement:
    """Lets the processes agree after a step, as often as their wishes need it.

    Nobody minds whether a signal is answered at once or a second later, so short steps have one
    agreement in several; the processes agree on how many as well.

    Args:
        processes: that train together.
        every_step: whether to agree after each step nevertheless.
    """

    def __init__(self, processes: Processes, every_step: bool) -> None:
        self.processes = processes
        self._most = 1 if every_step or processes.count == 1 else MOST_STEPS_ALONE
        self._gap = 1
        """Steps from one agreement to the next."""
        self._left = 1
        """Steps to the next agreement."""
        self._last = time.perf_counter()

    def steps_between(self, seconds_a_step: float) -> int:
        """Return the number of steps from one agreement to the next, for steps of a duration."""
        return max(1, min(self._most, int(SECONDS_TO_ANSWER / max(seconds_a_step, 1e-9))))

    def beginning(self, *wishes: int) -> Callable[[], tuple[int, ...]]:
        """Begin to agree in the background, if it is time to.

        Args:
            wishes: of this process.

        Returns:
            What waits for the largest wishes of all processes, place by place: zeros if it is not
            time to agree, so that a wish must last until it is.
        """
        self._left -= 1
        if self._left:
            return lambda: (0,) * len(wishes)
        now = time.perf_counter()
        seconds_a_step, self._last = (now - self._last) / self._gap, now
        agreeing = self.processes.agreeing(*wishes, -self.steps_between(seconds_a_step))

        def agreed() -> tuple[int, ...]:
            *values, least = agreeing()
            self._gap = self._left = -least
            return tuple(values)

        return agreed
