"""TorchScript, torch.export and wrappers: what can teach, and what an error says otherwise."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.errors import InputError
from conftest import SMALL, rectified

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")

IMAGES, LABELS = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])


def scripted(network: nn.Module) -> nn.Module:
    program: nn.Module = torch.jit.script(network)
    return program


def traced(network: nn.Module) -> nn.Module:
    program: nn.Module = torch.jit.trace(network.eval(), IMAGES)
    return program


def frozen(network: nn.Module) -> nn.Module:
    program: nn.Module = torch.jit.freeze(torch.jit.script(network.eval()))
    return program


def exported(network: nn.Module) -> nn.Module:
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(network.eval(), (IMAGES,), dynamic_shapes=shapes).module()


PROGRAMS = [scripted, traced, frozen, exported]
Make = Callable[[nn.Module], nn.Module]


@pytest.mark.parametrize("make", PROGRAMS)
@pytest.mark.parametrize("example", [None, IMAGES])
def test_a_program_teaches_distillation(make: Make, example: Any) -> None:
    teacher = rectified().eval()
    out = {}
    for network in (teacher, make(teacher)):
        torch.manual_seed(0)
        terms = at.distillation_terms(alpha=0.9)
        transfer = at.Transfer(rectified(), network, terms, example_input=example)
        out[network] = transfer(IMAGES, LABELS).loss
    plain, program = out.values()
    assert torch.allclose(plain, program)


@pytest.mark.parametrize("pairs", ["auto", "0:0"])
@pytest.mark.parametrize("make", PROGRAMS)
def test_attention_in_a_program_is_an_error_that_says_what_can_be_done(
    make: Make, pairs: str
) -> None:
    terms = [at.ActivationAttention(pairs=pairs)]
    with pytest.raises(InputError, match=r"is a program of.*distillation.*torch\.nn\.Module"):
        at.Transfer(rectified(), make(rectified()), terms, example_input=IMAGES)
    for read in (at.attention_points, at.attention_maps):
        with pytest.raises(InputError, match="is a program of"):
            read(make(rectified()), (3, 16, 16) if read is at.attention_points else IMAGES)  # type: ignore[operator]


@pytest.mark.parametrize("make", PROGRAMS)
def test_a_run_learns_from_a_program(make: Make, small_runs: None) -> None:
    settings: dict[str, Any] = {**SMALL, "epochs": 1, "probes": 2}
    teacher = make(rectified())
    kd = at.distill(
        teacher=teacher, student=rectified(), attention="none", kd_alpha=0.9, **settings
    )
    assert kd.record.teacher is not None
    with pytest.raises(InputError, match="is a program of"):
        at.distill(teacher=make(rectified()), student=rectified(), **settings)


def test_a_program_of_a_factory(
    tmp_path: Path, small_runs: None, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.jit.save(torch.jit.script(rectified()), tmp_path / "program.pt")
    (tmp_path / "loads.py").write_text(
        f"import torch\ndef teacher(): return torch.jit.load({str(tmp_path / 'program.pt')!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("loads", None)
    command = "distill --teacher loads:teacher --student wrn-10-1 --epochs 1 --batch-size 16 "
    command += "--precision fp32 --no-report --probes 0 --lr 0.01 --json"
    assert main([*command.split(), "--attention", "none", "--kd-alpha", "0.9"]) == 0
    capsys.readouterr()
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--attention none --kd-alpha 0.9" in error


def test_students_and_exported_programs() -> None:
    terms = at.distillation_terms(alpha=0.9)
    transfer = at.Transfer(scripted(rectified()), rectified(), terms, example_input=IMAGES)
    transfer(IMAGES, LABELS).loss.backward()
    for make in (frozen, exported):
        with pytest.raises(InputError, match="cannot be trained"):
            at.Transfer(make(rectified()), rectified(), terms)
    program: Any = torch.export.export(rectified().eval(), (IMAGES,))
    with pytest.raises(InputError, match=r"its \.module\(\) is one"):
        at.Transfer(rectified(), program, terms)
    with pytest.raises(InputError, match=r"its \.module\(\) is one"):
        at.distill(teacher=program, student="wrn-10-1")
    fixed = at.Transfer(rectified(), program.module(), terms)
    with pytest.raises(InputError, match="export it with a dynamic batch"):
        fixed(IMAGES[:2], LABELS[:2])


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_networks_teach_attention(wrap: Make) -> None:
    network = wrap(rectified())
    terms = [at.ActivationAttention(pairs="1:1")]
    if wrap is not torch.compile:
        at.Transfer(rectified(), network, terms, example_input=IMAGES)(IMAGES, LABELS)
    assert at.attention_points(network, (3, 16, 16))["0"].channels == 4
