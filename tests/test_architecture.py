"""The package as a whole: public names, what imports what, and file lengths."""

import subprocess
import sys
from pathlib import Path

import attention_transfer as at

PUBLIC = Path(__file__).parent / "public_names.txt"
SOURCE = Path(at.__file__).parent


def test_public_names_are_the_listed_ones() -> None:
    listed = PUBLIC.read_text(encoding="utf-8").split()
    assert sorted(at.__all__) == listed, (
        "the public names changed; if that is meant, change tests/public_names.txt as well "
        "and say so in CHANGELOG.md"
    )
    assert all(getattr(at, name) is not None for name in listed)


def test_importing_the_package_and_asking_for_help_imports_nothing_large() -> None:
    check = (
        "import sys, attention_transfer.cli as cli; cli.main(['--help']);"
        "cli.COMMANDS['distill'].add_arguments(cli.Parser('distill', '', ()));"
        "sys.exit(not {'torch', 'numpy'}.isdisjoint(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, check=False)
    assert done.returncode == 0


def test_the_compiler_is_not_imported_before_something_is_compiled() -> None:
    check = "import sys, attention_transfer.api; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_transfer_imports_no_heavy_packages() -> None:
    check = (
        "import sys, attention_transfer as at; at.Transfer;"
        "sys.exit(not {'pydantic', 'triton', 'timm', 'torchvision'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_a_step_with_every_term_needs_torch_and_numpy_alone() -> None:
    step = Path(__file__).with_name("core_step.py")
    done = subprocess.run([sys.executable, step], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_metrics_without_torchmetrics_say_how_to_install_it() -> None:
    check = "import sys; sys.modules['torchmetrics'] = None; import attention_transfer.metrics"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=False
    )
    assert "pip install 'attention-transfer[metrics]'" in done.stderr.splitlines()[-1]


def test_files_are_short_enough_to_read() -> None:
    long = {
        path.name: count
        for path in SOURCE.rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long, f"split by idea: {long}"
