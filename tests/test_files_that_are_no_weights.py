"""Files that hold no weights, or not as tensors: one line says what they are and what to do."""

import gzip
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.data import DataSet
from attention_transfer.errors import InputError
from attention_transfer.models import build, load
from conftest import SMALL

NAME = "wrn-10-1"

State = dict[str, Tensor]
Save = Callable[[State, Path], object]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return dict(build(NAME, 3).state_dict())


def of_bytes(content: bytes) -> Save:
    return lambda state, path: path.write_bytes(content)


def cut(save: Save, share: float) -> Save:
    def make(state: State, path: Path) -> None:
        save(state, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])

    return make


def of_torch(state: State, path: Path) -> None:
    torch.save(state, path)


def legacy(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def safetensors(state: State, path: Path) -> None:
    save_file(state, path)


def meta(state: State, path: Path) -> None:
    torch.save({name: value.to("meta") for name, value in state.items()}, path)


def sparse(state: State, path: Path) -> None:
    torch.save(
        {name: value.to_sparse() if value.ndim else value for name, value in state.items()}, path
    )


def compressed(state: State, path: Path) -> None:
    of_torch(state, path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def tar(state: State, path: Path) -> None:
    of_torch(state, Path("inner.pth"))
    with tarfile.open(path, "w") as archive:
        archive.add("inner.pth")


def zipped(state: State, path: Path) -> None:
    of_torch(state, Path("inner.pth"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write("inner.pth")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Virus scan warning</title></head></html>"

CASES: dict[str, tuple[Save, str]] = {
    "cut.pth": (cut(of_torch, 0.6), "is cut: .* its end is missing; copy or download it again"),
    "cut in its values.pth": (cut(legacy, 0.6), "is cut or damaged.*copy or download it again"),
    "cut in its names.pth": (cut(legacy, 0.001), "is cut or damaged.*copy or download it again"),
    "cut.safetensors": (cut(safetensors, 0.6), r"is cut: it has [\d,]+ bytes, and by its header "),
    "cut in its header.safetensors": (cut(safetensors, 0.004), "is cut: .*its header alone"),
    "cut safetensors.pth": (cut(safetensors, 0.6), "is cut: it has"),
    "pointer.pth": (of_bytes(POINTER), "is a Git LFS pointer .*git lfs pull"),
    "pointer.safetensors": (of_bytes(POINTER), "is a Git LFS pointer .*git lfs pull"),
    "page.pth": (of_bytes(PAGE), "is a web page .*download it by its direct link"),
    "page.safetensors": (of_bytes(PAGE), "is a web page .*download it by its direct link"),
    "answer.pth": (of_bytes(b'{"error": "Repository not found"}'), "is text"),
    "empty.pth": (of_bytes(b""), "is empty; copy or download it again"),
    "zeros.pth": (of_bytes(bytes(1000)), r".*it begins with b'\\x00.*expected a file of safetens"),
    "onnx.pth": (of_bytes(b"\x08\x08\x12\x07pytorch"), ".*expected a file of safetensors or torch"),
    "keras.h5": (of_bytes(b"\x89HDF\r\n\x1a\n"), "is an HDF5 file"),
    "meta.pth": (meta, r"holds no values: stem\.weight is on the meta device"),
    "sparse.pth": (sparse, r"holds sparse tensors \(stem\.weight\).*to_dense\(\)"),
    "weights.pth.gz": (compressed, "is compressed by gzip; unpack it"),
    "weights.tar": (tar, r"is a tar archive \(inner\.pth\); unpack it"),
    "weights.zip": (zipped, r"is a zip archive \(inner\.pth\).* unpack it"),
    "pickled.safetensors": (of_torch, "is not a safetensors file, but pickled"),
}


@pytest.mark.parametrize("file", CASES)
def test_what_a_file_is_in_place_of_weights(
    file: str, state: State, small_runs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    make, expected = CASES[file]
    make(state, Path(file))
    assert main(["train", "--model", f"{NAME}@{file}", "--out", "run"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"attention-transfer: {re.escape(file)} {expected}", error), error
    assert not Path("run").exists()


def test_a_folder_and_a_missing_file_are_told_apart() -> None:
    Path("folder").mkdir()
    for file, expected in (("folder", "is a folder"), ("none.pth", "does not exist")):
        with pytest.raises(InputError, match=f"no weights at {file}, which {expected}"):
            load(f"{NAME}@{file}", 3, trained=True)


def arrays(state: State) -> dict[str, Any]:
    return {name: value.numpy() for name, value in state.items()}


def network(state: State) -> nn.Module:
    built = build(NAME, 3)
    built.load_state_dict(state)
    return built


def exported(state: State, path: Path) -> None:
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            network(state).eval(), (torch.rand(2, 3, 16, 16),), dynamic_shapes=({0: batch},)
        )
        torch.export.save(program, path)


def plain_pickle(state: State, path: Path) -> None:
    path.write_bytes(pickle.dumps(arrays(state)))


CONVERTED: dict[str, Save] = {
    "arrays.pth": lambda state, path: torch.save(arrays(state), path),
    "arrays within.pth": lambda state, path: torch.save(
        {"epoch": 3, "state_dict": arrays(state)}, path
    ),
    "arrays.pkl": plain_pickle,
    "arrays within.pkl": lambda state, path: path.write_bytes(
        pickle.dumps({"state_dict": arrays(state), "epoch": np.float64(3)})
    ),
    "arrays.npz": lambda state, path: np.savez(path, **arrays(state)),
    "program.pt2": exported,
    "whole.pt": lambda state, path: torch.save(network(state), path),
    "whole, legacy.pt": lambda state, path: torch.save(
        network(state), path, _use_new_zipfile_serialization=False
    ),
    "whole within.pt": lambda state, path: torch.save(
        {"epoch": 3, "model": network(state), "args": np.random.default_rng(0)}, path
    ),
}


@pytest.mark.parametrize("file", CONVERTED)
def test_a_printed_conversion_makes_weights_that_load(file: str, state: State) -> None:
    CONVERTED[file](state, Path(file))
    with pytest.raises(InputError) as refused:
        load(f"{NAME}@{file}", 3, trained=True)
    text = str(refused.value)
    assert "\n" not in text
    code = text[text.index("convert it: ") + len("convert it: ") :]
    exec(code, {})
    converted = str(Path(file).with_suffix(".weights.pth"))
    assert converted in code
    loaded = load(f"{NAME}@{converted}", 3, trained=True).network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize("file", ["ts.pt", "w.pth", "w.safetensors", "other.model", "w.pth#ema"])
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_file_alone_needs_the_name_of_its_network(
    file: str, state: State, small_runs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    if file == "ts.pt":
        torch.jit.save(torch.jit.script(network(state)), file)
    else:
        (safetensors if "safe" in file else of_torch)(state, Path(file.partition("#")[0]))
    assert main(["distill", "--teacher", file, "--student", NAME, "--out", "run"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{file} is a file, and a file holds weights alone; give the network" in error
    assert f"NAME@{file}, such as wrn-16-2@{file}" in error
    assert ("torch.jit.load" in error) == (file == "ts.pt")


@pytest.mark.parametrize("kind", ["TorchScript", "torch.export"])
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_program_alone_teaches_as_the_error_says(kind: str, state: State, data: DataSet) -> None:
    path = "program.pt" if kind == "TorchScript" else "program.pt2"
    if kind == "TorchScript":
        torch.jit.save(torch.jit.script(network(state).eval()), path)
    else:
        exported(state, Path(path))
    with pytest.raises(InputError, match=f"as a program of {kind} it can teach") as refused:
        load(path, 3, trained=True)
    code = str(refused.value).partition("from Python: ")[2].replace("student=...", "**settings")
    settings = {**SMALL, "student": NAME, "data": data, "epochs": 1}
    run = eval(code, {"at": at, "torch": torch, "settings": {**settings, "out": "run"}})
    assert run.record.config.kd_alpha == 0.9


def test_a_file_of_a_run_and_a_missing_path() -> None:
    Path("run").mkdir()
    for name in ("model.json", "model.safetensors"):
        (Path("run") / name).touch()
    for model, expected in (
        ("run/model.safetensors", "is a file of a run; give the run's folder, run"),
        ("runs/teacher", "there is no such folder or file"),
        ("weights.pth", "there is no such folder or file"),
    ):
        with pytest.raises(InputError, match=expected):
            load(model, 3, trained=True)
