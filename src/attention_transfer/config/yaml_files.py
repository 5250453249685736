"""Configurations in YAML files, read without building or running anything."""

from pathlib import Path
from typing import Any

import yaml

from attention_transfer.config import Config
from attention_transfer.errors import InputError
from attention_transfer.files import read_bytes, write_text

__all__ = ["read_config_file", "write_config_file"]

LARGEST_FILE = 100_000
"""Bytes; a configuration is a page of text."""

LARGEST_NUMBER = 64
"""Bits of an integer; Python prints none of more than 4,300 digits, not even in an error."""

_REFUSED_TOKENS = (
    yaml.AliasToken,
    yaml.AnchorToken,
    yaml.TagToken,
    yaml.FlowMappingStartToken,
)


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the values of a YAML file: names with plain values, or lists of text.

    Nothing is built and nothing is run by reading it: no tags, no aliases, no deeper nesting.

    Raises:
        InputError: the file is missing, too large or malformed.
    """
    try:
        text = read_bytes(path, LARGEST_FILE).decode()
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
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            continue
        if isinstance(value, dict | list):
            raise InputError(f"{path}: expected plain 'name: value' lines, {key!r} is nested")
        if isinstance(value, int) and value.bit_length() > LARGEST_NUMBER:
            raise InputError(
                f"{path}: {key!r} is a number of {value.bit_length()} bits, "
                f"expected at most {LARGEST_NUMBER}"
            )
    return {key.replace("-", "_"): value for key, value in values.items()}


def _parsed(text: str, path: Path) -> Any:
    """Parse YAML text; its tokens are checked first, so that no depth or alias is ever composed."""
    try:
        refused = _refused_token(text)
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


def _refused_token(text: str) -> yaml.Token | None:
    """Return the first tag, alias, mapping in braces or list within a list; None without any."""
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        depth += isinstance(token, yaml.FlowSequenceStartToken | yaml.BlockSequenceStartToken)
        if depth > 1 or isinstance(token, _REFUSED_TOKENS):
            return token
        if isinstance(token, yaml.FlowSequenceEndToken | yaml.BlockEndToken):
            depth = 0
    return None


def write_config_file(config: Config, path: Path) -> None:
    """Write every value of a configuration as YAML that :func:`read_config_file` reads."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
