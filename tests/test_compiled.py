"""Compiled passes: taps fire in them, nothing is compiled twice; a missing compiler is said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import attention_transfer as at
from attention_transfer.training import setup
from attention_transfer.transfer import compiler_fault
from attention_transfer.transfer.targets import TargetSpec
from attention_transfer.transfer.teacher import FrozenTeacher
from conftest import SMALL, Listening

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def network(width: int) -> nn.Sequential:
    """Its first layer's output is overwritten in place."""
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )


def test_a_compiler_works_here() -> None:
    assert compiler_fault() is None


def test_a_compiled_transfer_is_the_eager_one_and_is_compiled_once() -> None:
    terms = [at.CrossEntropy(), at.ActivationAttention(pairs="0:0,3:3"), at.KnowledgeDistillation()]
    found = {}
    for compiled in (False, True):
        student, teacher = network(4), network(8)
        transfer = at.Transfer(student, teacher, terms, example_input=IMAGES[:1])
        if compiled:
            counters.clear()
            transfer.compile_passes()
        losses = []
        for images, labels in [(IMAGES, LABELS), (IMAGES, LABELS), (IMAGES[:5], LABELS[:5])] * 2:
            out = transfer(images, labels)
            out.loss.backward()
            losses.append(out.raw_terms)
        gradients = [parameter.grad for parameter in student.parameters()]
        found[compiled] = (losses, gradients, dict(student.state_dict()))
        assert out.maps["activation_attention"].keys() == {"0:0", "3:3"}
    torch.testing.assert_close(found[True], found[False], rtol=1e-3, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 2  # the student's and the teacher's
    assert not counters["graph_break"]


def test_a_teacher_that_becomes_another_network_is_compiled_anew() -> None:
    teacher = FrozenTeacher(network(8), ["0"])
    teacher.compile_passes()
    wanted = TargetSpec(logits=True)
    before = teacher.targets(IMAGES, None, wanted).logits
    teacher.optimize_for_inference(IMAGES)
    with torch.no_grad():
        for parameter in teacher.network.parameters():
            parameter.zero_()
    after = teacher.targets(IMAGES, None, wanted).logits
    assert before is not None
    assert after is not None
    assert before.any()
    assert not after.any()


def test_networks_can_be_pickled_whole_once_compiled_passes_are_removed(tmp_path: Path) -> None:
    student, teacher = network(4), network(8)
    terms = [at.CrossEntropy(), at.ActivationAttention(pairs="0:0")]
    transfer = at.Transfer(student, teacher, terms, example_input=IMAGES[:1])
    transfer.compile_passes()
    before = transfer(IMAGES, LABELS).loss
    transfer.remove_compiled_passes()
    for whole in (student, teacher):
        torch.save(whole, tmp_path / "network.pt")
        assert not any(module._forward_hooks for module in whole.modules())
    torch.testing.assert_close(transfer(IMAGES, LABELS).loss, before, rtol=1e-4, atol=1e-5)


def test_judging_leaves_the_compiled_pass_and_its_taps_alone() -> None:
    student = network(4)
    terms = [at.CrossEntropy(), at.FullActivation(pairs="3:3")]
    transfer = at.Transfer(student, network(8), terms, example_input=IMAGES[:1])
    transfer.compile_passes()
    before = transfer(IMAGES, LABELS)
    with torch.no_grad():
        expected = student(IMAGES)
    counters.clear()
    again = transfer(IMAGES, LABELS)
    torch.testing.assert_close(again.logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.loss, before.loss)
    assert not counters["stats"]


def test_a_run_with_gradient_terms_leaves_the_student_uncompiled(small_runs: None) -> None:
    teacher = at.train(model="wrn-10-1", out="teacher", **{**SMALL, "epochs": 1})
    common = {
        "teacher": str(teacher.folder),
        "student": "nin-thin",
        "input_gradient_norm_beta": 0.1,
    }
    common |= {"attention": "none", "kd_alpha": 0.5, **SMALL, "epochs": 1}
    plain, compiled = (at.distill(**common, out=str(flag), compile=flag) for flag in (False, True))
    one, other = (run.load().network.state_dict() for run in (plain, compiled))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_without_a_compiler_a_run_says_so_in_a_line_and_goes_on(
    small_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "compiler_fault", lambda: "no g++")
    progress = Listening()
    run = at.train(
        model="wrn-10-1", out="run", compile=True, progress=progress, **{**SMALL, "epochs": 1}
    )
    assert [line for line in progress.lines if "compile" in line] == [
        "nothing is compiled: no compiler works here (no g++)"
    ]
    assert run.record.config.compile
    assert not run.record.compiled


def test_a_missing_compiler_is_found_out(tmp_path: Path) -> None:
    code = "from attention_transfer.transfer import compiler_fault; print(compiler_fault())"
    bare = {**os.environ, "CXX": "/nonexistent/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    bare |= {"PATH": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() != "None"
    assert len(done.stdout.strip().splitlines()) == 1
