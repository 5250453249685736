"""Raw maps of fixed images, kept through a run: what they hold, and what is measured of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import attention_transfer as at
from attention_transfer.data import DataSet, as_input, load_data
from attention_transfer.functional import measures
from attention_transfer.runs import Run
from attention_transfer.training.monitoring.probes import probed_epochs
from conftest import SMALL

SETTINGS: dict[str, Any] = {**SMALL, "probe_every": 2, "probes": 4}


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


@pytest.mark.parametrize(
    ("epochs", "every", "expected"),
    [(3, None, {0, 1, 2, 3}), (5, 2, {0, 2, 4, 5}), (4, 9, {0, 4}), (1, 1, {0, 1})],
)
def test_the_first_and_the_last_epoch_are_probed(
    epochs: int, every: int | None, expected: set[int]
) -> None:
    assert probed_epochs(epochs, every) == expected


def test_long_runs_are_probed_a_dozen_times() -> None:
    looks = sorted(probed_epochs(200, None))
    assert (looks[0], looks[-1], len(looks)) == (0, 200, 13)
    assert set(np.diff(looks)) <= {16, 17}


def test_maps_of_both_networks_are_kept(teacher: Run, data: DataSet) -> None:
    run = at.distill(teacher="teacher", student="wrn-10-1", out="run", **SETTINGS)
    folder = run.attention_folder
    names = {path.name for path in folder.iterdir()}
    looks = {f"epoch-{epoch:04d}.npz" for epoch in (0, 2, 3)}
    assert names == {"probes.npz", "teacher.npz", "examples.npz"} | looks
    probes = arrays(folder / "probes.npz")
    chosen = np.linspace(0, len(data.validation) - 1, 4).round().astype(int)
    assert np.array_equal(probes["images"], data.validation.pixels(chosen).numpy())
    assert np.array_equal(probes["labels"], data.validation.labels[chosen].numpy())
    assert probes["points"].tolist() == ["group1:group1", "group2:group2", "group3:group3"]
    pixels = as_input(data.validation.pixels(chosen))
    normalization = (data.mean, data.std)
    for name, trained, file in (("student", run, "epoch-0003"), ("teacher", teacher, "teacher")):
        network = trained.load().network
        kept = arrays(folder / f"{file}.npz")
        found = at.attention_maps(network, pixels, normalization=normalization)
        for number, maps in enumerate(found.values()):
            assert kept[f"{name}/{number}"] == pytest.approx(maps.numpy(), rel=1e-4, abs=1e-6)
        with torch.no_grad():
            logits = network.eval()(at.Preprocessing(*normalization)(pixels))
        assert kept[f"{name}/logits"] == pytest.approx(logits.numpy(), rel=1e-4, abs=1e-5)
    examples = arrays(folder / "examples.npz")
    assert len(examples["images"]) == len(data.test)
    assert {"student/2", "teacher/2", "student/logits", "teacher/logits"} <= set(examples)


def test_measures_stand_in_the_figures(teacher: Run) -> None:
    run = at.distill(teacher="teacher", student="wrn-10-1", out="run", **SETTINGS)
    rows = {row.epoch: row.probes for row in run.metrics}
    assert rows[1] == {}
    student, target = (
        torch.from_numpy(arrays(run.attention_folder / file)[name])
        for file, name in (("epoch-0003.npz", "student/2"), ("teacher.npz", "teacher/2"))
    )
    found = rows[3]["group3:group3"]
    assert set(found) == {"student_entropy", "teacher_entropy", "cosine", "rank_correlation"}
    assert found["cosine"] == pytest.approx(float(measures.cosine(student, target).mean()))
    assert found["teacher_entropy"] == pytest.approx(float(measures.entropy(target).mean()))
    assert run.record.attention is not None
    assert run.record.attention.model_dump() == {
        "map": "sum",
        "power": 2.0,
        "points": list(rows[3]),
        "probes": 4,
        "epochs": [0, 2, 3],
    }


def test_answers_on_the_test_images_are_kept(teacher: Run, data: DataSet) -> None:
    kept = arrays(teacher.folder / "predictions.npz")
    assert np.array_equal(kept["labels"], data.test.labels.numpy())
    wrong = 100 * (kept["labels"] != kept["predicted"]).mean()
    assert wrong == pytest.approx(teacher.test_error)
    assert ((kept["confidence"] > 1 / 3) & (kept["confidence"] <= 1)).all()


def test_the_teachers_own_error_is_in_the_record(teacher: Run) -> None:
    run = at.distill(teacher="teacher", student="wrn-10-1", out="run", **SETTINGS)
    assert run.record.teacher.test_error == pytest.approx(teacher.test_error)
    several = at.distill(
        teacher="teacher,teacher", student="wrn-10-1", out="two", **{**SETTINGS, "epochs": 1}
    )
    assert several.record.teacher.test_error == pytest.approx(teacher.test_error)
    assert several.record.attention.points[0] == "group1:0.group1+1.group1"


def test_a_network_alone_is_followed_at_its_own_points(teacher: Run) -> None:
    assert teacher.record.attention.points == ["group1", "group2", "group3"]
    assert set(teacher.metrics[-1].probes["group1"]) == {"student_entropy"}
    assert not (teacher.attention_folder / "teacher.npz").exists()


def test_none_are_kept_where_none_are_asked_for(small_runs: None) -> None:
    run = at.train(model="wrn-10-1", out="run", **{**SETTINGS, "probes": 0})
    assert not run.attention_folder.exists()
    assert run.record.attention is None
    assert run.metrics[-1].probes == {}


def test_probes_do_not_change_the_training(small_runs: None) -> None:
    looked, blind = (
        at.train(model="wrn-10-1", out=f"probes-{probes}", **{**SETTINGS, "probes": probes})
        for probes in (4, 0)
    )
    weights = [(run.folder / "model.safetensors").read_bytes() for run in (looked, blind)]
    assert weights[0] == weights[1]


def test_distillation_without_attention_is_followed_all_the_same(teacher: Run) -> None:
    settings = {**SETTINGS, "attention": "none", "kd_alpha": 0.9, "epochs": 1}
    run = at.distill(teacher="teacher", student="wrn-10-1", out="run", **settings)
    assert "cosine" in run.metrics[-1].probes["group2:group2"]


def photographs(root: Path, count: int = 20) -> Path:
    """Two classes of plain images, and masks of their left halves for all but one."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for folder in (root / "images" / name, root / "masks" / name):
            folder.mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (32, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{index:02}.jpg")
            mask = np.zeros((32, 48), dtype=np.uint8)
            mask[:, :24] = 255
            Image.fromarray(mask).save(root / "masks" / name / f"{index:02}.png")
    (root / "masks" / "dog" / "00.png").unlink()
    return root


def test_masks_of_a_folder(tmp_path: Path) -> None:
    root = photographs(tmp_path)
    data = load_data(f"folder:{root / 'images'}", image_size=(16, 16), masks=root / "masks")
    assert f"1 of 40 images have no mask in {root / 'masks'}" in data.notices
    masks = data.train.masks(np.arange(len(data.train)))
    assert masks is not None
    known = masks.flatten(1).any(dim=1)
    half = torch.zeros(16, 16, dtype=torch.bool)
    half[:, :8] = True  # the middle square of the image, cut at the same line
    assert (masks[known] == half).all()
    total = sum(
        int(found.flatten(1).any(dim=1).sum())
        for split in (data.train, data.validation, data.test)
        if (found := split.masks(np.arange(len(split)))) is not None
    )
    assert total == 39
    without = load_data(f"folder:{root / 'images'}", image_size=(16, 16))
    assert without.train.masks(np.arange(2)) is None


def test_attention_on_the_masks_is_measured(tmp_path: Path) -> None:
    root = photographs(tmp_path)
    settings = {**SMALL, "epochs": 1, "image_size": 16, "masks": root / "masks", "probes": 4}
    run = at.train(model="wrn-10-1", data=f"folder:{root / 'images'}", out="run", **settings)
    found = run.metrics[-1].probes["group1"]
    assert 0.3 < found["inside"] < 0.7  # half of the image, in noise
    assert 0 <= found["pointing"] <= 1


@pytest.mark.parametrize(
    ("data", "masks", "match"),
    [
        ("folder:images", "nowhere", r"nowhere holds no mask .* nowhere/\w+/\d+\.png"),
        ("cluttered-digits", "masks", "masks are read for folders of images"),
    ],
)
def test_masks_that_do_not_fit(data: str, masks: str, match: str, tmp_path: Path) -> None:
    photographs(tmp_path)
    with pytest.raises(at.InputError, match=match):
        at.train(model="wrn-10-1", data=data, masks=masks, out="run", **SMALL)
    assert not Path("run").exists()


def test_boxes_are_masks() -> None:
    data = load_data("cluttered-digits")
    masks = data.test.masks(np.array([3]))
    assert masks is not None
    left, top, right, bottom = data.test.boxes[3].tolist()  # type: ignore[attr-defined]
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[top:bottom, left:right] = True
    assert torch.equal(masks[0], expected)


def test_large_images_are_kept_small(monkeypatch: pytest.MonkeyPatch, small_runs: None) -> None:
    from attention_transfer.training.monitoring import probes

    monkeypatch.setattr(probes, "LARGEST_SIDE", 8)
    run = at.train(model="wrn-10-1", out="run", **{**SETTINGS, "epochs": 1})
    assert arrays(run.attention_folder / "probes.npz")["images"].shape == (4, 8, 8, 3)


def test_a_run_ends_with_its_report(small_runs: None) -> None:
    run = at.train(model="wrn-10-1", out="run", **{**SETTINGS, "epochs": 1, "report": True})
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "test images of small, wrn-10-1" in page
    assert "data-viewer" in page
    bare = at.train(model="wrn-10-1", out="bare", **{**SETTINGS, "epochs": 1, "report": False})
    assert not (bare.folder / "report.html").exists()
