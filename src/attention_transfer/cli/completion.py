"""print a script that completes commands, flags and values in bash, zsh or fish"""

from argparse import Namespace

from attention_transfer.cli.arguments import Parser
from attention_transfer.cli.completion_scripts import SHELLS
from attention_transfer.errors import InputError, nearest

EXAMPLES = ("completion bash", "completion zsh", "completion fish")


def add_arguments(parser: Parser) -> None:
    """Add the shell to the parser."""
    parser.add_argument(
        "shell",
        metavar="|".join(SHELLS),
        nargs="?",
        help="shell to print the script for; keep it in "
        "~/.local/share/bash-completion/completions/attention-transfer, in a folder of zsh's fpath "
        "as _attention-transfer, or in ~/.config/fish/completions/attention-transfer.fish",
    )


def run(arguments: Namespace) -> int:
    """Print the completion script of a shell."""
    shell = vars(arguments).get("shell")
    if shell is None:
        raise InputError(f"completion needs a shell: {', '.join(SHELLS)}")
    if shell not in SHELLS:
        raise InputError(f"completion has no shell {shell!r}; {nearest(str(shell), SHELLS)}")
    from attention_transfer.cli import COMMANDS, parser_of

    print(SHELLS[shell]({name: parser_of(name) for name in COMMANDS}), end="")
    return 0
