"""Images that cannot be decoded: found before training, left out and named, or too many."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attention_transfer.data.decoding import BrokenImageError, decode, image_size, read
from attention_transfer.errors import InputError

__all__ = ["faults", "skipped"]

MOST_CHECKED = 50_000
"""Images that are decoded before training; of larger sets the headers alone are read."""

ALWAYS_SKIPPED, SKIPPED_SHARE = 5, 0.01
"""Broken images that are left out without an error: so many, or that share of the set."""


def faults(sources: Sequence[Callable[[], bytes | Path]], total: int) -> list[str | None]:
    """Why each image cannot be decoded; None where it can.

    Args:
        sources: each gives what a file holds, or its path.
        total: images in all splits of the set.
    """
    look = _decoded if total <= MOST_CHECKED else _opened

    def fault(source: Callable[[], bytes | Path]) -> str | None:
        try:
            look(source())
        except BrokenImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(fault, sources))


def _decoded(source: bytes | Path) -> None:
    decode(read(source) if isinstance(source, Path) else source, (8, 8))


def _opened(source: bytes | Path) -> None:
    image_size(source)


def skipped(broken: Sequence[str], total: int) -> list[str]:
    """What to tell of the images that are left out.

    Args:
        broken: each with its reason.
        total: images in all splits of the set.

    Raises:
        InputError: there are more than 5, and more than 1 % of the set.

    Example:
        >>> skipped(["a.png: it is no image"], total=30)
        ['left out, broken: a.png: it is no image']
    """
    if len(broken) > max(ALWAYS_SKIPPED, SKIPPED_SHARE * total):
        raise InputError(
            f"{len(broken)} of {total} images are broken, expected at most "
            f"{ALWAYS_SKIPPED} or {SKIPPED_SHARE:.0%}: {'; '.join(broken[:5])}; mend or remove them"
        )
    return [f"left out, broken: {line}" for line in broken]
