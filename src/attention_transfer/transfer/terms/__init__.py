"""Terms: each turns what a batch gave into one named scalar."""

from attention_transfer.transfer.terms.attention import ActivationAttention
from attention_transfer.transfer.terms.base import PairTerm, Term
from attention_transfer.transfer.terms.features import FullActivation
from attention_transfer.transfer.terms.input_gradients import (
    FlipSymmetry,
    GradientAttention,
    InputGradientNorm,
)
from attention_transfer.transfer.terms.inputs import PairedMaps, PairInputs, TermInputs
from attention_transfer.transfer.terms.logits import (
    BinaryCrossEntropy,
    CrossEntropy,
    KnowledgeDistillation,
    distillation_terms,
)

__all__ = [
    "ActivationAttention",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "FlipSymmetry",
    "FullActivation",
    "GradientAttention",
    "InputGradientNorm",
    "KnowledgeDistillation",
    "PairInputs",
    "PairTerm",
    "PairedMaps",
    "Term",
    "TermInputs",
    "distillation_terms",
]
