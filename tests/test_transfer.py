"""Terms, the objective, the frozen teacher, pairing."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import attention_transfer as at
from attention_transfer.errors import InputError
from attention_transfer.models import WideResNet
from attention_transfer.transfer import FrozenTeacher, Term, TermInputs, class_logits
from attention_transfer.transfer.pairing import PairingSide, resolve_pairs

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


def student() -> WideResNet:
    torch.manual_seed(0)
    return WideResNet(10, 1, classes=3)


def teacher() -> WideResNet:
    torch.manual_seed(1)
    return WideResNet(10, 2, classes=3)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def all_terms() -> list[Term]:
    return [
        *at.distillation_terms(alpha=0.9),
        at.ActivationAttention(beta=1000.0),
        at.FullActivation(beta=0.5),
    ]


def test_terms_sum_to_the_loss_and_are_their_raw_values_times_their_weights() -> None:
    transfer = at.Transfer(student(), teacher(), all_terms(), example_input=IMAGES[:1])
    out = transfer(IMAGES, LABELS)
    assert list(out.terms) == [
        "cross_entropy",
        "knowledge_distillation",
        "activation_attention",
        "full_activation",
    ]
    assert out.loss.item() == pytest.approx(sum(v.item() for v in out.terms.values()), rel=1e-6)
    weights = {
        "cross_entropy": 0.1,
        "knowledge_distillation": 0.9,
        "activation_attention": 1000.0,
        "full_activation": 0.5,
    }
    for name, weight in weights.items():
        assert out.terms[name].item() == pytest.approx(weight * out.raw_terms[name].item())
        assert not out.terms[name].requires_grad
        assert out.raw_terms[name] > 0


def test_each_term_is_its_pure_function_of_what_both_networks_put_out() -> None:
    networks = student().eval(), teacher().eval()
    transfer = at.Transfer(*networks, all_terms(), example_input=IMAGES[:1])
    out = transfer(IMAGES, LABELS)
    with torch.no_grad():
        logits = [network(IMAGES) for network in networks]
    maps = [at.attention_maps(network, IMAGES) for network in networks]
    points = student().attention_points
    attention = sum(
        at.losses.attention_transfer(maps[0][point], maps[1][point]) for point in points
    )
    expected = {
        "cross_entropy": nn.functional.cross_entropy(logits[0], LABELS),
        "knowledge_distillation": at.losses.knowledge_distillation(*logits, temperature=4.0),
        "activation_attention": attention,
    }
    for name, value in expected.items():
        assert out.raw_terms[name].item() == pytest.approx(float(value), rel=1e-5)


def test_a_teacher_stays_as_it_was_whatever_is_called_on_it() -> None:
    network, pupil = teacher(), student()
    network.train()
    before = state(network)
    transfer = at.Transfer(pupil, network, all_terms(), example_input=IMAGES[:1])
    optimizer = torch.optim.SGD(transfer.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        transfer.train()
        network.train()
        network.group2.train()
        transfer(IMAGES, LABELS).loss.backward()
        optimizer.step()
    assert same(state(network), before)
    assert not network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_parameters_are_the_students_and_the_terms_never_the_teachers() -> None:
    pupil, network = student(), teacher()
    names = set(pupil.state_dict())
    transfer = at.Transfer(pupil, network, all_terms(), example_input=IMAGES[:1])
    own = {id(parameter) for parameter in transfer.parameters()}
    assert {id(parameter) for parameter in pupil.parameters()} < own
    assert not own & {id(parameter) for parameter in network.parameters()}
    regressors = [module for module in transfer.modules() if isinstance(module, nn.Conv2d)]
    shapes = {tuple(module.weight.shape) for module in regressors}
    assert {(32, 16, 1, 1), (64, 32, 1, 1), (128, 64, 1, 1)} <= shapes
    assert set(pupil.state_dict()) == names
    transfer(IMAGES, LABELS).loss.backward()
    assert all(parameter.grad is not None for parameter in transfer.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_the_students_mode_is_never_changed(training: bool) -> None:
    pupil = student().train(training)
    pupil.group1.train(not training)
    statistics = pupil.norm.running_mean.clone()  # type: ignore[union-attr,operator]
    transfer = at.Transfer(pupil, teacher(), [at.ActivationAttention()], example_input=IMAGES[:1])
    assert torch.equal(pupil.norm.running_mean, statistics)  # type: ignore[arg-type]
    transfer(IMAGES)
    assert pupil.training is training
    assert pupil.group1.training is (not training)


def test_each_network_normalises_the_images_for_itself() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    normal = (IMAGES - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    pupil, network = student().eval(), teacher()
    told = at.Transfer(
        pupil,
        network,
        [at.KnowledgeDistillation()],
        student_normalization=(mean, std),
        teacher_normalization=at.Preprocessing(mean, std),
    )(IMAGES)
    given = at.Transfer(pupil, network, [at.KnowledgeDistillation()])(normal)
    assert told.loss.item() == pytest.approx(given.loss.item(), rel=1e-5)
    assert torch.allclose(told.teacher_logits, given.teacher_logits, atol=1e-5)


def test_a_networks_teacher_and_student_side_by_side_are_in_full_agreement() -> None:
    network = student().eval()
    out = at.Transfer(network, copy.deepcopy(network), [at.ActivationAttention()])(IMAGES)
    out.loss.backward()
    assert out.loss.item() == 0
    assert all(not parameter.grad.any() for parameter in network.group1.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [8, 8, 8]), ("linear", [8, 4, 0]), ("cosine", [8, 4, 0])],
)
def test_beta_follows_its_schedule(schedule: str, expected: list[float]) -> None:
    term = at.ActivationAttention(beta=8.0, schedule=schedule)  # type: ignore[arg-type]
    assert [term.weight_at(p) for p in (0, 0.5, 1)] == pytest.approx(expected, abs=1e-12)
    transfer = at.Transfer(student().eval(), teacher(), [term])
    start, half = transfer(IMAGES, progress=0.0), transfer(IMAGES, progress=0.5)
    assert half.loss.item() == pytest.approx(start.loss.item() * expected[1] / expected[0])


def test_the_papers_mixtures() -> None:
    labels, soft = at.distillation_terms(alpha=0.75, temperature=3.0)
    assert (labels.weight, soft.weight, soft.temperature) == (0.25, 0.75, 3.0)
    labels, soft = at.distillation_terms(alpha=0.75, temperature=3.0, preset="2017")
    assert labels.weight == 0.25
    logits = {"logits": torch.randn(5, 7), "teacher_logits": torch.randn(5, 7)}
    raw = at.losses.knowledge_distillation(*logits.values(), temperature=3.0)
    value = soft.weight_at(0) * soft(TermInputs("soft", None, None, declared=logits))
    assert value.item() == pytest.approx(2 * 0.75 * raw.item() / 7)


def test_a_second_term_of_a_kind_has_a_name_of_its_own() -> None:
    terms = [at.ActivationAttention(power=1), at.ActivationAttention(power=4, name="sharper")]
    out = at.Transfer(student(), teacher(), terms)(IMAGES)
    assert list(out.terms) == ["activation_attention", "sharper"]
    assert out.terms["activation_attention"] != out.terms["sharper"]


def test_a_term_of_ones_own() -> None:
    class LogitPenalty(Term):
        name = "logit_penalty"
        needs_logits = True

        def forward(self, inputs: TermInputs) -> Tensor:
            return inputs.logits.square().mean()

    terms = [at.CrossEntropy(), LogitPenalty(weight=0.5)]
    out = at.Transfer(student(), terms=terms)(IMAGES, LABELS)
    assert out.terms["logit_penalty"].item() == pytest.approx(out.logits.square().mean().item() / 2)


def test_maps_of_every_pair_come_with_the_output() -> None:
    out = at.Transfer(student(), teacher(), [at.ActivationAttention()])(IMAGES)
    maps = out.maps["activation_attention"]
    assert list(maps) == ["group1:group1", "group2:group2", "group3:group3"]
    assert [tuple(pair.student.shape) for pair in maps.values()] == [
        (4, 16, 16),
        (4, 8, 8),
        (4, 4, 4),
    ]
    assert not any(m.requires_grad for pair in maps.values() for m in pair)


def test_effective_weights_are_told() -> None:
    transfer = at.Transfer(
        student(), teacher(), [at.ActivationAttention(beta=1000)], example_input=IMAGES[:1]
    )
    weights = [pair.effective_weight for pair in transfer.pair_descriptions]
    assert weights == pytest.approx([1000 / 256, 1000 / 64, 1000 / 16])
    assert {pair.unit for pair in transfer.pair_descriptions} == {"||d||^2"}


def test_everything_is_float32_under_autocast_and_float64_stays() -> None:
    transfer = at.Transfer(student(), teacher(), all_terms(), example_input=IMAGES[:1])
    with torch.autocast("cpu", torch.bfloat16):
        out = transfer(IMAGES, LABELS)
    assert out.logits.dtype == torch.bfloat16
    assert {value.dtype for value in out.raw_terms.values()} == {torch.float32}
    assert out.maps["activation_attention"]["group1:group1"].student.dtype == torch.float32
    out.loss.backward()

    transfer.double()
    out = transfer(IMAGES.double(), LABELS)
    assert {value.dtype for value in out.raw_terms.values()} == {torch.float64}
    assert out.teacher_logits is not None
    assert out.teacher_logits.dtype == torch.float64


def test_a_wrapped_student_is_tapped_inside() -> None:
    plain = at.Transfer(student().eval(), teacher(), [at.ActivationAttention()])(IMAGES)
    wrapped = nn.DataParallel(student().eval())
    assert torch.equal(
        at.Transfer(wrapped, teacher(), [at.ActivationAttention()])(IMAGES).loss, plain.loss
    )


def test_no_hook_is_left_behind() -> None:
    pupil, network = student(), teacher()
    transfer = at.Transfer(pupil, network, [at.ActivationAttention()])
    transfer(IMAGES)
    with pytest.raises(RuntimeError):
        transfer(torch.zeros(1, 5, 16, 16))
    hooks = [m._forward_hooks for net in (pupil, network) for m in net.modules()]
    assert not any(hooks)


class _Flat(nn.Module):
    """A network whose only points are vectors, or a 1x1 map."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.pooled = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.pooled(self.convolution(images)).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: at.Transfer(student(), teacher(), []), "no terms"),
        (lambda: at.Transfer(student(), None, [at.ActivationAttention()]), "needs a teacher"),
        (
            lambda: at.Transfer(
                student(), teacher(), [at.ActivationAttention(pairs="group9:group1")]
            ),
            "did you mean group",
        ),
        (
            lambda: at.Transfer(student(), teacher(), [at.ActivationAttention(pairs="group1")]),
            "expected student.layer:teacher.layer",
        ),
        (lambda: at.Transfer(student(), _Flat(), [at.ActivationAttention()]), "by hand"),
        (lambda: at.ActivationAttention(beta=-1), "beta"),
        (lambda: at.ActivationAttention(power=0), "power"),
        (lambda: at.ActivationAttention(form="codes"), "did you mean code"),  # type: ignore[arg-type]
        (lambda: at.ActivationAttention(norm=0.5), "norm"),
        (lambda: at.FullActivation(beta=float("nan")), "beta"),
        (lambda: at.KnowledgeDistillation(temperature=0), "temperature"),
        (lambda: at.distillation_terms(alpha=1.5), "alpha must be between 0 and 1, got 1.5"),
        (lambda: at.CrossEntropy(weight=float("inf")), "weight"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_built(
    build: Callable[[], object], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        build()


@pytest.mark.parametrize(
    ("term", "match"),
    [
        (at.ActivationAttention(pairs="pooled:group3"), "1x1 map"),
        (
            at.ActivationAttention(pairs="classifier:group3"),
            "it has no positions",
        ),
        (at.FullActivation(pairs="classifier:group3"), "it has no positions"),
        (at.KnowledgeDistillation(), "same classes"),
    ],
)
@pytest.mark.parametrize("example", [True, False])
def test_pairs_and_logits_that_do_not_fit_are_refused_before_the_first_step(
    term: Term, match: str, example: bool
) -> None:
    with pytest.raises(InputError, match=match):
        at.Transfer(_Flat(), teacher(), [term], example_input=IMAGES[:1] if example else None)(
            IMAGES
        )


def test_full_activation_says_that_it_needs_an_example() -> None:
    with pytest.raises(InputError, match="example_input"):
        at.Transfer(student(), teacher(), [at.FullActivation()])(IMAGES)


def test_cross_entropy_says_that_it_needs_labels() -> None:
    with pytest.raises(InputError, match="labels"):
        at.Transfer(student(), terms=[at.CrossEntropy()])(IMAGES)


def test_pairs_by_hand_and_by_declaration() -> None:
    assert resolve_pairs("auto", PairingSide(student()), PairingSide(teacher())).pairs[2] == (
        "group3",
        "group3",
    )
    nothing = PairingSide(nn.Module())
    assert resolve_pairs([("a", "b")], nothing, nothing).pairs == [("a", "b")]
    with pytest.raises(InputError, match="no pairs"):
        resolve_pairs([], nothing, nothing)
    fewer = teacher()
    fewer.attention_points = ("group3",)  # type: ignore[assignment]
    with pytest.raises(InputError, match="example_input"):
        resolve_pairs("auto", PairingSide(student()), PairingSide(fewer))
    pairing = resolve_pairs(
        "auto", PairingSide(student(), (3, 32, 32)), PairingSide(fewer, (3, 32, 32))
    )
    assert pairing == ([("group3", "group3")], ("group1", "group2"), ())


def test_maps_of_different_sizes_meet_at_the_smaller() -> None:
    pairs = [("group1", "group3"), ("group3", "group1")]
    transfer = at.Transfer(
        student().eval(), teacher(), [at.ActivationAttention(pairs=pairs)], example_input=IMAGES[:1]
    )
    out = transfer(IMAGES)
    assert [p.effective_weight for p in transfer.pair_descriptions] == [1000 / 16] * 2
    assert torch.isfinite(out.loss)
    assert out.loss > 0


def test_attention_maps_are_f_of_the_activations_and_leave_the_mode_alone() -> None:
    network = student().train()
    maps = at.attention_maps(network, IMAGES, map="max", power=3)
    assert network.training
    assert network.norm.num_batches_tracked == 0
    seen: list[Tensor] = []
    handle = network.group2.register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        network.eval()(IMAGES)
    handle.remove()
    assert torch.allclose(maps["group2"], seen[0].abs().amax(dim=1) ** 3)
    assert list(maps) == ["group1", "group2", "group3"]
    with pytest.raises(InputError, match="activation"):
        at.attention_maps(network, IMAGES, attention="gradients")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean group1"):
        at.attention_maps(network, IMAGES, points=["group11"])


def test_a_frozen_teacher_answers_without_a_graph() -> None:
    frozen = FrozenTeacher(teacher(), ["group1"])
    seen = frozen(IMAGES.clone().requires_grad_())
    assert not class_logits(seen.output).requires_grad
    assert not seen.features["group1"].requires_grad
