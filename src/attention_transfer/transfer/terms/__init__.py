"""Terms: each turns what a batch gave into one named scalar."""

from attention_transfer.transfer.terms.attention import ActivationAttention
from attention_transfer.transfer.terms.attention_distillation import AttentionDistillation
from attention_transfer.transfer.terms.base import PairTerm, Term
from attention_transfer.transfer.terms.class_attention import ClassAttention
from attention_transfer.transfer.terms.features import FullActivation
from attention_transfer.transfer.terms.input_gradients import (
    FlipSymmetry,
    GradientAttention,
    InputGradientNorm,
)
from attention_transfer.transfer.terms.inputs import PairedMaps, PairInputs, TermInputs
from attention_transfer.transfer.terms.logit_relations import DIST, DKD, LogitStandardization
from attention_transfer.transfer.terms.logits import (
    BinaryCrossEntropy,
    CrossEntropy,
    KnowledgeDistillation,
    SoftTargets,
    distillation_terms,
)

TERMS: dict[str, type[Term]] = {
    term.name: term
    for term in (
        ActivationAttention,
        AttentionDistillation,
        BinaryCrossEntropy,
        ClassAttention,
        CrossEntropy,
        DIST,
        DKD,
        FlipSymmetry,
        FullActivation,
        GradientAttention,
        InputGradientNorm,
        KnowledgeDistillation,
        LogitStandardization,
    )
}
"""The terms of the package by name, as a configuration may name them."""

__all__ = [
    "DIST",
    "DKD",
    "TERMS",
    "ActivationAttention",
    "AttentionDistillation",
    "BinaryCrossEntropy",
    "ClassAttention",
    "CrossEntropy",
    "FlipSymmetry",
    "FullActivation",
    "GradientAttention",
    "InputGradientNorm",
    "KnowledgeDistillation",
    "LogitStandardization",
    "PairInputs",
    "PairTerm",
    "PairedMaps",
    "SoftTargets",
    "Term",
    "TermInputs",
    "distillation_terms",
]
