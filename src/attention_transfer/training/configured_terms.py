"""The terms that a configuration names, with those given as Python objects."""

import copy
from collections.abc import Iterator, Sequence

from attention_transfer.config import RunConfig
from attention_transfer.errors import InputError, input_errors, nearest
from attention_transfer.factories import OBJECT, call_factory, import_object
from attention_transfer.transfer import (
    TERMS,
    ActivationAttention,
    BinaryCrossEntropy,
    CrossEntropy,
    FlipSymmetry,
    FullActivation,
    GradientAttention,
    InputGradientNorm,
    SoftTargets,
    Term,
    distillation_terms,
)

__all__ = ["configured_terms", "for_several_classes"]


def configured_terms(config: RunConfig, objects: Sequence[Term] = ()) -> list[Term]:
    """Return the terms of a run.

    Terms of the user's own stand beside those of the other settings; one of the same name takes the
    place of theirs.

    Args:
        config: of the run.
        objects: the terms that were given as Python objects, in the order of ``config.terms``.

    Raises:
        InputError: nothing to transfer from a teacher, or a factory that makes no term.
    """
    own = list(_own_terms(config, objects))
    names = {getattr(term, "name", None) for term in own}
    terms = [term for term in _terms_of_settings(config, bool(own)) if term.name not in names]
    return [*terms, *own]


def for_several_classes(terms: Sequence[Term], data: str) -> list[Term]:
    """Return the terms for images of several classes each: binary cross-entropy of the labels.

    Raises:
        InputError: a term that is for images of one class each.

    Example:
        >>> [term.name for term in for_several_classes([CrossEntropy()], "photos")]
        ['binary_cross_entropy']
    """
    for term in terms:
        if isinstance(term, SoftTargets) or term.needs_input_gradient:
            raise InputError(
                f"the images of {data} are of several classes each, and {term.name} is for images "
                "of one; leave it out (attention transfer of activations goes with them)"
            )
    names = {term.name for term in terms}
    return [
        BinaryCrossEntropy(term.weight, term.schedule) if type(term) is CrossEntropy else term
        for term in terms
        if type(term) is not CrossEntropy or BinaryCrossEntropy.name not in names
    ]


def _own_terms(config: RunConfig, objects: Sequence[Term]) -> Iterator[Term]:
    remaining = iter(objects)
    for text in config.terms:
        if text.startswith(OBJECT):
            term = next(remaining, None)
            if term is None:
                call_factory(text)  # raises, with what to do
            # A copy: a run begins with the term as it was given, also the next run with it.
            kind = type(term).__name__
            with input_errors(f"a run copies its terms, and {kind} cannot be (name a factory)"):
                made: object = copy.deepcopy(term)
        else:
            made = _made_by(text)
        for one in made if isinstance(made, list | tuple) else [made]:
            if not isinstance(one, Term):
                raise InputError(
                    f"{text} made a {type(one).__name__}, expected an attention_transfer.Term; "
                    "name a class of terms, or a function that returns a term or a list of them"
                )
            yield one


def _made_by(text: str) -> object:
    """Return what a term's short name, or a factory, makes.

    Raises:
        InputError: an unknown name; a term itself; or as of
            :func:`attention_transfer.factories.call_factory`.
    """
    name = text.partition("(")[0].strip()
    if name.isidentifier():
        if name not in TERMS:
            raise InputError(
                f"unknown term {name!r}; {nearest(name, TERMS)} (a term of your own is "
                "package.module:factory)"
            )
        return call_factory(text, TERMS)
    if isinstance(import_object(name), Term):
        raise InputError(
            f"{name} is a term already, expected a class of terms, or a function that returns one: "
            "each run makes its own"
        )
    return call_factory(text)


def _terms_of_settings(config: RunConfig, has_own_terms: bool) -> list[Term]:
    terms: list[Term] = []
    if config.teacher is not None and "activation" in config.attention:
        terms.append(
            ActivationAttention(
                beta=config.beta,
                map=config.map,
                power=config.power,
                form=config.form,
                pairs=config.pairs,
                schedule=config.schedule_of_beta,
                pooling=config.pooling,
            )
        )
    if config.full_activation_beta is not None:
        terms.append(FullActivation(config.full_activation_beta, config.pairs))
    terms += _gradient_terms(config)
    if config.kd_alpha is not None:
        mixture = distillation_terms(
            config.kd_alpha,
            config.temperature,
            config.kd_form,
            label_smoothing=config.label_smoothing,
        )
        return [*mixture, *terms]
    if not terms and config.teacher is not None and not has_own_terms:
        raise InputError(
            "nothing to transfer: attention is none and neither kd_alpha nor full_activation_beta "
            "is given; give one of them (or a gradient term, or a term of your own), or use "
            "'attention-transfer train'"
        )
    return [CrossEntropy(label_smoothing=config.label_smoothing), *terms]


def _gradient_terms(config: RunConfig) -> Iterator[Term]:
    form, inputs = config.gradient_form, config.gradient_inputs
    if "gradient" in config.attention and config.gradient_beta is None:
        raise InputError(
            "attention gradient needs its weight, got no gradient_beta; give --gradient-beta, "
            "such as 0.01"
        )
    if config.gradient_beta is not None:
        yield GradientAttention(
            config.gradient_beta,
            form,
            config.gradient_normalize,
            config.gradient_map,
            inputs=inputs,
        )
    if config.flip_symmetry_beta is not None:
        classes = config.flip_classes
        chosen = None if classes is None else tuple(map(int, classes.split(",")))
        yield FlipSymmetry(config.flip_symmetry_beta, form, config.flip_axis, chosen, inputs=inputs)
    if config.input_gradient_norm_beta is not None:
        yield InputGradientNorm(config.input_gradient_norm_beta, form, inputs=inputs)
