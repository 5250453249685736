"""The paper's networks, and loading networks by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import attention_transfer as at
from attention_transfer.errors import InputError
from attention_transfer.models import ModelCard, build, load, load_run
from attention_transfer.training.record import parameter_count

MILLIONS = {
    "wrn-16-1": 0.2,
    "wrn-16-2": 0.7,
    "wrn-40-1": 0.6,
    "wrn-40-2": 2.2,
    "nin-thin": 0.2,
    "nin-wide": 1.0,
}


@pytest.mark.parametrize("suffix", ["", "-nobn"])
@pytest.mark.parametrize("name", MILLIONS)
def test_parameter_counts_are_the_papers(name: str, suffix: str) -> None:
    count = parameter_count(build(name + suffix, classes=10))
    assert round(count / 1e6, 1) == MILLIONS[name]


def test_parameter_counts_by_hand() -> None:
    # Blocks of WRN-10-1: convolutions, batch norms (2 per channel), shortcuts, classifier.
    stem = 3 * 16 * 9
    group1 = 2 * 16 * 16 * 9 + 2 * 16 + 2 * 16
    group2 = 16 * 32 * 9 + 32 * 32 * 9 + 16 * 32 + 2 * 16 + 2 * 32
    group3 = 32 * 64 * 9 + 64 * 64 * 9 + 32 * 64 + 2 * 32 + 2 * 64
    total = stem + group1 + group2 + group3 + 2 * 64 + 64 * 10 + 10
    assert parameter_count(build("wrn-10-1", classes=10)) == total
    assert parameter_count(build("nin-wide-nobn", classes=10)) == 966_986
    assert parameter_count(build("nin-thin-nobn", classes=10)) == 246_186


@pytest.mark.parametrize("name", ["wrn-10-2", "wrn-16-1-nobn", "nin-thin", "nin-wide-nobn"])
@pytest.mark.parametrize("size", [(32, 32), (48, 40), (17, 23)])
def test_any_input_size_and_class_count(name: str, size: tuple[int, int]) -> None:
    network = build(name, classes=7)
    images = torch.rand(2, 3, *size)
    assert network(images).shape == (2, 7)
    sizes = [tuple(maps.shape[1:]) for maps in at.attention_maps(network, images).values()]
    halves = [size]
    for _ in range(2):
        halves.append(((halves[-1][0] + 1) // 2, (halves[-1][1] + 1) // 2))
    assert sizes == halves


@pytest.mark.parametrize("name", ["wrn-40-1-nobn", "nin-wide-nobn"])
def test_without_batch_norm_signals_and_gradients_are_sound(name: str) -> None:
    torch.manual_seed(0)
    network = build(name, classes=10)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    logits = network(torch.randn(8, 3, 32, 32))
    assert 0.01 < logits.std() < 10
    nn.functional.cross_entropy(logits, torch.arange(8)).backward()
    gradients = [p.grad.norm() for p in network.parameters() if p.grad is not None]
    assert len(gradients) == len(list(network.parameters()))
    assert 1e-3 < torch.stack(gradients).norm() < 100


def test_without_batch_norm_the_features_of_different_images_stay_different() -> None:
    torch.manual_seed(0)
    network = build("nin-thin-nobn", classes=10)
    filters = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    for weight in filters:
        assert weight.sum(dim=(1, 2, 3)).abs().max() < 1e-4
    scores = network(torch.randn(16, 3, 1, 1).expand(-1, -1, 32, 32) + torch.randn(16, 3, 32, 32))
    directions = nn.functional.normalize(scores, dim=1)
    similarities = (directions @ directions.T)[~torch.eye(16, dtype=torch.bool)]
    assert similarities.mean() < 0.7  # 0.9 and more with He's filters


def test_the_residual_sum_is_what_is_tapped() -> None:
    torch.manual_seed(0)
    network = build("wrn-10-1", classes=10).eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        stem = network.stem(images)  # type: ignore[operator]
        block = network.group1[0]  # type: ignore[index]
        active = block.norm1(stem).relu()
        residual = block.conv2(block.norm2(block.conv1(active)).relu())
    expected = (stem + residual).square().sum(dim=1)
    assert torch.allclose(at.attention_maps(network, images)["group1"], expected, atol=1e-5)


def test_an_initialisation_is_a_function_of_the_seed() -> None:
    first, second, other = (
        load("wrn-10-1", 10, trained=False, seed=seed).network for seed in (3, 3, 4)
    )
    assert torch.equal(first.stem.weight, second.stem.weight)  # type: ignore[union-attr,arg-type]
    assert not torch.equal(first.stem.weight, other.stem.weight)  # type: ignore[union-attr,arg-type]


def test_weights_are_loaded_from_a_run_and_from_a_file(tmp_path: Path) -> None:
    network = build("nin-thin", classes=4)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    card = ModelCard("nin-thin", tuple("abcd"), (3, 32, 32), (0.5,) * 3, (0.2,) * 3, "cifar10")
    card.write(tmp_path / "model.json")
    loaded = load_run(tmp_path)
    assert loaded.card == card
    path = tmp_path / "model.safetensors"
    again = load(f"nin-thin@{path}", 4, trained=True)
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], value)
        assert torch.equal(again.network.state_dict()[name], value)


def test_a_run_without_a_network_and_a_damaged_card_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model\.json"):
        load(str(tmp_path), 10, trained=True)
    (tmp_path / "model.json").write_text('{"name": "wrn-16-1"}')
    with pytest.raises(InputError, match="not a model card"):
        load(str(tmp_path), 10, trained=True)


def test_random_weights_need_a_suffix_and_pretrained_ones_do_not_exist() -> None:
    assert load("wrn-10-1@random", 10, trained=True).network is not None
    for name in ("wrn-16-2", "wrn-16-2@pretrained"):
        with pytest.raises(InputError, match=r"@FILE\.safetensors.*@random"):
            load(name, 10, trained=True)
