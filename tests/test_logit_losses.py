"""DIST, logit standardisation and DKD against loops over the papers' formulas, and their terms."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor
from torch.autograd import gradcheck

import attention_transfer as at
from attention_transfer.errors import InputError
from attention_transfer.functional import losses
from attention_transfer.training.configured_terms import for_several_classes
from small_transfers import IMAGES, LABELS, transfer_of

Array = NDArray[np.float64]
Loss = Callable[[Tensor, Tensor], Tensor]


def logits(*shape: int, seed: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


STUDENT, TEACHER = logits(5, 4, seed=0), logits(5, 4, seed=1)
CLASSES = torch.tensor([3, 0, 1, 1, 2])
LOSSES: dict[str, Loss] = {
    "dist": lambda student, teacher: losses.dist(student, teacher, 0.7, 1.3, temperature=2.0),
    "logit_standardization": losses.logit_standardization,
    "dkd": lambda student, teacher: losses.dkd(
        student, teacher, torch.arange(len(student)) % student.shape[1]
    ),
}


def reference_dist(student: Array, teacher: Array, beta: float, gamma: float, tau: float) -> float:
    ours, theirs = softmax(student / tau, axis=1), softmax(teacher / tau, axis=1)
    samples = [1 - stats.pearsonr(*rows).statistic for rows in zip(ours, theirs, strict=True)]
    classes = [1 - stats.pearsonr(*both).statistic for both in zip(ours.T, theirs.T, strict=True)]
    return float(tau**2 * (beta * np.mean(samples) + gamma * np.mean(classes)))


def reference_distillation(student: Array, teacher: Array, tau: float) -> float:
    rows = zip(student / tau, teacher / tau, strict=True)
    return float(tau**2 * np.mean([rel_entr(softmax(t), softmax(s)).sum() for s, t in rows]))


def reference_dkd(
    student: Array, teacher: Array, labels: list[int], alpha: float, beta: float, tau: float
) -> float:
    total = 0.0
    for s, t, label in zip(student / tau, teacher / tau, labels, strict=True):
        ours, theirs = softmax(s)[label], softmax(t)[label]
        binary = theirs * math.log(theirs / ours) + (1 - theirs) * math.log(
            (1 - theirs) / (1 - ours)
        )
        rest = [k for k in range(len(s)) if k != label]
        others = sum(
            math.exp(log_softmax(t[rest])[i]) * (log_softmax(t[rest])[i] - log_softmax(s[rest])[i])
            for i in range(len(rest))
        )
        total += alpha * binary + beta * others
    return tau**2 * total / len(student)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_dist_is_its_formula(tau: float) -> None:
    value = losses.dist(STUDENT, TEACHER, beta=0.5, gamma=2.0, temperature=tau)
    expected = reference_dist(STUDENT.numpy(), TEACHER.numpy(), 0.5, 2.0, tau)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_standardized_logits_are_z_scores() -> None:
    expected = stats.zscore(STUDENT.numpy(), axis=1, ddof=1)
    np.testing.assert_allclose(losses.standardize(STUDENT).numpy(), expected, rtol=1e-12)
    dense = STUDENT.view(5, 4, 1, 1).expand(5, 4, 2, 3)
    np.testing.assert_allclose(losses.standardize(dense)[:, :, 1, 2].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_logit_standardization_is_its_formula(tau: float) -> None:
    scores = [stats.zscore(values.numpy(), axis=1, ddof=1) for values in (STUDENT, TEACHER)]
    value = losses.logit_standardization(STUDENT, TEACHER, tau)
    assert value.item() == pytest.approx(reference_distillation(*scores, tau), rel=1e-12)


@pytest.mark.parametrize(("alpha", "beta", "tau"), [(1, 8, 4), (0, 1, 1), (2, 0, 3)])
def test_dkd_is_its_formula(alpha: float, beta: float, tau: float) -> None:
    value = losses.dkd(STUDENT, TEACHER, CLASSES, alpha, beta, tau)
    arrays = STUDENT.numpy(), TEACHER.numpy()
    expected = reference_dkd(*arrays, CLASSES.tolist(), alpha, beta, tau)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_dkd_of_each_image_with_the_teachers_doubt_as_beta_is_distillation() -> None:
    doubt = 1 - torch.softmax(TEACHER / 4, dim=1)[torch.arange(5), CLASSES]
    values = [
        losses.dkd(STUDENT[i : i + 1], TEACHER[i : i + 1], CLASSES[i : i + 1], 1.0, float(doubt[i]))
        for i in range(5)
    ]
    whole = losses.knowledge_distillation(STUDENT, TEACHER, 4.0)
    assert torch.stack(values).mean().item() == pytest.approx(whole.item(), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    student = STUDENT.clone().requires_grad_()
    assert gradcheck(lambda values: LOSSES[name](values, TEACHER), student)
    teacher = TEACHER.clone().requires_grad_()
    LOSSES[name](student, teacher).backward()
    assert teacher.grad is None, "the teacher is a constant"


@pytest.mark.parametrize("name", LOSSES)
def test_logits_by_position_are_samples(name: str) -> None:
    student, teacher = logits(2, 3, 4, 5, seed=2), logits(2, 3, 4, 5, seed=3)
    if name == "dkd":
        labels = torch.arange(40).view(2, 4, 5) % 3
        value = losses.dkd(student, teacher, labels)
    else:
        value = LOSSES[name](student, teacher)
    rows = [values.permute(0, 2, 3, 1).reshape(40, 3) for values in (student, teacher)]
    assert value.item() == pytest.approx(LOSSES[name](*rows).item(), rel=1e-12)


LOGITS = st.lists(
    st.lists(st.integers(-480, 480).map(lambda number: number / 16), min_size=3, max_size=3),
    min_size=2,
    max_size=5,
)
"""Logits that are equal or differ by 1/16 at least: where classes differ by rounding alone,
relations between them are rounding too.
"""


@pytest.mark.parametrize("name", LOSSES)
@given(values=LOGITS)
@settings(max_examples=50)
def test_a_student_like_its_teacher_has_no_loss(name: str, values: list[list[float]]) -> None:
    same = torch.tensor(values)
    student = same.clone().requires_grad_()
    value = LOSSES[name](student, same)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-4


@given(values=LOGITS, shift=st.floats(-5, 5), scale=st.floats(0.5, 4))
@settings(max_examples=50)
def test_standardization_leaves_shift_and_scale_out(
    values: list[list[float]], shift: float, scale: float
) -> None:
    student = torch.tensor(values, dtype=torch.float64)
    teacher = logits(*student.shape, seed=4)
    value = losses.logit_standardization(student, teacher)
    moved = losses.logit_standardization(scale * student + shift, teacher)
    spread = student.max(dim=1).values - student.min(dim=1).values
    if bool((spread > 1e-6).all()):
        assert moved.item() == pytest.approx(value.item(), rel=1e-6)


@given(values=LOGITS, shift=st.floats(-5, 5))
@settings(max_examples=50)
def test_dist_leaves_a_shift_of_each_samples_logits_out(
    values: list[list[float]], shift: float
) -> None:
    student = torch.tensor(values, dtype=torch.float64)
    teacher = logits(*student.shape, seed=4)
    shifts = shift * torch.arange(len(student), dtype=torch.float64).unsqueeze(1)
    moved = losses.dist(student + shifts, teacher).item()
    assert moved == pytest.approx(losses.dist(student, teacher).item(), abs=1e-6)


def test_dist_leaves_scale_and_shift_of_the_predictions_out() -> None:
    """A prediction mixed with the uniform one has the same relations, sample by sample."""
    teacher = torch.softmax(TEACHER, dim=1)
    student = (0.3 * teacher + 0.7 / 4).log()
    assert losses.dist(student, TEACHER).item() == pytest.approx(0, abs=1e-12)
    assert losses.dist(2 * TEACHER, TEACHER).item() > 0.01, "but not of the logits' scale"


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1e4, 1e-4, 0.0])
def test_extreme_logits_of_any_precision_stay_finite(
    name: str, dtype: torch.dtype, size: float
) -> None:
    student = (size * torch.tensor([[1.0, -1, 0], [-1, 1, 1], [1, 1, 1]])).to(dtype)
    student.requires_grad_()
    teacher = (size * torch.tensor([[-1.0, 1, 1], [1, -1, 1], [0, 1, -1]])).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = LOSSES[name](student, teacher)
    assert value.dtype == torch.float32
    assert value.isfinite()
    value.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_constant_predictions_have_no_relation_and_no_gradient() -> None:
    student = torch.zeros(3, 4, requires_grad=True)
    value = losses.dist(student, TEACHER[:3].float())
    value.backward()
    assert value.item() == pytest.approx(1.0), "1/2 of each of two relations"
    assert student.grad is not None
    assert not student.grad.any()


def test_dist_of_one_sample_has_its_classes_relation_alone() -> None:
    alone, other = STUDENT[:1], TEACHER[:1]
    inter = losses.dist(alone, other, beta=1.0, gamma=0.0)
    assert losses.dist(alone, other, beta=1.0, gamma=5.0).item() == inter.item() > 0


def test_two_classes_have_no_other_classes_to_compare() -> None:
    student, teacher = logits(3, 2, seed=5), logits(3, 2, seed=6)
    labels = torch.tensor([0, 1, 1])
    alone = losses.dkd(student, teacher, labels, alpha=1.0, beta=8.0, temperature=1.0)
    whole = losses.knowledge_distillation(student, teacher, 1.0)
    assert alone.item() == pytest.approx(whole.item(), rel=1e-12)


def test_labels_that_do_not_count_are_left_out() -> None:
    some = losses.dkd(STUDENT, TEACHER, torch.tensor([3, -100, 1, -100, 2]))
    kept = torch.tensor([0, 2, 4])
    expected = losses.dkd(STUDENT[kept], TEACHER[kept], CLASSES[kept])
    assert some.item() == pytest.approx(expected.item(), rel=1e-12)
    assert losses.dkd(STUDENT, TEACHER, torch.full((5,), -100)).item() == 0


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: losses.dkd(STUDENT, TEACHER, torch.softmax(TEACHER, 1)), "have no one class"),
        (lambda: losses.dkd(STUDENT, TEACHER, None), "got None"),
        (lambda: losses.dkd(STUDENT, TEACHER, CLASSES + 2), "got the index 5"),
        (lambda: losses.dkd(STUDENT, TEACHER, CLASSES, alpha=-1), "alpha must be"),
        (lambda: losses.dkd(STUDENT[:, :1], TEACHER[:, :1], CLASSES * 0), "at least two classes"),
        (lambda: losses.dist(STUDENT, TEACHER[:, :2]), "the same for both"),
        (lambda: losses.dist(STUDENT, TEACHER, gamma=math.nan), "gamma must be"),
        (lambda: losses.dist(STUDENT, TEACHER, temperature=0), "temperature must be"),
        (lambda: losses.standardize(STUDENT[0]), "logits must be"),
        (lambda: losses.logit_standardization(STUDENT, TEACHER, -1), "temperature must be"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (
            at.DIST(2.0, 0.5, 3.0, temperature=4.0),
            lambda ours, theirs: 2 * losses.dist(ours, theirs, 0.5, 3.0, 4.0),
        ),
        (
            at.LogitStandardization(),
            lambda ours, theirs: 9 * losses.logit_standardization(ours, theirs, 2.0),
        ),
        (
            at.DKD(0.5, 2.0, 4.0, temperature=1.0),
            lambda ours, theirs: 0.5 * losses.dkd(ours, theirs, LABELS, 2.0, 4.0, 1.0),
        ),
    ],
)
def test_terms_are_their_functions_with_a_weight(term: at.Term, expected: Loss) -> None:
    transfer = transfer_of(term, example_input=IMAGES)
    out = transfer(IMAGES, LABELS)
    assert out.teacher_logits is not None
    wanted = expected(out.logits, out.teacher_logits)
    assert out.terms[term.name].item() == pytest.approx(wanted.item(), rel=1e-6)
    out.loss.backward()
    known = transfer(IMAGES, LABELS, targets=transfer.targets(IMAGES))
    assert known.raw_terms[term.name].item() == out.raw_terms[term.name].item()


@pytest.mark.parametrize("kind", [at.DIST, at.DKD, at.LogitStandardization])
def test_terms_refuse_what_means_nothing(kind: type[at.Term]) -> None:
    with pytest.raises(InputError, match=r"temperature must be .* the paper used"):
        kind(temperature=0)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="are of several classes each"):
        for_several_classes([kind()], "several")
    one = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 1)) for _ in range(2)]
    with pytest.raises(InputError, match="could only be zero for logits"):
        at.Transfer(*one, [kind()], example_input=IMAGES)
    other = at.models.build("wrn-10-1", classes=5)
    with pytest.raises(InputError, match=f"{kind.name} compares logits of the same classes"):
        at.Transfer(at.models.build("wrn-10-1", classes=3), other, [kind()], example_input=IMAGES)


def test_dkd_refuses_labels_of_mixed_images() -> None:
    transfer = transfer_of(at.DKD())
    with pytest.raises(InputError, match="dkd takes labels of class indices"):
        transfer(IMAGES, torch.full((4, 3), 1 / 3))


def test_ranges_of_settings_are_checked() -> None:
    for make in (lambda: at.DIST(beta=-1), lambda: at.DKD(alpha=math.inf)):
        with pytest.raises(InputError, match="must be a finite number of at least 0"):
            make()
