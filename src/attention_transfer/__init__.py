"""Attention transfer: train a small vision network to look where a large one looks.

After Zagoruyko & Komodakis, *Paying More Attention to Attention: Improving the Performance of
Convolutional Neural Networks via Attention Transfer*, ICLR 2017.

    import attention_transfer as at

    transfer = at.Transfer(student, teacher, terms=[
        *at.distillation_terms(alpha=0.9, temperature=4.0),
        at.ActivationAttention(beta=1000.0),
    ])
    out = transfer(images, labels)
    out.loss.backward()

``at.maps``, ``at.losses`` and ``at.measures`` are the formulas (``at.metrics`` the measures over a
data set), ``at.models`` and ``at.data`` what is trained and on what, ``at.train`` and
``at.distill`` whole runs, ``at.load`` a trained network to predict with.
"""

import importlib

import attention_transfer.torchrun  # noqa: F401  # first of all: see AGENT in it
from attention_transfer.version import __version__ as __version__

# Not typing's: with python -m, the current folder is still the first on the path here, and a
# typing.py in it would be imported. __main__ takes the folder off the path.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from attention_transfer import data, metrics, models
    from attention_transfer.api import distill, resume, train
    from attention_transfer.errors import InputError, TrainingError, UntrustedError
    from attention_transfer.functional import losses, maps, measures
    from attention_transfer.inference import Classifier, Prediction, load
    from attention_transfer.preprocessing import Preprocessing
    from attention_transfer.report.page import write_report
    from attention_transfer.runs import Run
    from attention_transfer.taps import AttentionPoint, PointTable, attention_points
    from attention_transfer.transfer import (
        DIST,
        DKD,
        ActivationAttention,
        AttentionDistillation,
        BinaryCrossEntropy,
        ClassAttention,
        CrossEntropy,
        FlipSymmetry,
        FrozenTeacher,
        FullActivation,
        GradientAttention,
        InputGradientNorm,
        KnowledgeDistillation,
        LogitStandardization,
        Pair,
        PairInputs,
        PairTerm,
        Reduction,
        Targets,
        Term,
        TermInputs,
        Transfer,
        TransferOutput,
        attention_maps,
        distillation_terms,
        map_reduction,
    )
    from attention_transfer.transfer.presets import preset
    from attention_transfer.viewing import show

__all__ = [
    "DIST",
    "DKD",
    "ActivationAttention",
    "AttentionDistillation",
    "AttentionPoint",
    "BinaryCrossEntropy",
    "ClassAttention",
    "Classifier",
    "CrossEntropy",
    "FlipSymmetry",
    "FrozenTeacher",
    "FullActivation",
    "GradientAttention",
    "InputError",
    "InputGradientNorm",
    "KnowledgeDistillation",
    "LogitStandardization",
    "Preprocessing",
    "Pair",
    "PairInputs",
    "PairTerm",
    "PointTable",
    "Prediction",
    "Reduction",
    "Run",
    "Targets",
    "Term",
    "TermInputs",
    "TrainingError",
    "Transfer",
    "TransferOutput",
    "UntrustedError",
    "attention_maps",
    "attention_points",
    "data",
    "distill",
    "distillation_terms",
    "load",
    "losses",
    "map_reduction",
    "maps",
    "measures",
    "metrics",
    "models",
    "preset",
    "resume",
    "show",
    "train",
    "write_report",
]

_MODULES = {
    "data": "data",
    "losses": "functional.losses",
    "maps": "functional.maps",
    "measures": "functional.measures",
    "metrics": "metrics",
    "models": "models",
}
_HOMES = {
    "errors": ("InputError", "TrainingError", "UntrustedError"),
    "taps": ("AttentionPoint", "PointTable", "attention_points"),
    "runs": ("Run",),
    "inference": ("Classifier", "Prediction", "load"),
    "viewing": ("show",),
    "api": ("distill", "resume", "train"),
    "preprocessing": ("Preprocessing",),
    "report.page": ("write_report",),
    "transfer.presets": ("preset",),
}


def __getattr__(name: str) -> "Any":
    """Import a public name at its first use, so that ``--help`` needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{_MODULES[name]}")
    home = next((home for home, names in _HOMES.items() if name in names), "transfer")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
