"""Random numbers as a function of their key: no generator, no hidden state.

Every draw is a hash of its key, such as ("crop", data seed, view, sample index). The same key gives
the same draw on any machine, in any process and in any order, which makes exact resume, any number
of loader workers and cached targets under augmentation possible. Transforms of torchvision and of
users, which draw from a generator, run with the generator seeded from the key (`seeded_torch`).
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = [
    "AugmentedView",
    "Key",
    "integers",
    "permutation",
    "sample_seeds",
    "seeded_generators",
    "seeded_torch",
    "step_seed",
    "uniform",
]

Key = str | int | NDArray[np.int64]
"""A part of a draw's key; arrays give one draw for each element."""


class AugmentedView(NamedTuple):
    """The key of one augmented view of each sample; in training, number is the epoch."""

    data_seed: int
    number: int


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(*key: Key) -> NDArray[np.float64]:
    """Return independent uniform numbers in [0, 1), one for each element of the key's arrays.

    Args:
        key: strings and integers that name the draw; arrays broadcast.

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
    """Return uniform integers from low to high, both included, one for each element of the key.

    >>> int(integers(5, 5, "only choice"))
    5
    """
    span = np.asarray(high) - np.asarray(low) + 1
    return np.asarray(low + np.floor(uniform(*key) * span), dtype=np.int64)


def permutation(count: int, *key: Key) -> NDArray[np.int64]:
    """Return 0 .. count - 1 in a uniformly random order.

    >>> sorted(permutation(4, "order", 0).tolist())
    [0, 1, 2, 3]
    """
    return np.argsort(_bits(*key, np.arange(count)), kind="stable")


def step_seed(seed: int, epoch: int, step: int, process: int = 0) -> int:
    """Return the seed of torch's generators in a training step, for dropout and the like.

    >>> step_seed(0, epoch=1, step=2) == step_seed(0, epoch=2, step=1)
    False
    >>> step_seed(0, epoch=1, step=2, process=1) == step_seed(0, epoch=1, step=2)
    False
    """
    of_process = f" {process}" if process else ""
    key = f"{seed} {epoch} {step}{of_process}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "little")


def sample_seeds(what: str, view: AugmentedView, indices: NDArray[np.int64]) -> list[int]:
    """Return a seed for each sample's transform in a view.

    Args:
        what: the name of the transform, so that two transforms draw independently.
        view: the augmented view.
        indices: (n,) the samples' indices in their set.
    """
    seeds = integers(0, 2**62, what, view.data_seed, view.number, indices)
    return seeds.tolist()  # type: ignore[no-any-return]


@contextmanager
def seeded_torch(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block, and restore its state afterwards.

    ``torch.manual_seed`` would also reset the generators of GPUs, and takes a hundred times as
    long.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Do the same with the generators of torch, numpy and Python, from which transforms draw."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with seeded_torch(seed):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _bits(*key: Key) -> NDArray[np.uint64]:
    """Return a 64-bit hash of the key.

    Each part in turn is mixed in by the SplitMix64 finaliser (Steele, Lea & Flood, OOPSLA 2014).
    """
    prefix: list[str | int] = []
    for part in key:
        if isinstance(part, np.ndarray):
            break
        prefix.append(part)
    return _mixed_in(_prefix_hash(*prefix), *key[len(prefix) :])


@lru_cache(maxsize=1024)
def _prefix_hash(*parts: str | int) -> NDArray[np.uint64]:
    """Return the hash of the parts before the first array, which a view's batches share."""
    return _mixed_in(np.zeros((), dtype=np.uint64), *parts)


def _mixed_in(state: NDArray[np.uint64], *parts: Key) -> NDArray[np.uint64]:
    """Return a hash with more parts mixed in."""
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
