"""Experiment trackers: what they are told, and that they neither spoil a run nor outlive it."""

import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from accelerate.tracking import TensorBoardTracker
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.config import RunConfig
from attention_transfer.drawing.contact_sheet import contact_sheet
from attention_transfer.errors import InputError, Interrupted, TrainingError
from attention_transfer.runs import EpochMetrics
from attention_transfer.training import RunProgress
from attention_transfer.training.monitoring import tracking
from conftest import SMALL

pytestmark = pytest.mark.usefixtures("small_runs")

SHORT: dict[str, Any] = {**SMALL, "epochs": 2, "batch_size": 24, "probes": 4}
"""Two epochs of two steps."""


def read(folder: str) -> EventAccumulator:
    events = EventAccumulator(f"{folder}/tensorboard", size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


def history(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(name)]


def column(rows: list[EpochMetrics], *keys: str) -> list[tuple[int, float]]:
    found = []
    for row in rows:
        value: Any = row.model_dump()
        for key in keys:
            value = value[key]
        found.append((row.step, pytest.approx(value, rel=1e-6)))
    return found


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the trackers that were closed."""
    names: list[str] = []
    finish = TensorBoardTracker.finish

    def recorded(tracker: TensorBoardTracker) -> None:
        names.append(tracker.name)
        finish(tracker)

    monkeypatch.setattr(TensorBoardTracker, "finish", recorded)
    return names


def test_tensorboard_is_told_every_figure_and_shown_the_maps(closed: list[str]) -> None:
    run = at.distill(
        teacher="wrn-10-1@random",
        student="wrn-10-1",
        kd_alpha=0.5,
        full_activation_beta=0.1,
        track="tensorboard",
        out="student",
        **SHORT,
    )
    events, rows = read("student"), run.metrics
    assert len(rows[0].terms) == 4
    for term in rows[0].terms:
        assert history(events, f"term/{term}") == column(rows, "terms", term)
    for pair in ("group1:group1", "group2:group2", "group3:group3"):
        name = pair.replace(":", "-")
        assert history(events, f"agreement/{name}") == column(rows, "attention_agreement", pair)
        cosine = column(rows, "probes", pair, "cosine")
        assert history(events, f"probes/{name}/cosine")[1:] == cosine
    for name in ("train_error", "validation_error", "validation_loss", "lr", "images_per_second"):
        assert history(events, name) == column(rows, name)
    waited = history(events, "seconds_waiting_for_data")
    assert waited == column(rows, "seconds_waiting_for_data")
    assert history(events, "test_error") == [(4, pytest.approx(run.test_error, rel=1e-6))]
    (hyperparameters,) = Path("student/tensorboard").glob("*/hparams.yml")
    assert "student: wrn-10-1\n" in hyperparameters.read_text()
    assert closed == ["tensorboard"]
    shown = events.Images("attention/group3-group3")
    assert [image.step for image in shown] == [0, 2, 4]
    expected = tracking.contact_sheets(run.attention_folder, 2)["group3:group3"]
    picture = np.asarray(Image.open(io.BytesIO(shown[-1].encoded_image_string)))
    assert np.array_equal(picture, expected)


def test_a_sheet_shows_images_and_under_each_its_maps() -> None:
    """Brightest where the map is largest, whatever its scale and its size; black where it is 0."""
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3), dtype=np.uint8)
    maps = np.zeros((2, 2, 4), dtype=np.float32)
    maps[0, 1, 3] = 1e-30
    maps[1, 0, 0] = 1e30
    doubled = 1000 * maps.repeat(2, axis=1).repeat(2, axis=2)
    drawn = contact_sheet(images, [maps, doubled])
    assert drawn.shape == (32 * 3 + 2 * 2, 64 * 2 + 2, 3)
    assert np.array_equal(drawn[:32, :64], images[0])
    assert np.array_equal(drawn[:32, 66:], images[1])
    assert np.all(drawn[32:34] == 255)
    bright, dark = (np.array(mpl.colormaps["inferno"](end, bytes=True)[:3]) for end in (1.0, 0.0))
    teacher, student = drawn[34:66], drawn[68:]
    assert np.array_equal(teacher, student)
    assert np.all(teacher[16:, 48:64] == bright)
    assert np.all(teacher[:16, :64] == dark)
    assert np.all(teacher[:16, 66:82] == bright)
    assert np.all(teacher[16:, 66:] == dark)


def test_empty_maps_and_single_pixels_are_drawn() -> None:
    drawn = contact_sheet(np.zeros((1, 1, 1, 3), dtype=np.uint8), [np.zeros((1, 3, 3))])
    assert drawn.shape == (130, 64, 3)
    assert drawn[66:].max() <= 4  # the colour map's darkest


def test_a_resumed_run_goes_on_where_it_was(closed: list[str]) -> None:
    class Crash(RunProgress):
        def epoch(self, row: Any, epochs: int) -> None:
            raise ConnectionError

    settings = {**SHORT, "track": "tensorboard", "out": "run"}
    with pytest.raises(ConnectionError):
        at.train(model="wrn-10-1", progress=Crash(), **settings)
    assert closed == ["tensorboard"]
    resumed = at.resume("run")
    events = read("run")
    assert history(events, "term/cross_entropy") == column(
        resumed.metrics, "terms", "cross_entropy"
    )
    assert {image.step for image in events.Images("attention/group1")} == {0, 2, 4}
    assert len(list(Path("run/tensorboard").glob("*/hparams.yml"))) == 1
    assert json.loads(Path("run/trackers.json").read_text()) == {"tensorboard": "tensorboard"}


def test_trackers_are_closed_when_training_fails_or_is_interrupted(closed: list[str]) -> None:
    class Interrupting(RunProgress):
        def step(self, images: int, moment: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(TrainingError):
        at.train(model="wrn-10-1", **{**SHORT, "lr": 1e18}, track="tensorboard", out="wild")
    with pytest.raises(Interrupted):
        at.train(
            model="wrn-10-1", **SHORT, progress=Interrupting(), track="tensorboard", out="stopped"
        )
    assert closed == ["tensorboard", "tensorboard"]


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, closed: list[str]
) -> None:
    said: list[str] = []

    class Listening(RunProgress):
        def write_line(self, text: str) -> None:
            said.append(text)

    def failing(*_: Any, **__: Any) -> None:
        raise OSError("no space left\non the device")

    monkeypatch.setattr(TensorBoardTracker, "log", failing)
    run = at.train(model="wrn-10-1", **SHORT, progress=Listening(), track="tensorboard", out="run")
    assert len(run.metrics) == 2
    heard = [line for line in said if line.startswith("tensorboard failed")]
    assert heard == [
        "tensorboard failed and is no longer used: OSError: no space left on the device"
    ]
    assert closed == ["tensorboard"]


def test_a_tracker_that_does_not_start_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusing(*_: Any) -> None:
        raise PermissionError("log in first")

    monkeypatch.setattr(TensorBoardTracker, "start", refusing)
    assert main(["train", "--model", "wrn-10-1", "--track", "tensorboard", "--out", "run"]) == 2
    assert "tensorboard does not start (PermissionError: log in first)" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_tracker_that_is_not_installed_is_named_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(InputError, match=r"mlflow, wandb, .*attention-transfer\[trackers\]"):
        at.train(model="wrn-10-1", **SHORT, track="mlflow,tensorboard,wandb", out="run")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("tensorbord", "names no tracker 'tensorbord'; did you mean tensorboard"),
        ("wandb,neptune", "names no tracker 'neptune'; known: tensorboard, wandb, trackio, mlflow"),
        ("", "names no tracker ''"),
        ("wandb,", "names no tracker ''"),
    ],
)
def test_unknown_trackers_are_refused(asked: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        RunConfig.checked({"student": "wrn-10-1", "track": asked})


def test_trackers_are_named_once_and_with_or_without_spaces() -> None:
    config = RunConfig.checked({"student": "wrn-10-1", "track": " wandb, tensorboard,wandb"})
    assert config.track == "wandb,tensorboard"
    assert config.trackers == ["wandb", "tensorboard"]
    assert RunConfig.checked({"student": "wrn-10-1"}).trackers == []


def test_only_the_process_that_tracks_starts_trackers(tmp_path: Path) -> None:
    config = RunConfig.checked({"student": "wrn-10-1", "track": "tensorboard"})
    with tracking.Tracking(config, tmp_path, print, active=False) as quiet:
        quiet.start()
        quiet.add({"epoch": 1, "step": 1, "lr": 0.1})
    assert list(tmp_path.iterdir()) == []


class Recording:
    """A tracker that keeps what it is told."""

    def __init__(self, name: str) -> None:
        self.name, self.told, self.run_name = name, [], name
        identity = SimpleNamespace(id="1a", name="run-1a", info=SimpleNamespace(run_id="2b"))
        identity.finish = lambda exit_code: self.told.append(("finish", exit_code))
        self.tracker = identity

    def start(self) -> None: ...

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(("configuration", values["student"]))

    def log(self, values: dict[str, Any], step: int) -> None:
        self.told.append(("log", step, values))

    def log_images(self, values: dict[str, Any], step: int) -> None:
        self.told.append(("images", step, values))


def test_each_tracker_is_told_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases, trackio and MLflow by stand-ins: figures, a picture, and a failed end."""
    trackers = {name: Recording(name) for name in ("wandb", "trackio", "mlflow")}
    makers = {name: lambda *_, it=tracker: it for name, tracker in trackers.items()}
    monkeypatch.setattr(tracking, "_FACTORIES", makers)
    pixels, heard = np.zeros((2, 2, 3), dtype=np.uint8), []
    monkeypatch.setattr(tracking, "contact_sheets", lambda *_: {"a+b:c": pixels})
    mlflow = SimpleNamespace(
        log_image=lambda image, key, step, synchronous: heard.append((key, step)),
        end_run=heard.append,
    )
    trackio = SimpleNamespace(Image=lambda image: "image", finish=lambda: heard.append("trackio"))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    config = RunConfig.checked({"student": "wrn-10-1", "track": "wandb,trackio,mlflow"})
    tracked = tracking.Tracking(config, Path(), print)
    tracked.start()
    with pytest.raises(ConnectionError), tracked:
        tracked.add({"epoch": 1, "step": 7, "probes": {"a+b:c": {"cosine": 0.5}}})
        raise ConnectionError
    begun = [
        ("configuration", "wrn-10-1"),
        ("log", 7, {"epoch": 1.0, "probes/a-b-c/cosine": 0.5}),
    ]
    assert trackers["wandb"].told == [
        *begun,
        ("images", 7, {"attention/a-b-c": [pixels]}),
        ("finish", 1),
    ]
    assert trackers["trackio"].told == [*begun, ("log", 7, {"attention/a-b-c": "image"})]
    assert trackers["mlflow"].told == begun
    assert heard == [("attention/a-b-c", 7), "trackio", "FAILED"]
    known = json.loads(Path("trackers.json").read_text())
    assert known == {"wandb": "1a", "trackio": "run-1a", "mlflow": "2b"}


@given(st.text())
def test_names_have_only_characters_that_all_trackers_take(name: str) -> None:
    allowed = tracking._allowed(name)
    assert re.fullmatch(r"[\w/. -]*", allowed)
    assert len(allowed) == len(name)
