"""Shell completion: the script of bash in a real bash; those of zsh and fish where they are."""

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attention_transfer.cli import COMMANDS, main, parser_of
from attention_transfer.cli.arguments import choices_of
from attention_transfer.cli.completion_scripts import SHELLS
from attention_transfer.cli.offered_values import NO_FILES, OFFERED, OR_FILES
from conftest import needed


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    parsers = {name: parser_of(name) for name in COMMANDS}
    return {shell: script(parsers) for shell, script in SHELLS.items()}


def completed(script: str, line: str) -> list[str]:
    """What bash offers for the last word of a line, which readline splits at = and : too."""
    words = [word for word in re.split(r"\s+|(?<=[=:])|(?=[=:])", line.lstrip()) if word]
    words += [""] * line.endswith(" ")
    code = f"COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}\n"
    code += '_attention_transfer; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "--norc", "-c", f"set -u\n{script}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return [word for word in done.stdout.split("\n") if word]


ATTENTION = ["activation", "gradient", "activation,gradient", "none"]
D = "attention-transfer distill "
NADAM = ["nadam", "nadamc", "nadamlegacy", "nadamuon", "nadamw"]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("attention-transfer di", ["distill"]),
        ("attention-transfer re", ["resume", "report"]),
        (D + "--kd", ["--kd-alpha", "--kd-form"]),
        (D + "--dry", ["--dry-run"]),
        (D + "--no-nest", ["--no-nesterov"]),
        ("attention-transfer train --mod", ["--model"]),
        (D + "--attention ", ATTENTION),
        (D + "--attention g", ["gradient"]),
        (D + "--attention=g", ["gradient"]),
        (D + "--attention=", ATTENTION),
        (D + "--gradient-map ", ["sum", "max", "none"]),
        (D + "--precision b", ["bf16"]),
        (D + "--epochs ", []),
        (D + "--teacher run", ["runs"]),
        (D + "--teacher runs/my", ["runs/my teacher"]),
        (D + "--data folder:run", ["runs"]),
        (D + "--config=set", ["settings.yaml"]),
        ("attention-transfer train --optimizer nadam", NADAM),
        ("attention-transfer train --optimizer=nadam", NADAM),
        (D + "--term d", ["dist", "dkd"]),
        (D + "--track wa", ["wandb"]),
        (D + "--beta ", ["auto"]),
        (D + "--gradient-beta ", ["auto"]),
        (D + "--beta-schedule ", ["constant", "linear", "cosine", "none"]),
        (D + "--pooling ", ["maps", "features"]),
        (D + "--class-order s", ["string", "settings.yaml"]),
        (D + "--data c", ["cluttered-digits", "cifar10", "cifar100"]),
        (D + "--pairs ", []),
        (D + "--image-size ", []),
        ("attention-transfer maps runs --points t", ["top"]),
        ("attention-transfer cache bui", ["build"]),
        ("attention-transfer cache build run", ["runs"]),
        ("attention-transfer cache --epochs 3 ver", ["verify"]),
        ("attention-transfer benchmark --runs 3 gra", ["gradient"]),
        ("attention-transfer maps runs --images settings.yaml r", ["runs"]),
        ("attention-transfer completion ", ["bash", "zsh", "fish"]),
        ("attention-transfer doctor ", []),
        ("attention-transfer nothing --x", []),
    ],
)
def test_bash_offers_commands_flags_choices_and_files(
    line: str, offered: list[str], scripts: dict[str, str]
) -> None:
    Path("runs/my teacher").mkdir(parents=True)
    Path("settings.yaml").touch()
    assert completed(scripts["bash"], line) == offered


def test_a_tab_in_an_interactive_bash_completes(scripts: dict[str, str]) -> None:
    Path("complete.bash").write_text(scripts["bash"])
    process, terminal = pty.fork()
    if not process:
        os.environ.update(PS1="ready> ", TERM="dumb")
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    read_until(terminal, "ready> ")
    os.write(terminal, b"source complete.bash; bind 'set bell-style none'\n")
    read_until(terminal, "ready> ")
    os.write(terminal, b"attention-transfer dist\t --attention gr\t --out co\t")
    shown = read_until(terminal, "complete.bash")
    os.close(terminal)
    os.waitpid(process, 0)
    assert "attention-transfer distill  --attention gradient  --out complete.bash" in shown


def read_until(terminal: int, text: str) -> str:
    shown, began = "", time.monotonic()
    while text not in shown and time.monotonic() - began < 20:
        if select.select([terminal], [], [], 0.5)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace").replace("\a", "")
    return shown


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_names_every_flag_and_choice(shell: str, scripts: dict[str, str]) -> None:
    for name in COMMANDS:
        for action in parser_of(name).actions:
            for flag in action.option_strings:
                fish = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
                assert (fish if shell == "fish" else flag) in scripts[shell]
            assert " ".join(choices_of(action)) in scripts[shell]


def test_names_that_are_repeated_for_shells_are_those_that_runs_take() -> None:
    from timm.optim import get_optimizer_info, list_optimizers

    from attention_transfer.transfer import TERMS

    taken = [
        name
        for name in map(str, list_optimizers())
        if not get_optimizer_info(name).second_order and not name.startswith(("bnb", "fused"))
    ]
    assert sorted(OFFERED["optimizer"]) == sorted(taken)
    assert sorted(OFFERED["terms"]) == sorted(TERMS)
    settings = {action.dest for name in COMMANDS for action in parser_of(name).actions}
    assert settings >= {*OFFERED, *NO_FILES, *OR_FILES}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_syntax_is_the_shells(shell: str, scripts: dict[str, str]) -> None:
    needed(shutil.which(shell) is not None, shell)
    subprocess.run([shell, "-n"], input=scripts[shell], text=True, check=True)


def test_quotes_are_balanced_where_no_shell_can_tell(scripts: dict[str, str]) -> None:
    """In POSIX quoting, which zsh shares; fish's quotes may be escaped inside."""
    lines = [line.strip().removesuffix("\\") for line in scripts["zsh"].splitlines()]
    specs = [line for line in lines if line.startswith("'")]
    assert len(specs) > 200
    assert all(len(shlex.split(line)) == 1 for line in specs)
    pattern = r"complete -c attention-transfer( -\w+( [\w-]+)?| '(\\.|[^'\\])*')*"
    assert all(re.fullmatch(pattern, line) for line in scripts["fish"].splitlines())


def test_the_command_prints_a_script_without_torch() -> None:
    check = "import sys; from attention_transfer.cli import main; code = main(sys.argv[1:])"
    check += "; sys.exit(code or 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", check, "completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("# bash completion")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("completion", "completion needs a shell: bash, zsh, fish"),
        ("completion bsh", "no shell 'bsh'; did you mean bash"),
        ("completion bash zsh", "unexpected argument 'zsh'"),
    ],
)
def test_an_unknown_shell_is_refused(
    arguments: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert expected in printed.err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("attention-transfer dis", {"distill"}),
        ("attention-transfer distill --beta-s", {"--beta-schedule"}),
        ("attention-transfer distill --precision ", {"auto", "fp32", "bf16", "fp16"}),
        ("attention-transfer distill --optimizer nadam", set(NADAM)),
        ("attention-transfer distill --optimizer=nadam", {f"--optimizer={n}" for n in NADAM}),
        ("attention-transfer distill --class-order s", {"string"}),
        ("attention-transfer study tab", {f"table-{number}" for number in range(1, 6)}),
    ],
)
def test_a_real_fish_offers_them(
    line: str, expected: set[str], scripts: dict[str, str], tmp_path: Path
) -> None:
    needed(shutil.which("fish") is not None, "fish")
    script = tmp_path / "completion.fish"
    script.write_text(scripts["fish"])
    command = f"source {shlex.quote(str(script))}; complete -C {shlex.quote(line)}"
    done = subprocess.run(
        ["fish", "-N", "-c", command], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert {offer.partition("\t")[0] for offer in done.stdout.splitlines()} == expected
