"""Terms by name, what each of them sees of a batch, and the value it returns."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError, input_errors
from attention_transfer.functional.maps import to_float32
from attention_transfer.transfer.forward import ForwardResult, describe_output
from attention_transfer.transfer.input_gradients import InputGradients
from attention_transfer.transfer.pairing import Pair, Pairing
from attention_transfer.transfer.targets import (
    Reduction,
    TargetField,
    Targets,
    TargetSpec,
    same_reduction,
)
from attention_transfer.transfer.terms.base import (
    PairedMaps,
    PairInputs,
    PairTerm,
    Term,
    TermInputs,
)

__all__ = [
    "build_modules",
    "check_built",
    "check_inputs",
    "named_terms",
    "needed_of_teacher",
    "scalar_value",
    "term_inputs",
    "trial_copy",
    "try_losses",
]


def named_terms(terms: Sequence[Term]) -> dict[str, nn.Module]:
    """Return the terms by name.

    Raises:
        InputError: there are none; something is not a term; names are missing, unfit or repeated.
    """
    sequence = isinstance(terms, Iterable) and not isinstance(terms, str)
    terms = list(terms) if sequence else terms
    if not sequence or not terms:
        got = "one term" if isinstance(terms, Term) else f"a {type(terms).__name__}"
        got = "no terms" if terms is None or sequence else got
        raise InputError(f"got {got}, expected a list of at least one, such as [CrossEntropy()]")
    named: dict[str, nn.Module] = {}
    for term in terms:
        given: object = term
        kind = given.__name__ if isinstance(given, type) else type(given).__name__
        if not isinstance(given, Term):
            made = f"; did you mean {kind}()?" if isinstance(given, type) else ""
            raise InputError(
                f"{kind} is not a term, expected an instance of attention_transfer.Term{made}"
            )
        if "_modules" not in vars(term):
            raise InputError(f"{kind} does not call super().__init__() in its __init__; add that")
        name = getattr(term, "name", None)
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(
                f"the term {kind} must have a name that is an identifier, got {name!r}; set "
                "name = 'my_term' in its class"
            )
        if hasattr(nn.ModuleDict(), name):
            raise InputError(
                f"the term {kind} cannot have the name {name!r}, which torch's ModuleDict "
                f"reserves; choose another, such as '{name}_term'"
            )
        if not isinstance(term.teacher_reduction, Reduction | None):
            raise InputError(
                f"the term {name} must have a Reduction as its teacher_reduction, got a "
                f"{type(term.teacher_reduction).__name__}; write teacher_reduction = "
                "at.Reduction('what it does', function)"
            )
        if name in named:
            raise InputError(
                f"two terms have the name {name!r}; give one of them another, such as "
                f"{kind}(..., name='{name}_2')"
            )
        named[name] = term
    return named


def needed_of_teacher(terms: Mapping[str, Term], pairings: Mapping[str, Pairing]) -> TargetSpec:
    """Return what terms need of the teacher, each thing once.

    Raises:
        InputError: two terms have different reductions of one name.
    """
    reductions: dict[str, tuple[str, Reduction]] = {}
    for name, term in terms.items():
        reduction = term.teacher_reduction
        if reduction is not None:
            other, first = reductions.setdefault(reduction.name, (name, reduction))
            if not same_reduction(first, reduction):
                raise InputError(
                    f"the terms {other} and {name} have different reductions of one name, "
                    f"{reduction.name!r}; name each by what it does, settings included, or give "
                    "both terms the same one"
                )
    fields = {
        TargetField(point, terms[name].teacher_reduction): None
        for name, pairing in pairings.items()
        for pair in pairing.pairs
        for point in pair.teacher_points
    }
    return TargetSpec(
        tuple(fields),
        any(term.needs_teacher_logits for term in terms.values()),
        any(term.needs_teacher_gradient for term in terms.values()),
    )


def scalar_value(name: str, value: object) -> Tensor:
    """Return a term's value, or raise an InputError unless it is a scalar tensor."""
    if isinstance(value, Tensor) and value.dim() == 0:
        return value
    got = (
        f"a tensor of shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else f"a {type(value).__name__}"
    )
    raise InputError(f"the term {name} returned {got}, expected a scalar tensor, a batch mean")


def term_inputs(
    term: Term,
    student: ForwardResult,
    logits: Tensor | None,
    targets: Targets,
    pairs: Sequence[Pair],
    *,
    labels: Any,
    progress: float,
    gradients: InputGradients | None,
) -> TermInputs:
    """Return what a term sees of a batch: what it declares, and no more.

    Raises:
        InputError: the term needs logits or a gradient that are not there.
    """
    declared: dict[str, Any] = {}
    maps: dict[str, PairedMaps] = {}
    if term.needs_logits:
        declared["logits"] = _needed_logits(
            logits,
            f"the term {term.name} needs the student's logits, and none were found in its output, "
            f"{describe_output(student.output)}; pass logits= to Transfer, a function from the "
            "output to the logits, or leave the term out",
        )
    if term.needs_teacher_logits:
        declared["teacher_logits"] = _needed_logits(
            targets.logits,
            f"the term {term.name} needs the teacher's logits, and none were found in its output "
            "(or several teachers have no classes in common); use a teacher that returns logits, "
            "pass logits= to Transfer, or leave the term out",
        )
    if term.needs_teacher_gradient:
        declared["teacher_gradient"] = _needed(
            targets.gradient,
            f"the term {term.name} needs the teacher's gradient at the images, and the targets "
            "have none; use those of transfer.targets(images, labels)",
        )
    if term.needs_input_gradient:
        declared["input_gradients"] = gradients
    if term.pairs is not None:
        declared["pairs"] = tuple(
            _pair_inputs(term, pair, student, targets, maps) for pair in pairs
        )
    return TermInputs(term.name, student.output, labels, progress, declared, maps)


def _needed_logits(logits: Tensor | None, otherwise: str) -> Tensor:
    """Return logits in at least float32, whatever autocast computed them in."""
    return to_float32(_needed(logits, otherwise))


def _needed(value: Tensor | None, otherwise: str) -> Tensor:
    if value is None:
        raise InputError(otherwise)
    return value


def _pair_inputs(
    term: Term, pair: Pair, student: ForwardResult, targets: Targets, maps: dict[str, PairedMaps]
) -> PairInputs:
    values = tuple(
        targets.read(TargetField(point, term.teacher_reduction)) for point in pair.teacher_points
    )
    whole, reduced = (values, ()) if term.teacher_reduction is None else (None, values)
    return PairInputs(term.name, pair, student.features[pair.student], whole, reduced, maps)


def check_inputs(term: Term, inputs: TermInputs) -> None:
    """Let a term check its inputs; an error of its own code names the term."""
    with input_errors(f"the term {term.name} failed in check"):
        term.check(inputs)


def trial_copy(term: Term) -> Term | None:
    """Return a copy of a term, in eval mode, to try it on; None if it cannot be copied."""
    try:
        return copy.deepcopy(term).eval()
    except Exception:  # whatever a term raises that holds a lock, a file, a graph
        return None


def try_losses(term: Term, inputs: TermInputs) -> None:
    """Compute the losses of a term's pairs once, on a copy that leaves nothing behind.

    Raises:
        InputError: a loss fails or is not a scalar.
    """
    copied = trial_copy(term)
    if not isinstance(copied, PairTerm):
        return  # another term may read labels, which an example has none of
    pairs = [
        replace(pair, raw_student_features=pair.raw_student_features.detach().requires_grad_())
        for pair in inputs.pairs
    ]
    samples = len(pairs[0].raw_student_features)
    several = "" if samples > 1 else " (give several as example_input if it compares samples)"
    trial = replace(inputs, declared={**inputs.declared, "pairs": tuple(pairs)}, maps={})
    with input_errors(f"the term {term.name} failed on the example{several}"), torch.enable_grad():
        scalar_value(term.name, copied(trial))


def build_modules(term: Term, pairs: Sequence[PairInputs]) -> None:
    """Let a term make its modules, from the features of one example.

    Raises:
        InputError: another Transfer's modules are in it.
    """
    if type(term).build is Term.build:
        return
    if vars(term).get("_has_modules", False) and any(True for _ in term.parameters()):
        raise InputError(
            f"the term {term.name} has the modules of another Transfer already; make a new "
            f"{type(term).__name__} for this one"
        )
    term.build(pairs)
    term._has_modules = True


def check_built(term: Term, built: bool) -> None:
    """Raise an InputError if a term makes modules from an example and has seen none."""
    if not built and type(term).build is not Term.build:
        raise InputError(
            f"the term {term.name} makes its modules from an example; pass "
            "example_input=images[:1] to Transfer"
        )
