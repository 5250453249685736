"""Optimizers by name, their defaults by the network, averaged weights, and early stopping."""

import io
import json
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from timm.optim import get_optimizer_info, list_optimizers
from torch import nn
from torch.nn import functional

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.config import RunConfig
from attention_transfer.config.optimization import CHOSEN_BY_THE_RUN
from attention_transfer.data import DataSet
from attention_transfer.errors import InputError, Interrupted
from attention_transfer.report.command_line import command_line
from attention_transfer.runs import Run
from attention_transfer.training import model_evaluation
from attention_transfer.training.fine_tuning import parameter_groups
from attention_transfer.training.optimization import is_transformer, resolve_optimization
from attention_transfer.training.optimizers import check_optimizer, make_optimizer
from attention_transfer.training.schedule import learning_rate_factor
from attention_transfer.training.weight_average import WeightAverage, decay_after
from conftest import SMALL, CrashAfter, CrashError, Listening

QUICK = {name: value for name, value in SMALL.items() if name != "lr"}
VIT = """
import timm


def vit(num_classes=3):
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, depth=2, embed_dim=24, num_heads=2,
        num_classes=num_classes,
    )
"""


@pytest.fixture
def vit(small_runs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a small vision transformer."""
    (tmp_path / "small_vit.py").write_text(VIT)
    monkeypatch.syspath_prepend(tmp_path)
    return "small_vit:vit"


def weights(run: Run, averaged: bool = False) -> dict[str, torch.Tensor]:
    folder = run.averaged_folder if averaged else run.folder
    return load_file(folder / "model.safetensors")


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that is refused and writes nothing."""
    assert main([*arguments, "--out", "refused"]) == 2
    assert not Path("refused").exists()
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.LayerNorm([4, 6, 6]), nn.Flatten(), nn.Linear(144, 3)
    )


def settings_of(network: nn.Module, trained: bool = False, **settings: Any) -> tuple[Any, ...]:
    config = RunConfig.checked({"student": "network", "epochs": 20, **settings})
    resolved, _ = resolve_optimization(config, network, trained)
    return tuple(getattr(resolved, name) for name in CHOSEN_BY_THE_RUN)


def test_each_optimizer_goes_on_exactly_from_a_checkpoint() -> None:
    """All that run here; Kron is left out, which compiles its step for a minute."""

    def steps(network: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            torch.manual_seed(number)
            network(torch.randn(4, 3, 8, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    tried = 0
    for name in map(str, list_optimizers(exclude_filters=["kron*"])):
        config = RunConfig(student="network", optimizer=name)
        if get_optimizer_info(name).second_order or name.startswith(("bnb", "fused")):
            continue  # refused, or of other packages
        check_optimizer(config)
        networks = [small_network(), small_network()]
        config, _ = resolve_optimization(config, networks[0], trained=False)
        whole, resumed = (
            make_optimizer(config, [{"params": list(network.parameters())}], torch.device("cpu"))
            for network in networks
        )
        steps(networks[0], whole, range(3))
        file = io.BytesIO()
        torch.save([networks[0].state_dict(), whole.state_dict()], file)
        steps(networks[0], whole, range(3, 6))
        file.seek(0)
        own, state = torch.load(file, weights_only=True)
        networks[1].load_state_dict(own)
        resumed.load_state_dict(state)
        steps(networks[1], resumed, range(3, 6))
        assert equal(networks[0].state_dict(), networks[1].state_dict()), name
        assert all(bool(value.isfinite().all()) for value in own.values()), name
        tried += 1
    assert tried > 60


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon", "adan"])
def test_a_run_by_any_optimizer_resumes_exactly(vit: str, optimizer: str) -> None:
    """Among them some whose groups, not their parameters, count the steps."""
    settings = {**QUICK, "optimizer": optimizer, "ema": 0.9, "early_stopping": 3}
    whole = at.train(model=vit, out="whole", **settings)
    with pytest.raises(CrashError):
        at.train(model=vit, out="broken", progress=CrashAfter(8), **settings)
    resumed = at.resume("broken", trust=[vit])
    for averaged in (False, True):
        assert equal(weights(whole, averaged), weights(resumed, averaged))
    assert [row.ema for row in whole.metrics] == [row.ema for row in resumed.metrics]
    assert whole.config.optimizer == optimizer


@pytest.mark.usefixtures("small_runs")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--optimizer adamv", "unknown optimizer 'adamv'; did you mean adam"),
        ("--optimizer qqqq", "give a name of timm's, such as sgd, adamw"),
        ("--optimizer LBFGS", "lbfgs evaluates the loss several times a step"),
        ("--optimizer adahessian", "adahessian needs second derivatives"),
        ("--optimizer bnbadam8bit", "bnbadam8bit cannot be used here"),
        ("--optimizer kron", "optimizer kron needs a GPU: it compiles its step"),
        ("--optimizer adamw --momentum 0.5", "adamw has no setting momentum"),
        ("--optimizer adamw --no-nesterov", "adamw has no Nesterov momentum"),
        ("--warmup 3 --epochs 3", "warmup is '3', it should be less than the 3 epochs"),
        ("--ema 1", "ema is '1'"),
        ("--layer-decay 0.7", "layer_decay needs a network that knows its layers"),
        ("--schedule cosin", "schedule is 'cosin', expected one of one-cycle, step, cosine"),
    ],
)
def test_settings_that_do_not_go_are_refused_in_one_line(
    flags: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(["train", "--model", "wrn-10-1", *flags.split()], capsys)


def test_defaults_are_those_of_the_network_and_every_given_value_wins() -> None:
    build = at.models.build
    convolutional = ("sgd", 0.4, "one-cycle", None, 5e-4, None, None)
    for name in ("wrn-10-1", "nin-thin-nobn", "timm:resnet10t", "torchvision:mobilenet_v3_small"):
        assert settings_of(build(name, 3)) == convolutional, name
    transformer = ("adamw", 0.001, "cosine", 2.0, 0.05, "norms-and-biases", 1.0)
    for name in ("timm:vit_tiny_patch16_224", "timm:convnext_atto", "timm:levit_128s"):
        assert settings_of(build(name, 3)) == transformer, name
    vit = build("timm:vit_tiny_patch16_224", 3)
    assert settings_of(vit, trained=True)[1] == pytest.approx(1e-4)
    assert settings_of(vit, optimizer="sgd") == ("sgd", 0.03, "one-cycle", None, 5e-4, None, 1.0)
    assert settings_of(build("wrn-10-1", 3), optimizer="AdamW") == (*transformer[:-1], None)
    given = {
        "optimizer": "lion",
        "lr": 0.4,  # the field's default is a value too
        "schedule": "one-cycle",
        "warmup": None,
        "weight_decay": 5e-4,
        "weight_decay_exclude": None,
        "clip_gradient": None,
    }
    assert settings_of(vit, **given) == tuple(given.values())


def test_attention_over_channels_makes_no_transformer() -> None:
    class ChannelAttention(nn.Module):
        pass

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), ChannelAttention())
    assert not is_transformer(network)
    assert is_transformer(nn.Sequential(nn.BatchNorm2d(4), nn.MultiheadAttention(4, 2)))


def test_what_a_run_took_is_said_recorded_and_repeated(vit: str) -> None:
    progress = Listening()
    run = at.train(model=vit, out="run", progress=progress, **QUICK)
    text = "\n".join(progress.lines)
    assert "schedule cosine with lr 0.001" in text
    assert (
        "optimizer adamw: weight decay 0.05 except on norms and biases, warmup over 0.3 epochs, "
        "gradients clipped at 1" in text
    )
    assert "trained by adamw by default; --optimizer sgd" in text
    assert Run(run.folder).config.optimizer == run.record.config.optimizer == "adamw"
    command = command_line(run.config.model_dump(mode="json"))
    assert "--optimizer adamw --lr 0.001 --schedule cosine" in command
    # A transformer by SGD is no default, though its optimizer is the field's.
    by_sgd = RunConfig(student="timm:vit_tiny_patch16_224", clip_gradient=1.0)
    assert "--optimizer sgd --lr 0.4" in command_line(by_sgd.model_dump(mode="json"))


def test_sgd_on_trained_weights_at_the_default_rate_is_said(teacher: Run) -> None:
    progress = Listening()
    settings = {**QUICK, "epochs": 1}
    at.train(model=str(teacher.folder), out="on", progress=progress, **settings)
    assert any("for fine-tuning give a lower one" in line for line in progress.lines)


def test_norms_biases_and_position_embeddings_have_no_decay_and_terms_do() -> None:
    student = at.models.build("timm:vit_tiny_patch16_224", 3, (32, 32))
    teacher = at.models.build("wrn-10-1", 3)
    transfer = at.Transfer(
        student,
        teacher,
        [at.CrossEntropy(), at.FullActivation(0.1, pairs="blocks.3:group1")],
        example_input=torch.rand(2, 3, 32, 32),
    )
    groups = parameter_groups(transfer, 1.0, [], weight_decay_exclude="norms-and-biases")
    spared = {
        id(parameter)
        for group in groups
        for parameter in group["params"]
        if group.get("weight_decay") == 0
    }
    for name, parameter in transfer.named_parameters():
        bias_or_norm = parameter.ndim <= 1 or name.endswith((".bias", "pos_embed", "cls_token"))
        assert (id(parameter) in spared) == bias_or_norm, name
    assert sum(len(group["params"]) for group in groups) == len(list(transfer.parameters()))
    (whole,) = parameter_groups(transfer, 1.0, [])
    assert list(map(id, whole["params"])) == list(map(id, transfer.parameters()))
    assert set(whole) == {"params", "scale"}


def test_layers_learn_slower_the_lower_they_are() -> None:
    student = at.models.build("timm:vit_tiny_patch16_224", 3, (32, 32))
    transfer = at.Transfer(student, terms=[at.CrossEntropy()])
    groups = parameter_groups(transfer, 1.0, [], layer_decay=0.5)
    scales = {id(parameter): group["scale"] for group in groups for parameter in group["params"]}
    block = [scales[id(student.blocks[number].mlp.fc1.weight)] for number in (0, 10, 11)]
    assert block[1] / block[2] == 0.5
    assert block[0] / block[2] == 0.5**11
    assert scales[id(student.head.weight)] == 1.0


def test_schedules_are_their_formulas() -> None:
    progress = np.linspace(0.2, 1, 9)
    expected = 0.5 * (1 + np.cos(math.pi * (progress - 0.2) / 0.8))
    found = [learning_rate_factor("cosine", share, 0.2) for share in progress.tolist()]
    assert found == pytest.approx(expected)
    rising = [learning_rate_factor("cosine", share, 0.2) for share in (0.0, 0.1, 0.2)]
    assert rising == pytest.approx([0.01, 0.505, 1.0])
    assert learning_rate_factor("cosine", 0.0) == 1.0
    assert learning_rate_factor("step", 0.35, 0.7) == pytest.approx(0.01 + 0.99 / 2)
    assert learning_rate_factor("one-cycle", 0.1, 0.1) == 1.0
    for share in (0.0, 0.2, 0.3, 0.9):
        same = learning_rate_factor("one-cycle", share, 0.3)
        assert learning_rate_factor("one-cycle", share) == same


def test_label_smoothing_is_its_formula_for_classes_and_for_probabilities() -> None:
    logits, labels = torch.randn(5, 4).double(), torch.tensor([0, 3, 1, 1, -100])
    term = at.CrossEntropy(label_smoothing=0.1)
    network = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    nn.init.eye_(network.weight)
    transfer = at.Transfer(network, terms=[term])
    log_probabilities = logits[:4].log_softmax(1).numpy()
    targets = np.eye(4)[[0, 3, 1, 1]] * 0.9 + 0.1 / 4
    expected = -(targets * log_probabilities).sum(1).mean()
    assert transfer(logits, labels).loss.item() == pytest.approx(expected)
    one_hot = functional.one_hot(labels[:4], 4).double()
    assert transfer(logits[:4], one_hot).loss.item() == pytest.approx(expected)
    smoothed, _ = at.distillation_terms(0.5, label_smoothing=0.2)
    assert smoothed.label_smoothing == 0.2


@pytest.mark.usefixtures("small_runs")
def test_label_smoothing_reaches_the_run_or_is_refused(teacher: Run) -> None:
    plain, smoothed = (
        at.train(model="wrn-10-1", out=f"run-{share}", label_smoothing=share, **SMALL)
        for share in (0.0, 0.2)
    )
    assert not equal(weights(plain), weights(smoothed))
    with pytest.raises(InputError, match="label_smoothing is for the run's own cross-entropy"):
        at.distill(
            teacher=teacher, student="wrn-10-1", kd_alpha=1.0, label_smoothing=0.1, out="x", **SMALL
        )


def test_an_average_is_its_formula_also_of_half_precision_and_statistics() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).to(torch.bfloat16)
    average = WeightAverage(network, 0.5)
    expected: dict[str, Any] = {}
    for number in range(6):
        with torch.no_grad():
            for value in network.state_dict().values():
                value.add_(number)
        average.update()
        decay = min(0.5, 1 - (1 + number) ** (-2 / 3))
        assert decay_after(number, 0.5) == pytest.approx(decay)
        for name, value in network.state_dict().items():
            own = value.double()
            before = expected.get(name, own)
            expected[name] = own if "num" in name else decay * before + (1 - decay) * own
    for name, value in average.values.items():
        assert value.dtype in (torch.float32, torch.int64)
        assert torch.allclose(value.double(), expected[name], rtol=1e-5)
    own = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CrashError), average.applied():
        applied = network.state_dict()["1.running_mean"]
        assert torch.equal(applied, average.values["1.running_mean"].bfloat16())
        raise CrashError
    assert equal(own, network.state_dict())


def test_a_student_is_judged_and_written_both_ways(
    small_runs: None,
    data: DataSet,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = "--epochs 3 --batch-size 10 --lr 0.05 --precision fp32 --ema 0.8 --out run --json"
    assert main(["train", "--model", "wrn-10-1", *flags.split()]) == 0
    printed = json.loads(capsys.readouterr().out)
    run = Run(Path("run"))
    average = run.record.ema
    assert average is not None
    assert printed["ema"]["final"]["test_error"] == average.final.test_error
    last = run.metrics[-1].ema
    assert last["validation_error"] == average.final.validation_error
    assert average.best_on_validation.validation_error == min(
        row.ema["validation_error"] for row in run.metrics
    )
    assert not equal(weights(run), weights(run, averaged=True))
    plain = at.train(model="wrn-10-1", out="plain", **SMALL)
    assert equal(weights(plain), weights(run))  # averaging changes nothing else
    assert [row.terms for row in plain.metrics] == [row.terms for row in run.metrics]
    assert not plain.averaged_folder.exists()
    page = (run.folder / "report.html").read_text()
    assert "wrn-10-1 alone, averaged weights" in page
    assert "validation, averaged weights" in page
    # The folder is a MODEL, whose figures are those of the record; a damaged one is refused.
    monkeypatch.setattr(model_evaluation, "load_data", lambda *_, **__: data)
    assert main(["evaluate", "run/ema", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["error"] == pytest.approx(average.final.test_error)
    assert found["loss"] == pytest.approx(average.final.test_loss, rel=1e-5)
    path = run.averaged_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert main(["evaluate", "run/ema"]) == 2
    assert "its checksum is not that in model.json" in capsys.readouterr().err


@pytest.mark.usefixtures("small_runs")
def test_a_run_stops_early_and_one_that_had_stopped_trains_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {**SMALL, "epochs": 12, "early_stopping": 2, "ema": 0.5}
    progress = Listening()
    whole = at.train(model="wrn-10-1", out="whole", progress=progress, **settings)
    errors = [min(row.validation_error, row.ema["validation_error"]) for row in whole.metrics]
    assert len(errors) < 12
    assert min(errors[-2:]) >= min(errors[:-2])
    assert errors.index(min(errors)) == len(errors) - 3
    assert whole.record.trained_epochs == len(errors)
    assert whole.record.attention is not None
    assert whole.record.attention.epochs[-1] == len(errors)
    assert whole.attention is not None
    assert any("stopped early after" in line for line in progress.lines)
    # Stopped by a signal just before the results were written.
    with monkeypatch.context() as patch:
        from attention_transfer.training.trainer import Trainer

        def stopped(trainer: Trainer) -> None:
            trainer.stop.receive(signal.SIGTERM)
            trainer._stop_if_agreed()

        patch.setattr(Trainer, "_write_results", stopped)
        with pytest.raises(Interrupted):
            at.train(model="wrn-10-1", out="broken", **settings)
    resumed = at.resume("broken")
    assert len(resumed.metrics) == len(errors)
    assert equal(weights(whole), weights(resumed))
    assert equal(weights(whole, averaged=True), weights(resumed, averaged=True))


def test_another_optimizer_at_resume_is_refused_or_begins_anew(vit: str) -> None:
    settings = {**QUICK, "ema": 0.9, "trust": [vit]}
    with pytest.raises(CrashError):
        at.train(model=vit, out="run", progress=CrashAfter(8), **settings)
    config = Path("run/config.yaml")
    assert "optimizer: adamw" in config.read_text()
    # What the run chose by itself need not be given again.
    with pytest.raises(InputError, match="setting optimizer adamw, and is resumed with sgd"):
        at.train(model=vit, out="run", resume_or_start=True, optimizer="sgd", **settings)
    config.write_text(config.read_text().replace("optimizer: adamw", "optimizer: sgd"))
    with pytest.raises(InputError, match="setting optimizer adamw, and is resumed with sgd"):
        at.resume("run", trust=[vit])
    changed = at.resume("run", trust=[vit], allow_changes=True)
    assert changed.record.config.optimizer == "sgd"
    assert len(changed.metrics) == 3


def test_a_queue_resumes_a_run_that_chose_its_settings(vit: str) -> None:
    with pytest.raises(CrashError):
        at.train(model=vit, out="run", progress=CrashAfter(8), **QUICK)
    resumed = at.train(model=vit, out="run", resume_or_start=True, **QUICK)
    assert equal(weights(resumed), weights(at.train(model=vit, out="whole", **QUICK)))


@pytest.mark.usefixtures("small_runs")
def test_a_file_of_an_earlier_version_keeps_its_optimizer(vit: str) -> None:
    """A setting that the file lacks has the value that it had then, also for a transformer."""
    with pytest.raises(CrashError):
        at.train(model=vit, out="run", optimizer="sgd", progress=CrashAfter(2), **SMALL)
    path = Path("run/config.yaml")
    kept = [line for line in path.read_text().splitlines() if not line.startswith("optimizer:")]
    path.write_text("\n".join(kept) + "\n")
    assert at.resume("run", trust=[vit]).record.config.optimizer == "sgd"
