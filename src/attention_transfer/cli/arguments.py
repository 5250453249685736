"""Flags generated from a configuration's fields, which describe and check each setting once."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from attention_transfer.config import AnyConfig, Config, flag_of
from attention_transfer.config.checked import with_none
from attention_transfer.config.optimization import CHOSEN_BY_THE_RUN
from attention_transfer.config.yaml_files import read_config_file
from attention_transfer.errors import InputError, nearest
from attention_transfer.trust import check_settings

__all__ = ["Parser", "choices_of", "config_from"]

NOT_SETTINGS = ("json", "resume_or_start", "allow_changes", "dry_run", "seeds")
"""Flags that say how to run a command, and are no part of what it is to do."""


class Parser(argparse.ArgumentParser):
    """The parser of one command; it raises InputError where argparse would print and exit.

    Args:
        command: name of the command.
        description: what the command does.
        examples: command lines without the program's name, shown in the help.
    """

    def __init__(self, command: str, description: str, examples: tuple[str, ...]) -> None:
        lines = "\n".join(f"  attention-transfer {example}" for example in examples)
        super().__init__(
            prog=f"attention-transfer {command}",
            usage=f"attention-transfer {command} [flags]",
            description=description,
            epilog=f"examples:\n{lines}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )

    @property
    def actions(self) -> list[argparse.Action]:
        """The flags and positional arguments, ``--help`` included."""
        return list(self._actions)

    def error(self, message: str) -> NoReturn:
        """Raise an InputError with argparse's message and where to find help."""
        raise InputError(f"{message}; see {self.prog} --help")

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Parse the arguments; the result has only the flags that were used.

        Raises:
            InputError: a flag or an argument is unknown, or a value is missing.
        """
        parsed, unknown = self.parse_known_args(_with_negative_ranges(arguments))
        if unknown:
            flag = unknown[0].partition("=")[0]
            if not flag.startswith("-"):
                raise InputError(f"unexpected argument {flag!r}; see {self.prog} --help")
            known = [name for name in self._option_string_actions if name.startswith("--")]
            hint = nearest(flag, known)
            if not hint.startswith("did you mean"):
                hint = f"see {self.prog} --help"
            raise InputError(f"unknown flag {flag}; {hint}")
        return parsed

    def add_config(self, config: type[Config], positional: tuple[str, ...] = ()) -> None:
        """Add flags for the fields of a configuration, and ``--config``, ``--trust``, ``--json``.

        Args:
            config: the configuration.
            positional: fields that become positional arguments instead.
        """
        for name in positional:
            field = config.model_fields[name]
            self.add_argument(
                name,
                metavar=_choices(field.annotation) or name.upper().removesuffix("S"),
                nargs="*" if _takes_several(field) else "?",
                help=_escape_percent(field.description or ""),
            )
        self.add_argument(
            "--config",
            metavar="FILE",
            help="YAML file of settings, one 'name: value' per line; flags override them",
        )
        titles = config.groups()
        headings = {
            title: self.add_argument_group(title) for title in dict.fromkeys(titles.values())
        }
        for name in (*titles, *(name for name in config.model_fields if name not in titles)):
            if name not in positional:
                place = headings.get(titles.get(name, ""), self)
                _add_field(place, flag_of(name, config), name, config.model_fields[name])
        self.add_trust()
        self.add_json()

    def add_run(self) -> None:
        """Add the flags that say how to begin a run: ``--dry-run``, ``--resume-or-start``, ..."""
        self.add_argument(
            "--dry-run",
            action="store_true",
            default=False,
            help="write nothing: print networks, layer pairs and weights, and the time and memory "
            "of the run by a few measured steps",
        )
        self.add_argument(
            "--seeds",
            metavar="N|0-4|0,2,5",
            help="run once for each of these seeds, in the folders seed-0, ... of --out; finished "
            "runs are kept, interrupted ones resumed; prints mean, spread and interval",
        )
        self.add_argument(
            "--resume-or-start",
            action="store_true",
            default=False,
            help="resume the run in --out, or start it if there is none; return at once if it is "
            "finished (for job queues, which repeat the same command)",
        )
        self.add_allow_changes()

    def add_allow_changes(self) -> None:
        """Add ``--allow-changes`` to the parser."""
        self.add_argument(
            "--allow-changes",
            action="store_true",
            default=False,
            help="resume a run although its settings, data, teacher or packages have changed",
        )

    def add_trust(self) -> None:
        """Add ``--trust`` to the parser."""
        self.add_argument(
            "--trust",
            metavar="package.module:factory",
            action="append",
            help="code that run folders and --config files are allowed to name; it is imported "
            "and run; repeatable",
        )

    def add_json(self) -> None:
        """Add the flag ``--json`` to the parser."""
        self.add_argument(
            "--json",
            action="store_true",
            default=False,
            help="print one JSON document on stdout; progress goes to stderr",
        )


def _add_field(place: "argparse._ActionsContainer", flag: str, name: str, field: FieldInfo) -> None:
    """Add the flag of a field to a parser, or to a group of it."""
    default = "" if name in CHOSEN_BY_THE_RUN else _default(field)
    description = _escape_percent(f"{field.description or ''}{default}")
    if field.annotation is bool:
        place.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=description)
    elif _takes_several(field):
        metavar = name.upper().removesuffix("S")
        place.add_argument(
            flag, dest=name, metavar=metavar, nargs="+", action="extend", help=description
        )
    else:
        place.add_argument(flag, dest=name, metavar=_metavar(field), help=description)


def _with_negative_ranges(arguments: list[str]) -> list[str]:
    """Join flags and ranges such as ``-1000:3000``, which argparse would take for flags.

    >>> _with_negative_ranges(["--pixel-range", "-1000:3000", "--json"])
    ['--pixel-range=-1000:3000', '--json']
    """
    joined: list[str] = []
    for argument in arguments:
        if re.match(r"-[\d.]\S*:", argument) and joined and re.match(r"--[^=]+$", joined[-1]):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def choices_of(action: argparse.Action) -> list[str]:
    """Return the words that an argument's value may be; an empty list if it may be others."""
    text = action.metavar if isinstance(action.metavar, str) else ""
    return text.split("|") if "|" in text else []


def config_from(parsed: argparse.Namespace, config: type[AnyConfig]) -> AnyConfig:
    """Return the configuration of ``--config``'s file, if there is one, overridden by flags.

    Raises:
        InputError: the file cannot be read, or a setting is wrong, missing or unknown.
    """
    flags: dict[str, Any] = dict(vars(parsed))
    for name in NOT_SETTINGS:
        flags.pop(name, None)
    file = flags.pop("config", None)
    values = read_config_file(Path(file)) if file else {}
    check_settings(str(file), {name: value for name, value in values.items() if name not in flags})
    values.update(flags)
    return config.checked(with_none(values, config))


def _takes_several(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return " (required)"
    if field.default in (None, "", ()):
        return ""
    default = " ".join(field.default) if _takes_several(field) else field.default
    return f" (default: {default})"


def _metavar(field: FieldInfo) -> str:
    annotation = field.annotation
    named = next((one for one in field.metadata if isinstance(one, str)), None)
    if named is not None:
        return named
    for kind in _types(annotation):
        if get_origin(kind) is Annotated and isinstance(get_args(kind)[-1], str):
            return str(get_args(kind)[-1])
    choices = _choices(annotation)
    if choices:
        return choices
    names = {int: "N", float: "X", Path: "DIR"}
    return next(
        (names[kind] for kind in _types(annotation) if isinstance(kind, type) and kind in names),
        "NAME",
    )


def _choices(annotation: Any) -> str:
    """Return the values of a Literal, and none if it is optional; an empty text for others."""
    for kind in _types(annotation):
        if get_origin(kind) is Literal:
            none = ["none"] if type(None) in get_args(annotation) else []
            return "|".join([*map(str, get_args(kind)), *none])
    return ""


def _types(annotation: Any) -> Iterator[Any]:
    """Yield the types in an annotation, through Optional and Annotated."""
    yield annotation
    for inner in get_args(annotation):
        yield from _types(inner)


def _escape_percent(text: str) -> str:
    return text.replace("%", "%%")
