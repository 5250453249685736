"""Announcing what a command is waiting for, where that takes long."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["announcing", "loading", "waiting_for"]

PATIENCE = 1.0
"""Seconds after which a wait is announced."""

_announce: ContextVar[Callable[[str], None] | None] = ContextVar("announce", default=None)


@contextmanager
def announcing(write: Callable[[str], None]) -> Iterator[None]:
    """Announce through a function what is being waited for inside the block.

    Outside such a block nothing is announced.

    Args:
        write: called with texts such as "loading PyTorch", perhaps from another thread.
    """
    token = _announce.set(write)
    try:
        yield
    finally:
        _announce.reset(token)


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Announce what is being waited for, if the block takes longer than a second.

    Example:
        >>> with announcing(print), waiting_for("something quick"):
        ...     pass
    """
    announce = _announce.get()
    if announce is None:
        yield
        return
    timer = threading.Timer(PATIENCE, announce, (what,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def loading(package: str, name: str) -> None:
    """Announce at once that a package is about to be imported, unless it has been.

    Its import may hold Python's lock for long, so that no thread could announce it later.

    Args:
        package: such as "torch".
        name: such as "PyTorch".
    """
    announce = _announce.get()
    if announce is not None and package not in sys.modules:
        announce(f"loading {name}")
