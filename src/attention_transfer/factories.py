"""Import a user's functions and classes by name."""

import importlib
from collections.abc import Callable
from typing import Any

from attention_transfer.errors import InputError, nearest

__all__ = ["import_object"]


def import_object(name: str) -> Callable[..., Any]:
    """Import the function or class that ``package.module:factory`` names.

    Raises:
        InputError: the module cannot be imported, or has no such function.

    Example:
        >>> import_object("fractions:Fraction")(1, 2)
        Fraction(1, 2)
    """
    module, _, attribute = name.partition(":")
    try:
        imported = importlib.import_module(module)
    except Exception as error:
        raise InputError(
            f"cannot import {module!r} for {name!r} ({type(error).__name__}: {error}); it must be "
            "installed, or be on PYTHONPATH"
        ) from None
    function: Callable[..., Any] | None = getattr(imported, attribute, None)
    if not callable(function):
        known = [known for known, value in vars(imported).items() if callable(value)]
        raise InputError(f"{module} has no function {attribute!r}; {nearest(attribute, known)}")
    return function
