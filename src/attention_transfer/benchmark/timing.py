"""Interleaved timing, so that a machine whose speed drifts slows all measurements alike."""

import time
from collections.abc import Callable, Mapping
from itertools import chain

import torch

__all__ = ["Action", "Progress", "Times", "device", "interleave", "synchronize", "timed"]

Action = Callable[[], object]
Progress = Callable[[str], None]
"""Receives one line for each stage of a benchmark."""
Times = dict[str, list[float]]
"""Name -> one value for each round, as a rule seconds."""

WARM_UP = 3
"""Rounds that are dropped before those that count."""


def device() -> torch.device:
    """Return the device that steps are measured on: the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait until the GPU, if there is one, has finished its queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(action: Action) -> Callable[[], float]:
    """Wrap an action so that it returns the seconds it took."""

    def run() -> float:
        synchronize()
        start = time.perf_counter()
        action()
        synchronize()
        return time.perf_counter() - start

    return run


def interleave(
    measurements: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: int = WARM_UP
) -> Times:
    """Take every measurement once a round, and return its values round by round.

    Each round begins with another measurement than the round before.

    Args:
        measurements: by name, functions that measure once and return the value.
        rounds: rounds to keep.
        warm_up: rounds before those, whose values are dropped.

    Example:
        >>> interleave({"one": lambda: 1.0, "two": lambda: 2.0}, rounds=2)
        {'one': [1.0, 1.0], 'two': [2.0, 2.0]}
    """
    names = list(measurements)
    times: Times = {name: [] for name in names}
    for number in range(warm_up + rounds):
        first = number % len(names)
        for name in chain(names[first:], names[:first]):
            value = measurements[name]()
            if number >= warm_up:
                times[name].append(value)
    return times
