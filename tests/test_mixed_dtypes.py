"""Each network gets images in its own dtype, and terms are computed in at least float32."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.errors import InputError
from attention_transfer.preprocessing import Preprocessing
from conftest import rectified
from small_transfers import IMAGES, LABELS, wide_resnet

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
HALF = ((0.5,) * 3, (0.25,) * 3)


def in_float16(num_classes: int = 3) -> nn.Module:
    return rectified(num_classes).half()


def in_bfloat16(num_classes: int = 3) -> nn.Module:
    return rectified(num_classes).bfloat16()


def in_float64(num_classes: int = 3) -> nn.Module:
    return rectified(num_classes).double()


def terms() -> list[at.Term]:
    return [
        at.CrossEntropy(),
        at.KnowledgeDistillation(),
        at.ActivationAttention(10.0),
        at.FullActivation(),
    ]


def gradient_terms() -> list[at.Term]:
    return [at.CrossEntropy(), at.GradientAttention(1.0)]


@pytest.mark.parametrize("make", [terms, gradient_terms])
@pytest.mark.parametrize("autocast", [False, True])
def test_networks_of_any_two_dtypes(make: Any, autocast: bool) -> None:
    for student, teacher in itertools.product(DTYPES, DTYPES):
        transfer = at.Transfer(
            wide_resnet(1).to(student),
            wide_resnet(2).to(teacher),
            make(),
            example_input=IMAGES[:2],
            student_normalization=HALF,
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = transfer(IMAGES, LABELS)
        out.loss.backward()
        assert all(value.dtype in DTYPES[2:] for value in (out.loss, *out.raw_terms.values()))
        gradients = [one.grad for one in transfer.student.parameters() if one.grad is not None]
        assert gradients
        assert {gradient.dtype for gradient in gradients} == {student}


@pytest.mark.parametrize("images", DTYPES)
def test_images_of_any_dtype_give_what_the_networks_own_gives(images: torch.dtype) -> None:
    student, teacher = wide_resnet(1), wide_resnet(2)
    transfer = at.Transfer(student.eval(), teacher, [at.ActivationAttention(10.0)])
    expected = transfer(IMAGES.to(images).float()).loss
    assert torch.equal(transfer(IMAGES.to(images)).loss, expected)


def test_the_teachers_terms_are_those_of_the_teacher_by_itself() -> None:
    teacher = wide_resnet(2).bfloat16().eval()
    transfer = at.Transfer(wide_resnet(1), teacher, [at.KnowledgeDistillation()])
    logits = transfer.targets(IMAGES).logits
    assert logits is not None
    assert torch.equal(logits, teacher(IMAGES.bfloat16()))


def test_images_are_normalized_before_they_lose_digits() -> None:
    seen: list[Tensor] = []
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(768, 3)).bfloat16()
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    at.Transfer(network, None, [at.CrossEntropy()], student_normalization=HALF)(IMAGES, LABELS)
    assert torch.equal(seen[-1], Preprocessing(*HALF)(IMAGES).bfloat16())


def test_maps_of_a_network_in_half_precision() -> None:
    network = wide_resnet().bfloat16()
    assert at.attention_maps(network, IMAGES)["group1"].dtype == torch.float32
    gradient = at.attention_maps(network, IMAGES, attention="gradient")["input"]
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("normalization", [None, HALF])
def test_uint8_images(normalization: Any) -> None:
    transfer = at.Transfer(
        wide_resnet(), None, [at.CrossEntropy()], student_normalization=normalization
    )
    with pytest.raises(InputError, match=r"torch\.uint8.* give images\.float\(\) / 255"):
        transfer((IMAGES * 255).to(torch.uint8), LABELS)


def test_a_network_that_takes_uint8_gets_it() -> None:
    class Scaling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = wide_resnet()

        def forward(self, images: Tensor) -> Any:
            return self.network(images.float() / 255)

    transfer = at.Transfer(Scaling(), None, [at.CrossEntropy()])
    assert transfer((IMAGES * 255).to(torch.uint8), LABELS).loss.isfinite()


def test_networks_and_labels_on_several_devices() -> None:
    def transfer(student: nn.Module, teacher: nn.Module) -> at.Transfer:
        return at.Transfer(student, teacher, [at.KnowledgeDistillation(), at.CrossEntropy()])

    with pytest.raises(InputError, match=r"weights on meta .* images are on cpu; .*\.to\(device\)"):
        transfer(wide_resnet(1), wide_resnet(2).to("meta"))(IMAGES, LABELS)
    with pytest.raises(InputError, match=r"weights on meta .* images are on cpu"):
        transfer(wide_resnet(1).to("meta"), wide_resnet(2))(IMAGES, LABELS)
    with pytest.raises(InputError, match=r"cross_entropy got .* on cpu and the labels on meta"):
        transfer(wide_resnet(1), wide_resnet(2))(IMAGES, LABELS.to("meta"))


def test_a_network_partly_in_another_dtype() -> None:
    network = wide_resnet()
    network.group2.bfloat16()
    transfer = at.Transfer(network, None, [at.CrossEntropy()])
    expected = r"several dtypes, float32 \(.*\) and bfloat16 \(group2.*\).*network\.float\(\)"
    with pytest.raises(InputError, match=expected):
        transfer(IMAGES, LABELS)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pair", ["bfloat16:float16", "float16:bfloat16", "float64:float16"])
def test_factories_of_networks_in_any_dtype(pair: str, precision: str, small_runs: None) -> None:
    student, _, teacher = pair.partition(":")
    run = at.distill(
        teacher=f"test_mixed_dtypes:in_{teacher}@random",
        student=f"test_mixed_dtypes:in_{student}",
        epochs=1,
        batch_size=10,
        lr=0.01,
        precision=precision,
        report=False,
        pairs="1:1",
        kd_alpha=0.5,
        out="run",
    )
    assert run.record.student.flops > 0
    loaded = run.load(trust=[f"test_mixed_dtypes:in_{student}"]).network
    # A run trains in float32, and says so.
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}


def test_the_command_line_distils_a_half_precision_teacher(small_runs: None) -> None:
    command = ["distill", "--teacher", "test_mixed_dtypes:in_bfloat16@random", "--no-report"]
    command += [
        "--student",
        "conftest:rectified",
        "--pairs",
        "1:1",
        "--epochs",
        "1",
        "--lr",
        "0.01",
    ]
    assert main([*command, "--batch-size", "10", "--cache", "cache", "--out", "run"]) == 0
    assert Path("run/model.safetensors").is_file()
