"""beta="auto": layer pairs weighed by the norms of gradients."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.errors import InputError
from attention_transfer.runs import Run
from attention_transfer.runs.record import read_metrics
from attention_transfer.transfer.gradient_balance import balanced_beta, is_measured
from conftest import SMALL, CrashAfter, CrashError, Listening

IMAGES = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3


def network(width: int, inplace: bool = True) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(width, width, 3, 2, 1),
        nn.ReLU(inplace=inplace),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )


PAIRS = ["0:0", "2:2"]


def transfer_of(*more: Any, beta: Any = "auto", pairs: str = "0:0,2:2", **settings: Any) -> Any:
    attention = at.ActivationAttention(beta=beta, pairs=pairs, **settings)
    return at.Transfer(
        network(4), network(8), [*at.distillation_terms(alpha=0.5), attention, *more]
    )


def expected_norms(transfer: Any, betas: dict[str, float]) -> tuple[list[float], list[float]]:
    """Return N and A of both pairs, by a pass that is written out layer by layer."""
    student, teacher = copy.deepcopy(transfer.student), copy.deepcopy(transfer.teacher.network)
    for module in student.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    with torch.no_grad():
        first = teacher.eval()[0](IMAGES)
        second = teacher[2](first.relu())
        teacher_logits = teacher[4:](second.relu())
        maps = [functional.normalize(one.square().sum(1).flatten(1)) for one in (first, second)]

    def attention(features: Tensor, of_teacher: Tensor) -> Tensor:
        own = functional.normalize(features.square().sum(1).flatten(1))
        return (own - of_teacher).square().mean()

    low = student[0](IMAGES).detach().requires_grad_()
    high = student[2](low.relu())
    high.retain_grad()
    logits = student[4:](high.relu())
    task = 0.5 * functional.cross_entropy(logits, LABELS) + 0.5 * 16 * functional.kl_div(
        (logits / 4).log_softmax(1), (teacher_logits / 4).softmax(1), reduction="batchmean"
    )
    low_loss, high_loss = attention(low, maps[0]), attention(high, maps[1])
    of_high = torch.autograd.grad(task, high, retain_graph=True)[0]
    # A pair's task includes what later pairs send down, as they are weighed in this step.
    of_low = torch.autograd.grad(task + betas["2:2"] * high_loss, low, retain_graph=True)[0]
    terms = [
        torch.autograd.grad(loss, at_point, retain_graph=True)[0]
        for loss, at_point in ((low_loss, low), (high_loss, high))
    ]
    norms = [float(one.norm()) for one in (of_low, of_high)]
    return norms, [float(one.norm()) for one in terms]


def step(transfer: Any, optimizer: Any = None, scale: float = 1.0) -> Any:
    out = transfer(IMAGES, LABELS)
    transfer.zero_grad()
    (out.loss * scale).backward()
    if optimizer is not None:
        optimizer.step()
    return out


def betas_of(out: Any) -> dict[str, float]:
    return {pair: float(beta) for pair, beta in out.betas["activation_attention"].items()}


def test_the_weights_are_those_of_an_independent_computation() -> None:
    transfer = transfer_of()
    optimizer = torch.optim.SGD(transfer.parameters(), 0.05)
    means: list[list[float]] = []
    betas = dict.fromkeys(PAIRS, 0.0)
    for number in range(4):
        norms = expected_norms(transfer, betas)
        out = step(transfer, optimizer)
        assert betas_of(out) == pytest.approx(betas, rel=1e-4), number
        raw = {name: float(value) for name, value in out.raw_terms.items()}
        assert out.loss.item() == pytest.approx(sum(map(float, out.terms.values())))
        assert raw["activation_attention"] > 0
        new = [list(one) for one in norms]
        means = (
            new
            if not means
            else [
                [0.9 * old + 0.1 * value for old, value in zip(*both, strict=True)]
                for both in zip(means, new, strict=True)
            ]
        )
        betas = {
            pair: min(1000, task / (math.sqrt(2) * term))
            for pair, task, term in zip(PAIRS, *means, strict=True)
        }
    assert all(0 < beta < 1000 for beta in betas.values())  # the bound does not hide the rest


def test_the_first_step_measures_only_and_the_sum_stays_the_loss() -> None:
    transfer = transfer_of()
    first, second = step(transfer), step(transfer)
    assert float(first.terms["activation_attention"]) == 0
    assert float(second.terms["activation_attention"]) > 0
    for out in (first, second):
        assert torch.equal(out.loss, sum(out.terms.values()))


@pytest.mark.parametrize("scale", [2.0**16, 1e-3])
def test_a_scaled_loss_changes_no_weight(scale: float) -> None:
    plain, scaled = transfer_of(), transfer_of()
    for _ in range(3):
        one, other = step(plain), step(scaled, scale=scale)
    assert betas_of(one) == pytest.approx(betas_of(other), rel=1e-5)


def test_a_gradient_that_is_not_finite_is_not_measured() -> None:
    transfer = transfer_of()
    step(transfer)
    before = betas_of(step(transfer))
    step(transfer, scale=math.inf)
    assert betas_of(step(transfer)) == pytest.approx(before, rel=0.2)


def test_the_gradients_are_those_without_measuring() -> None:
    """Watching a pass must not change it, whether a step is measured or not."""
    watched, plain = transfer_of(beta=30.0), transfer_of(beta=30.0)
    watched.measure_gradients()
    for _ in range(12):
        step(watched)
        step(plain)
        for one, other in zip(watched.parameters(), plain.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)
    ratios = watched.gradient_balance.ratios(dict.fromkeys(watched.terms, 30.0))
    assert set(ratios["activation_attention"]) == set(PAIRS)


def end_together(balances: list[Any]) -> None:
    """End a step of several processes, here one after another."""
    own: list[Tensor] = []
    for balance in balances:
        copy.deepcopy(balance).end_step(lambda values: own.append(values) or values)
    for balance in balances:
        balance.end_step(lambda _: sum(own))


def test_micro_batches_and_processes_give_the_weights_of_the_whole_batch() -> None:
    def without_batch_norm() -> Any:
        transfer = transfer_of()
        transfer.student[0][1].eval()
        transfer.gradient_balance.steps_by_hand = True
        return transfer

    whole, parts = without_batch_norm(), without_batch_norm()
    processes = [without_batch_norm(), without_batch_norm()]
    for _ in range(2):
        step(whole)
        whole.gradient_balance.end_step()
        for part, share in ((slice(0, 3), 3), (slice(3, 8), 5)):
            out = parts(IMAGES[part], LABELS[part])
            (out.loss * share / 8).backward()
        parts.gradient_balance.end_step()
        for process, part in zip(processes, (slice(0, 3), slice(3, 8)), strict=True):
            process(IMAGES[part], LABELS[part]).loss.backward()
        end_together([process.gradient_balance for process in processes])
    expected = whole.gradient_balance.beta("activation_attention")
    assert expected.min() > 0
    for transfer in (parts, *processes):
        found = transfer.gradient_balance.beta("activation_attention")
        assert torch.allclose(found, expected, rtol=1e-4)


def test_bfloat16_and_checkpointed_networks_are_measured_as_others() -> None:
    plain = transfer_of()
    lower, recomputing = transfer_of(), transfer_of()
    inner = recomputing.student[2].forward
    recomputing.student[2].forward = lambda x: checkpoint(inner, x, use_reentrant=False)
    for _ in range(3):
        expected = betas_of(step(plain))
        with torch.autocast("cpu", torch.bfloat16):
            in_lower = betas_of(step(lower))
        assert betas_of(step(recomputing)) == pytest.approx(expected, rel=1e-4)
    assert in_lower == pytest.approx(expected, rel=0.1)


def test_tokens_of_transformers_are_measured() -> None:
    torch.manual_seed(0)
    transfer = at.Transfer(
        build("timm:test_vit@random"),
        build("timm:test_resnet@random"),
        [at.CrossEntropy(), at.ActivationAttention("auto", pairs="auto-1")],
        example_input=torch.rand(2, 3, 160, 160),
    )
    images, labels = torch.rand(2, 3, 160, 160), torch.tensor([0, 1])
    for _ in range(2):
        out = transfer(images, labels)
        out.loss.backward()
    assert min(betas_of(out).values()) > 0


def build(name: str) -> nn.Module:
    import timm

    return timm.create_model(name.removeprefix("timm:").partition("@")[0], num_classes=3)


def test_a_compiled_student_is_measured_too() -> None:
    compiled, eager = transfer_of(), transfer_of()
    for transfer in (compiled, eager):
        transfer.student.eval()
    compiled.compile_passes()
    for _ in range(12):  # of which not all are measured
        one, other = step(compiled), step(eager)
    compiled.remove_compiled_passes()
    assert betas_of(one) == pytest.approx(betas_of(other), rel=1e-3)
    assert torch.allclose(one.loss, other.loss, rtol=1e-4)


@pytest.mark.parametrize("kind", [at.GradientAttention, at.InputGradientNorm])
def test_gradient_terms_are_part_of_what_arrives(kind: Any) -> None:
    """A parameter of zeros at the point gets the gradient that arrives there."""
    transfer = transfer_of(kind(10.0), pairs="2:2")
    transfer.student[1].inplace = transfer.student[3].inplace = False
    with_zeros = at.Transfer(
        copy.deepcopy(transfer.student),
        copy.deepcopy(transfer.teacher.network),
        [*at.distillation_terms(alpha=0.5), kind(10.0)],
    )
    zeros = torch.zeros(8, 4, 6, 6, requires_grad=True)
    with_zeros.student[2].register_forward_hook(lambda *call: call[2] + zeros[: len(call[2])])
    step(with_zeros)  # its trials, of fewer images, add to the gradient as well
    zeros.grad = None
    step(with_zeros)
    without = transfer_of(pairs="2:2")
    for one in (transfer, without):
        step(one)
        one.gradient_balance.end_step()
    found, plain = (float(one.gradient_balance.task_norms) for one in (transfer, without))
    assert found == pytest.approx(float(zeros.grad.norm()), rel=1e-4)
    assert abs(found - plain) > 1e-3 * plain


def test_a_point_of_a_reentrant_checkpoint_is_measured() -> None:
    plain, recomputing = transfer_of(pairs="2:2"), transfer_of(pairs="2:2")
    inner = recomputing.student[2].forward
    recomputing.student[2].forward = lambda x: checkpoint(inner, x, use_reentrant=True)
    for _ in range(3):
        one, other = step(plain), step(recomputing)
    assert betas_of(one)["2:2"] > 0
    assert betas_of(other) == pytest.approx(betas_of(one), rel=1e-4)


def test_half_precision_measures_as_others_do() -> None:
    """The gradient of an unscaled loss of many features is below float16's numbers."""
    torch.manual_seed(0)
    images, labels = torch.rand(16, 3, 64, 64), torch.arange(16) % 3
    betas = []
    for dtype in (torch.float32, torch.float16):
        torch.manual_seed(0)
        transfer = at.Transfer(
            network(32),
            network(48),
            [at.CrossEntropy(), at.ActivationAttention("auto", pairs="0:0,2:2")],
        )
        for _ in range(2):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                out = transfer(images, labels)
            (out.loss * 1024).backward()
        betas.append(betas_of(out))
    assert betas[1] == pytest.approx(betas[0], rel=0.05)


def test_looks_at_the_loss_are_no_steps() -> None:
    looking, plain = transfer_of(), transfer_of()
    for _ in range(8):
        looking(IMAGES, LABELS)
        one, other = step(looking), step(plain)
    assert betas_of(one) == pytest.approx(betas_of(other), rel=1e-3)


def test_a_weight_that_becomes_auto_later_is_refused() -> None:
    transfer = transfer_of(beta=30.0)
    transfer.terms["activation_attention"].beta = "auto"
    with pytest.raises(InputError, match="after the Transfer was built"):
        step(transfer)


def test_means_are_taken_over_by_the_names_of_pairs() -> None:
    first, second = transfer_of(pairs="0:0,2:2"), transfer_of(pairs="2:2,0:0,1:1")
    for _ in range(2):
        step(first)
    first.gradient_balance.end_step()
    second.load_state_dict(first.state_dict())
    known = first.gradient_balance.term_norms.tolist()
    assert second.gradient_balance.term_norms[:2].tolist() == known[::-1]
    assert second.gradient_balance.term_norms[2].isnan()
    assert second.gradient_balance.steps == first.gradient_balance.steps == 2


def test_every_term_that_compares_layers_takes_it() -> None:
    class MeanActivation(at.PairTerm):
        name = "mean_activation"

        def loss(self, pair: Any) -> Tensor:
            return (pair.student_features.mean(1) - pair.teacher_features.mean(1)).square().mean()

    transfer = at.Transfer(
        network(4),
        network(8),
        [
            at.CrossEntropy(),
            at.FullActivation("auto", pairs="2:2"),
            MeanActivation("auto", pairs="0:0"),
            at.ActivationAttention(5.0, pairs="0:0"),
        ],
        example_input=IMAGES,
    )
    for _ in range(2):
        out = step(transfer)
    assert set(out.betas) == {"full_activation", "mean_activation"}
    for name, betas in out.betas.items():
        (beta,) = betas.values()
        assert float(out.terms[name]) == pytest.approx(float(beta * out.raw_terms[name]))
        assert beta > 0


def test_other_terms_and_words_are_refused() -> None:
    with pytest.raises(InputError, match="got 'auto', which is for terms that compare layers"):
        at.CrossEntropy("auto")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 0, or \"auto\", got 'automatic'"):
        at.ActivationAttention("automatic")  # type: ignore[arg-type]

    class OwnForward(at.PairTerm):
        name = "own_forward"

        def loss(self, pair: Any) -> Tensor:
            raise NotImplementedError

        def forward(self, inputs: at.TermInputs) -> Tensor:
            return inputs.pairs[0].student_features.mean()

    with pytest.raises(InputError, match="own forward"):
        at.Transfer(network(4), network(8), [OwnForward("auto", pairs="2:2")])


positive = st.floats(1e-6, 1e6)


@given(positive, st.lists(positive, min_size=1, max_size=20), positive)
def test_the_rule_bounds_the_growth_of_the_gradient(
    task: float, terms: list[float], largest: float
) -> None:
    """Of orthogonal gradients, one pair after another on the way down through the network."""
    arriving = task
    for term in terms:
        norms = torch.tensor(arriving), torch.tensor(term)
        beta = float(balanced_beta(*norms, len(terms), largest))
        assert 0 < beta <= largest * (1 + 1e-6)
        arriving = math.hypot(arriving, beta * term)
    assert arriving <= task * math.sqrt(math.e) * (1 + 1e-4)


def test_the_rule_at_its_edges() -> None:
    task = torch.tensor([0.0, 1.0, math.nan, 1.0, 0.0])
    term = torch.tensor([1.0, 0.0, 1.0, math.nan, 0.0])
    assert balanced_beta(task, term, 1, 7.0).tolist() == [0, 7, 0, 0, 0]


def test_fewer_and_fewer_steps_are_measured() -> None:
    measured = [number for number in range(100_000) if is_measured(number)]
    assert measured[:9] == [*range(9)]
    gaps = np.diff(measured)
    assert gaps.max() == 64
    assert (np.diff(gaps) >= 0).all()
    assert len(measured) / 100_000 < 0.017


def test_a_state_dict_goes_on_where_it_was() -> None:
    whole = transfer_of()
    for _ in range(11):
        step(whole)
    whole.gradient_balance.end_step()
    other = transfer_of()
    other.load_state_dict(whole.state_dict())
    whole.gradient_balance._begun = False
    for _ in range(3):
        one, two = step(whole), step(other)
    assert betas_of(one) == betas_of(two)
    student = whole.student.state_dict()
    assert not any("balance" in name for name in student)


ARMS = {"cross": {}, "kd": {"kd_alpha": 0.5}, "accumulated": {"accumulate": 2}}


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_prints_records_and_resumes_its_weights(
    tmp_path: Path, teacher: Run, arm: str
) -> None:
    settings = {**SMALL, **ARMS[arm], "teacher": teacher.folder, "student": "wrn-10-1"}
    listening = Listening()
    whole = at.distill(out=tmp_path / "whole", beta="auto", progress=listening, **settings)
    with pytest.raises(CrashError):
        at.distill(
            out=tmp_path / "run",
            beta="auto",
            progress=CrashAfter(7),
            checkpoint_steps=1,
            **settings,
        )
    again = at.resume(tmp_path / "run")
    for row, other in zip(whole.metrics, again.metrics, strict=True):
        assert row.betas == other.betas
        assert set(row.betas["activation_attention"]) == {f"group{i}:group{i}" for i in (1, 2, 3)}
        assert row.gradient_ratios == other.gradient_ratios
        schedule = 1 if arm != "kd" else 1 - row.step / whole.metrics[-1].step
        for ratio in row.gradient_ratios["activation_attention"].values():
            assert 0 <= ratio <= 1.1 * (schedule + 0.1) / math.sqrt(3)
    files = [load_file(run.folder / "model.safetensors") for run in (whole, again)]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    lines = "\n".join(listening.lines)
    assert f"beta auto, {'linear' if arm == 'kd' else 'constant'}" in lines
    assert "| beta of activation_attention " in lines
    assert "warning" not in lines
    config = yaml.safe_load((whole.folder / "config.yaml").read_text())
    assert config["beta"] == "auto"


def test_cached_targets_give_the_weights_of_the_live_teacher(tmp_path: Path, teacher: Run) -> None:
    settings = {**SMALL, "teacher": teacher.folder, "student": "wrn-10-1", "beta": "auto"}
    live = at.distill(out=tmp_path / "live", **settings)
    cached = at.distill(out=tmp_path / "cached", cache=tmp_path / "cache", **settings)
    for row, other in zip(live.metrics, cached.metrics, strict=True):
        for pair, beta in row.betas["activation_attention"].items():
            assert other.betas["activation_attention"][pair] == pytest.approx(beta, rel=0.01)


def test_a_constant_weight_that_drowns_the_labels_is_warned_of(
    tmp_path: Path, teacher: Run
) -> None:
    settings = {**SMALL, "teacher": teacher.folder, "student": "wrn-10-1"}
    listening = Listening()
    run = at.distill(out=tmp_path / "run", beta=1e5, progress=listening, **settings)
    (line, *_) = [line for line in listening.lines if line.startswith("warning: ")]
    assert "activation_attention at group" in line
    assert "times that of everything else" in line
    assert max(run.metrics[0].gradient_ratios["activation_attention"].values()) > 2
    assert run.metrics[0].betas == {}
    quiet = Listening()
    at.distill(out=tmp_path / "quiet", beta=0.1, progress=quiet, **settings)
    assert not [line for line in quiet.lines if "times that of everything" in line]


def test_the_command_line_takes_it(tmp_path: Path, teacher: Run, capsys: Any) -> None:
    arguments = ["distill", "--teacher", str(teacher.folder), "--student", "wrn-10-1"]
    short = ["--epochs", "1", "--batch-size", "10", "--no-report", "--precision", "fp32"]
    run = [*arguments, *short, "--out", str(tmp_path / "run")]
    assert main([*run, "--beta", "auto", "--full-activation-beta", "auto"]) == 0
    (row,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert set(row.betas) == {"activation_attention", "full_activation"}
    capsys.readouterr()
    assert main([*run, "--beta", "automatic"]) == 2
    error = capsys.readouterr().err
    assert "beta is 'automatic'" in error
    assert "auto" in error.replace("automatic", "")
    assert "Traceback" not in error


CHANGES = {"pairs": {"pairs": "auto-2"}, "attention": {"attention": "none", "kd_alpha": 0.5}}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_goes_on_with_other_pairs_or_none(tmp_path: Path, teacher: Run, name: str) -> None:
    settings = {**SMALL, "teacher": teacher.folder, "student": "wrn-10-1", "beta": "auto"}
    with pytest.raises(CrashError):
        at.distill(out=tmp_path / "run", progress=CrashAfter(7), **settings)
    path = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**config, **CHANGES[name]}))
    row = at.resume(tmp_path / "run", allow_changes=True).metrics[-1]
    assert len(row.betas.get("activation_attention", {})) == (2 if name == "pairs" else 0)
