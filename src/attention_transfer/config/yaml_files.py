"""Configurations in YAML files, read without building or running anything."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from attention_transfer.config import Config
from attention_transfer.errors import InputError
from attention_transfer.files import read_bytes, write_text

__all__ = ["read_config_file", "read_nested_file", "read_text", "write_config_file"]

LARGEST_FILE = 100_000
"""Bytes; a configuration is a page of text."""

LARGEST_NUMBER = 64
"""Bits of an integer; Python prints none of more than 4,300 digits, not even in an error."""

_REFUSED_TOKENS = {
    yaml.AliasToken: "an alias",
    yaml.AnchorToken: "an alias",
    yaml.TagToken: "a tag",
    yaml.FlowMappingStartToken: "a nested value",
}


DEEPEST = 6
"""Levels of a file with nested values; a study has four."""

_OPENING = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


class _TextLoader(yaml.SafeLoader):
    """Reads plain values as text, which settings read as they read flags.

    YAML 1.1 has its own ideas: 0010 is 8, 1:30 is 90, 1e-3 is text, no is False, 2026-01-02 a date.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, unless it has a key twice."""
        keys = [key.value.replace("-", "_") for key, _ in node.value if isinstance(key.value, str)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"it has {twice} twice; leave one of them")
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", ["<"]),
    ("int", r"[-+]?0x[0-9a-fA-F]+|[-+]?0o[0-7]+", list("-+0")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    _TextLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the values of a YAML file by name: text as a flag has it, None, or lists of text.

    Nothing is built and nothing is run by reading it: no tags, no aliases, no deeper nesting.

    Raises:
        InputError: the file is missing, too large or malformed.
    """
    values = _mapping(path, _refused_token)
    for key, value in values.items():
        _check_value(path, key, value)
    return {key.replace("-", "_"): value for key, value in values.items()}


def read_nested_file(path: Path) -> dict[str, Any]:
    """Return the values of a YAML file with mappings and lists inside one another.

    Plain values are text, as a flag has it, or None. No tags and no aliases are read.

    Raises:
        InputError: the file is missing, too large or malformed.
    """
    values = _mapping(path, _refused_token_of_nested)
    _check_keys(path, values)
    return values


def read_text(path: Path) -> str:
    """Return the text of a configuration file.

    Raises:
        InputError: the file is missing, too large or no text.
    """
    try:
        return read_bytes(path, LARGEST_FILE).decode()
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"the configuration {path} is not UTF-8 text") from None


def _mapping(path: Path, refused_token: Callable[[str], yaml.Token | None]) -> dict[Any, Any]:
    """Read the mapping that a YAML file holds; an empty file holds an empty one."""
    values = _parsed(read_text(path), path, refused_token)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold 'name: value' lines, got a {type(values).__name__}")
    return values


def _check_keys(path: Path, values: object) -> None:
    """Raise an InputError unless every key is text and every number is small enough to print."""
    items = list(values.values()) if isinstance(values, dict) else values
    for key in values if isinstance(values, dict) else ():
        if not isinstance(key, str) or not key:
            raise InputError(
                f"{path} must hold 'name: value' lines, got the name {str(key)[:80]!r}"
            )
    for item in items if isinstance(items, list) else ():
        _check_keys(path, item)
    if isinstance(values, int) and values.bit_length() > LARGEST_NUMBER:
        raise InputError(
            f"{path}: a number has {values.bit_length()} bits, at most {LARGEST_NUMBER}"
        )


def _check_value(path: Path, key: object, value: object) -> None:
    """Raise an InputError unless a line is a name with a plain value or a list of them."""
    if not isinstance(key, str) or not key or key[0].isdecimal():
        raise InputError(f"{path} must hold 'name: value' lines, got the name {str(key)[:80]!r}")
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict | list) for item in items):
        raise InputError(
            f"{path}: expected plain 'name: value' lines, {key!r} is nested; give a plain value, "
            "or a list of them"
        )
    if isinstance(value, list) and None in value:
        raise InputError(f"{path}: the list {key!r} has an empty item; write it out, or remove it")
    for item in items:
        if isinstance(item, int) and item.bit_length() > LARGEST_NUMBER:
            raise InputError(
                f"{path}: {key!r} is a number of {item.bit_length()} bits, "
                f"expected at most {LARGEST_NUMBER}"
            )


def _parsed(text: str, path: Path, refused_token: Callable[[str], yaml.Token | None]) -> Any:
    """Parse YAML text; its tokens are checked first, so that no depth or alias is ever composed."""
    try:
        refused = refused_token(text)
        values = None if refused else yaml.load(text, _TextLoader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last: characters
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply; expected 'name: value' lines") from None
    if refused:
        raise InputError(
            f"{path} line {refused.start_mark.line + 1}: expected plain 'name: value' lines, "
            f"got {_REFUSED_TOKENS.get(type(refused), 'a list in a list, a nested value')}"
        )
    return values


def _refused_token(text: str) -> yaml.Token | None:
    """Return the first tag, alias, mapping in braces or list within a list; None without any."""
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        depth += isinstance(token, yaml.FlowSequenceStartToken | yaml.BlockSequenceStartToken)
        if depth > 1 or type(token) in _REFUSED_TOKENS:
            return token
        if isinstance(token, yaml.FlowSequenceEndToken | yaml.BlockEndToken):
            depth = 0
    return None


def _refused_token_of_nested(text: str) -> yaml.Token | None:
    """Return the first tag, alias, or opening of more than DEEPEST levels; None without any."""
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        depth += isinstance(token, _OPENING)
        if depth > DEEPEST or isinstance(token, yaml.AliasToken | yaml.AnchorToken | yaml.TagToken):
            return token
        depth -= isinstance(token, _CLOSING)
    return None


def write_config_file(config: Config, path: Path) -> None:
    """Write every value of a configuration as YAML that :func:`read_config_file` reads."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
