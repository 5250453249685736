"""Less memory: micro-batches, and activations that are recomputed in the backward pass."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.config import DistillConfig, RunConfig
from attention_transfer.data import batches, epoch_order
from attention_transfer.environment import make_accelerator
from attention_transfer.errors import InputError, TrainingError
from attention_transfer.runs import Run
from attention_transfer.training import RunProgress, trainer
from attention_transfer.training.epoch_meters import EpochMeters
from attention_transfer.training.memory.activations import Activations, lightest_parts
from attention_transfer.training.memory.recomputation import plan_recomputation, recomputing
from attention_transfer.training.micro_batches import merge_outputs, micro_batches
from attention_transfer.training.objects import RunObjects
from attention_transfer.training.setup import set_up_run
from attention_transfer.training.train_step import StepIndex
from conftest import SMALL, small_data
from test_training import timeless, weights


def gradients(network: nn.Module) -> list[Tensor]:
    return [
        torch.zeros_like(own) if own.grad is None else own.grad.clone()
        for own in network.parameters()
    ]


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


# Micro-batches


def test_micro_batches_cover_a_batch_in_order_and_differ_by_one_image() -> None:
    for count in range(1, 40):
        for asked in range(1, 12):
            parts = micro_batches(count, asked)
            sizes = [part.stop - part.start for part in parts]
            assert [image for part in parts for image in range(count)[part]] == list(range(count))
            assert max(sizes) - min(sizes) <= 1
            assert min(sizes) >= min(2, count)
            assert len(parts) == asked or min(sizes) < 4


def test_merged_outputs_of_micro_batches_equal_the_output_of_the_batch() -> None:
    torch.manual_seed(0)
    student, teacher = (at.models.build("wrn-10-1-nobn", 3).double() for _ in range(2))
    terms = [
        *at.distillation_terms(0.9),
        at.ActivationAttention(),
        at.FullActivation(0.1),
        at.GradientAttention(0.1),
        at.FlipSymmetry(0.1, classes=(0, 2)),
    ]
    images, labels = torch.rand(7, 3, 16, 16).double(), torch.arange(7) % 3
    transfer = at.Transfer(student, teacher, terms, example_input=images[:1])
    whole = transfer(images, labels)
    out = merge_outputs([transfer(images[part], labels[part]) for part in micro_batches(7, 3)])
    for mine, theirs in ((out.terms, whole.terms), (out.raw_terms, whole.raw_terms)):
        assert mine.keys() == theirs.keys()
        assert all(torch.allclose(mine[name], theirs[name].to(mine[name])) for name in mine)
    assert torch.allclose(out.loss, whole.loss.to(out.loss))
    assert torch.allclose(out.logits, whole.logits)
    assert out.teacher_logits is not None
    assert torch.allclose(out.teacher_logits, whole.teacher_logits)
    assert out.maps.keys() == whole.maps.keys()
    for term, pairs in whole.maps.items():
        for pair, both in pairs.items():
            assert torch.allclose(out.maps[term][pair].student, both.student)
            assert torch.allclose(out.maps[term][pair].teacher, both.teacher)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("gradient", [{}, {"gradient_beta": 0.1, "attention": "gradient"}])
def test_a_step_in_micro_batches_is_the_step_of_a_plain_loop_over_the_batch(
    teacher: Run, gradient: dict[str, Any], scaled: bool
) -> None:
    """Without batch norm. The oracle: the gradient of the mean over the batch, clipped, by hand;
    also with losses scaled up as in fp16.
    """
    config = DistillConfig.checked(
        {
            "teacher": str(teacher.folder),
            "student": "wrn-10-1-nobn",
            "kd_alpha": 0.5,
            "accumulate": 3,
            "clip_gradient": 0.5,
            "momentum": 0,
            "weight_decay": 0,
            "schedule": "step",
            "out": "parts",
            **SMALL,
            **gradient,
        }
    )
    setup, run = (
        set_up_run(config, RunObjects(data=small_data())),
        Run.create(Path("parts"), config),
    )
    train_step = trainer.Trainer(setup, run, make_accelerator(), RunProgress()).train_step
    train_step.scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    oracle = copy.deepcopy(setup.transfer)
    order = epoch_order(48, 0, 0)
    batch = next(batches(setup.data.train, order, 10))
    mean = 0.0
    for image, label in zip(batch.images, batch.labels, strict=True):
        loss = oracle(image[None], label[None]).loss
        (loss / 10).backward()
        mean += float(loss.detach()) / 10
    norm = math.sqrt(sum(float(own.square().sum()) for own in gradients(oracle)))
    assert norm > 0.5
    meters = EpochMeters()
    output, _ = train_step.step(batch, None, StepIndex(0, 0, 0.0))
    meters.add(output, batch.labels, 0)
    for own, other in zip(setup.transfer.parameters(), oracle.parameters(), strict=True):
        expected = other - SMALL["lr"] * other.grad * 0.5 / norm
        assert torch.allclose(own, expected, atol=1e-6)
    assert meters.images == 10
    assert float(sum(meters.last_terms.values())) == pytest.approx(mean, rel=1e-4)
    assert meters.agreement_images == 10


@pytest.mark.usefixtures("small_runs")
def test_a_run_in_micro_batches_equals_the_run_without(teacher: Run) -> None:
    """Also its last batch of 8 images, in an epoch of 48; and figures of all images."""
    common = {"teacher": str(teacher.folder), "student": "wrn-10-1-nobn", **SMALL, "epochs": 1}
    whole = at.distill(out="whole", beta=10, **common)
    parts = at.distill(out="parts", beta=10, accumulate=4, **common)
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(parts)[name], atol=1e-5), name
    for figure in ("terms", "attention_agreement"):
        expected = getattr(whole.metrics[-1], figure)
        assert getattr(parts.metrics[-1], figure) == pytest.approx(expected, rel=1e-4)
    assert parts.record.config.accumulate == 4


@pytest.mark.usefixtures("small_runs")
def test_a_micro_batch_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(TrainingError, match=r"not finite in epoch \d"):
        at.train(model="wrn-10-1-nobn", out="wild", accumulate=2, **{**SMALL, "lr": 1e18})


def test_processes_exchange_gradients_after_the_last_micro_batch_only(
    monkeypatch: pytest.MonkeyPatch, small_runs: None
) -> None:
    said: list[str] = []
    no_sync, scale = trainer.Accelerator.no_sync, torch.amp.GradScaler.scale

    def waiting(*given: Any) -> Any:
        said.append("alone")
        return no_sync(*given)

    def scaling(*given: Any) -> Any:
        said.append("backward")
        return scale(*given)

    monkeypatch.setattr(trainer.Accelerator, "no_sync", waiting)
    monkeypatch.setattr(torch.amp.GradScaler, "scale", scaling)
    at.train(model="nin-thin", out="counted", accumulate=3, **{**SMALL, "epochs": 1})
    assert said == 5 * ["alone", "backward", "alone", "backward", "backward"]


# Recomputed activations


class Restless(nn.Module):
    """A part with all that must not move twice: batch norm, dropout, a buffer that it reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width, momentum=None)
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("passes", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
        active = self.dropout(self.norm(self.convolution(features)).relu())
        return features + active * self.passes


def restless() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        *(Restless(8) for _ in range(6)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


class Growing(nn.Module):
    """Its parts are given a list that goes on growing, and write into what they made themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Joining(3 + 4 * index) for index in range(4))
        self.classifier = nn.Linear(19, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = [images]
        for layer in self.layers:
            features.append(layer(features))
        return self.classifier(torch.cat(features, 1).mean((2, 3)))


class _Joining(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 16, 1), nn.ReLU(inplace=True), nn.Conv2d(16, 4, 3, padding=1)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        return super().forward(torch.cat(features, 1)).tanh()


NETWORKS = {
    "wrn": (lambda: at.models.build("wrn-16-1", 3), 16),
    "nin": (lambda: at.models.build("nin-thin", 3), 16),
    "timm's resnet": (lambda: at.models.build("timm:resnet10t", 3), 32),
    "timm's mobilenet": (lambda: at.models.build("timm:mobilenetv3_small_050", 3), 32),
    "timm's vit": (lambda: at.models.build("timm:test_vit", 3), 160),
    "torchvision's shufflenet": (lambda: at.models.build("torchvision:shufflenet_v2_x0_5", 3), 32),
    "buffers and dropout": (restless, 16),
    "a growing list": (Growing, 16),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_with_recomputation_is_bit_equal(name: str) -> None:
    """Loss, gradients, buffers and random state, over two steps; and less is kept."""
    build, size = NETWORKS[name]
    torch.manual_seed(0)
    plain = build()
    again = copy.deepcopy(plain)
    names = list(state(again))
    before, mode = state(again), [module.training for module in again.modules()]
    plan = plan_recomputation(again, torch.rand(1, 3, size, size))
    assert plan.parts
    assert plan.share < 0.95
    assert all(torch.equal(value, before[name]) for name, value in state(again).items())
    assert [module.training for module in again.modules()] == mode
    images, labels = torch.rand(4, 3, size, size), torch.tensor([0, 1, 2, 0])
    for network, parts in ((plain, []), (again, list(plan.parts.values()))):
        network.train()
        torch.manual_seed(1)
        for _ in range(2):
            with recomputing(parts):
                loss = nn.functional.cross_entropy(network(images), labels)
            loss.backward()
        network.drawn, network.loss = torch.rand(3), loss.detach()
    assert torch.equal(plain.loss, again.loss)
    assert torch.equal(plain.drawn, again.drawn)
    assert list(state(again)) == names
    assert all(torch.equal(value, state(again)[name]) for name, value in state(plain).items())
    assert all(map(torch.equal, gradients(plain), gradients(again)))
    assert not any("forward" in vars(module) for module in again.modules())


def test_batch_statistics_move_once_by_hand() -> None:
    network = nn.Sequential(nn.Sequential(nn.BatchNorm1d(2, momentum=0.5), nn.Tanh()))
    with recomputing([network[0]]):
        loss = network(torch.tensor([[1.0, 0.0], [3.0, 0.0]])).sum()
    loss.backward()
    assert network[0][0].running_mean.tolist() == [1, 0]
    assert network[0][0].num_batches_tracked == 1


def bytes_kept(network: nn.Module, images: Tensor, parts: list[nn.Module]) -> int:
    """By autograd, after the forward pass: each storage once, without weights and images."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), images)}
    own |= {tensor.untyped_storage().data_ptr() for tensor in network.buffers()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), recomputing(parts):
        network(images)
    return sum(kept.values())


def test_saved_bytes_are_those_of_the_plan() -> None:
    """The oracle: what autograd hands to hooks of its own, which the plan does not look at."""
    network = at.models.build("wrn-40-1", 10)
    images = torch.rand(2, 3, 32, 32)
    activations = Activations(network, images)
    assert activations.peak(())[0] == bytes_kept(network, images, [])
    names = lightest_parts(activations)
    assert names == [f"group{group}.{block}" for group in (1, 2, 3) for block in range(6)]
    parts = [network.get_submodule(name) for name in names]
    kept = bytes_kept(network, images, parts)
    assert kept < 0.3 * bytes_kept(network, images, [])
    assert activations.peak(names)[0] >= kept


def test_a_module_that_overwrites_its_input_is_not_recomputed() -> None:
    class Overwriting(nn.Sequential):
        def forward(self, features: Tensor) -> Tensor:
            return super().forward(features.add_(1))

    blocks = [Overwriting(nn.Conv2d(4, 4, 1), nn.Tanh(), nn.Conv2d(4, 4, 1)) for _ in range(4)]
    network = nn.Sequential(nn.Conv2d(3, 4, 1), *blocks, nn.Flatten())
    activations = Activations(network, torch.rand(1, 3, 8, 8))
    assert not {"1", "2", "3", "4"} & set(activations.parts())


def test_taps_see_one_pass_and_their_features_get_gradients() -> None:
    """Points at the end of a part and inside of it, over several steps."""
    torch.manual_seed(0)
    plain, teacher = at.models.build("wrn-16-1", 3), at.models.build("wrn-10-1", 3)
    again = copy.deepcopy(plain)
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    parts = list(plan_recomputation(again, images[:1]).parts.values())
    pairs = "group1.0.conv1:group1,group2:group2,group3.1.norm2:group3"
    terms = [at.CrossEntropy(), at.ActivationAttention(pairs=pairs), at.FullActivation(1.0, pairs)]
    copied = copy.deepcopy(terms)
    torch.manual_seed(1)
    first = at.Transfer(plain, teacher, terms, example_input=images[:1])
    torch.manual_seed(1)
    second = at.Transfer(again, teacher, copied, example_input=images[:1])
    for _ in range(3):
        one = first(images, labels)
        one.loss.backward()
        with recomputing(parts):
            other = second(images, labels)
        other.loss.backward()
        assert one.terms == other.terms
        assert all(map(torch.equal, gradients(first), gradients(second)))
    assert all(not module._forward_hooks for module in again.modules())


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of its compiler's
def test_a_compiled_network_recomputes_its_modules_too() -> None:
    torch.manual_seed(0)
    plain = restless()
    again = copy.deepcopy(plain)
    images = torch.rand(4, 3, 16, 16)
    parts = list(plan_recomputation(again, images[:1]).parts.values())
    compiled = torch.compile(again, backend="aot_eager")
    for network in (plain, compiled):
        torch.manual_seed(1)
        with recomputing([] if network is plain else parts):
            loss = network(images).square().sum()
        loss.backward()
    assert all(map(torch.allclose, gradients(plain), gradients(again)))
    theirs = state(plain)
    assert all(torch.allclose(value, theirs[name]) for name, value in state(again).items())


def test_forwards_come_back_after_an_error() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    network[0].forward = own = lambda features: features
    with pytest.raises(KeyError), recomputing([network, network[0]]):
        assert "forward" in vars(network)
        raise KeyError
    assert "forward" not in vars(network)
    assert network[0].forward is own


@pytest.mark.usefixtures("small_runs")
@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulate": 3}, {"freeze": "stem,group1", "pairs": "auto-2"}, {"precision": "bf16"}],
    ids=str,
)
def test_whole_runs_with_recomputation_are_bit_equal(
    teacher: Run, settings: dict[str, Any]
) -> None:
    common = {"teacher": str(teacher.folder), "student": "wrn-16-1", "kd_alpha": 0.5}
    common |= {**SMALL, "epochs": 2, **settings}
    plain = at.distill(out="plain", **common)
    again = at.distill(out="again", grad_checkpoint=True, **common)
    assert weights(plain).keys() == weights(again).keys()
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(plain).items())
    assert timeless(plain.metrics) == timeless(again.metrics)
    assert plain.record.final == again.record.final


def test_frozen_modules_are_not_recomputed(teacher: Run) -> None:
    config = RunConfig.checked(
        {"student": "wrn-16-1", "freeze": "stem,group1", "grad_checkpoint": True, **SMALL}
    )
    parts = set_up_run(config, RunObjects(data=small_data())).recomputation.parts
    assert parts
    assert not any(name.startswith("group1") for name in parts)


def test_a_network_that_gives_other_results_the_second_time_is_refused() -> None:
    class Counting(nn.Sequential):
        count = 0

        def forward(self, features: Tensor) -> Tensor:
            self.count += 1
            return super().forward(features) * self.count

    blocks = [Counting(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(4)]
    network = nn.Sequential(nn.Flatten(), *blocks)
    with pytest.raises(InputError, match=r"gives other results.*leave out --grad-checkpoint"):
        plan_recomputation(network, torch.rand(1, 1, 2, 2))


# The command line


@pytest.mark.usefixtures("small_runs")
def test_both_flags_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    small = "--epochs 1 --batch-size 10 --precision fp32 --no-report --out run"
    command = f"train --model wrn-16-1 {small} --accumulate 2 --grad-checkpoint"
    assert main(command.split()) == 0
    said = capsys.readouterr()
    assert re.search(
        r"wrn-16-1 recomputes the activations inside 6 modules \(group1.0, group1.1, ...,\s+"
        r"group3.1\)\s+in the\s+backward pass\s+and\s+holds\s+about \d\d% of its activations",
        said.out + said.err,
    )
    config = json.loads(Path("run/record.json").read_text())["config"]
    assert (config["accumulate"], config["grad_checkpoint"]) == (2, True)


@pytest.mark.usefixtures("small_runs")
@pytest.mark.parametrize(
    ("command", "match"),
    [
        ("--accumulate 6 --batch-size 10", "accumulate is '6', it should be at most 5.*two images"),
        ("--accumulate 2 --batch-size 1", "accumulate is '2', it should be at most 1"),
        ("--accumulate 0", "accumulate is '0', it should be greater than or equal to 1"),
        (
            "--grad-checkpoint --input-gradient-norm-beta 0.1",
            "gradient terms differentiate the backward pass.*leave one of them out",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    command: str, match: str, teacher: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = "distill --teacher teacher --student wrn-10-1 --precision fp32 --out x "
    assert main((begin + command).split()) == 2
    assert re.search(match, capsys.readouterr().err)
    assert not Path("x").exists()


def test_a_network_without_modules_to_recompute_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    with pytest.raises(InputError, match=r"no modules whose recomputation .*--accumulate"):
        plan_recomputation(network, torch.rand(1, 3, 4, 4))
