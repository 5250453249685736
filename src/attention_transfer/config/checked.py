"""The base class of configurations: typed values, checked at construction."""

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from attention_transfer.errors import InputError, nearest

__all__ = ["AnyConfig", "Config", "is_optional", "with_none"]

LONGEST_VALUE = 200
"""Characters of a wrong value that an error shows."""


class Config(BaseModel):
    """A configuration: frozen, without unknown keys, NaN or infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )

    @classmethod
    def groups(cls) -> dict[str, str]:
        """Return the heading of each field's flag in a command's help, in the order of the help;
        fields without one come last.
        """
        return {}

    @classmethod
    def checked(cls, values: dict[str, Any]) -> Self:
        """Return a configuration of plain values; strings, as of flags, are converted.

        Raises:
            InputError: everything that is wrong, in one line.
        """
        for name, value in values.items():
            texts = [value] if isinstance(value, str | PurePath) else value
            if isinstance(texts, list | tuple) and any("\0" in str(text) for text in texts):
                raise InputError(f"{name} has a null byte, which no name or path has; remove it")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError("; ".join(_explanations(error, cls))) from None

    def replace(self, **changes: Any) -> Self:
        """Return the configuration with some values changed, checked again.

        What was not given before is not given now: see ``model_fields_set``.
        """
        return self.checked({**self.model_dump(exclude_unset=True), **changes})


AnyConfig = TypeVar("AnyConfig", bound=Config)


def with_none(values: dict[str, Any], config: type[Config]) -> dict[str, Any]:
    """Return the values with None for the word "none", where a field may be None.

    Args:
        values: by the names of fields, as flags or files have them.
        config: whose fields they are.
    """
    return {
        name: None if value == "none" and is_optional(config.model_fields.get(name)) else value
        for name, value in values.items()
    }


def is_optional(field: FieldInfo | None) -> bool:
    """Return whether a field may be None."""
    return field is not None and type(None) in get_args(field.annotation)


def _explanations(error: ValidationError, config: type[Config]) -> Iterator[str]:
    for fault in error.errors():
        field = str(fault["loc"][0]) if fault["loc"] else "configuration"
        got = _abridged(repr(fault["input"]))
        if fault["type"] == "extra_forbidden":
            yield f"unknown key {field!r}; {nearest(field, config.model_fields)}"
        elif not fault["loc"] and "{" not in fault["msg"]:
            yield fault["msg"]  # of the whole configuration, and written for the user
        elif fault["type"] == "missing":
            yield f"{field} is missing: {config.model_fields[field].description}"
        elif fault["type"] == "literal_error":
            known = fault["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            yield f"{field} is {got}, expected one of {', '.join(known)}"
        elif fault["type"] == "string_pattern_mismatch":
            yield f"{field} is {got}, expected: {config.model_fields[field].description}"
        else:
            message = fault["msg"].removeprefix("Input ")
            yield f"{field} is {got}, it {message}"


def _abridged(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
