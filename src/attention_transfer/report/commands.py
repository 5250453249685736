"""The command that repeats a run."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from attention_transfer.config import Config, DistillConfig, TrainingConfig, flag_of

__all__ = ["command_of"]


def command_of(settings: Mapping[str, Any]) -> str:
    """The command line of a run, with the settings that are not the defaults.

    Args:
        settings: of a run's ``config.yaml``.

    Example:
        >>> command_of({"student": "wrn-16-1", "epochs": 3, "nesterov": False, "lr": 0.4})
        'attention-transfer train --model wrn-16-1 --epochs 3 --no-nesterov'
    """
    if settings.get("teacher") is not None:
        return " ".join(["attention-transfer distill", *_flags(settings, DistillConfig)])
    return " ".join(["attention-transfer train", *_flags(settings, TrainingConfig)])


def _flags(settings: Mapping[str, Any], kind: type[Config]) -> Iterator[str]:
    first = [name for name, field in kind.model_fields.items() if field.is_required()]
    for name in [*first, *(name for name in kind.model_fields if name not in first)]:
        field = kind.model_fields[name]
        if name not in settings or name == "out":
            continue
        value = settings[name]
        if not field.is_required() and value == field.default:
            continue
        flag = flag_of(name, kind)
        if isinstance(value, bool):
            yield flag if value else f"--no-{flag[2:]}"
        else:
            yield f"{flag} {shlex.quote('none' if value is None else str(value))}"
