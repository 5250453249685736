"""Terms by name, the inputs of each, and the value it returns."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError, input_errors
from attention_transfer.functional.maps import to_float32
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import Inputs
from attention_transfer.transfer.forward import (
    ForwardResult,
    describe_output,
    input_size,
    preprocess,
)
from attention_transfer.transfer.input_gradients import InputGradients
from attention_transfer.transfer.pairing import Pair, Pairing, PairingSide, resolve_pairs
from attention_transfer.transfer.targets import (
    Reduction,
    TargetField,
    Targets,
    TargetSpec,
    same_reduction,
)
from attention_transfer.transfer.terms.base import Term
from attention_transfer.transfer.terms.inputs import PairedMaps, PairInputs, TermInputs

__all__ = [
    "build_modules",
    "check_built",
    "check_devices",
    "check_inputs",
    "check_teacher",
    "check_term",
    "claim_modules",
    "gradient_labels",
    "modules_dtype",
    "named_terms",
    "needed_of_teacher",
    "pairings_of",
    "read_fields",
    "scalar_value",
    "term_inputs",
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
        check_term(term)
        kind = type(term).__name__
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


def check_term(term: object) -> None:
    """Raise an InputError unless it is an instance of Term that was initialised."""
    kind = term.__name__ if isinstance(term, type) else type(term).__name__
    if not isinstance(term, Term):
        made = f"; did you mean {kind}()?" if isinstance(term, type) else ""
        raise InputError(
            f"{kind} is not a term, expected an instance of attention_transfer.Term{made}"
        )
    if "_modules" not in vars(term):
        raise InputError(f"{kind} does not call super().__init__() in its __init__; add that")


def check_teacher(terms: Mapping[str, Term], has_teacher: bool) -> None:
    """Raise an InputError if a term needs a teacher and there is none."""
    for name, term in terms.items():
        if term.needs_teacher and not has_teacher:
            raise InputError(f"the term {name} needs a teacher, got none; pass teacher=")


def pairings_of(
    terms: Mapping[str, Term],
    networks: Sequence[tuple[nn.Module, Preprocessing | None]],
    example: Inputs | None,
) -> dict[str, Pairing]:
    """Return the layer pairs of each term that compares layers.

    Args:
        terms: by name.
        networks: the student and the teachers, each with its preprocessing.
        example: inputs of the networks, if there are any.
    """
    if any(type(term).bind is not Term.bind for term in terms.values()):
        bound = [
            (network, None if example is None else preprocess(network, example, preprocessing))
            for network, preprocessing in networks
        ]
        for term in terms.values():
            term.bind(bound)
    sides = [
        PairingSide(
            network,
            None if example is None else input_size(example, preprocessing),
            None if example is None or isinstance(example, Tensor) else example,
        )
        for network, preprocessing in networks
    ]
    return {
        name: resolve_pairs(term.pairs, *sides)
        for name, term in terms.items()
        if term.pairs is not None
    }


def needed_of_teacher(terms: Mapping[str, Term], pairings: Mapping[str, Pairing]) -> TargetSpec:
    """Return what terms need of the teacher, each thing once.

    Raises:
        InputError: two terms have different reductions of one name.
    """
    reductions: dict[str, tuple[str, Reduction]] = {}
    fields: dict[TargetField, None] = {}
    for name, pairing in pairings.items():
        for point in (point for pair in pairing.pairs for point in pair.teacher_points):
            reduction = terms[name].reduction_at(point)
            fields[TargetField(point, reduction)] = None
            if reduction is None:
                continue
            other, first = reductions.setdefault(reduction.name, (name, reduction))
            if not same_reduction(first, reduction):
                raise InputError(
                    f"the terms {other} and {name} have different reductions of one name, "
                    f"{reduction.name!r}; name each by what it does, settings included, or give "
                    "both terms the same one"
                )
    return TargetSpec(
        tuple(fields),
        any(term.needs_teacher_logits for term in terms.values()),
        any(term.needs_teacher_gradient for term in terms.values()),
    )


def read_fields(
    spec: TargetSpec, features: Mapping[str, Tensor], terms: Mapping[str, Term]
) -> dict[TargetField, Tensor]:
    """Return what terms need of the teacher's features by point; an error names the terms."""
    fields: dict[TargetField, Tensor] = {}
    for target in spec.fields:
        try:
            fields[target] = target.read(features[target.point])
        except InputError as error:
            names = [
                name
                for name, term in terms.items()
                if term.pairs is not None and term.reduction_at(target.point) == target.reduction
            ]
            raise InputError(f"the term {' and '.join(names)}: {error}") from error
    return fields


def gradient_labels(labels: Any, terms: Mapping[str, Term]) -> Any:
    """Return the labels with -100, which the summed cross-entropy leaves out, for each index that a
    term ignores.
    """
    ignored = {getattr(term, "ignore_index", None) for term in terms.values()} - {None, -100}
    if not ignored or not isinstance(labels, Tensor) or labels.is_floating_point():
        return labels
    labels = labels.long()
    for index in ignored:
        labels = labels.masked_fill(labels == index, -100)
    return labels


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
    labels: Any = None,
    progress: float = 0.0,
    gradients: InputGradients | None = None,
) -> TermInputs:
    """Return a term's inputs of a batch: what it declares, and no more.

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
    fields = [TargetField(point, term.reduction_at(point)) for point in pair.teacher_points]
    values = tuple(targets.read(target) for target in fields)
    whole, reduced = (values, ()) if fields[0].reduction is None else (None, values)
    return PairInputs(term.name, pair, student.features[pair.student], whole, reduced, maps)


def check_inputs(term: Term, inputs: TermInputs) -> None:
    """Let a term check its inputs; an error of its own code names the term."""
    with input_errors(f"the term {term.name} failed in check"):
        term.check(inputs)


def build_modules(term: Term, pairs: Sequence[PairInputs]) -> None:
    """Let a term make its modules, from the features of one example.

    Raises:
        InputError: another Transfer's modules are in it.
    """
    if type(term).build is Term.build:
        return
    if vars(term).get("_has_modules", False):
        raise InputError(
            f"the term {term.name} has the modules of another Transfer already; make a new "
            f"{type(term).__name__} for this one"
        )
    with input_errors(f"the term {term.name} failed in build"):
        term.build(pairs)


def modules_dtype(student: ForwardResult, logits: Tensor | None) -> torch.dtype | None:
    """Return the dtype of a term's modules: float64 if the student computes in it; None: as is."""
    values = (*student.features.values(), logits)
    double = any(value is not None and value.dtype == torch.float64 for value in values)
    return torch.float64 if double else None


def claim_modules(terms: Mapping[str, Term]) -> None:
    """Record that the terms have modules of a Transfer, which no other one may have."""
    for term in terms.values():
        if type(term).build is not Term.build:
            term._has_modules = True


def check_built(term: Term, built: bool) -> None:
    """Raise an InputError if a term makes modules from an example and there was none."""
    if not built and type(term).build is not Term.build:
        raise InputError(
            f"the term {term.name} makes its modules from an example; pass "
            "example_input=images[:1] to Transfer"
        )


def check_devices(name: str, inputs: TermInputs, error: Exception) -> None:
    """Raise an InputError if a term failed on tensors that are on several devices."""
    devices: dict[str, str] = {}

    def see(what: str, value: object) -> None:
        if isinstance(value, Tensor):
            devices.setdefault(str(value.device), what)

    see("the student's logits", inputs.declared.get("logits"))
    see("the teacher's logits", inputs.declared.get("teacher_logits"))
    for pair in inputs.declared.get("pairs", ()):
        see("the student's features", pair.raw_student_features)
        for value in (*(pair.whole_features or ()), *pair.teacher_targets):
            see("the teacher's targets", value)
    see("the labels", inputs.labels)
    if len(devices) > 1 and isinstance(error, RuntimeError):
        places = " and ".join(f"{what} on {device}" for device, what in devices.items())
        raise InputError(
            f"the term {name} got {places}; put all on one device: transfer.to(device) moves both "
            "networks, labels.to(device) the labels"
        ) from error
