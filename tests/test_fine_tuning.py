"""Pretrained networks trained by parts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import attention_transfer as at
from attention_transfer.errors import InputError
from attention_transfer.runs import Run
from attention_transfer.training.fine_tuning import parameter_groups
from conftest import SMALL

pytestmark = pytest.mark.usefixtures("small_runs")


def test_frozen_modules_keep_their_weights_and_statistics(teacher: Run) -> None:
    run = at.distill(
        teacher=str(teacher.folder),
        student="wrn-10-1",
        freeze="stem, group[1]",
        pairs="auto-2",
        out="frozen",
        **SMALL,
    )
    with torch.random.fork_rng():
        before = at.models.load("wrn-10-1", 3, trained=False, seed=0).network.state_dict()
    after = load_file(run.folder / "model.safetensors")
    for name, value in before.items():
        same = torch.equal(value, after[name])
        assert same == name.startswith(("stem.", "group1.")), name
    assert [pair.student for pair in run.record.pairs] == ["group2", "group3"]


def test_a_point_in_a_frozen_part_is_refused(teacher: Run) -> None:
    with pytest.raises(InputError, match="point 'group1' is in a part that is frozen"):
        at.distill(
            teacher=str(teacher.folder), student="wrn-10-1", freeze="stem,group1", out="x", **SMALL
        )
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("patterns", "match"),
    [
        ("grup1", r"matches 'grup1' to freeze; did you mean group1"),
        ("*", "leaves nothing to train"),
    ],
)
def test_what_cannot_be_frozen_is_refused(patterns: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        at.train(model="wrn-10-1", freeze=patterns, out="x", **SMALL)
    assert not Path("x").exists()


def test_the_backbone_learns_slower() -> None:
    network = at.models.build("wrn-10-1", 3)
    heads = at.models.logit_layers(network, (3, 32, 32))
    assert list(heads) == ["classifier"]
    transfer = at.Transfer(network, terms=[at.CrossEntropy()])
    slow, fast = parameter_groups(transfer, 0.1, heads.values())
    assert len(slow["params"]) == len(list(network.parameters())) - 2
    assert len(fast["params"]) == 2
    assert fast["params"][0] is network.classifier.weight
    assert (slow["scale"], fast["scale"]) == (0.1, 1.0)
    still = at.train(model="wrn-10-1", backbone_lr=0, weight_decay=0, out="still", **SMALL)
    before = at.models.load("wrn-10-1", 3, trained=False, seed=0).network.state_dict()
    after = load_file(still.folder / "model.safetensors")
    moved = {
        name
        for name, value in before.items()
        if "running" not in name and "num_batches" not in name and not value.equal(after[name])
    }
    assert moved == {"classifier.weight", "classifier.bias"}


def test_the_last_pairs_are_those_of_the_top(teacher: Run) -> None:
    student, network = at.models.build("wrn-10-1", 3), at.models.load_run(teacher.folder).network
    transfer = at.Transfer(student, network, [at.ActivationAttention(pairs="auto-1")])
    assert transfer.pairings["activation_attention"].pairs == [("group3", "group3")]


def test_features_that_cannot_change_learn_no_attention(teacher: Run) -> None:
    with pytest.raises(InputError, match="backbone_lr 0"):
        at.distill(teacher=str(teacher.folder), student="wrn-10-1", backbone_lr=0, **SMALL)


def test_weights_for_other_classes_get_a_new_last_layer(teacher: Run, tmp_path: Path) -> None:
    """Of a run and of a zoo's file alike; a teacher keeps its own."""
    network = at.models.build("timm:resnet10t", classes=None)
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    file = f"timm:resnet10t@{tmp_path / 'weights.safetensors'}"
    for model, own, last in ((file, 1000, "fc"), (str(teacher.folder), 3, "classifier")):
        kept = at.models.load(model, 7, trained=True).network
        fitted = at.models.load(model, 7, trained=False, seed=1).network
        for name, value in kept.state_dict().items():
            other = fitted.state_dict()[name]
            if name.startswith(f"{last}."):
                assert (len(value), len(other)) == (own, 7)
            else:
                assert torch.equal(value, other)
        again = at.models.load(model, 7, trained=False, seed=1).network
        assert torch.equal(again.get_submodule(last).weight, fitted.get_submodule(last).weight)


def test_a_run_goes_on_from_another_runs_weights(teacher: Run) -> None:
    run = at.distill(
        teacher=str(teacher.folder), student=str(teacher.folder), lr=1e-6, epochs=1, out="on"
    )
    assert run.record.student.name == "wrn-10-1"
    before, after = (load_file(own.folder / "model.safetensors") for own in (teacher, run))
    assert torch.allclose(before["stem.weight"], after["stem.weight"], atol=1e-3)
