"""Timing things in turns, so that a machine whose speed drifts treats all alike."""

import time
from collections.abc import Callable, Mapping
from itertools import chain

import torch

__all__ = ["Action", "Say", "Times", "device", "in_turns", "synchronize", "timed"]

Action = Callable[[], object]
Say = Callable[[str], None]
Times = dict[str, list[float]]
"""Name -> the seconds of each round."""

WARM_UP = 3
"""Rounds that do not count."""


def device() -> torch.device:
    """Where steps are measured: the GPU, if one is there."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Waits until the GPU, if one is there, has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(action: Action) -> Callable[[], float]:
    """The same action, returning the seconds it took."""

    def measured() -> float:
        synchronize()
        began = time.perf_counter()
        action()
        synchronize()
        return time.perf_counter() - began

    return measured


def in_turns(
    measured: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: int = WARM_UP
) -> Times:
    """What each of some measurements gives, round by round.

    Every round takes each of them once, and begins with another one than the last round did.

    Args:
        measured: by name; each measures once and returns what it found.
        rounds: how many to keep.
        warm_up: rounds before those, which are dropped.

    Example:
        >>> in_turns({"one": lambda: 1.0, "two": lambda: 2.0}, rounds=2)
        {'one': [1.0, 1.0], 'two': [2.0, 2.0]}
    """
    names = list(measured)
    times: Times = {name: [] for name in names}
    for number in range(warm_up + rounds):
        first = number % len(names)
        for name in chain(names[first:], names[:first]):
            found = measured[name]()
            if number >= warm_up:
                times[name].append(found)
    return times
