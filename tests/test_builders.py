"""The zoos' builders: every network of torchvision, fixed input sizes, true errors."""

import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.errors import InputError
from attention_transfer.models import default_input_size, load
from attention_transfer.models.zoo import TorchvisionModel

NETWORKS = models.list_models(module=models)
VALUES = ("regnet",)
"""Networks of torchvision that cannot be built on the meta device."""


def made_weights(weights: WeightsEnum, *_: Any, **__: Any) -> dict[str, Any]:
    """Return a state dict as the file of the zoo's weights has it."""
    name = next(n for n in NETWORKS if models.get_model_weights(n) is type(weights))
    options: dict[str, Any] = {"num_classes": len(weights.meta["categories"])}
    if name in ("inception_v3", "googlenet"):
        options |= {"aux_logits": True, "init_weights": False}
    if name.startswith("vit_"):
        options["image_size"] = weights.meta["min_size"][0]
    return models.get_model(name, weights=None, **options).state_dict()


@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith(VALUES)])
def test_every_network_of_torchvision_builds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightsEnum, "get_state_dict", made_weights)
    model, size = TorchvisionModel(name), default_input_size(f"torchvision:{name}")[1:]
    with torch.device("meta"):
        new = model.build(7, size).state_dict()
        fine_tuned = model.build(7, size, pretrained=True).state_dict()
    assert {n: v.shape for n, v in new.items()} == {n: v.shape for n, v in fine_tuned.items()}


@pytest.mark.parametrize("name", ["regnet_x_400mf", "regnet_y_400mf", "googlenet", "mnasnet0_5"])
def test_with_values_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightsEnum, "get_state_dict", made_weights)
    network = load(f"torchvision:{name}@pretrained", 7, trained=False, image_size=(96, 96)).network
    assert network.train()(torch.rand(2, 3, 96, 96)).shape == (2, 7)
    save_file(network.state_dict(), "weights.safetensors")
    again = load(f"torchvision:{name}@weights.safetensors", 7, trained=True).network
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "size", "grid"), [("vit_b_32", (96, 96), 9), ("vit_b_16", (96, 96), 36)]
)
def test_pretrained_positions_are_interpolated(
    name: str, size: tuple[int, int], grid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WeightsEnum, "get_state_dict", made_weights)
    with torch.device("meta"):
        network = TorchvisionModel(name).build(7, size, pretrained=True)
    assert network.get_parameter("encoder.pos_embedding").shape == (1, 1 + grid, 768)


def test_maxvit_at_another_size() -> None:
    with torch.device("meta"):
        network = TorchvisionModel("maxvit_t").build(7, (448, 448))
        assert network(torch.zeros(1, 3, 448, 448)).shape == (1, 7)


def test_a_size_that_a_builder_does_not_take() -> None:
    with pytest.raises(
        InputError, match="for images 96x192: it takes square ones; give --image-size 96"
    ):
        TorchvisionModel("vit_b_32").build(7, (96, 192))
    with pytest.raises(InputError, match=r"could not be built: .*patch size"):
        TorchvisionModel("vit_b_32").build(7, (100, 100))


def test_googlenet_is_normalized_as_it_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own normalization is left out; what a run's card records replaces it."""
    monkeypatch.setattr(WeightsEnum, "get_state_dict", made_weights)
    torch.manual_seed(0)
    theirs = models.googlenet(weights="DEFAULT").eval()
    loaded = load("torchvision:googlenet", None, trained=True)
    loaded.network.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 224, 224)
    normalized = models.GoogLeNet_Weights.DEFAULT.transforms()
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (normalized.mean, normalized.std))
    assert loaded.preprocessing is not None
    with torch.no_grad():
        expected = theirs((images - mean) / std)
        found = loaded.network.eval()(loaded.preprocessing(images))
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (URLError("no route"), "cannot be fetched and are not on the disk"),
        (TypeError("unexpected keyword"), "could not be built: TypeError: unexpected keyword"),
        (RuntimeError("PytorchStreamReader failed"), "could not be built: RuntimeError: Pytorch"),
    ],
)
def test_an_exception_is_not_relabelled(
    error: Exception, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
    with pytest.raises(InputError, match=match):
        load("torchvision:resnet18", None, trained=True)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(InputError, match=match):
        load("timm:resnet18", None, trained=True)


MODULE = """
from safetensors.torch import save_file
from torch import nn
from conftest import rectified

def half(num_classes=3): return rectified(num_classes).half()
def double(num_classes=3): return rectified(num_classes).double()
"""


@pytest.mark.parametrize("kind", ["half", "double"])
def test_networks_of_other_precisions(
    kind: str, tmp_path: Path, small_runs: None, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "precise.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("precise", None)
    small = "--epochs 1 --batch-size 16 --precision fp32 --no-report --probes 2 --json --lr 0.01"
    networks = ["--teacher", f"precise:{kind}", "--student", f"precise:{kind}", "--out", "run"]
    assert main(["distill", *networks, "--kd-alpha", "0.9", *small.split()]) == 0
    said = "has weights of float16" if kind == "half" else "has weights of float64"
    assert capsys.readouterr().err.count(said) == 2
    trained = at.Run("run").load(trust=[f"precise:{kind}"]).network
    assert {value.dtype for value in trained.parameters()} == {torch.float32}


def test_objects_of_other_precisions(small_runs: None) -> None:
    from conftest import SMALL, rectified

    networks: dict[str, nn.Module] = {"teacher": rectified().bfloat16(), "student": rectified()}
    run = at.distill(**networks, out="objects", **{**SMALL, "epochs": 1, "probes": 0})  # type: ignore[arg-type]
    assert run.record.final.test_error >= 0
