"""The command line ``attention-transfer COMMAND``; only a running command imports torch."""

import os
import shlex
import sys
from collections.abc import Sequence
from types import ModuleType

from attention_transfer.cli import (
    benchmark,
    cache,
    completion,
    demo,
    distill,
    doctor,
    evaluate,
    export,
    maps,
    points,
    predict,
    report,
    resume,
    study,
    train,
)
from attention_transfer.cli.arguments import Parser
from attention_transfer.cli.streams import guarded_streams
from attention_transfer.errors import (
    InputError,
    Interrupted,
    TrainingError,
    UntrustedError,
    first_line,
    nearest,
)
from attention_transfer.terminal import escape_control_characters
from attention_transfer.trust import trust_flags, trusting
from attention_transfer.version import __version__
from attention_transfer.waiting import announcing

__all__ = ["COMMANDS", "main", "parser_of"]

COMMANDS: dict[str, ModuleType] = {
    "demo": demo,
    "train": train,
    "distill": distill,
    "resume": resume,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "points": points,
    "maps": maps,
    "cache": cache,
    "study": study,
    "report": report,
    "benchmark": benchmark,
    "doctor": doctor,
    "completion": completion,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code.

    Args:
        arguments: the command and its flags; by default those of the process, which then also
            says on stderr what it is waiting for.

    Returns:
        0 success, 1 failure, 2 bad input, 128 and a signal's number if it ended the command.
    """
    if arguments is None:
        arguments = sys.argv[1:]
        # The current folder is not on this process's path, nor may it be on that of its children.
        os.environ.setdefault("PYTHONSAFEPATH", "1")
        with announcing(_announce):
            return main(arguments)
    arguments = list(arguments)
    with guarded_streams() as (stdout, stderr):
        code = _exit_code(arguments)
        stdout.flush()
        if stdout.error is not None:
            if not isinstance(stdout.error, BrokenPipeError):  # a reader such as head has enough
                _fail(f"cannot write to stdout: {stdout.error.strerror}", code)
            code = code or 1
        stderr.flush()
    return code or int(stderr.error is not None)


def _exit_code(arguments: list[str]) -> int:
    """Run a command, print its error in one line, and return its exit code."""
    try:
        return _run(arguments)
    except UntrustedError as error:
        command = shlex.join(["attention-transfer", *arguments, *trust_flags(error.names)])
        return _fail(f"{error.fact}: {command}", 2)
    except InputError as error:
        return _fail(error, 2)
    except TrainingError as error:
        return _fail(error, 1)
    except Interrupted as error:
        return _fail(error, 128 + error.signal)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except OSError as error:  # of the system: a full disk, too many open files
        return _fail(first_line(error), 1)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(f"attention-transfer {__version__}")
        return 0
    if any("\0" in argument for argument in arguments):
        raise InputError("an argument has a null byte, which no name or path has; remove it")
    name = arguments[0]
    if name not in COMMANDS:
        raise InputError(f"unknown command {name!r}; {nearest(name, COMMANDS)}")
    parsed = parser_of(name).parse(arguments[1:])
    with trusting(vars(parsed).pop("trust", ())):
        return int(COMMANDS[name].run(parsed))


def parser_of(name: str) -> Parser:
    """Return the parser of a command, with all its arguments."""
    command = COMMANDS[name]
    parser = Parser(name, command.__doc__ or "", command.EXAMPLES)
    command.add_arguments(parser)
    return parser


def _overview() -> str:
    lines = [
        "usage: attention-transfer COMMAND [--help]",
        "",
        "Train a small vision network to look where a large one looks.",
        "",
        "commands:",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:10} {(command.__doc__ or '').splitlines()[0]}")
    lines += ["", "start here: attention-transfer demo"]
    return "\n".join(lines)


def _announce(what: str) -> None:
    """Print what is being waited for, in the first of several processes."""
    if os.environ.get("RANK", "0") == "0":
        line = f"attention-transfer: {escape_control_characters(what)} ..."
        print(line, file=sys.stderr, flush=True)


def _fail(error: BaseException | str, code: int) -> int:
    # One line; spaces inside it stay, as those of a folder in a command to copy.
    line = " ".join(part.strip() for part in str(error).splitlines())
    print(f"attention-transfer: {escape_control_characters(line)}", file=sys.stderr)
    return code
