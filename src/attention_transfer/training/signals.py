"""Signals that end a run: the first asks it to stop after its step, the second ends it at once."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["StopAgreedError", "StopRequest"]

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
    if hasattr(signal, name)  # Windows has two of them
)
"""An interrupt from the keyboard, a scheduler's or an agent's request, a terminal that is gone."""

ECHO_SECONDS = 5.0
"""How long a second signal counts as the first one's echo in a process that torchrun started: it
passes on to its processes what they may have got from the terminal themselves.
"""


class StopAgreedError(Exception):
    """All processes have agreed to stop, because one of them got a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


class StopRequest:
    """The request to stop a run: the number of the signal that asked for it, or 0.

    Example:
        >>> request = StopRequest()
        >>> with request.caught():
        ...     signal.raise_signal(signal.SIGTERM)
        >>> request.signal == signal.SIGTERM
        True
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0

    def receive(self, number: int, _frame: FrameType | None = None) -> None:
        """Remember the first signal; end the process, without a word, on the second."""
        now = time.monotonic()
        if not self.signal:
            self.signal, self._since = int(number), now
        elif "TORCHELASTIC_RUN_ID" not in os.environ or now - self._since > ECHO_SECONDS:
            os._exit(128 + number)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Receive the signals that would end the process, inside the block.

        Signals that the process was started to ignore, as by ``nohup``, stay ignored. Python
        handles signals in the main thread alone; in any other this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, self.receive) for number in taken}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
