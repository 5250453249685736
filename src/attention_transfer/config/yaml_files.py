"""Configurations in YAML files: read without building or running anything, written whole."""

from pathlib import Path
from typing import Any

import yaml

from attention_transfer.config import Config
from attention_transfer.errors import InputError
from attention_transfer.files import write_text

__all__ = ["read_config_file", "write_config_file"]

LARGEST_FILE = 100_000
"""Bytes; a configuration is a page of text."""

LARGEST_NUMBER = 64
"""Bits of an integer; Python prints none of more than 4,300 digits, not even in an error."""

_REFUSED_TOKENS = (
    yaml.AliasToken,
    yaml.AnchorToken,
    yaml.TagToken,
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
)


def read_config_file(path: Path) -> dict[str, Any]:
    """The values of a YAML file: a flat mapping of names to plain values.

    Nothing is built and nothing is run by reading it: no tags, no aliases, no nesting.

    Raises:
        InputError: a missing, oversized or malformed file.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise InputError(f"{path} has {size} bytes, expected at most {LARGEST_FILE}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"the configuration {path} is not UTF-8 text") from None
    values = _parsed(text, path)
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"{path} must hold 'name: value' lines, got a {type(values).__name__}")
    for key, value in values.items():
        if isinstance(value, dict | list):
            raise InputError(f"{path}: expected plain 'name: value' lines, {key!r} is nested")
        if isinstance(value, int) and value.bit_length() > LARGEST_NUMBER:
            raise InputError(
                f"{path}: {key!r} is a number of {value.bit_length()} bits, "
                f"expected at most {LARGEST_NUMBER}"
            )
    return {key.replace("-", "_"): value for key, value in values.items()}


def _parsed(text: str, path: Path) -> Any:
    """What YAML text holds; the tokens first, so that depth and aliases are never composed."""
    try:
        tokens = yaml.scan(text, Loader=yaml.SafeLoader)
        refused = next((token for token in tokens if isinstance(token, _REFUSED_TOKENS)), None)
        values = None if refused else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: dates, numbers
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply; expected 'name: value' lines") from None
    if refused:
        raise InputError(
            f"{path} line {refused.start_mark.line + 1}: expected plain 'name: value' lines, "
            "got a tag, an alias or a nested value"
        )
    return values


def write_config_file(config: Config, path: Path) -> None:
    """Every value of a configuration, as YAML that :func:`read_config_file` reads."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
