"""Terms of one's own, schedules, any output and input, dense logits; what is refused, and how."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import attention_transfer as at
from attention_transfer.cache.contents import Contents, contents_of
from attention_transfer.data import ImageSet
from attention_transfer.errors import InputError
from attention_transfer.transfer import TargetField, Targets, TargetSpec, map_reduction
from small_transfers import IMAGES, LABELS, Penalty, transfer_of, wide_resnet


class Similarity(at.PairTerm):
    name = "similarity"

    def loss(self, pair: at.PairInputs) -> Tensor:
        grams = [f.flatten(1) for f in (pair.student_features, pair.teacher_features)]
        rows = [functional.normalize(flat @ flat.T, dim=1) for flat in grams]
        return functional.mse_loss(*rows)


class Scaled(at.PairTerm):
    """With a parameter of its own."""

    name = "scaled"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def loss(self, pair: at.PairInputs) -> Tensor:
        return (self.scale * pair.student_features.mean() - pair.teacher_features.mean()).square()


def test_a_pair_term_of_ones_own_is_its_formula_over_the_pairs() -> None:
    transfer = transfer_of(Similarity(3.0), example_input=IMAGES[:1])
    assert [pair.effective_weight for pair in transfer.pair_descriptions] == [None] * 3
    transfer.eval()
    value = transfer(IMAGES).raw_terms["similarity"]
    expected = 0.0
    for point in transfer.student.attention_points:  # type: ignore[union-attr]
        rows = []
        for network in (transfer.student, transfer.teacher.network):  # type: ignore[union-attr]
            seen: list[Tensor] = []
            module = network.get_submodule(point)
            handle = module.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
            with torch.no_grad():
                network.eval()(IMAGES)
            handle.remove()
            flat = seen[0].flatten(1).double().numpy()
            gram = flat @ flat.T
            rows.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
        expected += ((rows[0] - rows[1]) ** 2).mean()
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_what_a_term_trains_is_the_transfers_and_never_the_students() -> None:
    transfer = transfer_of(at.CrossEntropy(), Scaled())
    term = transfer.terms["scaled"]
    assert any(parameter is term.scale for parameter in transfer.parameters())
    assert "terms.scaled.scale" in transfer.state_dict()
    assert not any("scale" in name for name in transfer.student.state_dict())
    transfer.to(torch.float64)
    assert term.scale.dtype == torch.float64
    optimizer = torch.optim.SGD(transfer.parameters(), lr=0.1)
    before = term.scale.item()
    transfer(IMAGES.double(), LABELS).loss.backward()
    optimizer.step()
    assert term.scale.item() != before


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [2, 1, 0]),
        ("cosine", [2, 1, 0]),
        ("warmup-1", [0, 1, 2]),
        ("warmup-.25", [0, 2, 2]),
        (lambda done: 1 + done, [2, 3, 4]),
    ],
)
@pytest.mark.parametrize("kind", [Penalty, Similarity, at.CrossEntropy, at.FullActivation])
def test_every_term_takes_a_schedule(kind: Any, schedule: Any, expected: list[float]) -> None:
    term = kind(2.0, schedule=schedule)
    assert [term.weight_at(done) for done in (0, 0.5, 1)] == pytest.approx(expected, abs=1e-12)


class NotCalled(at.PairTerm):
    name = "not_called"

    def __init__(self) -> None:
        pass

    def loss(self, pair: at.PairInputs) -> Tensor:
        return pair.student_features.mean()


class PlainReduction(Similarity):
    teacher_reduction = staticmethod(lambda features: features.mean())  # type: ignore[assignment]


def _named(name: Any) -> at.Term:
    term = Penalty()
    term.name = name
    return term


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: transfer_of(_named(None)), "must have a name .* got None"),
        (lambda: transfer_of(_named("my term")), "got 'my term'"),
        (lambda: transfer_of(_named("items")), "cannot have the name 'items'"),
        (lambda: transfer_of(_named("training")), "cannot have the name 'training'"),
        (lambda: transfer_of(PlainReduction()), "must have a Reduction .* got a function"),
        (lambda: transfer_of(Penalty(), logits="classes"), "logits must be a function"),
        (lambda: transfer_of(Penalty(), Penalty()), "two terms have the name 'penalty'"),
        (lambda: Penalty(-1), "weight must be a finite number of at least 0, got -1"),
        (lambda: Penalty(float("nan")), "weight must be .* got nan"),
        (lambda: Similarity("much"), "weight must be .* got 'much'"),  # type: ignore[arg-type]
        (lambda: Penalty(schedule="linaer"), "did you mean linear"),
        (
            lambda: Penalty(schedule="warmup-0"),
            "unknown schedule 'warmup-0', expected .*warmup-0.1",
        ),
        (lambda: Penalty(schedule="warmup-2"), "unknown schedule 'warmup-2'"),
        (lambda: transfer_of(Penalty), r"did you mean Penalty\(\)"),
        (lambda: transfer_of(nn.Identity()), "Identity is not a term"),
        (lambda: transfer_of(NotCalled()), r"does not call super\(\).__init__"),
        (lambda: at.Transfer(wide_resnet(), terms=Penalty()), "got one term, expected a list"),  # type: ignore[arg-type]
        (lambda: at.Transfer(wide_resnet(), terms=[Similarity()]), "similarity needs a teacher"),
    ],
)
def test_terms_that_cannot_be_summed_are_refused(build: Callable[[], object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        build()


@pytest.mark.parametrize("returned", [float("nan"), -1.0, "x", None, float("inf")])
def test_a_schedule_that_returns_no_factor_is_refused(returned: Any) -> None:
    transfer = transfer_of(Penalty(schedule=lambda _: returned))
    with pytest.raises(InputError, match="must return a finite factor of at least 0, got"):
        transfer(IMAGES, progress=0.5)


def reading(what: str, **declared: Any) -> at.Term:
    """A term that reads a property of its inputs."""

    class Reading(at.Term):
        name = "reading"

        def forward(self, inputs: at.TermInputs) -> Tensor:
            getattr(inputs, what)
            return IMAGES.sum() * 0

    for name, value in declared.items():
        setattr(Reading, name, value)
    return Reading()


@pytest.mark.parametrize(
    "what", ["logits", "teacher_logits", "pairs", "input_gradients", "teacher_gradient"]
)
def test_a_term_that_reads_what_it_does_not_declare_is_told_how(what: str) -> None:
    with pytest.raises(InputError, match=f"the term reading reads {what}, which it does not decl"):
        transfer_of(at.CrossEntropy(), reading(what))(IMAGES, LABELS)


@pytest.mark.parametrize(
    ("reduction", "what", "match"),
    [
        (map_reduction(), "teacher_features", "declares that it needs a reduction"),
        (None, "teacher_target", "declares none; set teacher_reduction"),
        (None, "teacher_map", "declares none; set teacher_reduction"),
    ],
)
def test_features_and_reductions_are_never_taken_for_each_other(
    reduction: Any, what: str, match: str
) -> None:
    class Confused(at.PairTerm):
        name = "confused"
        teacher_reduction = reduction

        def loss(self, pair: at.PairInputs) -> Tensor:
            value: Tensor = getattr(pair, what)
            return value.mean()

    with pytest.raises(InputError, match=match):
        transfer_of(Confused())(IMAGES)


@pytest.mark.parametrize("value", [torch.ones(4), 1.0, None])
def test_a_term_returns_a_scalar(value: Any) -> None:
    class Odd(at.Term):
        name = "odd"

        def forward(self, inputs: at.TermInputs) -> Tensor:
            return value  # type: ignore[no-any-return]

    with pytest.raises(InputError, match=r"the term odd returned .*, expected a scalar tensor"):
        transfer_of(Odd())(IMAGES)


@pytest.mark.parametrize("value", [torch.ones(4), 0.5, None])
def test_a_pairs_loss_is_a_scalar(value: Any) -> None:
    class Odd(at.PairTerm):
        name = "odd"

        def loss(self, pair: at.PairInputs) -> Tensor:
            return value  # type: ignore[no-any-return]

    with pytest.raises(InputError, match=r"odd returned .* for pair group1:group1, expected a"):
        transfer_of(Odd())(IMAGES)


def test_a_term_that_makes_modules_says_that_it_needs_an_example() -> None:
    class Built(Similarity):
        def build(self, pairs: Any) -> None:
            self.made = nn.Identity()

    with pytest.raises(InputError, match=r"similarity makes its modules .* example_input"):
        transfer_of(Built())(IMAGES)


# Any output, any input


class Wrapped(nn.Module):
    """Returns its logits in some guise."""

    def __init__(self, guise: Callable[[Tensor], Any], width: int = 1) -> None:
        super().__init__()
        self.inner, self.guise = wide_resnet(width), guise

    def forward(self, images: Tensor) -> Any:
        return self.guise(self.inner(images))


GUISES: dict[str, Callable[[Tensor], Any]] = {
    "out": lambda logits: {"out": logits, "aux": None},
    "logits": lambda logits: {"loss": 0.0, "logits": logits},
    "attribute": lambda logits: SimpleNamespace(logits=logits),
}


@pytest.mark.parametrize("guise", GUISES)
def test_logits_are_found_in_whatever_is_returned(guise: str) -> None:
    pairs = "inner.group3:inner.group3"
    terms = [*at.distillation_terms(0.5), at.ActivationAttention(pairs=pairs)]
    networks = Wrapped(GUISES[guise]), Wrapped(GUISES[guise], 2)
    out = at.Transfer(*networks, terms, example_input=IMAGES[:1])(IMAGES, LABELS)
    assert out.logits is not None
    assert out.logits.shape == (4, 3)
    assert not isinstance(out.output, Tensor)
    plain = at.Transfer(networks[0].inner, networks[1].inner, [*at.distillation_terms(0.5)])(
        IMAGES, LABELS
    )
    assert out.terms["cross_entropy"].item() == pytest.approx(plain.terms["cross_entropy"].item())


def test_only_terms_that_need_logits_ask_for_them() -> None:
    pairs = "inner.group3:group3"
    student = Wrapped(lambda logits: [logits, logits])
    attention = at.ActivationAttention(pairs=pairs)
    out = at.Transfer(student, wide_resnet(2), [attention], example_input=IMAGES[:1])(IMAGES)
    assert out.logits is None
    assert isinstance(out.output, list)
    with pytest.raises(InputError, match=r"cross_entropy needs the student's logits.*a list"):
        at.Transfer(student, terms=[at.CrossEntropy()])(IMAGES, LABELS)
    found = at.Transfer(
        student,
        terms=[at.CrossEntropy()],
        logits=lambda output: output[0] if isinstance(output, list) else None,
    )(IMAGES, LABELS)
    assert found.logits is not None
    with pytest.raises(InputError, match="needs the teacher's logits"):
        at.Transfer(wide_resnet(1), student, [at.KnowledgeDistillation()])(IMAGES)


class TwoInputs(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.Tanh())
        self.head = nn.Linear(width + 2, 3)

    def forward(self, images: Tensor, extra: Tensor) -> Tensor:
        features = self.second(self.first(images)).mean(dim=(2, 3))
        return self.head(torch.cat([features, extra], dim=1))  # type: ignore[no-any-return]


EXTRA = torch.rand(4, 2)


@pytest.mark.parametrize("inputs", [(IMAGES, EXTRA), {"extra": EXTRA, "images": IMAGES}])
def test_several_inputs_as_a_tuple_or_by_name(inputs: Any) -> None:
    terms = [
        *at.distillation_terms(0.5),
        at.ActivationAttention(),
        at.GradientAttention(1.0),
        at.FlipSymmetry(1.0),
    ]
    transfer = at.Transfer(
        TwoInputs(4),
        TwoInputs(8),
        terms,
        example_input=inputs,
        student_normalization=((0.5,) * 3, (0.25,) * 3),
    )
    out = transfer(inputs, LABELS)
    assert list(out.maps["activation_attention"]) == ["first:first", "second:second"]
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in transfer.parameters())
    targets = transfer.targets(inputs, LABELS)
    assert transfer(inputs, LABELS, targets=targets).loss.item() == pytest.approx(out.loss.item())
    maps = at.attention_maps(TwoInputs(4), inputs)
    assert {name: tuple(map_.shape) for name, map_ in maps.items()} == {
        "first": (4, 8, 8),
        "second": (4, 4, 4),
    }


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ((IMAGES,), r"TwoInputs.forward takes \(images, extra\), got a tuple of 1"),
        ((IMAGES, EXTRA, EXTRA), "got a tuple of 3"),
        ({"images": IMAGES, "extras": EXTRA}, "got a dictionary with images, extras"),
        ([IMAGES, EXTRA], "a tensor, a tuple of tensors .* got a list"),
        ((IMAGES, 3.0), "got one that holds float"),
    ],
)
def test_inputs_that_the_networks_do_not_take_are_refused(inputs: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        at.Transfer(TwoInputs(4), terms=[at.CrossEntropy()])(inputs, LABELS)


# One and three axes


def convolutional(axes: int, width: int) -> nn.Module:
    torch.manual_seed(width)
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[axes]
    return nn.Sequential(
        convolution(2, width, 3, 2, 1),
        nn.ReLU(inplace=True),
        convolution(width, width, 3, 2, 1),
        nn.Tanh(),
        pool(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_signals_images_and_volumes_are_transferred_alike(axes: int) -> None:
    inputs = torch.rand(4, 2, *(8,) * axes)
    terms = [
        *at.distillation_terms(0.5),
        at.ActivationAttention(),
        at.FullActivation(),
        at.GradientAttention(1.0),
    ]
    student, teacher = convolutional(axes, 4), convolutional(axes, 8)
    transfer = at.Transfer(student, teacher, terms, example_input=inputs[:1])
    out = transfer(inputs, LABELS)
    assert [tuple(maps.student.shape) for maps in out.maps["activation_attention"].values()] == [
        (4, *(4,) * axes),
        (4, *(2,) * axes),
    ]
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in transfer.parameters())
    pairs = [pair.effective_weight for pair in transfer.pair_descriptions][:2]
    assert pairs == [pytest.approx(1000 / 4**axes), pytest.approx(1000 / 2**axes)]


def test_a_video_networks_points_are_found() -> None:
    from torchvision.models.video import r3d_18

    with torch.device("meta"):
        network = r3d_18(num_classes=3)
    points = at.attention_points(network, (3, 8, 32, 32)).recommended
    assert [(point.name, point.layout.grid) for point in points] == [
        ("layer1", (8, 16, 16)),
        ("layer2", (4, 8, 8)),
        ("layer3", (2, 4, 4)),
        ("layer4", (1, 2, 2)),
    ]


# Logits for every position


def dense(size: int, width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3, 16 // size, 1), nn.ReLU(), nn.Conv2d(width, 5, 1))


def test_per_pixel_cross_entropy_and_distillation_leave_ignored_pixels_out() -> None:
    labels = torch.randint(5, (4, 16, 16), generator=torch.Generator().manual_seed(0))
    labels[:, :5] = 255
    student, teacher = dense(16, 4), dense(16, 8)
    out = at.Transfer(
        student, teacher, [*at.distillation_terms(0.5, temperature=2.0, ignore_index=255)]
    )(IMAGES, labels)
    with torch.no_grad():
        logits = [network(IMAGES).movedim(1, -1)[labels != 255] for network in (student, teacher)]
    expected = {
        "cross_entropy": functional.cross_entropy(logits[0], labels[labels != 255]),
        "knowledge_distillation": at.losses.knowledge_distillation(*logits, temperature=2.0),
    }
    for name, value in expected.items():
        assert out.raw_terms[name].item() == pytest.approx(value.item(), rel=1e-5)


def test_dense_logits_of_other_sizes_are_resized_only_if_asked() -> None:
    student, teacher = dense(16, 4), dense(8, 8)
    with pytest.raises(InputError, match=r"KnowledgeDistillation\(resize=True\)"):
        at.Transfer(student, teacher, [at.KnowledgeDistillation()])(IMAGES)
    out = at.Transfer(student, teacher, [at.KnowledgeDistillation(resize=True)])(IMAGES)
    with torch.no_grad():
        larger = functional.interpolate(
            teacher(IMAGES), (16, 16), mode="bilinear", align_corners=False
        )
        expected = at.losses.knowledge_distillation(student(IMAGES), larger)
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(InputError, match=r"takes labels of class indices .4, 16, 16."):
        at.Transfer(student, terms=[at.CrossEntropy()])(IMAGES, torch.zeros(4, 8, 8).long())
    with pytest.raises(InputError, match=r"ignore_index needs labels .4, 16, 16."):
        at.Transfer(student, dense(16, 8), [at.KnowledgeDistillation(ignore_index=0)])(
            IMAGES, torch.zeros(4, 8, 8).long()
        )


# What is kept of a teacher


MEANS = at.Reduction("means", lambda features: features.mean(dim=(2, 3)))


class Means(at.PairTerm):
    name = "means"
    teacher_reduction = MEANS

    def loss(self, pair: at.PairInputs) -> Tensor:
        return pair.student_features.mean() + pair.teacher_target.mean()


def contents(spec: TargetSpec, shapes: dict[TargetField, tuple[int, ...]]) -> Contents:
    return Contents({}, spec, shapes, (3,), (3, 16, 16), samples=4, views=1, example={})


def test_live_and_stored_targets_of_a_declared_reduction_are_the_same() -> None:
    transfer = transfer_of(Means(), at.ActivationAttention(), at.KnowledgeDistillation())
    targets = transfer.targets(IMAGES)
    assert {
        tuple(value.shape) for field, value in targets.fields.items() if field.reduction == MEANS
    } == {
        (4, 32),
        (4, 64),
        (4, 128),
    }
    shapes = {field: tuple(value.shape[1:]) for field, value in targets.fields.items()}
    kept = contents(transfer.target_spec, shapes)
    again = Contents.from_json({**kept.as_json()}).unpack(kept.pack(targets))
    for field, value in targets.fields.items():
        if field.reduction == MEANS:
            assert torch.equal(again.fields[field], value)
        else:
            unit = at.maps.normalize(value).view_as(value)
            torch.testing.assert_close(again.fields[field], unit, rtol=1e-3, atol=1e-5)
    live, cached = transfer(IMAGES, targets=targets), transfer(IMAGES, targets=again)
    assert cached.loss.item() == pytest.approx(live.loss.item(), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64])
def test_a_stored_target_of_integers_stays_one(dtype: torch.dtype) -> None:
    class Strongest(Means):
        teacher_reduction = at.Reduction(
            "strongest channel", lambda features: features.mean(dim=(2, 3)).argmax(dim=1).to(dtype)
        )

        def loss(self, pair: at.PairInputs) -> Tensor:
            assert pair.teacher_target.dtype == dtype
            return pair.student_features.mean()

    transfer = transfer_of(Strongest())
    live = transfer.targets(IMAGES)
    images = ImageSet(torch.zeros(4, 16, 16, 3, dtype=torch.uint8), LABELS)
    kept = contents_of(
        images, [], live, transfer.target_spec, data_seed=0, views=1, precision="fp32"
    )
    text = json.dumps(kept.as_json())
    stored = Contents.from_json(json.loads(text)).unpack(kept.pack(live))
    for field, value in live.fields.items():
        assert stored.fields[field].dtype == dtype
        assert torch.equal(stored.fields[field], value)
    transfer(IMAGES, targets=stored)


def test_a_reduction_that_is_a_view_keeps_the_features_of_its_point() -> None:
    """Though the layer after it overwrites them in place."""
    view = at.Reduction("a view", lambda features: features.flatten(1))

    class Views(Means):
        teacher_reduction = view

    teacher = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 16 * 16, 3)
    )
    terms = [Views(pairs="group1:0"), at.KnowledgeDistillation()]
    transfer = at.Transfer(wide_resnet(), teacher, terms)
    with torch.no_grad():
        expected = teacher[0](IMAGES).flatten(1)
    for _ in range(2):
        value = transfer.targets(IMAGES).read(TargetField("0", view))
        torch.testing.assert_close(value, expected)
    assert (expected < 0).any()


def test_a_class_may_choose_its_pairs_and_inputs_may_be_any_mapping() -> None:
    class Last(Similarity):
        pairs = "group3:group3"

    assert len(transfer_of(Last(), example_input=IMAGES[:1]).pair_descriptions) == 1
    assert len(transfer_of(Last(pairs="auto"), example_input=IMAGES[:1]).pair_descriptions) == 3


def test_without_a_graph_gradient_terms_keep_the_output_as_it_is() -> None:
    student = Wrapped(lambda logits: {"classes": logits})
    transfer = at.Transfer(
        student, terms=[at.InputGradientNorm(1.0)], logits=lambda output: output["classes"]
    )
    with torch.no_grad():
        out = transfer(IMAGES, LABELS)
    assert isinstance(out.output, dict)
    assert not out.output["classes"].requires_grad


@dataclass(frozen=True)
class Answer:
    logits: Tensor
    others: dict[str, list[Tensor]]


def test_without_a_graph_an_output_that_is_an_object_has_none_either() -> None:
    student = Wrapped(lambda logits: Answer(logits, {"parts": [logits * 2]}))
    transfer = at.Transfer(student, terms=[at.InputGradientNorm(1.0)])
    with torch.no_grad():
        out = transfer(IMAGES, LABELS)
    assert isinstance(out.output, Answer)
    assert not out.output.logits.requires_grad
    assert not out.output.others["parts"][0].requires_grad
    assert not out.loss.requires_grad


def test_what_is_too_large_to_keep_is_refused_with_its_size() -> None:
    whole, large = TargetField("a"), TargetField("a", MEANS)
    for field, shape in ((whole, (2, 4, 4)), (large, (2**15 + 1,))):
        kept = contents(TargetSpec((field,)), {field: shape})
        with pytest.raises(InputError, match=r"takes [\d,]+ bytes for each view.*cache"):
            kept.check_size()
    contents(TargetSpec((large,)), {large: (2**15,)}).check_size()


def test_a_reduction_returns_a_row_for_each_sample() -> None:
    transposed = at.Reduction("transposed", lambda features: features.flatten(1).T)
    with pytest.raises(InputError, match="'transposed' must return one row for each of the 4"):
        transposed(torch.rand(4, 2, 3, 3))
    with pytest.raises(InputError, match=r"hold nothing, expected a .whole activations. as well"):
        Targets().read(TargetField("a"))
