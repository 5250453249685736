"""Input that a Transfer or a term cannot use: each is refused in a line, or taken rightly."""

import copy
import threading
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import attention_transfer as at
from attention_transfer.errors import InputError
from attention_transfer.factories import call_factory, import_object
from attention_transfer.functional import losses
from attention_transfer.models import WideResNet
from attention_transfer.taps import main_input
from attention_transfer.training.objects import named
from attention_transfer.transfer import map_reduction, reduction_named, try_terms
from attention_transfer.transfer.targets import same_reduction
from small_transfers import IMAGES, LABELS, Penalty, transfer_of, wide_resnet


class Means(at.PairTerm):
    """With a module of its own, and a reduction that the user wrote."""

    name = "means"
    teacher_reduction = at.Reduction("mean over positions", lambda f: f.mean(dim=(2, 3)))

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name=name)
        self.scale = nn.Linear(1, 1)

    def loss(self, pair: at.PairInputs) -> Tensor:
        mean = pair.student_features.mean().view(1, 1)
        return (self.scale(mean) - pair.teacher_target.mean()).square().mean()


# Labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_any_integer_type_are_class_indices(dtype: torch.dtype) -> None:
    transfer = transfer_of(at.CrossEntropy(), at.InputGradientNorm(0.1)).eval()
    values = [transfer(IMAGES, labels).raw_terms for labels in (LABELS, LABELS.to(dtype))]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.tensor([0, 1, 2, 3]), r"got the index 3, expected 0 to 2"),
        (torch.tensor([0, -1, 2, 0]), r"got the index -1, expected 0 to 2"),
        (LABELS.float(), "indices are integers: give labels.long"),
        (LABELS.bool(), "indices are integers"),
        (functional.one_hot(LABELS, 3), r"labels.argmax\(dim=1\) of one-hot labels"),
        (torch.ones(4, 3), r"do not sum to 1 \(the first such row to 3\)"),
        (functional.one_hot(LABELS, 3) * 1.0 * LABELS[:, None].clamp(max=1), r"such row to 0\)"),
        (torch.zeros(3, dtype=torch.long), r"class indices \(4,\)"),
        (["cat", "dog", "cat", "dog"], "got a list; call transfer.images, labels. with labels"),
        (None, "None"),
    ],
)
@pytest.mark.parametrize("term", [at.CrossEntropy(), at.InputGradientNorm(0.1)])
def test_labels_that_are_none_are_refused(labels: Any, match: str, term: at.Term) -> None:
    with pytest.raises(InputError, match=match):
        transfer_of(copy.deepcopy(term))(IMAGES, labels)


@pytest.mark.parametrize("ignore_index", [-100, 255])
@pytest.mark.parametrize("shape", [(4,), (4, 5, 5)])
def test_cross_entropy_is_torchs_mean_over_the_labels_that_count(
    ignore_index: int, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, *shape[1:], generator=generator, requires_grad=True)
    labels = torch.randint(0, 3, shape, generator=generator)
    labels[1:3] = ignore_index
    ours = losses.cross_entropy(logits, labels, ignore_index)
    theirs = functional.cross_entropy(logits, labels, ignore_index=ignore_index)
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)
    nothing = losses.cross_entropy(logits, torch.full(shape, ignore_index), ignore_index)
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, logits)[0].any()


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_gradient_terms_leave_out_the_labels_that_other_terms_ignore(dtype: torch.dtype) -> None:
    terms = [at.GradientAttention(1.0), at.FlipSymmetry(1.0), at.InputGradientNorm(1.0)]
    values = []
    for ignored in (-100, 255):
        labels = LABELS.clone()
        labels[1] = ignored
        labels = labels.to(dtype if ignored == 255 else torch.int64)
        transfer = transfer_of(at.CrossEntropy(ignore_index=ignored), *copy.deepcopy(terms)).eval()
        out = transfer(IMAGES, labels)
        out.loss.backward()
        values.append(out.raw_terms)
        assert not transfer.targets(IMAGES, labels).gradient[1].any()  # type: ignore[index]
    assert values[0] == values[1]


def test_probabilities_have_no_ignored_index() -> None:
    soft = torch.full((4, 3), 1 / 3)
    transfer_of(at.CrossEntropy())(IMAGES, soft)
    with pytest.raises(ValueError, match="needs labels of class indices, got probabilities"):
        transfer_of(at.CrossEntropy(ignore_index=255))(IMAGES, soft)


# What a Transfer is made of


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: at.Transfer(None, wide_resnet(), [Penalty()]), "student must be a torch.nn.Mod"),
        (lambda: at.Transfer(wide_resnet(), "wrn-16-2", [Penalty()]), "teacher must be a torch.nn"),
        (lambda: at.Transfer(wide_resnet(), [wide_resnet(), 3], [Penalty()]), "got 3"),
        (lambda: at.Transfer(wide_resnet(), 3, [Penalty()]), "teacher must be"),
        (lambda: transfer_of(at.ActivationAttention(pairs=3)), "pairs must be 'auto'"),
        (lambda: transfer_of(at.ActivationAttention(pairs=[3])), "got the pair 3"),
        (lambda: transfer_of(at.ActivationAttention(pairs=[(1, 2)])), "got the pair '1:2'"),
        (lambda: transfer_of(at.ActivationAttention(pairs="q:group1")), "the student WideResNet"),
        (lambda: transfer_of(at.ActivationAttention(pairs="group1:q")), "the teacher WideResNet"),
        (lambda: at.Transfer(wide_resnet(), None, None), "got no terms"),
        (lambda: at.Transfer(wide_resnet(), None, 42), "got a int"),
        (lambda: at.Transfer(wide_resnet(), None, "terms"), "got a str"),
    ],
)
def test_what_a_transfer_cannot_be_made_of(build: Callable[[], object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        build()


def test_terms_may_come_from_a_generator() -> None:
    transfer = at.Transfer(wide_resnet(), None, (kind() for kind in (at.CrossEntropy, Penalty)))
    assert set(transfer.terms) == {"cross_entropy", "penalty"}


def test_an_empty_batch_is_refused() -> None:
    for terms in ([at.CrossEntropy()], [at.CrossEntropy(), at.ActivationAttention()]):
        with pytest.raises(InputError, match="the batch is empty"):
            transfer_of(*terms)(IMAGES[:0], LABELS[:0])


@pytest.mark.parametrize(
    ("logits", "match"),
    [
        (lambda output: output["classes"], "failed on a tensor"),
        (lambda output: output.numpy, "returned a builtin_function_or_method"),
        (lambda output: [output], "returned a list"),
        (lambda output: output[0], r"returned \(3,\) of a tensor \(4, 3\), expected \(N, classes"),
        (lambda output: output[:1], r"returned \(1, 3\) of a tensor \(4, 3\)"),
        (lambda output: output[:, 0], r"returned \(4,\) of a tensor \(4, 3\)"),
        (lambda output: 1 / 0, "failed on a tensor .*: ZeroDivisionError"),
        (lambda output: output @ output, "failed on a tensor .*: RuntimeError"),
    ],
)
def test_a_function_that_finds_no_logits(logits: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        transfer_of(at.CrossEntropy(), logits=logits)(IMAGES, LABELS)


class Overwriting(WideResNet):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mask.mul_(2)
        return super().forward(x)


def test_any_input_that_is_overwritten_in_place_is_noticed() -> None:
    networks = [Overwriting(10, width, classes=3) for width in (1, 2)]
    transfer = at.Transfer(*networks, [at.ActivationAttention()])
    with pytest.raises(InputError, match="overwrote its inputs in place"):
        transfer((IMAGES, torch.ones(4)))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = wide_resnet()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.network(one) + self.network(other)  # type: ignore[no-any-return]


@pytest.mark.parametrize("named", [False, True])
def test_an_input_that_is_there_twice_is_the_main_one_once(named: bool) -> None:
    values = []
    for other in (IMAGES, IMAGES.clone()):
        transfer = at.Transfer(
            Twice().eval(),
            terms=[at.InputGradientNorm(1.0)],
            student_normalization=((0.1, 0.2, 0.3), (0.5, 0.5, 0.5)),
        )
        inputs = {"one": IMAGES, "other": other} if named else (IMAGES, other)
        values.append(transfer(inputs, LABELS).loss.item())
    assert values[0] == values[1] > 0


def test_channels_and_samples_that_do_not_fit_are_told() -> None:
    normalization = (0.5,) * 3, (0.5,) * 3
    transfer = transfer_of(at.ActivationAttention(), student_normalization=normalization)
    with pytest.raises(InputError, match=r"3 means and 3 .* \(4, 1, 16, 16\) have 1 channels"):
        transfer(IMAGES[:, :1], targets=transfer.targets(IMAGES))
    with pytest.raises(InputError, match=r"the student fails on \(1, 1, 16, 16\).*3 channels"):
        transfer_of(at.ActivationAttention(), example_input=IMAGES[:1, :1])
    grey = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    with pytest.raises(InputError, match=r"the teacher fails on \(1, 3, 16, 16\)"):
        at.Transfer(
            wide_resnet(),
            grey,
            [at.ActivationAttention(pairs="group1:1")],
            example_input=IMAGES[:1],
        )


@pytest.mark.parametrize(
    "term", [at.ActivationAttention(), at.KnowledgeDistillation(), at.GradientAttention(1.0)]
)
def test_targets_of_other_samples_are_refused(term: at.Term) -> None:
    transfer = transfer_of(copy.deepcopy(term))
    targets = transfer.targets(IMAGES[:1], LABELS[:1])
    with pytest.raises(InputError, match="are of 1 samples and the inputs of 4"):
        transfer(IMAGES, LABELS, targets=targets)
    transfer(IMAGES[:1], LABELS[:1], targets=targets)


def test_a_half_frozen_student_may_hold_what_cannot_be_copied() -> None:
    student = wide_resnet()
    student.lock = threading.Lock()  # type: ignore[assignment]
    student.stem.requires_grad_(False)

    def built(pairs: str) -> at.Transfer:
        term = at.ActivationAttention(pairs=pairs)
        return at.Transfer(student, wide_resnet(2), [term], example_input=IMAGES[:1])

    built("group1:group1")(IMAGES).loss.backward()
    with pytest.raises(InputError, match="'stem' is in a part that is frozen"):
        built("stem:stem")


class Sequences(nn.Module):
    """A transformer over vectors (N, length, C), over a signal (N, C, length), or over tokens."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        embedding = nn.Embedding(50, width) if kind == "tokens" else nn.Linear(3, width)
        self.embedding: nn.Module = embedding
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(width, 2, width, batch_first=True) for _ in range(2))
        )
        self.classifier = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.embedding(x.transpose(1, 2) if self.kind == "signal" else x))
        return self.classifier(x.mean(dim=1))  # type: ignore[no-any-return]


def test_networks_over_sequences_are_paired_or_told_why_not() -> None:
    def built(kind: str, inputs: Tensor, pairs: str = "auto") -> at.Transfer:
        networks = [Sequences(width, kind) for width in (8, 12)]
        terms = [at.ActivationAttention(pairs=pairs)]
        return at.Transfer(*networks, terms, example_input=inputs[:1])

    signal = torch.rand(4, 3, 20)
    out = built("signal", signal)(signal)
    assert out.maps
    assert {tuple(both.student.shape) for both in out.maps["activation_attention"].values()} == {
        (4, 20)
    }
    with pytest.raises(InputError, match=r"give one that takes \(N, channels, length\)"):
        built("vectors", signal.transpose(1, 2))
    for pairs in ("auto", "blocks.1:blocks.1"):
        with pytest.raises(InputError, match=r"this one has none: .*20,.* token numbers"):
            built("tokens", torch.randint(0, 50, (4, 20)), pairs)


def test_inputs_as_a_list_say_what_to_give() -> None:
    with pytest.raises(InputError, match=r"got a list; give tuple\(inputs\)"):
        transfer_of(Penalty())([IMAGES, IMAGES])


def test_images_are_the_main_input_before_a_texts_embeddings() -> None:
    text, video = torch.rand(4, 7, 8), torch.rand(4, 3, 5, 16, 16)
    assert main_input((text, IMAGES)) is IMAGES
    assert main_input({"text": text, "images": IMAGES, "video": video}) is video


# Weights


@pytest.mark.parametrize("weight", [np.float32(0.5), np.float64(0.5), np.int64(2), 2])
def test_a_weight_may_be_numpys(weight: Any) -> None:
    assert Penalty(weight).weight == float(weight)
    assert at.ActivationAttention(beta=weight).beta == float(weight)


@pytest.mark.parametrize("weight", [-1, float("nan"), "1", None, True, torch.tensor(1.0)])
def test_a_weight_is_checked_whenever_it_is_set(weight: Any) -> None:
    with pytest.raises(InputError, match="weight must be a finite number"):
        Penalty(weight)
    term = Penalty()
    with pytest.raises(InputError, match="weight must be a finite number"):
        term.weight = weight
    assert term.weight == 1


@pytest.mark.parametrize(
    "term",
    [
        at.ActivationAttention(),
        at.FullActivation(),
        at.GradientAttention(1.0),
        at.FlipSymmetry(1.0),
        at.InputGradientNorm(1.0),
    ],
)
def test_beta_can_be_set_and_is_checked(term: Any) -> None:
    term.beta = 3
    assert term.weight == term.beta == term.weight_at(0.5) == 3
    with pytest.raises(InputError, match=r"weight must be .* number of at least 0, .*got -1"):
        term.beta = -1
    assert term.beta == 3


def test_a_parameter_does_not_take_the_weights_place() -> None:
    with pytest.raises(InputError, match="got a Parameter"):
        Penalty().weight = nn.Parameter(torch.ones(3))  # type: ignore[assignment]


# Reductions


def squared(features: Tensor, power: int) -> Tensor:
    return features.mean(dim=(2, 3)) ** power


def with_reduction(name: str, function: Callable[[Tensor], Tensor], free: bool = False) -> at.Term:
    term = Means(name=name)
    term.teacher_reduction = at.Reduction("moment", function, free)
    return term


def test_two_reductions_of_one_name_must_be_the_same() -> None:
    def moment(power: int) -> Callable[[Tensor], Tensor]:
        return lambda features: squared(features, power)

    with pytest.raises(InputError, match="one and two have different reductions of one name"):
        transfer_of(with_reduction("one", moment(1)), with_reduction("two", moment(2)))
    with pytest.raises(InputError, match="different reductions"):
        transfer_of(with_reduction("one", moment(1)), with_reduction("two", moment(1), free=True))
    transfer = transfer_of(with_reduction("one", moment(2)), with_reduction("two", moment(2)))
    assert len(transfer.target_spec.fields) == 3  # each is read once for both terms


class Powers:
    """Reduces by a method, with settings of several kinds; each instance refers to itself."""

    def __init__(self, power: float) -> None:
        self.settings = {"power": torch.tensor(power), "table": np.array([power, 1.0])}
        self.itself = self

    def reduce(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3)) ** self.settings["power"]


def with_closure(value: Any) -> Callable[[Tensor], Tensor]:
    return lambda features: features.mean(dim=(2, 3)) * value


def with_default(value: Any) -> Callable[[Tensor], Tensor]:
    def reduce(features: Tensor, factor: Any = value) -> Tensor:
        return features.mean(dim=(2, 3)) * factor

    return reduce


@pytest.mark.parametrize(
    "make",
    [
        lambda number: Powers(number).reduce,
        lambda number: with_closure(torch.tensor([number])),
        lambda number: with_closure({"factors": [np.float64(number)]}["factors"][0]),
        lambda number: with_default(torch.tensor(number)),
        lambda number: partial(with_closure(1.0), torch.full((4, 1, 1, 1), number)),
        lambda number: nn.Sequential(nn.Conv2d(1, 1, 1), nn.Threshold(number, 0)),
    ],
)
def test_reductions_are_compared_by_what_they_do(make: Any) -> None:
    def reduction(number: float) -> at.Reduction:
        torch.manual_seed(0)
        return at.Reduction("by what it does", make(number))

    assert same_reduction(reduction(2.0), reduction(2.0))
    assert not same_reduction(reduction(2.0), reduction(3.0))


def test_the_name_of_a_map_says_its_power_in_full() -> None:
    one, other = map_reduction("sum", 0.1), map_reduction("sum", 0.1 + 1e-12)
    assert one != other
    assert reduction_named(other.name) == other
    assert str(map_reduction("max", 2)) == "attention map, max 2"
    assert reduction_named("attention map, sum of all") is None
    assert reduction_named("mean over positions") is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_terms_of_ones_own_get_features_in_float32_under_autocast(dtype: torch.dtype) -> None:
    transfer = transfer_of(Means(), example_input=IMAGES[:1])
    seen: list[torch.dtype] = []
    reduction = at.Reduction("look", lambda f: (seen.append(f.dtype), f.mean(dim=(2, 3)))[1])
    transfer_2 = transfer_of(Means())
    transfer_2.terms["means"].teacher_reduction = reduction
    transfer_2 = at.Transfer(wide_resnet(1), wide_resnet(2), [transfer_2.terms["means"]])
    with torch.autocast("cpu", dtype):
        transfer(IMAGES).loss.backward()
        transfer_2(IMAGES)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_full_activation_takes_networks_of_any_precision(dtype: torch.dtype) -> None:
    networks = [wide_resnet(width).to(dtype) for width in (1, 2)]
    images = IMAGES.to(dtype)
    transfer = at.Transfer(*networks, [at.FullActivation()], example_input=images[:1])
    transfer(images).loss.backward()
    transfer.to(torch.float64)
    out = transfer(IMAGES.double())
    assert out.raw_terms["full_activation"].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("before", [False, True])
def test_a_term_computes_in_at_least_float32_whatever_a_transfer_is_converted_to(
    dtype: torch.dtype, before: bool
) -> None:
    networks = [wide_resnet(width).to(dtype if before else torch.float32) for width in (1, 2)]
    terms = [Means(), Counting(), at.FullActivation()]
    example = IMAGES[:1].to(dtype if before else torch.float32)
    transfer = at.Transfer(*networks, terms, example_input=example)
    weight = terms[0].scale.weight.detach().clone()
    transfer.to(dtype)
    for images in (IMAGES.to(dtype), IMAGES.to(dtype)[:2]):
        transfer(images).loss.backward()
    expected = torch.promote_types(dtype, torch.float32)
    assert {one.dtype for term in terms for one in term.parameters()} == {expected}
    assert torch.equal(weight, terms[0].scale.weight)  # not rounded on the way
    assert {one.dtype for one in transfer.student.parameters()} == {dtype}


# One term in several Transfers


def test_a_term_with_modules_belongs_to_one_transfer() -> None:
    term = at.FullActivation()
    first = transfer_of(term, example_input=IMAGES[:1])
    regressors = list(term.parameters())
    with pytest.raises(InputError, match="has the modules of another Transfer already"):
        transfer_of(term, example_input=IMAGES[:1])
    assert all(one is other for one, other in zip(term.parameters(), regressors, strict=True))
    copied = copy.deepcopy(first)
    copied(IMAGES).loss.backward()


def test_a_term_without_parameters_in_its_modules_belongs_to_one_transfer_too() -> None:
    term = at.FullActivation(pairs="group1:group1")
    networks = wide_resnet(1), wide_resnet(1)
    transfer = at.Transfer(*networks, [term], example_input=IMAGES[:1])
    assert not list(term.parameters())
    with pytest.raises(InputError, match="has the modules of another Transfer already"):
        at.Transfer(*networks, [term], example_input=IMAGES[:1])
    transfer(IMAGES)


class Failing(at.PairTerm):
    """Fails in one of its methods."""

    name = "failing"

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def _fail(self, method: str) -> None:
        if self.method == method:
            raise IndexError("no such axis")

    def check(self, inputs: at.TermInputs) -> None:
        self._fail("check")

    def build(self, pairs: Any) -> None:
        self._fail("build")

    def effective_weight(self, size: tuple[int, ...]) -> Any:
        self._fail("effective_weight")
        return "much" if self.method == "weight" else (np.float32(0.5), "squares")

    def loss(self, pair: at.PairInputs) -> Tensor:
        self._fail("loss")
        return pair.student_features.mean()


@pytest.mark.parametrize("method", ["check", "build", "effective_weight", "loss"])
def test_a_term_can_be_used_again_after_a_construction_that_failed(method: str) -> None:
    term, failing = at.FullActivation(), Failing(method)
    for _ in range(2):
        with pytest.raises(InputError, match=r"term failing failed .*no such axis"):
            transfer_of(term, failing, example_input=IMAGES[:1])
    failing.method = ""
    transfer_of(term, failing, example_input=IMAGES[:1])(IMAGES).loss.backward()


def test_an_effective_weight_is_a_number_and_its_unit() -> None:
    with pytest.raises(InputError, match=r"failing must return a number and its unit .*got 'much'"):
        transfer_of(Failing("weight"), example_input=IMAGES[:1])
    transfer = transfer_of(Failing(""), example_input=IMAGES[:1])
    assert transfer.pair_descriptions[0].effective_weight == 0.5


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((None, torch.sum), "a Reduction's name must say what it does"),
        ((" ", torch.sum), "a Reduction's name must say what it does"),
        (("sum", "sum"), "'sum' needs a function of the features .* got 'sum'"),
        (("sum", torch.sum, "yes"), "scale_free .* must be True or False, got 'yes'"),
        (("sum", torch.sum, True, None), "promote .* must be True or False, got None"),
    ],
)
def test_a_reduction_is_checked_when_it_is_made(arguments: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        at.Reduction(*arguments)


def test_a_reduction_that_fails_names_itself_and_its_terms() -> None:
    def term(name: str) -> at.Term:
        return with_reduction(name, broken)

    def broken(features: Tensor) -> Tensor:
        return features.mean(dim=(2, 9))

    terms = [term("one"), term("two")]
    with pytest.raises(InputError, match=r"term one and two: the reduction 'moment' failed"):
        transfer_of(*terms, example_input=IMAGES[:1])
    with pytest.raises(InputError, match=r"the reduction 'moment' failed on features \(4, .*Index"):
        transfer_of(*terms)(IMAGES)


def test_a_term_checks_each_shape_once() -> None:
    seen: list[tuple[int, bool]] = []

    class Checking(Penalty):
        def check(self, inputs: at.TermInputs) -> None:
            seen.append((inputs.pairs[0].student_features.shape[-1], inputs.labels is None))

    Checking.pairs = "auto"
    transfer = transfer_of(Checking())
    for images in (IMAGES, IMAGES[:2], IMAGES.repeat(1, 1, 2, 2), IMAGES):
        for labels in (None, LABELS[: len(images)]):
            transfer(images, labels)
    sizes = [transfer.student.group1(torch.zeros(1, 16, 16, 16)).shape[-1]]  # type: ignore[operator]
    assert seen == [(size, none) for size in (*sizes, 2 * sizes[0]) for none in (True, False)]


# Errors inside a term


def test_an_error_inside_a_pairs_loss_says_where() -> None:
    class Broken(at.PairTerm):
        name = "broken"

        def loss(self, pair: at.PairInputs) -> Tensor:
            return pair.student_features @ pair.teacher_features

    with pytest.raises(RuntimeError) as caught:
        transfer_of(Broken())(IMAGES)
    notes = caught.value.__notes__
    assert notes == ["in the loss of the pair group1:group1", "in the term broken"]


class Counting(at.PairTerm):
    """Has a state, draws random numbers, and differentiates with respect to the features."""

    name = "counting"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.norm = nn.BatchNorm1d(3)

    def loss(self, pair: at.PairInputs) -> Tensor:
        self.calls += 1
        features = pair.student_features
        (gradient,) = torch.autograd.grad(features.square().sum(), features, create_graph=True)
        noise = torch.rand(len(features), 3, dtype=features.dtype)
        return self.norm(noise).mean() + gradient.square().mean()


def test_a_trial_of_a_term_leaves_nothing_behind() -> None:
    term = Counting()
    transfer = transfer_of(term, example_input=IMAGES[:1])
    before = copy.deepcopy(transfer.state_dict())
    modes = {module: module.training for module in transfer.modules()}
    try_terms(transfer, IMAGES, LABELS)
    after = transfer.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(module.training == training for module, training in modes.items())
    assert transfer.terms["counting"] is term
    assert term.calls == 0
    transfer(IMAGES).loss.backward()
    assert term.calls == len(transfer.pair_descriptions)


def test_a_term_that_fails_is_named_when_the_transfer_is_built() -> None:
    class Nearest(at.PairTerm):
        name = "nearest"

        def loss(self, pair: at.PairInputs) -> Tensor:
            return torch.cdist(*[pair.student_features.flatten(1)] * 2).topk(2).values.mean()

    with pytest.raises(InputError, match=r"term nearest failed .*give several as example_input.*k"):
        transfer_of(Nearest(), example_input=IMAGES[:1])
    transfer_of(Nearest(), example_input=IMAGES[:2])(IMAGES).loss.backward()


def test_a_term_that_cannot_be_copied_is_still_trained() -> None:
    term = Counting()
    term.lock = threading.Lock()  # type: ignore[assignment]
    transfer = transfer_of(term, example_input=IMAGES[:1])
    try_terms(transfer, IMAGES, LABELS)
    assert term.calls == 0  # it was not tried: it would have been changed
    transfer(IMAGES).loss.backward()
    assert term.calls == len(transfer.pair_descriptions)
    assert term.norm.weight.grad is not None


def test_what_is_read_too_early_is_not_called_undeclared() -> None:
    class Early(at.Term):
        name = "early"
        needs_logits = needs_input_gradient = True

        def check(self, inputs: at.TermInputs) -> None:
            _ = inputs.input_gradients.input_gradient

        def forward(self, inputs: at.TermInputs) -> Tensor:
            return inputs.input_gradients.input_gradient.square().mean()

    with pytest.raises(InputError, match="read them in forward, not in check"):
        transfer_of(Early(), example_input=IMAGES[:1])


# An inference copy is compared by the logits that the user's function finds


class Hidden(nn.Module):
    """Returns its logits under a name of its own; folding its batch norm changes them."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.point = nn.Conv2d(3, 4, 3)
        self.norm.running_var.fill_(0.01)  # type: ignore[union-attr]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.norm(self.convolution(images))
        # The convolution's weight is used a second time, so it must not be folded.
        shift = self.convolution.weight.sum() * 10
        _ = self.point(images)
        return {"scores": features.mean(dim=(2, 3)) + shift}


def test_an_inference_copy_is_judged_by_the_logits_that_are_read() -> None:
    torch.manual_seed(0)
    teacher = Hidden()
    transfer = at.Transfer(
        wide_resnet(),
        teacher,
        [at.ActivationAttention(pairs="group1:point")],
        logits=lambda output: output["scores"] if isinstance(output, dict) else output,
    )
    transfer.optimize_teacher_for_inference(IMAGES)
    assert transfer.teacher is not None
    assert isinstance(transfer.teacher.network.norm, nn.BatchNorm2d)  # not folded


# Factories by name


@pytest.mark.parametrize(
    "text",
    [
        "fractions:Fraction(1)(2)",
        "fractions:Fraction(1).numerator",
        "fractions:Fraction(**{})",
        "fractions:Fraction(1, **{'denominator': 2})",
        "fractions:Fraction({[]: 1})",
        "fractions:Fraction(" + "-" * 20_000 + "1)",
        "fractions:Fraction(x)",
        "fractions:Fraction(1",
    ],
)
def test_a_factorys_arguments_are_literals_and_nothing_else(text: str) -> None:
    with pytest.raises(InputError, match="cannot read the arguments"):
        call_factory(text)


def test_a_dot_for_the_colon_is_understood() -> None:
    with pytest.raises(InputError, match="such as 'my_terms:Gram'"):
        import_object("my_terms.Gram")


def test_an_output_object_is_handed_on() -> None:
    output = SimpleNamespace(logits=torch.zeros(4, 3))

    class Boxed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = wide_resnet()

        def forward(self, images: Tensor) -> SimpleNamespace:
            output.logits = self.inner(images)
            return output

    out = at.Transfer(Boxed(), None, [at.CrossEntropy()])(IMAGES, LABELS)
    assert out.output is output
    assert out.logits is output.logits


# Modes, precisions and shares


def test_a_pass_in_inference_mode_between_training_steps() -> None:
    transfer = transfer_of(at.CrossEntropy(), at.ActivationAttention())
    transfer(IMAGES, LABELS).loss.backward()
    transfer.eval()
    expected = transfer(IMAGES, LABELS).raw_terms
    for _ in range(2):
        with torch.inference_mode():
            assert transfer(IMAGES, LABELS).raw_terms == expected
            assert at.attention_points(wide_resnet(), (3, 16, 16)).recommended
        transfer(IMAGES, LABELS).loss.backward()


GRIDS: dict[tuple[int, ...], Tensor] = {}
"""Grids that all networks of a kind share, by the shape of their features."""


class Gridded(nn.Module):
    """Makes a grid of positions in the first pass on features of a shape, and keeps it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution, self.classifier = nn.Conv2d(3, width, 3), nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.convolution(images)
        shape = len(features), *features.shape[2:]
        grid = GRIDS.setdefault(shape, torch.rand(shape[0], 1, *shape[1:]))
        return self.classifier((features.relu() * grid).mean(dim=(2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("optimized", [False, True])
def test_what_a_teacher_keeps_of_a_pass_can_be_used_in_any_other(optimized: bool) -> None:
    GRIDS.clear()
    transfer = at.Transfer(
        Gridded(4),
        Gridded(8),
        [at.KnowledgeDistillation(), at.ActivationAttention(pairs="convolution:convolution")],
        example_input=IMAGES[:1],
    )
    if optimized:
        transfer.optimize_teacher_for_inference(IMAGES[:1])
    for images in (IMAGES, IMAGES[:2], IMAGES):
        transfer(images).loss.backward()
    assert len(GRIDS) == 3


@pytest.mark.parametrize("needs_teacher", [False, True])
def test_terms_of_ones_own_get_logits_in_float32_under_autocast(needs_teacher: bool) -> None:
    class Projected(at.Term):
        name = "projected"
        needs_logits = True
        needs_teacher_logits = needs_teacher

        def __init__(self) -> None:
            super().__init__()
            self.projection = nn.Linear(3, 2)

        def forward(self, inputs: at.TermInputs) -> Tensor:
            logits = inputs.teacher_logits if needs_teacher else inputs.logits
            assert logits.dtype == torch.float32
            return self.projection(logits).square().mean()

    term = Projected()
    with torch.autocast("cpu", torch.bfloat16):
        out = transfer_of(term)(IMAGES)
        assert out.output.dtype == torch.bfloat16
        out.loss.backward()
    assert term.projection.weight.grad.abs().sum() > 0


def test_a_teacher_that_shares_parameters_with_the_student_is_refused() -> None:
    student = wide_resnet()
    for teacher in (nn.DataParallel(student), nn.Sequential(student.stem, nn.Flatten())):
        with pytest.raises(InputError, match=r"shares its parameter 'stem.weight' with a teacher"):
            at.Transfer(student, teacher, [at.ActivationAttention(pairs="stem:0")])
        assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("progress", [-0.1, 1.5, 5, float("nan")])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", lambda _: 1.0])
def test_progress_is_a_share(progress: float, schedule: Any) -> None:
    with pytest.raises(InputError, match=r"progress is the share .* 0 to 1, got"):
        transfer_of(Penalty(schedule=schedule))(IMAGES, progress=progress)


def test_a_schedule_is_checked_whenever_it_is_set() -> None:
    with pytest.raises(InputError, match="unknown schedule 'step'"):
        Penalty().schedule = "step"  # type: ignore[assignment]


@pytest.mark.parametrize(("dtype", "ignored"), [(torch.uint8, -100), (torch.int8, 255)])
def test_an_ignored_index_is_no_other_label_of_a_small_type(
    dtype: torch.dtype, ignored: int
) -> None:
    label = ignored % 256 if dtype == torch.uint8 else -1
    labels = torch.full((4,), label, dtype=dtype)
    terms = [at.KnowledgeDistillation(ignore_index=ignored), at.KnowledgeDistillation(name="all")]
    out = transfer_of(*terms)(IMAGES, labels)
    expected = pytest.approx(out.raw_terms["all"].item(), rel=1e-5)
    assert out.raw_terms["knowledge_distillation"].item() == expected


def test_the_text_of_a_set_does_not_depend_on_the_process() -> None:
    texts = []
    for kinds in (["a", "b", "c"], ["c", "b", "a"]):
        term = Penalty()
        term.kinds = Ordered(kinds)  # type: ignore[assignment]
        texts.append(named(student=nn.Identity(), terms=[term])[0]["terms"])
    assert texts[0] == texts[1]


class Ordered(list[str]):
    """Shown as a set of this order, as another process's hashes may put it."""

    def __repr__(self) -> str:
        return "{" + ", ".join(map(repr, self)) + "}"
