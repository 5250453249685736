"""Whole runs on small images: what they leave, that they repeat, resume and stop."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.config import DistillConfig
from attention_transfer.data import DataSet
from attention_transfer.errors import InputError, TrainingError
from attention_transfer.files import append_line
from attention_transfer.runs import EpochMetrics, Run
from attention_transfer.runs.record import metrics_line
from attention_transfer.training import RunProgress, model_evaluation, setup, trainer
from attention_transfer.training.classification_metrics import (
    calibration_error,
    compute_metrics,
)
from attention_transfer.training.epoch_meters import EpochMeters
from attention_transfer.training.monitoring.tracking import scalars
from attention_transfer.training.objects import RunObjects
from attention_transfer.training.schedule import learning_rate_factor
from conftest import SMALL, CrashAfter, CrashError

pytestmark = pytest.mark.usefixtures("small_runs")


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "model.safetensors")


def same_weights(first: Run, second: Run) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def timeless(rows: list[EpochMetrics]) -> list[dict[str, Any]]:
    """The figures that do not depend on the clock."""
    clocks = {"images_per_second", "seconds", "seconds_waiting_for_data", "seconds_left"}
    return [row.model_dump(exclude=clocks) for row in rows]


def test_a_run_leaves_everything_it_knows(teacher: Run) -> None:
    names = {path.name for path in teacher.folder.iterdir()}
    assert names == {
        "config.yaml",
        "record.json",
        "metrics.jsonl",
        "model.safetensors",
        "model.json",
        "confusion.npz",
        "predictions.npz",
        "attention",
        "checkpoints",
    }
    kept = sorted(path.name for path in teacher.checkpoints_folder.iterdir())
    assert kept[-1] == "epoch-0003-step-0000000"
    record = teacher.record
    assert record.schema_version == 2
    assert record.config == teacher.config
    assert record.versions["torch"]
    assert record.student.parameters > 70_000
    assert record.student.flops > 1e6
    assert record.data.train.images == 48
    assert 0 <= record.final.test_error <= 100
    errors = [row.validation_error for row in teacher.metrics]
    assert record.best_on_validation.validation_error == min(errors)
    assert [row.epoch for row in teacher.metrics] == [1, 2, 3]
    assert teacher.load().card is not None


def test_record_and_metrics_are_written_and_read_by_one_schema(teacher: Run) -> None:
    """No key is written that the schema lacks, and none is lost by reading and writing."""
    text = (teacher.folder / "record.json").read_text()
    assert json.dumps(teacher.record.model_dump(mode="json"), indent=2) + "\n" == text
    lines = (teacher.folder / "metrics.jsonl").read_text().splitlines()
    assert [metrics_line(row) for row in teacher.metrics] == lines


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seconds": None}, r"record.json is damaged \(seconds: Input should be a valid number\)"),
        ({"secondz": 1.0}, r"record.json is damaged \(secondz: Extra inputs are not permitted\)"),
        ({"schema_version": 3}, "schema version 3, expected 2; use the version"),
        ({"config": {"student": 3}}, r"record.json is damaged \(config.student: "),
    ],
)
def test_a_record_that_does_not_fit_the_schema_names_the_key(
    teacher: Run, change: dict[str, Any], expected: str
) -> None:
    path = teacher.folder / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=expected):
        _ = Run(teacher.folder).record


def test_a_line_of_metrics_that_was_cut_short_is_named_and_does_not_stop_resuming() -> None:
    whole = at.train(model="nin-thin", out="whole", **SMALL)
    with pytest.raises(CrashError):
        at.train(model="nin-thin", out="broken", progress=CrashAfter(12), **SMALL)
    path = Path("broken/metrics.jsonl")
    append_line(path, '{"epoch": 3, "st')
    with pytest.raises(InputError, match=r"metrics.jsonl line 3 is damaged \(Invalid JSON"):
        _ = Run(Path("broken")).metrics
    assert timeless(at.resume(Path("broken")).metrics) == timeless(whole.metrics)


def test_meters_and_progress_take_terms_of_any_name_and_no_maps() -> None:
    """A term of one's own may have any name, need no layers, and be the only one."""
    terms = {"step": torch.tensor(2.0), "a/b c": torch.tensor(4.0)}
    logits, labels = torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 2])
    out = at.TransferOutput(torch.tensor(6.0), terms, terms, logits, logits, {}, None)
    meters = EpochMeters()
    meters.add(out, labels, step=0)
    meters.add(out, torch.eye(3)[labels], step=1)
    meters.seconds = 2.0
    means = meters.means(trainer.Accelerator())
    assert means["terms"] == {"step": 2.0, "a/b c": 4.0}
    assert means["train_error"] == pytest.approx(100 / 3)
    assert means["attention_agreement"] == {}
    assert means["images_per_second"] == 3.0
    assert scalars(means)["term/step"] == 2.0


def test_folders_of_runs_are_read_without_torch(teacher: Run) -> None:
    code = (
        "import sys; from pathlib import Path; from attention_transfer.runs import Run;"
        "run = Run(Path('teacher')); run.config, run.record, run.metrics, run.predictions;"
        "run.attention, run.class_names; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_student_learns_and_reports_every_term(teacher: Run) -> None:
    run = at.distill(
        teacher=str(teacher.folder),
        student="wrn-10-1",
        kd_alpha=0.5,
        full_activation_beta=0.1,
        out="student",
        **{**SMALL, "epochs": 8},
    )
    rows = run.metrics
    assert set(rows[0].terms) == {
        "cross_entropy",
        "knowledge_distillation",
        "activation_attention",
        "full_activation",
    }
    assert set(rows[0].attention_agreement) == {f"group{n}:group{n}" for n in (1, 2, 3)}
    assert rows[-1].train_error < rows[0].train_error
    first, last = (row.attention_agreement["group3:group3"] for row in (rows[0], rows[-1]))
    assert last > first
    assert [pair.effective_weight for pair in run.record.pairs][:3] == [
        1000 / 256,
        1000 / 64,
        1000 / 16,
    ]
    assert not any("regressor" in name or "term" in name for name in weights(run))


def test_the_teacher_is_bit_equal_after_training(teacher: Run, data: DataSet) -> None:
    config = DistillConfig.checked(
        {"teacher": str(teacher.folder), "student": "wrn-10-1", "out": "student", **SMALL}
    )
    run_setup = setup.set_up_run(config, RunObjects(data=data))
    run = Run.create(Path("student"), config)
    trainer.Trainer(run_setup, run, trainer.Accelerator(), RunProgress()).finish()
    after = run_setup.teachers[0].network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in weights(teacher).items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_runs_are_bit_equal(precision: str) -> None:
    settings = {**SMALL, "precision": precision, "epochs": 2}
    first, second = (at.train(model="wrn-10-1", out=name, **settings) for name in "ab")
    assert same_weights(first, second)
    assert timeless(first.metrics) == timeless(second.metrics)
    other = at.train(model="wrn-10-1", out="c", seed=1, **settings)
    assert not same_weights(first, other)


@pytest.mark.parametrize("crash", [6, 8, 10, 15])
def test_a_run_resumes_from_its_last_epoch_as_if_never_interrupted(
    teacher: Run, data: DataSet, crash: int
) -> None:
    common = {"teacher": str(teacher.folder), "student": "nin-thin", "full_activation_beta": 0.1}
    whole = at.distill(out="whole", **common, **SMALL)
    with pytest.raises(CrashError):
        at.distill(out="broken", progress=CrashAfter(crash), **common, **SMALL)
    with pytest.raises(
        InputError, match=r"not finished \(no record.json\); resume it: .* resume broken"
    ):
        _ = Run(Path("broken")).record
    resumed = at.resume(Path("broken"))
    assert same_weights(whole, resumed)
    assert timeless(whole.metrics) == timeless(resumed.metrics)
    assert resumed.record.final == whole.record.final
    waited = [row.seconds_waiting_for_data for row in resumed.metrics]
    assert len(waited) == resumed.config.epochs
    assert resumed.record.seconds_waiting_for_data == pytest.approx(sum(waited))
    assert 0 < sum(waited) < resumed.record.seconds


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before() -> None:
    whole = at.train(model="nin-thin", out="whole", **SMALL)
    with pytest.raises(CrashError):
        at.train(model="nin-thin", out="broken", progress=CrashAfter(12), **SMALL)
    newest = max(Path("broken/checkpoints").iterdir()) / "state.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert same_weights(at.resume(Path("broken")), whole)


def test_what_cannot_be_resumed_says_why(teacher: Run) -> None:
    with pytest.raises(InputError, match="finished"):
        at.resume(teacher.folder)
    with pytest.raises(InputError, match="there is no folder nowhere"):
        at.resume(Path("nowhere"))
    with pytest.raises(CrashError):
        at.train(model="nin-thin", out="early", progress=CrashAfter(1), **SMALL)
    for path in Path("early/checkpoints").glob("*/state.pt"):
        path.write_bytes(b"damaged")
    with pytest.raises(
        InputError, match=r"is damaged \(its checksum is wrong\); no other is whole"
    ):
        at.resume(Path("early"))


def test_a_loss_that_is_not_finite_stops_the_run_before_the_step() -> None:
    with pytest.raises(TrainingError, match=r"not finite in epoch \d.*--lr"):
        at.train(model="wrn-10-1-nobn", out="wild", **{**SMALL, "lr": 1e18})
    assert not Path("wild/record.json").exists()


def test_clipping_bounds_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    original = torch.nn.utils.clip_grad_norm_

    def recording(parameters: Any, limit: float) -> torch.Tensor:
        parameters = list(parameters)
        original(parameters, limit)
        norms.append(torch.cat([p.grad.flatten() for p in parameters]).norm().item())
        return torch.zeros(())

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", recording)
    at.train(model="wrn-10-1", out="clipped", clip_gradient=0.01, **SMALL)
    assert len(norms) == 15
    assert max(norms) <= 0.0101


def test_learning_rates_are_continuous_and_end_low() -> None:
    factors = [learning_rate_factor("one-cycle", step / 1000) for step in range(1001)]
    assert max(factors) == pytest.approx(1)
    assert np.abs(np.diff(factors)).max() < 0.006
    assert factors[0] == pytest.approx(1 / 25)
    assert factors[-1] < 1e-4
    epochs = [learning_rate_factor("step", epoch / 200) for epoch in range(200)]
    changes = [epoch for epoch in range(1, 200) if epochs[epoch] != epochs[epoch - 1]]
    assert changes == [60, 120, 160]


def test_the_figures_of_an_evaluation() -> None:
    logits = torch.tensor([[4.0, 3, 0, 0, 0, 0, 0], [0, 9, 8, 7, 6, 5, 4.0]])
    evaluation = compute_metrics(logits, torch.tensor([1, 6]))
    assert evaluation.error == 100
    assert evaluation.top5_error == 50
    assert compute_metrics(logits[:, :4], torch.tensor([0, 1])).top5_error is None
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 6])).item()
    assert evaluation.loss == pytest.approx(expected)
    assert evaluation.confusion is not None
    expected_counts = np.zeros((7, 7), dtype=int)
    expected_counts[1, 0] = expected_counts[6, 1] = 1
    assert np.array_equal(evaluation.confusion.matrix(), expected_counts)
    confidences, right = np.array([0.95, 0.95, 0.1]), np.array([True, False, False])
    assert calibration_error(confidences, right) == pytest.approx((0.9 + 0.1) / 3)
    with pytest.raises(InputError, match="has 7 outputs, the data set at least 8 classes"):
        compute_metrics(logits, torch.tensor([1, 7]))


def test_evaluating_a_run_repeats_its_figures_on_its_own_data(
    teacher: Run, data: DataSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []

    def load_data(name: str, **settings: Any) -> DataSet:
        asked.append({"name": name, **settings})
        return data

    monkeypatch.setattr(model_evaluation, "load_data", load_data)
    for split in ("test", "validation"):
        assert main(["evaluate", "teacher", "--split", split, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        final = teacher.record.final
        assert document["error"] == getattr(final, f"{split}_error")
        confusion = teacher.confusion(split)  # type: ignore[arg-type]
        assert confusion is not None
        assert document["confusion"] == confusion.matrix().tolist()
        assert document["loss"] == pytest.approx(getattr(final, f"{split}_loss"), rel=1e-5)
    given = {name: value for name, value in asked[0].items() if value is not None}
    assert given == {
        "name": "cluttered-digits",
        "validation": 0.1,
        "data_seed": 0,
        "download": False,
        "default_size": (16, 16),
    }
    assert main(["evaluate", "teacher"]) == 0
    assert "class 0" in capsys.readouterr().out


def test_a_terminal_gets_a_panel_with_the_rate_and_the_time_left(data: DataSet) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    at.train(model="wrn-10-1", out="shown", progress=RunProgress(console), **SMALL)
    shown = screen.getvalue()
    assert "images/s" in shown
    assert re.search(r"0:00:\d\d", shown)
    assert "epoch 3/3" in shown


TWO_PROCESSES = """
import sys
import torch
import attention_transfer as at
from attention_transfer import network_inputs
sys.path.insert(0, {tests!r})
from conftest import small_data
torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
network_inputs.load_data = lambda *_, **__: small_data()
at.distill(
    teacher={teacher!r}, out={out!r}, epochs=1, batch_size=9,
    lr=0.005, precision="fp32", beta=10, full_activation_beta=0.1, kd_alpha=0.5, **{settings},
)
"""


@pytest.mark.parametrize(
    ("settings", "others"),
    [
        ({"student": "nin-thin-nobn"}, [{}, {"accumulate": 2, "grad_checkpoint": True}]),
        (
            {
                "student": "nin-thin",
                "sync_batch_norm": True,
                "attention": "activation,gradient",
                "gradient_beta": 0.1,
                "flip_symmetry_beta": 0.1,
            },
            [{}],
        ),
    ],
)
def test_two_processes_train_what_one_trains(
    teacher: Run, tmp_path: Path, settings: dict[str, Any], others: list[dict[str, Any]]
) -> None:
    """Without batch norm or with synchronised batch norm, and in double precision, where rounding
    does not decide which place max pooling takes."""
    runs = []
    for index, more in enumerate([{}, *others]):
        processes = min(index + 1, 2)
        out = tmp_path / f"run-{index}"
        script = tmp_path / "script.py"
        script.write_text(
            TWO_PROCESSES.format(
                tests=str(Path(__file__).parent),
                teacher=str(teacher.folder.resolve()),
                out=str(out),
                settings={**settings, **more},
            )
        )
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", str(script)]
        done = subprocess.run(command, timeout=120, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        runs.append(Run(out))
    one = runs.pop(0)
    for run in runs:
        for name, value in weights(one).items():
            assert torch.allclose(value, weights(run)[name], rtol=1e-9, atol=1e-12), name
        for figures in ("terms", "attention_agreement"):
            expected = pytest.approx(getattr(run.metrics[0], figures), rel=1e-9)
            assert getattr(one.metrics[0], figures) == expected
        assert run.record.machine.processes == 2
