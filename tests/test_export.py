"""export: files that other software runs, checked against the network itself."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import attention_transfer as at
from attention_transfer import cli
from attention_transfer.export import command
from conftest import SMALL
from small_pictures import CLASSES, write_pictures

ALONE = """
import runpy, sys
for name in ("torch", "attention_transfer", "timm", "torchvision"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script in a Python that can import none of these."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> at.Run:
    """A student that was taught by a run."""
    runs = tmp_path_factory.mktemp("runs")
    settings = {**SMALL, "epochs": 2, "batch_size": 8, "image_size": 16, "probes": 0, "workers": 0}
    data = f"folder:{pictures}"
    teacher = at.train("wrn-10-2", data=data, out=runs / "teacher", **settings)
    return at.distill(
        teacher=str(teacher.folder),
        student="wrn-10-1",
        data=data,
        out=runs / "student",
        ema=0.9,
        **{**settings, "epochs": 4},
    )


@pytest.fixture(scope="module")
def exported(trained: at.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "student"
    assert cli.main(["export", str(trained.folder), f"--out={out}", "--json"]) == 0
    return out


def onnx_probabilities(path: Path, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(path)
    (logits,) = session.run(None, {session.get_inputs()[0].name: inputs})
    return torch.from_numpy(logits).softmax(1).numpy()


def network_inputs(trained: at.Run, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random images as the network takes them, and its probabilities."""
    classifier = at.load(trained)
    images = classifier.preprocessing(torch.rand(count, 3, 16, 16))  # type: ignore[misc]
    with torch.no_grad():
        return images, classifier.network(images).softmax(1)


def test_all_files_are_there_and_described(exported: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    graphs = {"model.onnx", "model.int8.onnx", "model.pt2"}
    assert names == {
        "model.safetensors", "model.json", *graphs, "export.json", "MODEL_CARD.md", "classify.py"
    }  # fmt: skip
    document = json.loads((exported / "export.json").read_text())
    forms = {form["name"]: form for form in document["forms"]}
    assert list(forms) == ["teacher wrn-10-2, PyTorch", "student, PyTorch", "onnx", "pt2", "int8"]
    for form in forms.values():
        assert form["milliseconds"] > 0
        if form["file"] is not None:
            assert form["bytes"] == (exported / form["file"]).stat().st_size
    assert forms["onnx"]["largest_difference"] < 1e-5
    assert forms["pt2"]["largest_difference"] < 1e-5
    assert forms["int8"]["bytes"] < 0.5 * forms["onnx"]["bytes"]


@pytest.mark.parametrize("count", [1, 3, 70])
def test_graphs_take_batches_of_any_size(exported: Path, trained: at.Run, count: int) -> None:
    images, expected = network_inputs(trained, count)
    found = onnx_probabilities(exported / "model.onnx", images.numpy())
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    program = torch.export.load(exported / "model.pt2").module()
    np.testing.assert_allclose(program(images).softmax(1).detach(), expected, atol=1e-5)
    quantized = onnx_probabilities(exported / "model.int8.onnx", images.numpy())
    assert quantized.shape == (count, 3)


def test_the_quantized_network_is_close_on_real_images(exported: Path) -> None:
    forms = {
        form["name"]: form for form in json.loads((exported / "export.json").read_text())["forms"]
    }
    assert 0 < forms["int8"]["largest_difference"] < 0.3


def test_the_folder_is_a_model(exported: Path, trained: at.Run, pictures: Path) -> None:
    images = pictures / "test"
    for one, other in zip(
        at.load(exported).predict(images), at.load(trained).predict(images), strict=True
    ):
        assert np.array_equal(one.probabilities, other.probabilities)


def test_the_script_alone_gives_the_same_answers(
    exported: Path, trained: at.Run, pictures: Path
) -> None:
    paths = sorted((pictures / "test").rglob("*.*"))
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(exported / "classify.py"), *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    predictions = at.load(trained).predict(paths)
    assert [row[0] for row in rows] == [str(path) for path in paths]
    assert [row[1] for row in rows] == [one.label for one in predictions]
    shares = [float(row[2]) for row in rows]
    np.testing.assert_allclose(shares, [one.probability for one in predictions], atol=1e-4)


def test_the_script_tells_how_it_is_used_and_which_images_it_cannot_read(
    exported: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no image")
    whole = str(next((pictures / "test").rglob("*.*")))

    def typed(*arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-c", ALONE, str(exported / "classify.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert typed("--help")[:2] == (0, typed()[2])
    assert typed()[0] == 2
    code, found, told = typed(str(tmp_path / "text.png"), whole, str(tmp_path), "nowhere.png")
    assert code == 2
    assert len(found.splitlines()) == 1
    assert [line.split(":")[0] for line in told.splitlines()] == [
        str(tmp_path / "text.png"),
        str(tmp_path),
        "nowhere.png",
    ]


def test_a_graph_that_normalizes_takes_pixels(
    trained: at.Run, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["--formats=onnx,pt2", "--normalize-in-graph", f"--out={out}"]
    assert cli.main(["export", str(trained.folder), *arguments]) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    classifier = at.load(trained)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        direct = classifier.network(classifier.preprocessing(images)).softmax(1)  # type: ignore[misc]
    np.testing.assert_allclose(onnx_probabilities(out / "model.onnx", pixels), direct, atol=1e-5)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(out / "classify.py"), str(pictures / "test/discs/3.jpg")],
        capture_output=True,
        text=True,
        check=False,
    )
    (prediction,) = classifier.predict(pictures / "test/discs/3.jpg")
    assert done.stdout.split("\t")[1] == prediction.label
    assert float(done.stdout.split("\t")[2]) == pytest.approx(prediction.probability, abs=1e-4)


def test_the_card_says_what_the_network_is_and_is_worth(exported: Path, trained: at.Run) -> None:
    text = (exported / "MODEL_CARD.md").read_text()
    assert text.startswith("---\nlibrary_name: attention-transfer\n")
    for part in (
        "3 classes", "taught by wrn-10-2", *CLASSES, "21 training", "| activation_attention |",
        f"| this network | {trained.test_error:.2f} % |", "attention-transfer distill --student",
        "| int8 | model.int8.onnx |", "laid on white",
    ):  # fmt: skip
        assert part in text, part


def test_runs_of_other_seeds_give_the_spread(pictures: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "epochs": 1, "batch_size": 8, "image_size": 16, "probes": 0, "workers": 0}
    for seed in (0, 1):
        at.train(
            "wrn-10-1",
            data=f"folder:{pictures}",
            out=tmp_path / f"seed-{seed}",
            seed=seed,
            **settings,
        )
    assert cli.main(["export", str(tmp_path / "seed-0"), "--formats=safetensors"]) == 0
    text = (tmp_path / "seed-0" / "export" / "MODEL_CARD.md").read_text()
    assert "| all 2 runs that differ in their seed alone |" in text
    assert "over 2 seeds" in text


def test_averaged_weights_are_exported_with_their_own_figures(
    trained: at.Run, tmp_path: Path
) -> None:
    averaged = trained.averaged_folder
    out = tmp_path / "averaged"
    assert cli.main(["export", str(averaged), f"--out={out}", "--formats=onnx"]) == 0
    assert (out / "model.safetensors").read_bytes() == (averaged / "model.safetensors").read_bytes()
    text = (out / "MODEL_CARD.md").read_text()
    assert trained.record.ema is not None
    assert f"| this network | {trained.record.ema.final.test_error:.2f} % |" in text
    assert "the moving average over training" in text
    images = at.load(averaged).preprocessing(torch.rand(5, 3, 16, 16))  # type: ignore[misc]
    expected = at.load(averaged).network(images).softmax(1).detach().numpy()
    found = onnx_probabilities(out / "model.onnx", images.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(found, at.load(trained).network(images).softmax(1).detach(), atol=1e-5)


def failing(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["export", *arguments])
    return code, capsys.readouterr().err.splitlines()[-1]


def test_what_is_there_is_not_overwritten(
    exported: Path, trained: at.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (exported / "export.json").read_bytes()
    code, line = failing(capsys, str(trained.folder), f"--out={exported}")
    assert code == 2
    assert line == (
        f"attention-transfer: {exported} exists already; delete it, or choose another --out"
    )
    assert (exported / "export.json").read_bytes() == before


def test_nothing_is_left_of_an_export_that_fails(
    trained: at.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wrong(path: Path) -> Any:
        return lambda images: torch.full((len(images), 3), 7.0) * torch.arange(3)

    monkeypatch.setattr(command, "onnx_forward", wrong)
    code, line = failing(capsys, str(trained.folder), "--formats=onnx", f"--out={tmp_path / 'x'}")
    assert code == 1
    assert "the exported onnx gives other probabilities than the network, by up to" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "there is no folder missing"),
        (["{run}", "--formats=onx"], "formats is 'onx', expected one of safetensors, onnx"),
        (["{run}", "--data=folder:nowhere"], "nowhere"),
        ([], "run is missing"),
    ],
)
def test_bad_input_is_one_line(
    trained: at.Run, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.format(run=trained.folder) for argument in arguments]
    code, line = failing(capsys, *filled)
    assert code == 2
    assert message in line


def test_a_missing_package_is_named_before_anything_is_done(
    trained: at.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "attention_transfer.export.graphs.find_spec",
        lambda name: None if name == "onnxscript" else name,
    )
    code, line = failing(capsys, str(trained.folder), "--formats=onnx")
    assert code == 2
    assert "onnx and int8 need onnxscript, not installed here" in line
    assert "pip install 'attention-transfer[onnx]'" in line
