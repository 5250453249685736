"""The heart: terms over taps, the objective that sums them, the frozen teacher, pairing."""

from attention_transfer.transfer.attention_maps import Attention, attention_maps, attention_of
from attention_transfer.transfer.compiled_forward import compiler_fault
from attention_transfer.transfer.objective import Transfer
from attention_transfer.transfer.output import TransferOutput
from attention_transfer.transfer.pairing import Pair, PairingSide
from attention_transfer.transfer.targets import MapFunction, TargetField, Targets, TargetSpec
from attention_transfer.transfer.teacher import FrozenTeacher, as_logits
from attention_transfer.transfer.teacher_ensemble import frozen_teacher
from attention_transfer.transfer.terms.base import Observation, Term
from attention_transfer.transfer.terms.features import ActivationAttention, FullActivation
from attention_transfer.transfer.terms.input_gradients import (
    FlipSymmetry,
    GradientAttention,
    InputGradientNorm,
)
from attention_transfer.transfer.terms.logits import (
    BinaryCrossEntropy,
    CrossEntropy,
    KnowledgeDistillation,
    distillation_terms,
)

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
    "Observation",
    "Pair",
    "TargetField",
    "PairingSide",
    "Targets",
    "Term",
    "Transfer",
    "TransferOutput",
    "TargetSpec",
    "as_logits",
    "attention_maps",
    "attention_of",
    "compiler_fault",
    "distillation_terms",
    "frozen_teacher",
]
