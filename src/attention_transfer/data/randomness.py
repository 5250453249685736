"""Randomness as a function of what it is for: no generator, no hidden state.

Every draw is a hash of its key, such as ("crop", data seed, view, sample index). The same key
gives the same draw on any machine, in any process and in any order of asking, which makes exact
resume, any number of loader workers and cached targets under augmentation possible.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Key", "integers", "permutation", "step_seed", "uniform"]

Key = str | int | NDArray[np.int64]
"""A part of what a draw is for."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(*key: Key) -> NDArray[np.float64]:
    """Independent uniform numbers in [0, 1), one for each element of the key's arrays.

    Args:
        key: strings and integers that say what the draw is for; arrays broadcast.

    Returns:
        An array of the broadcast shape (zero-dimensional if the key holds no array).

    Example:
        >>> uniform("crop", 0, np.arange(3)).shape
        (3,)
        >>> bool(uniform("crop", 0, 1) == uniform("crop", 0, np.arange(3))[1])
        True
    """
    return (_bits(*key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(
    low: int | NDArray[np.int64], high: int | NDArray[np.int64], *key: Key
) -> NDArray[np.int64]:
    """Uniform integers from low to high, both included, one for each element of the key's arrays.

    >>> int(integers(5, 5, "only choice"))
    5
    """
    span = np.asarray(high) - np.asarray(low) + 1
    return np.asarray(low + np.floor(uniform(*key) * span), dtype=np.int64)


def permutation(count: int, *key: Key) -> NDArray[np.int64]:
    """A uniformly random order of 0 .. count - 1.

    >>> sorted(permutation(4, "order", 0).tolist())
    [0, 1, 2, 3]
    """
    return np.argsort(_bits(*key, np.arange(count)), kind="stable")


def step_seed(seed: int, epoch: int, step: int) -> int:
    """A seed for torch's own generators, from which dropout and the like draw in a training step.

    >>> step_seed(0, epoch=1, step=2) == step_seed(0, epoch=2, step=1)
    False
    """
    key = f"{seed} {epoch} {step}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "little")


def _bits(*key: Key) -> NDArray[np.uint64]:
    """A 64-bit hash of the key: each part in turn is mixed in by the SplitMix64 finaliser
    (Steele, Lea & Flood, OOPSLA 2014).
    """
    fixed: list[str | int] = []
    for part in key:
        if isinstance(part, np.ndarray):
            break
        fixed.append(part)
    return _absorbed(_hash_of(*fixed), *key[len(fixed) :])


@lru_cache(maxsize=1024)
def _hash_of(*parts: str | int) -> NDArray[np.uint64]:
    """Of what comes before the first array, which a view's batches have in common."""
    return _absorbed(np.zeros((), dtype=np.uint64), *parts)


def _absorbed(state: NDArray[np.uint64], *parts: Key) -> NDArray[np.uint64]:
    """A hash with more parts mixed in."""
    with np.errstate(over="ignore"):
        for part in parts:
            if isinstance(part, str):
                digest = hashlib.blake2b(part.encode(), digest_size=8).digest()
                value = np.frombuffer(digest, dtype="<u8")[0]
            else:
                value = np.asarray(part).astype(np.int64).astype(np.uint64)
            state = _mix(state + _GOLDEN + _mix(value + _GOLDEN))
    return state


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
