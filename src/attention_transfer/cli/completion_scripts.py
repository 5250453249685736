"""Completion scripts for shells, generated from the commands' parsers."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from attention_transfer.cli.arguments import Parser, choices_of
from attention_transfer.cli.offered_values import NO_FILES, OFFERED, OR_FILES

__all__ = ["SHELLS"]

PROGRAM = "attention-transfer"

LONGEST_HELP = 70
"""Characters of a flag's description."""

NUMBERS = ("N", "X")
"""Placeholders of values that no file has."""


class _Values(NamedTuple):
    """The values of a flag or of positional arguments: some words, files, or both."""

    words: list[str]
    files: bool


class _Flag(NamedTuple):
    """A flag in all its forms, such as ``--compile`` and ``--no-compile``."""

    forms: list[str]
    help: str
    values: _Values | None
    """None: it takes no value."""
    several: bool


class _Command(NamedTuple):
    name: str
    summary: str
    flags: list[_Flag]
    positional: _Values


def _command(name: str, parser: Parser) -> _Command:
    flags = [action for action in parser.actions if action.option_strings]
    others = [_values(action) for action in parser.actions if not action.option_strings]
    return _Command(
        name,
        (parser.description or "").partition("\n")[0],
        [
            _Flag(
                list(action.option_strings),
                _short(action.help or ""),
                None if action.nargs == 0 else _values(action),
                action.nargs in ("*", "+"),
            )
            for action in flags
        ],
        _Values(
            [word for values in others for word in values.words],
            any(values.files for values in others),
        ),
    )


def _values(action: argparse.Action) -> _Values:
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    # Of "FLOAT or auto" the word.
    words = OFFERED.get(action.dest) or choices_of(action) or metavar.split(" or ")[1:]
    of_files = action.metavar not in NUMBERS and action.dest not in NO_FILES
    return _Values(words, action.dest in OR_FILES if words else of_files)


def _short(text: str) -> str:
    """Return the first clause of a help text.

    >>> _short("weight of knowledge distillation; labels get 1 - alpha; none: off")
    'weight of knowledge distillation'
    """
    text = text.replace("%%", "%").partition("; ")[0].partition(" (default: ")[0]
    return text if len(text) <= LONGEST_HELP else f"{text[: LONGEST_HELP - 3].rstrip()}..."


def _bash(commands: Iterable[_Command]) -> str:
    """Return the script for bash 3.2 or newer."""

    def case(pattern: str, values: _Values, more: str = "") -> str:
        files = "1" if values.files else ""
        return f"        {pattern}) {more}words='{' '.join(values.words)}' files={files} ;;\n"

    names, flags, values, positional = [], "", "", ""
    for command in commands:
        names.append(command.name)
        forms = " ".join(form for flag in command.flags for form in flag.forms)
        flags += f"        {command.name}) flags='{forms}' ;;\n"
        positional += case(command.name, command.positional)
        for flag in command.flags:
            if flag.values is not None:
                pattern = "|".join(f"'{command.name} {form}'" for form in flag.forms)
                more = f"takes={'several' if flag.several else 'one'} "
                values += case(pattern, flag.values, more)
    return (
        BASH.replace("@names@", " ".join(names))
        .replace("@flags@", flags)
        .replace("@values@", values)
        .replace("@positional@", positional)
    )


def _zsh(commands: Iterable[_Command]) -> str:
    """Return the script for zsh, as a file in ``$fpath`` or to be sourced."""

    def spec(text: str) -> str:
        for character in "\\:[]":
            text = text.replace(character, f"\\{character}")
        return text.replace("'", "'\\''")

    def action(values: _Values) -> str:
        words = " ".join(values.words)
        if words and values.files:
            return f" _attention_transfer_or_files {words}"
        if words:
            return f"({words})"
        return "_files" if values.files else " "

    names, cases = "", ""
    for command in commands:
        names += f"    '{spec(command.name)}:{spec(command.summary)}'\n"
        lines = []
        for flag in command.flags:
            for form in flag.forms:
                text = f"[{spec(flag.help)}]"
                if flag.values is None:
                    lines.append(f"'{form}{text}'")
                elif flag.several:
                    lines.append(f"'*{form}{text}:*-*:value:{action(flag.values)}'")
                else:
                    lines.append(f"'{form}={text}:value:{action(flag.values)}'")
        if command.positional.words or command.positional.files:
            words = _Values(command.positional.words, files=False)
            if command.positional.words:
                lines.append(f"'1:value:{action(words)}'")
            if command.positional.files:
                lines.append("'*:file:_files'")
        cases += f"    {command.name})\n      _arguments \\\n        "
        cases += " \\\n        ".join(lines) + "\n      ;;\n"
    return ZSH.replace("@names@", names).replace("@cases@", cases)


def _fish(commands: Iterable[_Command]) -> str:
    """Return the script for fish."""

    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = [f"complete -c {PROGRAM} -f"]
    for command in commands:
        first = f"complete -c {PROGRAM} -n __fish_use_subcommand"
        lines.append(f"{first} -a {command.name} -d {quoted(command.summary)}")
        here = f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from {command.name}'"
        for flag in command.flags:
            for form in flag.forms:
                name = f"-l {form[2:]}" if form.startswith("--") else f"-s {form[1:]}"
                values = ""
                if flag.values is not None:
                    words = f" -a {quoted(' '.join(flag.values.words))}" * bool(flag.values.words)
                    values = f" -r -F{words}" if flag.values.files else f" -x{words}"
                lines.append(f"{here} {name}{values} -d {quoted(flag.help)}")
        if command.positional.words:
            lines.append(f"{here} -a {quoted(' '.join(command.positional.words))}")
        if command.positional.files:
            lines.append(f"{here} -F")
    return "\n".join(lines) + "\n"


def _script(write: Callable[[list[_Command]], str]) -> Callable[[Mapping[str, Parser]], str]:
    return lambda parsers: write([_command(name, parser) for name, parser in parsers.items()])


SHELLS = {"bash": _script(_bash), "zsh": _script(_zsh), "fish": _script(_fish)}
"""Shell -> its script, of the commands' parsers."""

BASH = """\
# bash completion of attention-transfer; made by: attention-transfer completion bash
_attention_transfer() {
    local cur="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"
    local command="${COMP_WORDS[1]}" flags='' words='' files='' takes='' flag='' index
    COMPREPLY=()
    if (( COMP_CWORD == 1 )); then
        COMPREPLY=( $(compgen -W '@names@ --help --version' -- "$cur") )
        return
    fi
    case "$command" in
@flags@    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=( $(compgen -W "$flags" -- "$cur") )
        return
    fi
    # The last flag, to which the word may belong; bash splits words at = and : too.
    for (( index = COMP_CWORD - 1; index > 1; index-- )); do
        if [[ ${COMP_WORDS[index]} == -* ]]; then
            flag="${COMP_WORDS[index]}"
            break
        fi
    done
    case "$command $flag" in
@values@    esac
    if [[ $takes == one && $before != "$flag" && $before != [=:] && $cur != [=:] ]]; then
        takes=''  # it has its value
    fi
    [[ $cur == [=:] ]] && cur=''
    if [[ -z $takes ]]; then
        words='' files=''
        case "$command" in
@positional@        esac
    fi
    COMPREPLY=( $(compgen -W "$words" -- "$cur") )
    if [[ -n $files ]]; then
        local IFS=$'\\n'
        COMPREPLY+=( $(compgen -f -- "$cur") )
        compopt -o filenames 2> /dev/null
    fi
}
complete -F _attention_transfer attention-transfer
"""

ZSH = """\
#compdef attention-transfer
# zsh completion of attention-transfer; made by: attention-transfer completion zsh
_attention_transfer_or_files() {
  compadd -- "$@"
  _files
}
_attention_transfer() {
  local -a commands
  commands=(
@names@  )
  if (( CURRENT == 2 )); then
    _describe -t commands command commands
    return
  fi
  local name=$words[2]
  shift words
  (( CURRENT-- ))
  case $name in
@cases@  esac
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _attention_transfer "$@"
else
  compdef _attention_transfer attention-transfer
fi
"""
