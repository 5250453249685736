"""Which names of networks, data sets and terms may be imported: the user's, but no file's.

A name that the user writes, on the command line or in Python, may be any
``package.module:factory``. A name in a file, as in the run folder of someone else, may mean only
what is part of this package or of a model zoo, unless the user trusts it by name:
``--trust package.module:factory``.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from attention_transfer.errors import UntrustedError
from attention_transfer.factories import OBJECT
from attention_transfer.hub import HUB
from attention_transfer.model_names import run_folder, split_models

__all__ = ["check_names", "check_settings", "factories_in", "trust_flags", "trusted", "trusting"]

_BUILT_IN = {
    "network": ("timm", "torchvision"),
    "data": ("cifar10", "cifar100", "folder", "imagenet", "csv", "hf"),
    "term": (),
}
"""By what a name means: the words before its colon with which nothing of a user's is imported."""

_SETTINGS = {
    **dict.fromkeys(("student", "teacher", "model", "models", "pair", "networks"), "network"),
    "data": "data",
    "terms": "term",
}
"""The settings that hold names, and what these mean."""

_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


@contextmanager
def trusting(names: Iterable[str]) -> Iterator[None]:
    """Allow some factories to be named by files inside the block.

    Args:
        names: each ``package.module:factory``, without arguments, or as a file has it.

    Example:
        >>> with trusting(["own:network"]):
        ...     check_names("model.json", network="own:network")
        >>> check_names("model.json", network="own:network")
        Traceback (most recent call last):
        attention_transfer.errors.UntrustedError: model.json names own:network, for which own \
would be imported and its code run; if you trust that code, allow it: --trust own:network, or in \
Python trust=('own:network',)
    """
    names = (names,) if isinstance(names, str) else names
    token = _trusted.set(_trusted.get() | frozenset(names))
    try:
        yield
    finally:
        _trusted.reset(token)


def trusted() -> frozenset[str]:
    """Return the names that are trusted here; a process that is started has to be given them."""
    return _trusted.get()


def check_names(source: str | Path, **names: str) -> None:
    """Raise an UntrustedError if a file names what the user has not trusted.

    Args:
        source: the file, for the message.
        names: each as ``network=``, ``data=`` or ``term=``.
    """
    _check(source, [name for kind, text in names.items() for name in _factories(kind, text)])


def check_settings(source: str | Path, settings: Mapping[str, Any]) -> None:
    """Raise an UntrustedError if settings of a file name what the user has not trusted.

    Args:
        source: the file, for the message.
        settings: values by name, before or after they are checked.
    """
    _check(source, factories_in(settings))


def factories_in(settings: Mapping[str, Any]) -> list[str]:
    """Return what the settings name that is no part of this package or of a zoo, each once.

    Example:
        >>> factories_in({"student": "wrn-16-1", "teacher": "timm:resnet18,own:net@random",
        ...     "data": "folder:photos", "terms": ["own:Term(weight=0.5)"]})
        ['own:net', 'own:Term']
    """
    found = []
    for setting, kind in _SETTINGS.items():
        value = settings.get(setting) or ()
        for text in (value,) if isinstance(value, str) else value:
            several = setting in ("teacher", "pair")
            for name in split_models(str(text)) if several else [str(text)]:
                found += _factories(kind, name)
    return list(dict.fromkeys(found))


def trust_flags(names: Iterable[str]) -> list[str]:
    """Return the words of a command line that trust some names.

    >>> trust_flags(["own:network"])
    ['--trust', 'own:network']
    """
    return [word for name in names for word in ("--trust", name)]


def _check(source: str | Path, names: Iterable[str]) -> None:
    names = [name for name in names if name not in _trusted.get()]
    if names:
        raise UntrustedError(str(source), names)


def _factories(kind: str, text: str) -> list[str]:
    """Return the name in a text if it has to be trusted, as a list of one or none."""
    if kind == "network" and text.startswith(HUB):
        return [text]  # a file may not have anything fetched
    if kind == "network" and run_folder(text):
        return []  # a run folder, whose own card is checked when it is read
    name = text.partition("(" if kind == "term" else "@")[0].strip() if kind != "data" else text
    source, colon, rest = name.partition(":")
    # timm:hf-hub:NAME and timm:local-dir:PATH build what a foreign config.json describes.
    known = source in _BUILT_IN[kind] and not (source == "timm" and ":" in rest)
    if known or f"{source}:" == OBJECT or not colon:
        return []
    return [name]
