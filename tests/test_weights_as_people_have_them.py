"""``NAME@FILE`` with the files that people have: checkpoints, prefixes, heads, damage."""

import os
import pathlib
import pickle
import re
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from attention_transfer import network_inputs
from attention_transfer.cli import main
from attention_transfer.errors import InputError
from attention_transfer.models import build, load
from attention_transfer.training import model_evaluation

NAME = "wrn-10-1"
SMALL = ["--epochs", "1", "--batch-size", "16", "--precision", "fp32", "--no-report"]
SMALL += ["--lr", "0.01", "--probes", "0", "--json"]

State = dict[str, Tensor]


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return build(NAME, 3).eval()


@pytest.fixture
def state(network: nn.Module) -> State:
    return dict(network.state_dict())


def moved(state: State, by: float = 1.0) -> State:
    return {name: value + by if "classifier" in name else value for name, value in state.items()}


def same(model: str, state: State, **settings: Any) -> tuple[bool, str]:
    """Return whether a loaded teacher has a state, and the notices."""
    loaded = load(model, 3, **{"trained": True, **settings})
    found = loaded.network.state_dict()
    equal = found.keys() == state.keys() and all(torch.equal(found[n], state[n]) for n in state)
    return equal, "; ".join(loaded.notices)


def training_checkpoint(network: nn.Module, state: State) -> dict[str, Any]:
    """Return what training scripts save: also code of Python's, NumPy's and one's own."""
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "arch": NAME,
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
        "best_acc1": torch.tensor(71.2),
        "metric": np.float64(71.2),
        "args": Namespace(lr=0.1, out=pathlib.PurePosixPath("runs"), inner=Namespace(a=1)),
    }


@pytest.mark.parametrize("new_format", [True, False])
def test_a_plain_state_dict(state: State, new_format: bool) -> None:
    torch.save(state, "weights.pth", _use_new_zipfile_serialization=new_format)
    assert same(f"{NAME}@weights.pth", state) == (True, "")


@pytest.mark.parametrize("new_format", [True, False])
def test_a_training_checkpoint(network: nn.Module, state: State, new_format: bool) -> None:
    own = {name: value.clone() for name, value in state.items()}
    content = training_checkpoint(network, own)
    torch.save(content, "best.pth.tar", _use_new_zipfile_serialization=new_format)
    assert same(f"{NAME}@best.pth.tar", own) == (True, "read state_dict of best.pth.tar")


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "model_state_dict", "net", "state_dict_ema", "weights_of_mine"]
)
def test_state_dicts_by_any_name(state: State, key: str) -> None:
    torch.save({"epoch": 1, key: state}, "last.ckpt")
    assert same(f"{NAME}@last.ckpt", state) == (True, f"read {key} of last.ckpt")


def test_averaged_weights_are_the_default_and_a_key_chooses(state: State) -> None:
    nested = {"decay": 0.9, "shadow": moved(state, 3)}
    content = {"state_dict": state, "state_dict_ema": moved(state), "more": nested}
    torch.save(content, "both.pth.tar")
    equal, said = same(f"{NAME}@both.pth.tar", moved(state))
    assert equal
    assert "read state_dict_ema" in said
    assert "also holds state_dict, more.shadow; choose with NAME@both.pth.tar#KEY" in said
    assert same(f"{NAME}@both.pth.tar#state_dict", state) == (True, "")
    assert same(f"{NAME}@both.pth.tar#more.shadow", moved(state, 3)) == (True, "")
    with pytest.raises(InputError, match="no weights 'statedict'; did you mean state_dict"):
        load(f"{NAME}@both.pth.tar#statedict", 3, trained=True)
    os.rename("both.pth.tar", "both#state_dict")  # a name that exists is a name
    assert same(f"{NAME}@both#state_dict", moved(state))[0]


PREFIXES = [
    "module.", "_orig_mod.", "model.", "student.", "backbone.", "net.encoder.",
    "module._orig_mod.model.", "_orig_mod.module.",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappers_are_undone_and_said(state: State, prefix: str, kind: str) -> None:
    wrapped = {f"{prefix}{name}": value for name, value in state.items()}
    save: Callable[..., object] = save_file if kind == "safetensors" else torch.save
    save(wrapped, f"weights.{kind}")
    equal, said = same(f"{NAME}@weights.{kind}", state)
    assert equal
    assert "off the names" in said
    assert all(part in said for part in prefix.split("."))


def test_wrappers_inside_names_and_other_networks_beside(state: State) -> None:
    inside = {name.replace(".conv1", "._orig_mod.conv1"): v for name, v in state.items()}
    torch.save(inside, "inside.pth")
    assert same(f"{NAME}@inside.pth", state)[0]
    others = {f"teacher.{name}": value for name, value in moved(state).items()}
    torch.save({**{f"student.{n}": v for n, v in state.items()}, **others}, "two.pth")
    equal, said = same(f"{NAME}@two.pth", state)
    assert equal
    assert f"left out {len(state)} others (teacher." in said
    assert same(f"{NAME}@two.pth#teacher", moved(state)) == (True, "")
    averaged = torch.optim.swa_utils.AveragedModel(build(NAME, 3)).state_dict()
    torch.save(averaged, "averaged.pth")
    assert "n_averaged" in same(f"{NAME}@averaged.pth", state)[1]


def test_older_files_lack_num_batches_tracked(state: State) -> None:
    old = {name: value for name, value in state.items() if "num_batches" not in name}
    save_file(old, "old.safetensors")
    assert same(f"{NAME}@old.safetensors", state) == (True, "")


def test_a_network_that_renames_its_old_weights(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "renames.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes=3):\n"
        "        super().__init__()\n"
        "        self.features = nn.Conv2d(3, 4, 3)\n"
        "        self.classifier = nn.Linear(4, num_classes)\n"
        "    def forward(self, x): return self.classifier(self.features(x).mean((2, 3)))\n"
        "    def _load_from_state_dict(self, state, prefix, *rest):\n"
        "        for name in ('weight', 'bias'):\n"
        "            if f'{prefix}conv.{name}' in state:\n"
        "                state[f'{prefix}features.{name}'] = state.pop(f'{prefix}conv.{name}')\n"
        "        super()._load_from_state_dict(state, prefix, *rest)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    state = build("renames:Net", 3).state_dict()
    torch.save({n.replace("features", "conv"): v for n, v in state.items()}, "old.pth")
    assert same("renames:Net@old.pth", dict(state)) == (True, "")


def test_what_fits_in_part_is_refused_by_cause(state: State) -> None:
    part = {name: value for name, value in state.items() if "group2" not in name}
    part |= {"more.weight": torch.zeros(2), "stem.weight": torch.zeros(5, 3, 3, 3)}
    torch.save(part, "part.pth")
    with pytest.raises(InputError) as caught:
        load(f"{NAME}@part.pth", 3, trained=False)
    text = str(caught.value)
    assert "missing: group2.0.norm1.weight, group2.0.norm1.bias, group2.0.norm1.running" in text
    assert " more; unexpected: more.weight; of another shape: stem.weight (5, 3, 3, 3)" in text


class Malice:
    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, ("sentinel", "w")


class Attribute:
    """A pickle of it sets attributes by a function of Python's."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return setattr, (Namespace(), "name", os.system)


def whole_network(state: State) -> None:
    torch.save(build(NAME, 3), "bad.pth")


def malice_beside(state: State) -> None:
    torch.save({"state_dict": state, "x": Attribute()}, "bad.pth")


def malice_legacy(state: State) -> None:
    torch.save({"x": Attribute()}, "bad.pth", _use_new_zipfile_serialization=False)


def bare_pickle(state: State) -> None:
    Path("bad.pth").write_bytes(pickle.dumps(Malice()))


def cut(state: State) -> None:
    torch.save(state, "whole.pth")
    Path("bad.pth").write_bytes(Path("whole.pth").read_bytes()[:40_000])


def compressed(state: State) -> None:
    torch.save({"zeros": torch.zeros(1_000_000)}, "whole.pth")
    with zipfile.ZipFile("whole.pth") as whole:
        packed = zipfile.ZipFile("bad.pth", "w", zipfile.ZIP_DEFLATED)
        with packed as archive:
            for entry in whole.infolist():
                archive.writestr(entry.filename, whole.read(entry))


def text(state: State) -> None:
    Path("bad.pth").write_text("version https://git-lfs.github.com/spec/v1")


def no_weights(state: State) -> None:
    torch.save({"epoch": 3, "args": Namespace(lr=1)}, "bad.pth")


HOSTILE = {
    whole_network: "holds a whole pickled network.*torch.load.*torch.save",
    malice_beside: r"without running code.*posix.system.*import torch; content = torch.load",
    malice_legacy: "without running code.*import torch",
    bare_pickle: "without running code.*import pathlib, pickle, torch",
    cut: "is cut: it begins as a file of torch.save does",
    compressed: "it is compressed",
    text: "is a Git LFS pointer in place of the file",
    no_weights: r"holds no weights \(epoch, args\)",
}


@pytest.mark.parametrize("make", HOSTILE)
def test_hostile_and_damaged_files(
    make: Callable[[State], None],
    state: State,
    small_runs: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(state)
    assert main(["train", "--model", f"{NAME}@bad.pth"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(HOSTILE[make], error), error
    assert not Path("sentinel").exists()
    assert not Path("runs").exists()


def test_functions_beside_weights_are_not_called(state: State) -> None:
    torch.save({"state_dict": state, "x": Malice()}, "beside.pth")
    assert same(f"{NAME}@beside.pth", state)[0]
    assert not Path("sentinel").exists()


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("traced", [True, False])
def test_a_torchscript_program_is_a_file_of_weights(network: nn.Module, traced: bool) -> None:
    program = torch.jit.trace(network, torch.rand(1, 3, 16, 16)) if traced else None
    torch.jit.save(program or torch.jit.script(network), "program.pt")
    equal, said = same(f"{NAME}@program.pt", dict(network.state_dict()))
    assert equal
    assert "did not run its code" in said
    torch.jit.save(torch.jit.freeze(torch.jit.script(network)), "frozen.pt")
    with pytest.raises(InputError, match=r"does not fit.*distillation.*torch\.jit\.load"):
        load(f"{NAME}@frozen.pt", 3, trained=True)


def test_weights_of_another_size_are_interpolated(tmp_path: Path) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=1)
    torch.manual_seed(0)
    nn.init.normal_(vit.pos_embed)
    state = {n: v for n, v in vit.state_dict().items() if "blocks" not in n}
    full = timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict() | state
    torch.save({"model": full}, "vit.pth")
    loaded = load("timm:vit_tiny_patch16_224@vit.pth", 3, trained=False, image_size=(32, 64))
    assert loaded.network(torch.rand(1, 3, 32, 64)).shape == (1, 3)
    own = loaded.network.state_dict()["pos_embed"]
    assert own.shape == (1, 1 + 2 * 4, 192)
    assert torch.equal(own[:, 0], full["pos_embed"][:, 0])
    assert "converted them to the network's input size" in "; ".join(loaded.notices)
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(image).save("image.png")
    command = ["maps", "timm:vit_tiny_patch16_224@vit.pth", "--images", "image.png"]
    assert main([*command, "--image-size", "96x192", "--out", "maps"]) == 0
    with np.load("maps/maps.npz") as arrays:
        assert arrays[str(arrays["points"][0])].shape == (1, 6, 12)


def test_the_commands_take_them_and_say_what_they_did(
    state: State, small_runs: None, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    folder = Path("a, b")
    folder.mkdir()
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save({"state_dict": wrapped}, folder / "t,1.pth.tar")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    teacher = f"{NAME}@~/a, b/t,1.pth.tar"
    command = ["distill", "--student", NAME, "--teacher", f"{teacher},{NAME}@random"]
    assert main([*command, *SMALL, "--out", "run"]) == 0
    assert capsys.readouterr().err.count("took module. off the names") == 1
    monkeypatch.setattr(model_evaluation, "load_data", network_inputs.load_data)
    assert main(["evaluate", "~/run", "--json"]) == 0
    assert main(["train", "--model", "~/run", *SMALL, "--out", "x,y"]) == 0
    assert main(["distill", "--teacher", "~/x,y", "--student", NAME, *SMALL, "--out", "z"]) == 0
    assert main(["points", NAME, "--pair", "~/x,y", "--json"]) == 0


def test_keys_choose_at_any_level_and_hints_name_them(state: State) -> None:
    """MoCo's encoders; a lone dictionary within another; names within one of several."""
    encoders = {"module.queue": torch.zeros(3, 4)}
    for encoder, by in (("encoder_q", 0.0), ("encoder_k", 5.0)):
        own = moved(state, by)
        encoders |= {f"module.{encoder}.{name}": value for name, value in own.items()}
    torch.save({"state_dict": encoders, "more": {"state_dict": moved(state)}}, "moco.pth")
    equal, said = same(f"{NAME}@moco.pth", state)
    assert equal
    (chosen,) = re.findall(r"which FILE#(\S+) chooses", said)
    assert chosen == "module.encoder_k"
    for key in (chosen, f"state_dict.{chosen}"):
        assert same(f"{NAME}@moco.pth#{key}", moved(state, 5.0)) == (True, "")
    assert same(f"{NAME}@moco.pth#more", moved(state)) == (True, "")

    decay = torch.tensor(0.99)  # a tensor, but no weights
    average = {"ema": {"shadow": moved(state), "decay": decay}, "model": state}
    torch.save({"checkpoint": {"state": average}}, "ema.pth")
    for key in ("ema", "ema.shadow"):
        assert same(f"{NAME}@ema.pth#checkpoint.state.{key}", moved(state)) == (True, "")
    with pytest.raises(InputError, match=r"several weights in 'checkpoint': checkpoint\.st"):
        load(f"{NAME}@ema.pth#checkpoint", 3, trained=True)


def test_others_that_no_key_chooses_have_no_hint(state: State) -> None:
    wrapped = {f"net.{name}": value for name, value in state.items()}
    torch.save({**wrapped, "projector.0.weight": torch.zeros(2, 2)}, "more.pth")
    equal, said = same(f"{NAME}@more.pth", state)
    assert equal
    assert said.endswith("left out 1 others (projector.0.weight, ...)")
