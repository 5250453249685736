"""Class attention transfer (CAT-KD) against numpy, and the classifiers it finds."""

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import gradcheck

import attention_transfer as at
from attention_transfer.errors import InputError
from attention_transfer.functional import losses
from attention_transfer.transfer.classifiers import pooled_classifier
from conftest import SMALL
from small_transfers import IMAGES, LABELS, transfer_of

Array = NDArray[np.float64]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(student: list[Array], teacher: list[Array], size: int = 2) -> float:
    """CAT-KD of (features, classifier weights), by loops over images, classes and cells."""
    vectors = []
    for features, weight in (student, teacher):
        maps = np.tensordot(features, weight, axes=([1], [1])).transpose(0, 3, 1, 2)
        step = maps.shape[2] // size
        rows = np.zeros((*maps.shape[:2], size * size))
        for image in range(len(maps)):
            for label in range(maps.shape[1]):
                for cell in range(size * size):
                    top, left = (step * place for place in divmod(cell, size))
                    block = maps[image, label, top : top + step, left : left + step]
                    rows[image, label, cell] = block.mean()
                rows[image, label] /= np.linalg.norm(rows[image, label])
        vectors.append(rows)
    return float(((vectors[0] - vectors[1]) ** 2).mean())


@pytest.mark.parametrize("size", [1, 2, 4])
def test_class_attention_is_its_formula(size: int) -> None:
    student = random(3, 5, 8, 8, seed=0), random(4, 5, seed=1)
    teacher = random(3, 7, 4, 4, seed=2), random(4, 7, seed=3)
    value = losses.class_attention(
        losses.class_maps(*student, size=size), losses.class_maps(*teacher, size=size)
    )
    arrays = ([one.numpy() for one in both] for both in (student, teacher))
    assert value.item() == pytest.approx(reference(*arrays, size=size), rel=1e-12)


def test_the_mean_of_a_class_map_is_the_logit_without_its_bias() -> None:
    features, layer = random(2, 5, 6, 3, seed=0), nn.Linear(5, 4).double()
    whole = losses.class_maps(features, layer.weight, size=1)[:, :, 0, 0]
    logits = layer(features.mean(dim=(2, 3))) - layer.bias
    torch.testing.assert_close(whole, logits, rtol=1e-12, atol=1e-12)


def test_its_gradient_is_that_of_finite_differences() -> None:
    features = random(2, 3, 4, 4, seed=0).requires_grad_()
    weight = random(2, 3, seed=1).requires_grad_()
    target = losses.class_maps(random(2, 3, 2, 2, seed=2), None)[:, :2]
    assert gradcheck(
        lambda a, w: losses.class_attention(losses.class_maps(a, w), target), (features, weight)
    )


def test_scale_does_not_matter_and_a_network_like_its_teacher_has_no_loss() -> None:
    maps = random(3, 4, 2, 2, seed=0)
    assert losses.class_attention(maps, 7 * maps).item() == pytest.approx(0, abs=1e-15)
    other = random(3, 4, 2, 2, seed=1)
    assert losses.class_attention(1e-3 * maps, other).item() == pytest.approx(
        losses.class_attention(maps, other).item(), rel=1e-12
    )


@pytest.mark.parametrize("size", [1e4, 1e-4, 0.0])
def test_extreme_features_of_half_precision_stay_finite(size: float) -> None:
    features = (size * random(2, 3, 4, 4, seed=0)).half().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = losses.class_maps(features, random(2, 3, seed=1).half())
        value = losses.class_attention(maps, random(2, 2, 2, 2, seed=2).half())
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: losses.class_maps(IMAGES, torch.ones(2, 5)), r"must be \(classes, 3\)"),
        (lambda: losses.class_maps(IMAGES, None, size=0), "size of at least 1, got 0"),
        (lambda: losses.class_attention(IMAGES, IMAGES[:, :2]), "the same for both networks"),
        (lambda: losses.class_attention(IMAGES[:, :, 0, 0], IMAGES[:, :, 0, 0]), "class maps must"),
        (lambda: at.ClassAttention(size=0), "size must be an integer of at least 2"),
    ],
)
def test_what_does_not_fit_is_refused(call: object, match: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=match):
        call()


def test_the_term_is_the_formula_of_both_networks() -> None:
    transfer = transfer_of(at.ClassAttention(weight=2.0), example_input=IMAGES).double()
    transfer.eval()
    images = IMAGES.double()
    out = transfer(images)
    arrays = []
    for network in (transfer.student, transfer.teacher.network):  # type: ignore[union-attr]
        seen: list[Tensor] = []
        handle = network.norm.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
        with torch.no_grad():
            network(images)
        handle.remove()
        weight = network.classifier.weight.detach()
        arrays.append([seen[0].relu().numpy(), weight.numpy()])
    assert out.terms["class_attention"].item() == pytest.approx(2 * reference(*arrays), rel=1e-9)
    out.loss.backward()
    student = transfer.student
    assert student.classifier.weight.grad is not None  # type: ignore[union-attr]
    assert student.classifier.weight.grad.any()  # type: ignore[union-attr]
    assert not any("classifier" in name for name in transfer.terms.state_dict())
    known = transfer(images, targets=transfer.targets(images))
    assert known.loss.item() == out.loss.item()


def test_the_whole_run_from_a_cache_is_that_of_the_live_teacher(small_runs: None) -> None:
    settings = {**SMALL, "terms": "class_attention(weight=10.0)", "attention": "none"}
    networks = {"teacher": "wrn-10-2@random", "student": "wrn-10-1"}
    live = at.distill(**networks, **settings, out="live")
    cached = at.distill(**networks, **settings, cache="cache", out="cached")
    assert Path("cache").is_dir()
    values = [[row.terms["class_attention"] for row in run.metrics] for run in (live, cached)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert values[0][-1] < values[0][0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wrn-10-1", ("classifier", "norm", True)),
        ("nin-thin", ("block3", "block3", False)),
        ("timm:resnet18", ("fc", "layer4", False)),
        ("torchvision:densenet121", ("classifier", "features", True)),
        ("timm:swin_tiny_patch4_window7_224", ("head.fc", "norm", False)),
    ],
)
def test_classifiers_are_found(name: str, expected: tuple[str, str, bool]) -> None:
    network = at.models.build(name, classes=5)
    size = 224 if "224" in name else 64
    found = pooled_classifier(network, torch.rand(1, 3, size, size))
    assert (found.name, found.point, found.rectified) == expected
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["torchvision:vgg11", "timm:vit_tiny_patch16_224"])
def test_networks_without_class_maps_are_refused(name: str) -> None:
    network = at.models.build(name, classes=5)
    with pytest.raises(InputError, match="has no linear classifier on the mean over positions"):
        pooled_classifier(network, torch.rand(1, 3, 224, 224))


def test_uses_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="pass example_input"):
        transfer_of(at.ClassAttention())
    term = at.ClassAttention()
    transfer_of(term, example_input=IMAGES)
    with pytest.raises(InputError, match="another Transfer's student already"):
        transfer_of(term, example_input=IMAGES)
    networks = [at.models.build("wrn-10-1", classes) for classes in (3, 4)]
    with pytest.raises(InputError, match="maps of the same classes, got 3 of the student and 4"):
        at.Transfer(*networks, [at.ClassAttention()], example_input=IMAGES)
    with pytest.raises(InputError, match="with one teacher, got 2"):
        at.Transfer(
            networks[0],
            [networks[1], copy.deepcopy(networks[1])],
            [at.ClassAttention()],
            example_input=IMAGES,
        )


def test_a_network_of_timm_learns_by_it() -> None:
    student, teacher = (
        timm.create_model(name, num_classes=3) for name in ("resnet10t", "resnet18")
    )
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    transfer = at.Transfer(student, teacher, [at.ClassAttention()], example_input=images)
    optimizer = torch.optim.SGD(transfer.parameters(), lr=0.001)
    values = []
    for _ in range(6):
        optimizer.zero_grad()
        out = transfer(images, LABELS)
        out.loss.backward()
        optimizer.step()
        values.append(out.loss.item())
    assert values[-1] < values[0]
