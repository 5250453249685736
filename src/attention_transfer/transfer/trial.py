"""Trials of terms on an example, before training: on copies, which leave nothing behind."""

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from attention_transfer.errors import input_errors
from attention_transfer.taps import Inputs, evaluating
from attention_transfer.transfer.term_inputs import scalar_value
from attention_transfer.transfer.terms.base import PairTerm, Term
from attention_transfer.transfer.terms.inputs import TermInputs

if TYPE_CHECKING:
    from attention_transfer.transfer.objective import Transfer

__all__ = ["try_losses", "try_terms"]


def try_losses(term: Term, inputs: TermInputs) -> None:
    """Compute the losses of a term's pairs once, on a copy that leaves nothing behind.

    Raises:
        InputError: a loss fails or is not a scalar.
    """
    copied = _trial_copy(term)
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


def try_terms(transfer: "Transfer", inputs: Inputs, labels: Any) -> None:
    """Compute every term of a Transfer once, in eval mode.

    Args:
        transfer: with the terms.
        inputs: as of its call.
        labels: the same.

    Raises:
        InputError: a term fails; the error names it.
    """
    terms = transfer.terms
    copies = {name: _trial_copy(term) for name, term in transfer.named_terms.items()}
    transfer.terms = nn.ModuleDict({name: copied for name, copied in copies.items() if copied})
    try:
        if transfer.terms:
            with evaluating(transfer.student), input_errors("a trial step failed"):
                transfer(inputs, labels)
    finally:
        transfer.terms = terms


def _trial_copy(term: Term) -> Term | None:
    """Return a copy of a term, in eval mode, to try it on; None if it cannot be copied."""
    try:
        return copy.deepcopy(term).eval()
    except Exception:  # whatever a term raises that holds a lock, a file, a graph
        return None
