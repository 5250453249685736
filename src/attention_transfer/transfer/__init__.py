"""The heart: terms over taps, the objective that sums them, the frozen teacher, pairing."""

from attention_transfer.transfer.attention_maps import Attention, attention_maps, attention_of
from attention_transfer.transfer.compiled_forward import compiler_fault
from attention_transfer.transfer.forward import class_logits, find_logits, preprocess
from attention_transfer.transfer.objective import Transfer
from attention_transfer.transfer.output import PairDescription, TransferOutput
from attention_transfer.transfer.pairing import Pair, PairingSide
from attention_transfer.transfer.targets import (
    Reduction,
    TargetField,
    Targets,
    TargetSpec,
    map_reduction,
    reduction_named,
)
from attention_transfer.transfer.teacher import FrozenTeacher
from attention_transfer.transfer.teacher_ensemble import frozen_teacher
from attention_transfer.transfer.term_inputs import check_term
from attention_transfer.transfer.terms import (
    DIST,
    DKD,
    TERMS,
    ActivationAttention,
    AttentionDistillation,
    BinaryCrossEntropy,
    ClassAttention,
    CrossEntropy,
    FlipSymmetry,
    FullActivation,
    GradientAttention,
    InputGradientNorm,
    KnowledgeDistillation,
    LogitStandardization,
    PairInputs,
    PairTerm,
    SoftTargets,
    Term,
    TermInputs,
    distillation_terms,
)
from attention_transfer.transfer.trial import try_terms

__all__ = [
    "DIST",
    "DKD",
    "TERMS",
    "ActivationAttention",
    "AttentionDistillation",
    "Attention",
    "BinaryCrossEntropy",
    "ClassAttention",
    "CrossEntropy",
    "FlipSymmetry",
    "FrozenTeacher",
    "FullActivation",
    "GradientAttention",
    "InputGradientNorm",
    "KnowledgeDistillation",
    "LogitStandardization",
    "Pair",
    "PairDescription",
    "PairInputs",
    "PairTerm",
    "PairingSide",
    "Reduction",
    "SoftTargets",
    "TargetField",
    "TargetSpec",
    "Targets",
    "Term",
    "TermInputs",
    "Transfer",
    "TransferOutput",
    "attention_maps",
    "attention_of",
    "check_term",
    "class_logits",
    "compiler_fault",
    "distillation_terms",
    "find_logits",
    "frozen_teacher",
    "map_reduction",
    "preprocess",
    "reduction_named",
    "try_terms",
]
