"""The command line that repeats a run."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from attention_transfer.config import Config, DistillConfig, TrainingConfig, flag_of
from attention_transfer.config.optimization import CHOSEN_BY_THE_RUN
from attention_transfer.config.runs import NEEDS_TEACHER
from attention_transfer.factories import OBJECT

__all__ = ["command_line"]


def command_line(settings: Mapping[str, Any]) -> str:
    """Return a run's command line, with the settings that differ from the defaults.

    Args:
        settings: the content of the run's ``config.yaml``.

    Example:
        >>> command_line({"student": "wrn-16-1", "epochs": 3, "nesterov": False, "lr": 0.4})
        'attention-transfer train --model wrn-16-1 --epochs 3 --no-nesterov'
        >>> command_line({"student": "wrn-16-1", "teacher": None, "flip_symmetry_beta": 0.1})
        'attention-transfer distill --student wrn-16-1 --teacher none --flip-symmetry-beta 0.1'
    """
    objects = [
        name for name in ("student", "teacher", "data", "terms") if _is_object(settings, name)
    ]
    if objects:
        return (
            f"This run was given Python objects ({', '.join(objects)}), which a command line "
            "cannot name; to repeat it, call at.train or at.distill with them."
        )
    if settings.get("teacher") is not None or _has_terms_of_distill(settings):
        return " ".join(["attention-transfer distill", *_flags(settings, DistillConfig)])
    return " ".join(["attention-transfer train", *_flags(settings, TrainingConfig)])


def _has_terms_of_distill(settings: Mapping[str, Any]) -> bool:
    """Return whether a run without a teacher has a term that ``train`` has no flag for."""
    fields = DistillConfig.model_fields
    others = fields.keys() - TrainingConfig.model_fields.keys() - {"teacher", *NEEDS_TEACHER}
    return any(settings.get(name, fields[name].default) != fields[name].default for name in others)


def _is_object(settings: Mapping[str, Any], name: str) -> bool:
    """Return whether a setting was given as a Python object."""
    return OBJECT in str(settings.get(name))


def _chosen_settings(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the settings whose defaults may be others than their fields'.

    SGD's are the fields', and it is the default of this package's own networks.
    """
    if settings.get("optimizer", "sgd") != "sgd":
        return CHOSEN_BY_THE_RUN
    own = str(settings.get("student")).startswith(("wrn-", "nin-"))
    return () if own else CHOSEN_BY_THE_RUN


def _flags(settings: Mapping[str, Any], kind: type[Config]) -> Iterator[str]:
    """Yield the flags of the settings, the required ones first."""
    required = [name for name, field in kind.model_fields.items() if field.is_required()]
    always = _chosen_settings(settings)
    for name in dict.fromkeys([*required, *kind.model_fields]):
        field = kind.model_fields[name]
        if name not in settings or name == "out":
            continue
        value = settings[name]
        if isinstance(value, list):
            value = tuple(value)
        if not field.is_required() and value == field.default and name not in always:
            continue
        flag = flag_of(name, kind)
        if isinstance(value, tuple):
            yield from (f"{flag} {shlex.quote(str(item))}" for item in value)
        elif isinstance(value, bool):
            yield flag if value else f"--no-{flag[2:]}"
        else:
            yield f"{flag} {shlex.quote('none' if value is None else str(value))}"
