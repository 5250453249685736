"""Types of settings that several configurations share."""

from math import isfinite
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from attention_transfer.errors import nearest

__all__ = [
    "TRACKERS",
    "Beta",
    "ColumnNames",
    "Interpolation",
    "Positive",
    "NonNegative",
    "Seed",
    "Count",
    "Workers",
    "Precision",
    "Names",
    "Several",
    "as_words",
    "NetworkPair",
    "ImageSize",
    "ValueRange",
    "height_and_width",
    "low_and_high",
]

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")

Interpolation = Literal["bilinear", "bicubic"]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Beta = Annotated[NonNegative | Literal["auto"], "FLOAT or auto"]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1)]
Workers = Annotated[int, Field(ge=0, le=256)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def joined(values: object) -> object:
    """Return a list of names, as configuration files may have it, as text with commas."""
    several = isinstance(values, list | tuple) and all(isinstance(one, str) for one in values)
    return ",".join(values) if several else values  # type: ignore[arg-type]


def in_order(attention: object) -> object:
    """Return names in alphabetical order: "gradient,activation" as "activation,gradient"."""
    attention = joined(attention)
    if not isinstance(attention, str):
        return attention
    return ",".join(sorted(name.strip() for name in attention.split(",")))


def known_trackers(names: str) -> str:
    """Return the names of known trackers, each once."""
    asked = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in asked:
        if name not in TRACKERS:
            hint = nearest(name, TRACKERS)
            raise PydanticCustomError(
                "tracker", "names no tracker {name}; {hint}", {"name": repr(name), "hint": hint}
            )
    return ",".join(asked)


def as_size(size: object) -> object:
    """Return a size as text: a number as ``N``, text as it is."""
    return str(size) if isinstance(size, int) and not isinstance(size, bool) else size


def as_columns(columns: object) -> object:
    """Return names of columns as text: a dictionary as ``image=file,label=class``."""
    if isinstance(columns, dict):
        return ",".join(f"{role}={name}" for role, name in columns.items())
    return columns


def as_several(values: object) -> object:
    """Return a single text as a tuple of one, as configuration files have it."""
    return (values,) if isinstance(values, str) else values


def as_words(values: object) -> object:
    """Return the words of a text, or of a list of texts, separated by commas or spaces."""
    texts = [values] if isinstance(values, str) else values
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return values
    return tuple(word for text in texts for word in text.replace(",", " ").split())


Names = Annotated[str, BeforeValidator(joined)]
"""Several names in one text, separated by commas, or a list of them."""
Several = Annotated[tuple[str, ...], BeforeValidator(as_several), Field(min_length=1)]
NetworkPair = Annotated[str, Field(pattern=r"^[^:\s]+:[^:\s]+$")]
ColumnNames = Annotated[str, BeforeValidator(as_columns)]
ImageSize = Annotated[
    str, BeforeValidator(as_size), Field(pattern=r"^[1-9]\d{0,3}(x[1-9]\d{0,3})?$")
]


def as_range(values: object) -> str:
    """Return a range as text, checked; two numbers as ``LOW:HIGH``."""
    if isinstance(values, list | tuple) and len(values) == 2:
        values = ":".join(map(str, values))
    try:
        low, high = low_and_high(str(values))
    except ValueError:
        low, high = 0.0, 0.0
    if not (isfinite(low) and isfinite(high) and low < high):
        raise PydanticCustomError(
            "range",
            "should be LOW:HIGH, two numbers of which the second is larger",
        )
    return str(values)


ValueRange = Annotated[str, BeforeValidator(as_range), "LOW:HIGH"]


def low_and_high(text: str) -> tuple[float, float]:
    """Return the two numbers of a range written ``LOW:HIGH``.

    >>> low_and_high("-1000:3000")
    (-1000.0, 3000.0)
    """
    low, high = map(float, text.split(":"))
    return low, high


def height_and_width(size: str) -> tuple[int, int]:
    """Return height and width of a size written ``N`` or ``HxW``.

    >>> height_and_width("224"), height_and_width("48x64")
    ((224, 224), (48, 64))
    """
    height, _, width = size.partition("x")
    return int(height), int(width or height)
