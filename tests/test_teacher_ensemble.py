"""Several teachers: their maps averaged, their logits averaged, their points by number."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import attention_transfer as at
from attention_transfer.errors import InputError
from attention_transfer.models import WideResNet
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.runs import Run
from attention_transfer.transfer.pairing import PairingSide, resolve_pairs
from conftest import SMALL

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


def network(seed: int, width: int = 1, classes: int = 3) -> WideResNet:
    torch.manual_seed(seed)
    return WideResNet(10, width, classes=classes)


class Patches(nn.Module):
    """A teacher of another kind: one 4x4 map."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        self.head = nn.Linear(6, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stem(images).mean(dim=(2, 3)))  # type: ignore[no-any-return]


def test_the_mean_of_maps_is_that_of_unit_vectors_at_the_smallest_size() -> None:
    large = torch.rand(2, 8, 6)
    small = 1000 * torch.rand(2, 4, 7)
    expected = torch.stack(
        [
            functional.normalize(functional.adaptive_avg_pool2d(maps, (4, 6)).flatten(1))
            for maps in (large, small)
        ]
    ).mean(dim=0)
    mean = at.maps.mean_map([large, small])
    assert mean.shape == (2, 4, 6)
    torch.testing.assert_close(mean.flatten(1), expected)
    assert at.maps.mean_map([large]) is large


def test_the_terms_see_the_mean_of_all_teachers() -> None:
    """Against the formulas, written out: maps, soft targets and the gradient of the mean."""
    student, teachers = network(0), [network(1, 2), Patches()]
    pair = "group3:0.group3+1.stem"
    own = Preprocessing((0.5,) * 3, (0.25,) * 3, size=(24, 24))
    terms = [
        at.ActivationAttention(pairs=pair),
        at.KnowledgeDistillation(),
        at.GradientAttention(beta=1.0),
    ]
    transfer = at.Transfer(
        student.eval(), teachers, terms, example_input=IMAGES, teacher_normalization=[None, own]
    )
    out = transfer(IMAGES, LABELS)

    images = IMAGES.clone().requires_grad_()
    theirs = [teachers[0](images), teachers[1](own(images))]
    mean = torch.stack(theirs).mean(dim=0)
    assert out.teacher_logits is not None
    torch.testing.assert_close(out.teacher_logits, mean)
    geometric = torch.stack([each.softmax(1).log() for each in theirs]).mean(dim=0).exp()
    torch.testing.assert_close(
        out.teacher_logits.softmax(1), functional.normalize(geometric, p=1, dim=1)
    )

    features = at.attention_maps(teachers[0], IMAGES, points=["group3"])["group3"]
    stem = at.maps.activation_map(teachers[1].stem(own(IMAGES)))
    ours = at.attention_maps(student, IMAGES, points=["group3"])["group3"]
    teacher_map = sum(
        functional.normalize(functional.adaptive_avg_pool2d(maps, (4, 4)).flatten(1))
        for maps in (features, stem)
    )
    expected = functional.normalize(ours.flatten(1)) - functional.normalize(teacher_map)
    torch.testing.assert_close(out.raw_terms["activation_attention"], expected.square().mean())
    assert out.maps["activation_attention"][pair].teacher.shape == (4, 4, 4)

    loss = functional.cross_entropy(mean, LABELS, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    images = IMAGES.clone().requires_grad_()
    loss = functional.cross_entropy(student(images), LABELS, reduction="sum")
    difference = torch.autograd.grad(loss, images)[0] - gradient
    torch.testing.assert_close(
        out.raw_terms["gradient_attention"], difference.flatten(1).norm(dim=1).mean() / 2
    )
    (description,) = transfer.pair_descriptions
    assert description.teacher_shapes == ((128, 4, 4), (6, 6, 6))


def test_teachers_are_frozen_moved_and_never_trained() -> None:
    teachers = [network(1), network(2, 2)]
    transfer = at.Transfer(network(0), teachers, [at.ActivationAttention()], example_input=IMAGES)
    for teacher in teachers:
        teacher.train()
    transfer(IMAGES).loss.backward()
    assert not any(teacher.training for teacher in teachers)
    assert not any(p.requires_grad for teacher in teachers for p in teacher.parameters())
    transfer.double()
    assert {p.dtype for teacher in teachers for p in teacher.parameters()} == {torch.float64}
    assert len(list(transfer.parameters())) == len(list(network(0).parameters()))


def test_auto_joins_what_meets_the_same_point_of_the_student() -> None:
    class Shallow(nn.Sequential):
        attention_points = ("late",)

    shallow = Shallow()
    shallow.add_module("early", nn.Conv2d(3, 4, 3, padding=1))
    shallow.add_module("late", nn.MaxPool2d(4))
    sides = [PairingSide(each, (3, 16, 16)) for each in (network(0), network(1), shallow)]
    pairing = resolve_pairs("auto", *sides)
    assert list(map(str, pairing.pairs)) == [
        "group1:0.group1",
        "group2:0.group2",
        "group3:0.group3+1.late",
    ]
    assert resolve_pairs("auto-1", *sides).pairs == pairing.pairs[-1:]
    (pair,) = resolve_pairs("group?:0.group?+0.group?", *sides).pairs[2:]
    assert pair.teacher_points == ("0.group3", "0.group3")
    (pair,) = resolve_pairs("group3:00.group3+1.late", *sides).pairs
    assert pair.teacher_points == ("0.group3", "1.late")
    (pair,) = resolve_pairs("group3:group2+group3", *sides[:2]).pairs
    assert pair.teacher_points == ("group2", "group3")


@pytest.mark.parametrize(
    ("pairs", "match"),
    [
        ("group3:group3", r"'group3'.*0 to 1, such as 0\.group3"),
        ("group3:2.group3", "0 to 1"),
        ("group3:0.group3+1.groop3", "did you mean group3"),
        ("group?:0.group?+1.group1", "mean 3 and 1 teacher points"),
        ("group3:0.group3+", "0 to 1"),
    ],
)
def test_points_that_no_teacher_has_are_refused(pairs: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        at.Transfer(
            network(0),
            [network(1), network(2)],
            [at.ActivationAttention(pairs=pairs)],
            example_input=IMAGES,
        )


def test_whole_activations_need_one_teacher_point_each() -> None:
    teachers = [network(1), network(2, 2)]
    with pytest.raises(InputError, match="2 teacher points, and only attention maps"):
        at.Transfer(network(0), teachers, [at.FullActivation()], example_input=IMAGES)
    terms = [at.FullActivation(pairs="group3:0.group3,group3:1.group3")]
    assert at.Transfer(network(0), teachers, terms, example_input=IMAGES)(IMAGES).loss > 0


def test_teachers_and_normalizations_are_as_many() -> None:
    terms = [at.ActivationAttention()]
    with pytest.raises(InputError, match="got no teachers"):
        at.Transfer(network(0), [], terms)
    with pytest.raises(InputError, match="got 1 teacher normalizations for 2 teachers"):
        at.Transfer(network(0), [network(1), network(2)], terms, teacher_normalization=[None])


def test_classes_need_not_be_shared_unless_a_term_compares_them() -> None:
    """A student of images with several classes each, from teachers of other classes."""
    teachers = [network(1, classes=5), network(2, 2, classes=7)]
    student = network(0)
    terms = [at.BinaryCrossEntropy(), at.ActivationAttention(beta=100.0)]
    transfer = at.Transfer(student, teachers, terms, example_input=IMAGES)
    labels = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]])
    optimizer = torch.optim.SGD(transfer.parameters(), lr=0.05)
    first = last = transfer(IMAGES, labels)
    for _ in range(10):
        last = transfer(IMAGES, labels)
        optimizer.zero_grad()
        last.loss.backward()
        optimizer.step()
    assert all(last.terms[name] < first.terms[name] for name in last.terms)
    torch.testing.assert_close(
        first.raw_terms["binary_cross_entropy"],
        functional.binary_cross_entropy(first.logits.sigmoid(), labels.float()).detach(),
    )
    for term in (at.KnowledgeDistillation(), at.GradientAttention(beta=1.0)):
        with pytest.raises(InputError, match=r"classes"):
            at.Transfer(student, teachers, [term], example_input=IMAGES)


@pytest.mark.parametrize("labels", [torch.ones(4, 3), torch.ones(4, 3, dtype=torch.long)])
def test_cross_entropy_refuses_labels_of_several_classes(labels: Tensor) -> None:
    with pytest.raises(InputError, match="use BinaryCrossEntropy"):
        at.Transfer(network(0), terms=[at.CrossEntropy()])(IMAGES, labels)
    with pytest.raises(InputError, match="use CrossEntropy"):
        at.Transfer(network(0), terms=[at.BinaryCrossEntropy()])(IMAGES, LABELS)


def test_a_folder_may_have_a_comma_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    assert at.models.split_models(str(tmp_path / "a,b")) == [str(tmp_path / "a,b")]


def test_a_run_with_two_teachers(teacher: Run) -> None:
    other = at.train(model="nin-thin", out="nin", **SMALL)
    teachers = f"{teacher.folder},{other.folder}"
    run = at.distill(teacher=teachers, student="wrn-10-1", out="two", kd_alpha=0.5, **SMALL)
    assert run.config.teacher == teachers  # type: ignore[union-attr]
    assert run.record.teacher.name == "wrn-10-1,nin-thin"
    networks = [one.load().network for one in (teacher, other)]
    parameters = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert run.record.teacher.parameters == sum(parameters)
    assert [pair.teacher for pair in run.record.pairs] == [
        f"0.group{stage}+1.block{stage}" for stage in (1, 2, 3)
    ]
    assert len(run.record.pairs[0].teacher_shapes) == 2
