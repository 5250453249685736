"""The heart: terms over taps, the objective that sums them, the frozen teacher, pairing."""

from attention_transfer.transfer.attention import Attention, attention_maps, attention_of
from attention_transfer.transfer.compiled import compiler_fault
from attention_transfer.transfer.feature_terms import ActivationAttention, FullActivation
from attention_transfer.transfer.gradient_terms import (
    FlipSymmetry,
    GradientAttention,
    InputGradientNorm,
)
from attention_transfer.transfer.logit_terms import (
    BinaryCrossEntropy,
    CrossEntropy,
    KnowledgeDistillation,
    distillation_terms,
)
from attention_transfer.transfer.objective import Transfer
from attention_transfer.transfer.output import TransferOutput
from attention_transfer.transfer.pairing import Pair, Side
from attention_transfer.transfer.several_teachers import frozen_teacher
from attention_transfer.transfer.targets import MapFunction, Reading, Targets, Wanted
from attention_transfer.transfer.teacher import FrozenTeacher, Normalization, as_logits
from attention_transfer.transfer.terms import Observation, Term

__all__ = [
    "ActivationAttention",
    "Attention",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "FlipSymmetry",
    "FrozenTeacher",
    "FullActivation",
    "GradientAttention",
    "InputGradientNorm",
    "KnowledgeDistillation",
    "MapFunction",
    "Normalization",
    "Observation",
    "Pair",
    "Reading",
    "Side",
    "Targets",
    "Term",
    "Transfer",
    "TransferOutput",
    "Wanted",
    "as_logits",
    "attention_maps",
    "attention_of",
    "compiler_fault",
    "distillation_terms",
    "frozen_teacher",
]
