"""Presets against numpy written from what each source computes, from Python and as settings."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

import attention_transfer as at
from attention_transfer.config import DistillConfig, RunConfig
from attention_transfer.config.presets import PRESETS, Preset
from attention_transfer.errors import InputError
from attention_transfer.training.configured_terms import configured_terms
from conftest import SMALL

Array = NDArray[np.float64]
PAIRS = "0:0,2:2"
IMAGES = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([2, 0, 1, 1, 3])


def network(width: int, stride: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=stride, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 4),
    ).double()


def outputs(layers: nn.Sequential) -> tuple[Array, list[Array]]:
    """Return the logits and the features at both points."""
    seen: list[Tensor] = [IMAGES]
    with torch.no_grad():
        for layer in layers:
            seen.append(layer(seen[-1]))
    return seen[-1].numpy(), [seen[1].numpy(), seen[3].numpy()]


def rows(features: Array) -> Array:
    """Return the mean over channels of the squares, flattened, at length 1."""
    flat = (features**2).mean(axis=1).reshape(len(features), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def pooled(features: Array, height: int) -> Array:
    """Return features averaged over equal blocks, to a smaller height and width."""
    step = features.shape[2] // height
    return features.reshape(*features.shape[:2], height, step, height, step).mean(axis=(3, 5))


def cross_entropy(logits: Array) -> float:
    return float(-log_softmax(logits, axis=1)[np.arange(5), LABELS.numpy()].mean())


def divergences(student: Array, teacher: Array) -> Array:
    """Return p log(p / q) at temperature 4 of each image and class."""
    ours, theirs = log_softmax(student / 4, axis=1), log_softmax(teacher / 4, axis=1)
    product: Array = softmax(teacher / 4, axis=1) * (theirs - ours)
    return product


def authors_code(student: nn.Sequential, teacher: nn.Sequential) -> float:
    (logits, ours), (_, theirs) = outputs(student), outputs(teacher)
    losses = [((rows(x) - rows(y)) ** 2).mean() for x, y in zip(ours, theirs, strict=True)]
    return cross_entropy(logits) + 1e3 * float(sum(losses))


def authors_code_with_kd(student: nn.Sequential, teacher: nn.Sequential) -> float:
    ours, theirs = outputs(student)[0], outputs(teacher)[0]
    labels = cross_entropy(ours)
    soft = divergences(ours, theirs).sum() * 4**2 / 5
    return authors_code(student, teacher) - labels + float(soft * 0.9 + labels * (1 - 0.9))


def paper_eq2(student: nn.Sequential, teacher: nn.Sequential) -> float:
    (logits, ours), (_, theirs) = outputs(student), outputs(teacher)
    total = cross_entropy(logits)
    for x, y in zip(ours, theirs, strict=True):
        elements_and_batch = x.shape[2] * x.shape[3] * len(x)
        norms = sum(np.linalg.norm(a - b) for a, b in zip(rows(x), rows(y), strict=True))
        total += (1e3 / elements_and_batch) / 2 * float(norms)
    return total


def authors_kd_2017(student: nn.Sequential, teacher: nn.Sequential) -> float:
    ours, theirs = outputs(student)[0], outputs(teacher)[0]
    soft = divergences(ours, theirs).mean() * (4 * 4 * 2 * 0.9)
    return float(soft + cross_entropy(ours) * (1 - 0.9))


def repdistiller(student: nn.Sequential, teacher: nn.Sequential) -> float:
    (logits, ours), (_, theirs) = outputs(student), outputs(teacher)
    total = 1.0 * cross_entropy(logits)
    for x, y in zip(ours, theirs, strict=True):
        height = min(x.shape[2], y.shape[2])
        difference = rows(pooled(x, height)) - rows(pooled(y, height))
        total += 1000 * float((difference**2).mean())
    return total


def torchdistill_paper(student: nn.Sequential, teacher: nn.Sequential) -> float:
    (logits, ours), (_, theirs) = outputs(student), outputs(teacher)
    summed = sum(
        np.linalg.norm(rows(x) - rows(y), axis=1).sum() for x, y in zip(ours, theirs, strict=True)
    )
    return cross_entropy(logits) + 1000 * float(summed) / 5


REFERENCES = {
    "authors-code": authors_code,
    "paper-eq2": paper_eq2,
    "authors-kd-2017": authors_kd_2017,
    "repdistiller": repdistiller,
    "torchdistill-paper": torchdistill_paper,
}


def loss_of(terms: list[at.Term], student: nn.Sequential, teacher: nn.Sequential) -> float:
    return at.Transfer(student, teacher, terms, example_input=IMAGES)(IMAGES, LABELS).loss.item()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_its_source_computes(name: Preset) -> None:
    student, teacher = network(2, 1, seed=0), network(4, 1, seed=1)
    loss = loss_of(at.preset(name, pairs=PAIRS), student, teacher)
    assert loss == pytest.approx(REFERENCES[name](student, teacher), rel=1e-6)


def test_the_authors_code_with_distillation() -> None:
    student, teacher = network(2, 1, seed=0), network(4, 1, seed=1)
    loss = loss_of(at.preset("authors-code", pairs=PAIRS, kd=True), student, teacher)
    assert loss == pytest.approx(authors_code_with_kd(student, teacher), rel=1e-6)


@pytest.mark.parametrize("strides", [(1, 2), (2, 1)])
def test_repdistiller_pools_the_features_of_the_larger_one(strides: tuple[int, int]) -> None:
    student, teacher = network(2, strides[0], seed=0), network(4, strides[1], seed=1)
    loss = loss_of(at.preset("repdistiller", pairs=PAIRS), student, teacher)
    assert loss == pytest.approx(repdistiller(student, teacher), rel=1e-6)
    maps_pooled = loss_of(at.preset("authors-code", pairs=PAIRS), student, teacher)
    assert maps_pooled != pytest.approx(loss, rel=1e-3)


def test_pooled_features_have_the_gradient_of_finite_differences() -> None:
    student, teacher = network(2, 1, seed=0), network(4, 2, seed=1)
    transfer = at.Transfer(student, teacher, at.preset("repdistiller", pairs=PAIRS))
    transfer(IMAGES, LABELS).loss.backward()
    weight = student[0].weight
    step = 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 1, 2, 0] += sign * step
            values.append(transfer(IMAGES, LABELS).loss.item())
            weight[0, 1, 2, 0] -= sign * step
    slope = (values[0] - values[1]) / (2 * step)
    assert weight.grad is not None
    assert weight.grad[0, 1, 2, 0].item() == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_the_setting_makes_the_same_terms(name: Preset) -> None:
    config = DistillConfig.checked({"student": "s", "teacher": "t", "preset": name, "pairs": PAIRS})
    made, expected = configured_terms(config), at.preset(name, pairs=PAIRS)
    assert [repr(term) for term in made] == [repr(term) for term in expected]


def test_a_setting_that_is_given_overrides_the_presets() -> None:
    values = {"student": "s", "teacher": "t", "preset": "paper-eq2", "beta": "500"}
    config = DistillConfig.checked(values)
    assert (config.form, config.beta) == ("paper-eq2", 500.0)
    again = DistillConfig.checked(config.model_dump())
    assert again == config


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: at.preset("authors-cod"), "unknown preset 'authors-cod'; did you mean authors-co"),
        (lambda: at.preset("repdistiller", kd=True), "repdistiller has no knowledge distillation"),
        (lambda: at.ActivationAttention(pooling="feature"), "unknown pooling 'feature'; did you m"),
        (lambda: RunConfig.checked({"student": "s", "preset": "paper-eq2"}), "preset needs a teac"),
        (
            lambda: DistillConfig.checked({"student": "s", "teacher": "t", "preset": "authors"}),
            "preset is 'authors', expected one of authors-code, paper-eq2",
        ),
    ],
)
def test_what_is_no_preset_is_refused(call: object, match: str) -> None:
    assert callable(call)
    with pytest.raises(InputError, match=match):
        call()


def test_a_cache_cannot_hold_the_features_that_repdistiller_pools(small_runs: None) -> None:
    settings = {**SMALL, "preset": "repdistiller", "cache": "cache"}
    with pytest.raises(InputError, match="whole activations"):
        at.distill(teacher="wrn-10-2@random", student="wrn-10-1", **settings, out="out")
    assert not Path("cache").exists()


def test_a_run_prints_and_records_what_its_preset_set() -> None:
    command = (
        "distill --teacher wrn-10-1@random --student wrn-10-1 --preset authors-kd-2017 "
        "--kd-alpha 0.5 --epochs 1 --no-report --probes 0 --out out --dry-run"
    )
    words = [sys.executable, "-m", "attention_transfer", *command.split()]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    printed = done.stdout + done.stderr
    assert re.search(
        r"preset authors-kd-2017: attention none, temperature 4.0, kd_form 2017; given instead: "
        r"kd_alpha 0.5",
        printed,
    )
