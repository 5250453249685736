"""The value of one term on a batch: raw, weighted and, of layer pairs, one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError
from attention_transfer.transfer.gradient_balance import WEIGHTS, GradientBalance, Measurement
from attention_transfer.transfer.pairing import Pairing
from attention_transfer.transfer.term_inputs import check_devices, scalar_value
from attention_transfer.transfer.terms.base import AUTO, PairTerm, Term
from attention_transfer.transfer.terms.inputs import TermInputs

__all__ = ["TermValue", "balance_of", "term_value", "watch_loss"]


class TermValue(NamedTuple):
    """The value of a term on a batch."""

    raw: Tensor
    """Without its weight."""
    weighted: Tensor
    betas: dict[str, Tensor]
    """The weights of its layer pairs, schedule included, if they are found by gradient norms; of a
    term over input gradients the one under ``"weights"``.
    """


def balance_of(
    terms: Mapping[str, Term], pairings: Mapping[str, Pairing], constant: bool
) -> GradientBalance | None:
    """Return what measures the gradients of terms over layer pairs and of terms over input
    gradients, or None if there are none.

    Args:
        terms: by name.
        pairings: of those that compare layers.
        constant: whether to measure terms of constant weight as well.

    Raises:
        InputError: a term of weight "auto" with a ``forward`` of its own, which hides the losses
            of its layer pairs.
    """
    pairs, largest = list[tuple[str, str, str | None]](), list[float | None]()
    for name, term in terms.items():
        bound = term.largest_beta if term.weight == AUTO else None
        if term.needs_input_gradient and (constant or term.weight == AUTO):
            pairs.append((name, WEIGHTS, None))
            largest.append(bound)
            continue
        summed = isinstance(term, PairTerm) and type(term).forward is PairTerm.forward
        if term.weight == AUTO and not summed:
            raise InputError(
                f"the term {name} has its own forward, so that there are no losses of layer pairs "
                'to weigh by "auto"; give it a number, or write loss(pair) alone'
            )
        if not summed or not (constant or term.weight == AUTO):
            continue
        for pair in pairings[name].pairs:
            pairs.append((name, str(pair), pair.student))
            largest.append(bound)
    return GradientBalance(pairs, largest) if pairs else None


def term_value(
    name: str,
    term: Term,
    inputs: TermInputs,
    balance: GradientBalance | None,
    measurement: Measurement | None,
) -> TermValue:
    """Return a term's value on a batch.

    Args:
        name: of the term.
        term: the term.
        inputs: its inputs of the batch.
        balance: with the weights of its layer pairs, if they are "auto".
        measurement: measures the gradients of layer pairs, if this pass is measured.

    Raises:
        InputError: the value is no scalar, or tensors are on several devices.
    """
    factor = term.weight_at(inputs.progress)
    if term.weight == AUTO and not (balance is not None and balance.finds_beta(name)):
        raise InputError(
            f'the weight of the term {name} was set to "auto" after the Transfer was built; build '
            "a new one"
        )
    try:
        if balance is not None and balance.has_pairs(name):
            assert isinstance(term, PairTerm)
            losses = _pair_losses(name, term, inputs, measurement)
        else:
            losses = {WEIGHTS: scalar_value(name, term(inputs))}
    except Exception as error:
        check_devices(name, inputs, error)
        error.add_note(f"in the term {name}")
        raise
    raw = _sum(list(losses.values()))
    if term.weight != AUTO or balance is None:
        return TermValue(raw, raw * factor, {})
    betas = balance.beta(name) * factor
    weighted = (betas * torch.stack(list(losses.values()))).sum()
    return TermValue(raw, weighted, dict(zip(losses, betas.detach(), strict=True)))


def watch_loss(
    loss: Tensor,
    values: Mapping[str, TermValue],
    terms: Mapping[str, Term],
    measurement: Measurement,
    student: nn.Module,
) -> None:
    """Measure the gradients of the loss: those in the student's weights now, those at points when
    its backward pass begins.

    Args:
        loss: the sum of the weighted terms.
        values: of all terms.
        terms: the same terms.
        measurement: of this pass.
        student: the network that learns.
    """
    measurement.watch_loss(loss)
    if not measurement.at_weights:
        return
    parameters = [weights for weights in student.parameters() if weights.requires_grad]
    others = [values[name].weighted for name in values if not terms[name].needs_input_gradient]
    measurement.measure_in_weights(None, _sum([torch.zeros(()), *others]), parameters)
    for name in measurement.at_weights:
        measurement.measure_in_weights(name, values[name].raw, parameters)


def _sum(values: Sequence[Tensor]) -> Tensor:
    return sum(values[1:], start=values[0])


def _pair_losses(
    name: str, term: PairTerm, inputs: TermInputs, measurement: Measurement | None
) -> dict[str, Tensor]:
    """Return the loss of each layer pair, and measure its gradient if this pass is measured."""
    losses = {}
    for pair in inputs.pairs:
        features = pair.raw_student_features
        watched = measurement is not None and features.requires_grad
        if watched:
            # Apart from those of other terms; in float16 the gradient of an unscaled loss vanishes.
            alone = features.float() if features.dtype == torch.float16 else features
            pair = replace(pair, raw_student_features=alone.view_as(features))
        loss = losses[str(pair.pair)] = term.pair_loss(pair)
        if watched and measurement is not None:
            measurement.measure_pair(name, str(pair.pair), loss, pair.raw_student_features)
    return losses
