"""Corrupt images: found before training, skipped and named, or refused if there are many."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attention_transfer.data.decoding import (
    CorruptImageError,
    check_channels,
    open_image,
    resized_part,
)
from attention_transfer.errors import InputError

__all__ = ["faults", "skipped"]

MOST_DECODED = 50_000
"""Images of the largest set that is decoded before training; of larger ones, headers are read."""

ALWAYS_SKIPPED, SKIPPED_SHARE = 5, 0.01
"""Corrupt images that are skipped without an error: this many, or this share of the set."""

MOST_NAMED = 5
"""Corrupt images that messages name."""


def faults(
    sources: Sequence[Callable[[], bytes | Path]], total: int, channels: int = 3
) -> list[str | None]:
    """Return why each image cannot be decoded; None where it can.

    Args:
        sources: functions that return the bytes of a file, or its path.
        total: the number of images in all splits of the set.
        channels: that images are brought to.
    """

    def fault(source: Callable[[], bytes | Path]) -> str | None:
        try:
            with open_image(source()) as image:
                check_channels(image, channels)
                if total <= MOST_DECODED:
                    resized_part(image, (8, 8), draft=True)
        except CorruptImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(fault, sources))


def skipped(corrupt: Sequence[tuple[str, str]], total: int) -> list[str]:
    """Return the notices for corrupt images, which are skipped: the first five are named.

    Args:
        corrupt: the name of each, and why it cannot be decoded.
        total: the number of images in all splits of the set.

    Raises:
        InputError: they are more than 5, and more than 1 % of the set.

    Example:
        >>> skipped([("a.png", "it is not an image")], total=30)
        ['skipped corrupt image a.png: it is not an image']
    """
    named = [f"{name}: {reason}" for name, reason in corrupt[:MOST_NAMED]]
    if len(corrupt) > max(ALWAYS_SKIPPED, SKIPPED_SHARE * total):
        raise InputError(
            f"{len(corrupt)} of {total} images are corrupt, expected at most {ALWAYS_SKIPPED} or "
            f"{SKIPPED_SHARE:.0%}: {'; '.join(named)}; repair or remove them"
        )
    notices = [f"skipped corrupt image {line}" for line in named]
    if len(corrupt) > len(named):
        notices.append(f"skipped {len(corrupt)} corrupt images in all; record.json lists them")
    return notices
