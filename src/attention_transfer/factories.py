"""Import a user's functions and classes by name."""

import ast
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from attention_transfer.errors import InputError, first_line, nearest

__all__ = ["OBJECT", "call_factory", "import_object", "object_name"]

OBJECT = "object:"
"""Prefix of what a configuration calls something that was given as a Python object."""


def object_name(thing: object) -> str:
    """Return what a configuration calls an object: it can be recorded, and not built again.

    >>> object_name(1.0)
    'object:builtins.float'
    """
    kind = type(thing)
    return f"{OBJECT}{kind.__module__}.{kind.__qualname__}"


def call_factory(text: str, known: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """Call ``package.module:factory``, or ``package.module:factory(argument, name=value)``.

    Arguments are Python literals; nothing else in the text is evaluated.

    Args:
        text: the name, with or without arguments.
        known: factories by short names, which need no import.

    Raises:
        InputError: the factory cannot be imported, the arguments are no literals, or the call
            fails.

    Example:
        >>> call_factory("fractions:Fraction(1, denominator=2)")
        Fraction(1, 2)
        >>> call_factory("half(4)", {"half": lambda number: number / 2})
        2.0
    """
    name, parenthesis, rest = text.strip().partition("(")
    short = (known or {}).get(name.strip())
    factory = import_object(name.strip()) if short is None else short
    try:
        call = ast.parse(f"factory({rest}" if parenthesis else "factory()", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("it is not a single call of the factory")
        if any(one.arg is None for one in call.keywords):
            raise ValueError("it has ** arguments")
        arguments = [ast.literal_eval(argument) for argument in call.args]
        keywords = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise InputError(
            f"cannot read the arguments of {text!r}; expected Python literals, such as "
            f"{name}(weight=0.5, pairs='auto')"
        ) from None
    try:
        return factory(*arguments, **keywords)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{text} failed: {type(error).__name__}: {first_line(error)}") from error


def import_object(name: str) -> Callable[..., Any]:
    """Import the function or class that ``package.module:factory`` names.

    Raises:
        InputError: the module cannot be imported, or has no such function.

    Example:
        >>> import_object("fractions:Fraction")(1, 2)
        Fraction(1, 2)
    """
    if name.startswith(OBJECT):
        raise InputError(
            f"{name.removeprefix(OBJECT)} was given as a Python object, which a name cannot build "
            "again; give the object itself, such as at.resume(folder, student=network), or load "
            "the run's model.safetensors into it"
        )
    module, colon, attribute = name.partition(":")
    if not colon:
        package, _, function_name = name.rpartition(".")
        meant = f"{package}:{function_name}" if package else f"{name}:factory"
        raise InputError(f"got {name!r}, expected package.module:factory, such as {meant!r}")
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
