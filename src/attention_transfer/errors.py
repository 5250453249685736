"""Errors that a user can act on: what was got, what was expected, what to do next."""

import difflib
from collections.abc import Iterable

__all__ = ["InputError", "Interrupted", "TrainingError", "nearest"]


class InputError(ValueError):
    """Bad input, found before any work was done; the command line exits with 2."""


class TrainingError(RuntimeError):
    """Training cannot go on (the loss is not finite, say); the command line exits with 1."""


class Interrupted(KeyboardInterrupt):
    """A run was broken off by the user; the message says how to go on with it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Says which of the known names was probably meant, or lists them all.

    >>> nearest("wnr-16-1", ["wrn-16-1", "nin-thin"])
    'did you mean wrn-16-1?'
    >>> nearest("resnet", ["sum", "max"])
    'known: sum, max'
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(names)}"
