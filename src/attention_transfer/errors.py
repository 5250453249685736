"""Errors a user can act on: what was got, what was expected, what to do next."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

__all__ = [
    "DivergedError",
    "InputError",
    "Interrupted",
    "TrainingError",
    "UntrustedError",
    "first_line",
    "first_problems",
    "input_errors",
    "nearest",
]

LONGEST_NAME = 200
"""Characters that are compared with known names, which takes the square of their number."""


class InputError(ValueError):
    """Bad input, found before any work is done; the command line exits with 2."""


class UntrustedError(InputError):
    """A file names code that the user has not trusted.

    Args:
        source: the file.
        names: each ``package.module:factory``, or a network that a foreign file describes.
    """

    def __init__(self, source: str, names: Sequence[str]) -> None:
        modules = list(dict.fromkeys(name.partition(":")[0] for name in names))
        self.names = list(names)
        self.fact = (
            f"{source} names {' and '.join(names)}, for which {' and '.join(modules)} would be "
            "imported and its code run; if you trust that code, allow it"
        )
        flags = " ".join(f"--trust {name}" for name in names)
        super().__init__(f"{self.fact}: {flags}, or in Python trust={tuple(names)}")


class TrainingError(RuntimeError):
    """Training cannot continue, as when the loss is not finite; the command line exits with 1."""


class DivergedError(TrainingError):
    """The loss, the gradient or the trained network's logits are not finite."""


class Interrupted(KeyboardInterrupt):
    """A signal ended a run; the message names the command that resumes it.

    Args:
        message: for the user.
        signal: the signal's number; the command line exits with 128 more.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def first_line(error: BaseException) -> str:
    r"""Return the first line of an exception's message, or its type's name if it has none.

    Libraries raise messages of many lines; the errors of this package quote one.

    >>> first_line(RuntimeError("out of memory\nat line 3")), first_line(StopIteration())
    ('out of memory', 'StopIteration')
    """
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def input_errors(what: str) -> Iterator[None]:
    """Turn any exception of a user's code inside the block into an InputError.

    Args:
        what: failed, such as "the term gram failed in check"; an InputError keeps its own text.

    Example:
        >>> with input_errors("the term gram"):
        ...     1 / 0
        Traceback (most recent call last):
        attention_transfer.errors.InputError: the term gram: ZeroDivisionError: division by zero
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{what}: {reason}{notes}") from error


def first_problems(problems: Sequence[str], count: int = 3) -> str:
    """Join the first few of many problems, and say how many more there are.

    >>> first_problems(["a", "b", "c", "d"])
    'a; b; c and 1 more'
    """
    more = f" and {len(problems) - count} more" if len(problems) > count else ""
    return "; ".join(problems[:count]) + more


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest known names, or lists all known names.

    >>> nearest("wnr-16-1", ["wrn-16-1", "nin-thin"])
    'did you mean wrn-16-1?'
    >>> nearest("resnet", ["sum", "max"])
    'known: sum, max'
    >>> nearest("--modle", ["--compile"])  # the dashes are no likeness
    'known: --compile'
    """
    names = {one.lstrip("-"): one for one in known}
    wanted = name.lstrip("-")[:LONGEST_NAME]
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(names[one] for one in close)}?"
    return f"known: {', '.join(names.values())}"
