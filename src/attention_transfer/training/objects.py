"""Networks, data and terms of a run as Python objects, in place of names."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from torch import nn

from attention_transfer.config import RunConfig
from attention_transfer.errors import InputError
from attention_transfer.factories import OBJECT, object_name
from attention_transfer.models import LoadedModel, in_float32, split_models, timm_preprocessing
from attention_transfer.runs import Run
from attention_transfer.taps import module_hint, unwrapped
from attention_transfer.transfer import Term, check_term

__all__ = ["NO_OBJECTS", "RunObjects", "check_objects", "loaded_object", "named"]


@dataclass(frozen=True)
class RunObjects:
    """The Python objects of a run; the configuration holds their types' names."""

    student: nn.Module | None = None
    teachers: tuple[nn.Module | None, ...] = ()
    """One for each teacher, None for those that have a name; empty if all have."""
    data: Any = None
    terms: tuple[Term, ...] = ()


NO_OBJECTS = RunObjects()

LONGEST_SETTINGS = 500
"""Characters of a term's settings that a configuration holds; of longer ones also a hash."""


def named(
    *, student: Any = None, teacher: Any = None, data: Any = None, terms: Any = ()
) -> tuple[dict[str, Any], RunObjects]:
    """Split what a run is given into the configuration's names and Python objects.

    A :class:`attention_transfer.Run` is the name of its folder.

    Args:
        student: a MODEL, a run or a module.
        teacher: the same, or a sequence of them.
        data: DATA, or what :func:`attention_transfer.data.load_data` takes.
        terms: names of factories, or terms.

    Raises:
        InputError: something is none of these.

    Example:
        >>> settings, objects = named(student=nn.Identity(), teacher="wrn-16-2@random")
        >>> settings
        {'student': 'object:torch.nn.modules.linear.Identity', 'teacher': 'wrn-16-2@random'}
    """
    settings: dict[str, Any] = {}
    module: nn.Module | None = None
    modules: tuple[nn.Module | None, ...] = ()
    if student is not None:
        settings["student"], module = _network("student", student)
    if teacher is not None:
        several = isinstance(teacher, Iterable) and not isinstance(teacher, str | nn.Module)
        networks = [_network("teacher", one) for one in (teacher if several else [teacher])]
        if not networks:
            raise InputError("got no teachers in the sequence, expected at least one")
        settings["teacher"] = ",".join(name for name, _ in networks)
        if any(network is not None for _, network in networks):
            modules = tuple(network for _, network in networks)
    if data is not None:
        settings["data"] = data if isinstance(data, str) else object_name(data)
    if isinstance(terms, str | Term | type):
        terms = [terms]
    if not isinstance(terms, Iterable):
        raise InputError(
            f"terms must be a list of terms or of names of factories, got {terms!r}; leave them "
            "out for none"
        )
    terms = list(terms)
    if terms:
        settings["terms"] = tuple(one if isinstance(one, str) else _text(one) for one in terms)
    objects = tuple(one for one in terms if not isinstance(one, str))
    return settings, RunObjects(module, modules, None if isinstance(data, str) else data, objects)


def check_objects(config: RunConfig, objects: RunObjects, allow_changes: bool = False) -> None:
    """Raise an InputError unless the objects are those that a resumed run began with.

    Networks and data are known by their types, terms by their settings too, which may differ if
    changes are allowed.
    """
    teachers = [] if config.teacher is None else split_models(config.teacher)
    modules = objects.teachers or (None,) * len(teachers)
    if len(modules) != len(teachers):
        raise InputError(f"the run has {len(teachers)} teachers, got {len(modules)}")
    parts: list[tuple[str, str, object]] = [
        ("student", config.student, objects.student),
        ("data", config.data, objects.data),
        *(("teacher", *pair) for pair in zip(teachers, modules, strict=True)),
    ]
    for name, recorded, thing in parts:
        expected = recorded if recorded.startswith(OBJECT) else None
        got = None if thing is None else object_name(thing)
        if got != expected:
            raise InputError(
                f"the run's {name} is {recorded!r}, got {got or 'no object'}; give "
                f"at.resume the {name} that the run began with"
            )
    terms = [text for text in config.terms if text.startswith(OBJECT)]
    given = [_text(term) for term in objects.terms]
    if len(terms) != len(given) or (terms != given and not allow_changes):
        raise InputError(
            f"the run began with {' and '.join(terms) or 'no terms'} as objects, got "
            f"{' and '.join(given) or 'none'}; give at.resume the terms that the run began with"
        )


def loaded_object(module: nn.Module, name: str) -> LoadedModel:
    """Return a user's network, with the preprocessing that timm's networks declare."""
    preprocessing = timm_preprocessing(unwrapped(module))
    notices = tuple(in_float32(module, name))
    return LoadedModel(name, module, preprocessing=preprocessing, notices=notices)


def _network(role: str, network: Any) -> tuple[str, nn.Module | None]:
    if isinstance(network, str | PurePath):
        return str(network), None
    if isinstance(network, Run):
        return str(network.folder), None
    if isinstance(network, nn.Module):
        return object_name(network), network
    raise InputError(
        f"{role} must be a name, a run or a torch.nn.Module, got a {type(network).__name__}"
        f"{module_hint(network)}"
    )


def _text(term: object) -> str:
    """Return what a configuration calls a term: its type and settings, without addresses.

    Raises:
        InputError: it is no term.
    """
    check_term(term)
    assert isinstance(term, Term)
    settings = re.sub(r" at 0x[0-9a-f]+", "", " ".join(term.extra_repr().split()))
    settings = re.sub(r"\{[^{}:]+\}", _sorted_set, settings)
    if len(settings) > LONGEST_SETTINGS:
        digest = hashlib.sha256(settings.encode()).hexdigest()
        settings = f"{settings[:LONGEST_SETTINGS]}... sha256 {digest[:16]}"
    return f"{object_name(term)}({settings})"


def _sorted_set(found: re.Match[str]) -> str:
    """Return the text of a set in order: the order of its elements is a process's own."""
    return "{" + ", ".join(sorted(found[0][1:-1].split(", "))) + "}"
