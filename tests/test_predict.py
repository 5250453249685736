"""at.load and the command predict: the same pixels and answers as the run's own evaluation."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import attention_transfer as at
from attention_transfer import cli
from attention_transfer.models import load_run
from conftest import SMALL, small_data
from small_pictures import CLASSES, picture, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images: PNG, JPEG of many pixels, grey, transparent, turned by EXIF."""
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> at.Run:
    settings = {**SMALL, "epochs": 2, "batch_size": 8, "image_size": 16, "probes": 0}
    out = tmp_path_factory.mktemp("runs") / "run"
    return at.train("wrn-10-1", data=f"folder:{pictures}", out=out, workers=0, **settings)


def test_predictions_are_those_of_the_runs_own_evaluation(trained: at.Run, pictures: Path) -> None:
    predictions = at.load(trained).predict(pictures / "test")
    labels = [CLASSES.index(path.parent.name) for path in sorted((pictures / "test").rglob("*.*"))]
    stored = np.load(trained.folder / "predictions.npz")
    assert stored["labels"].tolist() == labels
    assert [one.index for one in predictions] == stored["predicted"].tolist()
    confidence = [one.probability for one in predictions]
    np.testing.assert_allclose(confidence, stored["confidence"], rtol=1e-4)
    assert {one.class_names for one in predictions} == {CLASSES}


def test_an_image_in_any_form_gets_the_same_answer(trained: at.Run, pictures: Path) -> None:
    classifier = at.load(trained.folder)
    path = pictures / "test" / "discs" / "grey.png"
    with Image.open(path) as file:
        image = file.copy()
    pixels = np.array(image)
    colour = np.repeat(pixels[..., None], 3, axis=2)
    forms: list[Any] = [
        path,
        str(path),
        image,
        pixels,
        colour,
        colour[None],
        torch.from_numpy(colour).permute(2, 0, 1),
        torch.from_numpy(colour).permute(2, 0, 1)[None],
    ]
    expected = classifier.predict(forms[0])[0].probabilities
    for form in forms:
        (prediction,) = classifier.predict(form)
        assert np.array_equal(prediction.probabilities, expected)
    # Floating-point pixels are resized without rounding to 8 bits.
    (scaled,) = classifier.predict(torch.from_numpy(pixels)[None] / 255)
    np.testing.assert_allclose(scaled.probabilities, expected, atol=5e-3)


def test_images_of_several_sizes_are_answered_in_their_order(trained: at.Run) -> None:
    images = [picture(label, label, size) for label, size in enumerate([(16, 16), (40, 56)] * 2)]
    classifier = at.load(trained)
    together = classifier.predict(images, names=["a", "b", "c", "d"], batch_size=2)
    assert [one.image for one in together] == ["a", "b", "c", "d"]
    for image, one in zip(images, together, strict=True):
        (alone,) = classifier.predict(image)
        np.testing.assert_allclose(alone.probabilities, one.probabilities, rtol=1e-5)


def test_probabilities_sum_to_one_and_the_top_is_sorted(trained: at.Run) -> None:
    (prediction,) = at.load(trained).predict(picture(0, 0))
    assert prediction.probabilities.sum() == pytest.approx(1.0, abs=1e-6)
    top = prediction.top(2)
    assert top[0] == (prediction.label, prediction.probability)
    assert top[0][1] >= top[1][1]
    assert len(prediction.top(100)) == 3


def test_images_in_memory_are_evaluated_whole(tmp_path: Path, small_runs: None) -> None:
    run = at.train("wrn-10-1", data="small", out=tmp_path / "run", **{**SMALL, "probes": 0})
    card = json.loads((run.folder / "model.json").read_text())
    assert card["crop_share"] == 1.0
    stored = np.load(run.folder / "predictions.npz")
    images = small_data().test.images.numpy()  # type: ignore[attr-defined]
    predictions = at.load(run).predict(images)
    assert [one.index for one in predictions] == stored["predicted"].tolist()
    confidence = [one.probability for one in predictions]
    np.testing.assert_allclose(confidence, stored["confidence"], rtol=1e-4)


def test_images_of_several_classes_have_independent_probabilities(tmp_path: Path) -> None:
    rows = ["filename,label"]
    for index in range(12):
        picture(index % 3, index).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{('a', 'a;b', 'b')[index % 3]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    settings = {**SMALL, "epochs": 1, "batch_size": 4, "image_size": 16, "probes": 0, "workers": 0}
    data = f"csv:{tmp_path / 'labels.csv'}"
    run = at.train("wrn-10-1", data=data, validation=0.3, out=tmp_path / "run", **settings)
    assert json.loads((run.folder / "model.json").read_text())["probabilities"] == "sigmoid"
    classifier = at.load(run)
    (prediction,) = classifier.predict(picture(1, 1))
    assert prediction.probabilities.shape == (2,)
    batch = classifier.preprocessing(torch.rand(1, 3, 16, 16))  # type: ignore[misc]
    assert not classifier.network.training
    assert classifier.network(batch).shape == (1, 2)
    assert prediction.probabilities.sum() != pytest.approx(1.0, abs=1e-3)
    image = str(tmp_path / "1.png")
    assert (
        cli.main(["maps", str(run.folder), "--images", image, f"--out={tmp_path}", "--crop"]) == 0
    )
    (drawn,) = np.load(tmp_path / "maps.npz")["probabilities"].ravel()
    (again,) = classifier.predict(image)
    assert drawn == pytest.approx(again.probability, abs=1e-6)


def test_networks_are_in_eval_mode(trained: at.Run) -> None:
    assert not load_run(trained.folder).network.training
    assert not at.models.load(str(trained.folder), None, trained=True).network.training
    classifier = at.load(trained)
    image = picture(0, 0)
    before = classifier.predict(image)[0].probabilities
    classifier.network.train()
    assert np.array_equal(classifier.predict(image)[0].probabilities, before)
    assert classifier.network.training  # as the user set it


def test_a_module_and_a_networks_name_are_loaded_too() -> None:
    classifier = at.load("wrn-10-1@random")
    assert classifier.class_names is None
    assert classifier.predict(picture(0, 0))[0].label.startswith("class ")
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (prediction,) = at.load(module).predict(picture(0, 0))
    assert prediction.class_names == ("class 0", "class 1", "class 2")
    assert at.load(classifier) is classifier


def test_bad_images_and_networks_are_named(trained: at.Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    classifier = at.load(trained)
    with pytest.raises(at.InputError, match=r"bad\.png cannot be read"):
        classifier.predict(bad)
    picture(0, 0).save(tmp_path / "good.png")
    corrupt: dict[str, str] = {}
    (prediction,) = classifier.predict(tmp_path, corrupt=corrupt)
    assert prediction.image == "good.png"
    assert list(corrupt) == ["bad.png"]
    with pytest.raises(at.InputError, match="expected images"):
        classifier.predict(3)  # type: ignore[arg-type]
    broken = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(at.InputError, match="does not run on images 40x56"):
        at.load(broken).predict(picture(0, 0))
    with pytest.raises(at.InputError, match=r"expected logits \(N, classes\)"):
        at.load(nn.Conv2d(3, 4, 1)).predict(picture(0, 0))


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_prints_a_table_or_json(
    trained: at.Run, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, images = str(trained.folder), str(pictures / "test" / "discs")
    code, out, _ = run_command(capsys, "predict", folder, images, "--top", "2")
    assert code == 0
    assert out.splitlines()[0].split() == ["image", "label", "probability", "label", "probability"]
    assert len(out.splitlines()) == 5
    code, out, _ = run_command(capsys, "predict", folder, images, "--json", "--top=9")
    document = json.loads(out)
    first = document["predictions"][0]
    assert first["image"].endswith("3.jpg")
    assert {one["label"] for one in first["top"]} == set(CLASSES)
    assert first["top"][0] == {"label": first["label"], "probability": first["probability"]}


def test_the_command_draws_maps_of_what_the_network_saw(
    trained: at.Run, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "maps"
    image = str(pictures / "test" / "discs" / "3.jpg")
    code, text, _ = run_command(
        capsys, "predict", str(trained.folder), image, "--maps", f"--out={out}"
    )
    assert code == 0
    assert f"picture: {out / 'maps.png'}" in text
    raw = np.load(out / "maps.npz")
    (height, width) = (56, 40)  # turned
    side = 0.875 * min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    np.testing.assert_allclose(raw["boxes"][0][0], [left, top, width - left, height - top])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "there is no image missing.png"),
        (["bad.png"], "bad.png cannot be read: .*; give at least one intact image"),
        (["good.png", "--top=0"], "top is '?0"),
        (["good.png", "--out=maps"], "give --maps as well"),
        (["good.png", "--pixel-range=0:10"], "8 bits"),
        ([], "images is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    trained: at.Run,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.png").write_bytes(b"not an image")
    picture(0, 0).save("good.png")
    code, out, err = run_command(capsys, "predict", str(trained.folder), *arguments)
    assert (code, out) == (2, "")
    assert re.search(message, err.splitlines()[-1]), err
    assert len(err.splitlines()) == 1


def test_a_corrupt_image_is_skipped_and_said(
    trained: at.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"not an image")
    picture(0, 0).save(tmp_path / "good.png")
    code, out, err = run_command(capsys, "predict", str(trained.folder), str(tmp_path))
    assert code == 0
    assert "good.png" in out
    assert f"skipped {tmp_path / 'bad.png'}: " in err


def test_a_run_ends_with_the_lines_that_use_it(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my run"
    arguments = ["--data", f"folder:{pictures}", "--out", str(folder), "--image-size=16"]
    arguments += ["--epochs=1", "--batch-size=8", "--probes=0", "--no-report", "--workers=0"]
    code, out, _ = run_command(capsys, "train", "--model=wrn-10-1", *arguments)
    assert code == 0
    lines = dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)
    image = str(pictures / "test" / "discs" / "3.jpg")
    predict = shlex.split(lines["classify images"])
    assert predict[:2] == ["attention-transfer", "predict"]
    assert (
        run_command(capsys, *(image if word == "IMAGE" else word for word in predict[1:]))[0] == 0
    )
    assert eval(lines["in Python"].replace("IMAGE", image), {"at": at}) in CLASSES
    assert shlex.split(lines["for other software"]) == ["attention-transfer", "export", str(folder)]


def test_a_run_is_evaluated_in_its_own_precision(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**SMALL, "epochs": 1, "batch_size": 8, "image_size": 16, "probes": 0, "workers": 0}
    settings |= {"precision": "bf16", "out": tmp_path / "run"}
    run = at.train("wrn-10-1", data=f"folder:{pictures}", **settings)
    losses = {}
    for flag in ((), ("--precision=bf16",), ("--precision=fp32",)):
        code, out, _ = run_command(capsys, "evaluate", str(run.folder), "--json", *flag)
        assert code == 0
        losses[flag] = json.loads(out)["loss"]
    assert losses[()] == run.record.final.test_loss == losses[("--precision=bf16",)]
    assert losses[()] != losses[("--precision=fp32",)]


def test_a_runs_folder_is_no_network_to_build(trained: at.Run) -> None:
    with pytest.raises(at.InputError, match=r"is a folder, .*at\.load\("):
        at.models.build(str(trained.folder), classes=3)
