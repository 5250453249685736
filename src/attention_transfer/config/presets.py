"""Presets: the losses of the paper and of well-known code, by the settings that make them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["PRESETS", "Preset", "described", "with_preset"]

Preset = Literal[
    "authors-code", "paper-eq2", "authors-kd-2017", "repdistiller", "torchdistill-paper"
]

_ATTENTION: dict[str, Any] = {"attention": "activation", "map": "sum", "power": 2.0}
_MIXTURE: dict[str, Any] = {"kd_alpha": 0.9, "temperature": 4.0}

PRESETS: Mapping[Preset, Mapping[str, Any]] = MappingProxyType(
    {
        # szagoruyko/attention-transfer: utils.at_loss, --beta 1e3
        "authors-code": {**_ATTENTION, "form": "code", "beta": 1000.0},
        # Zagoruyko & Komodakis 2017, Eq. 2 with the beta of section 4.1
        "paper-eq2": {**_ATTENTION, "form": "paper-eq2", "beta": 1000.0},
        # szagoruyko/attention-transfer before July 2018: utils.distillation, --alpha 0.9
        "authors-kd-2017": {"attention": "none", **_MIXTURE, "kd_form": "2017"},
        # HobbitLong/RepDistiller: distiller_zoo/AT.py, -r 1 -a 0 -b 1000
        "repdistiller": {**_ATTENTION, "form": "code", "beta": 1000.0, "pooling": "features"},
        # yoshitomo-matsubara/torchdistill: ATLoss(mode="paper") has ||d||, not ||d|| / 2
        "torchdistill-paper": {**_ATTENTION, "form": "paper", "beta": 2000.0},
    }
)
"""The settings of each preset."""


def with_preset(values: Any) -> Any:
    """Return settings with those of their preset, where they have none of their own.

    Example:
        >>> with_preset({"preset": "authors-kd-2017", "kd_alpha": 0.5})["kd_alpha"]
        0.5
        >>> with_preset({"preset": "authors-kd-2017"})["kd_form"]
        '2017'
    """
    preset = values.get("preset") if isinstance(values, Mapping) else None
    known = isinstance(preset, str) and preset in PRESETS
    return {**PRESETS[preset], **values} if known else values  # type: ignore[index]


def described(preset: Preset, settings: Mapping[str, Any]) -> str:
    """Return a line that says what a preset set, and what was given in its place.

    Example:
        >>> described("authors-kd-2017", {**PRESETS["authors-kd-2017"], "kd_alpha": 0.5})
        'preset authors-kd-2017: attention none, temperature 4.0, kd_form 2017; given instead: \
kd_alpha 0.5'
    """
    kept = [f"{name} {value}" for name, value in PRESETS[preset].items() if settings[name] == value]
    given = [
        f"{name} {settings[name]}"
        for name, value in PRESETS[preset].items()
        if settings[name] != value
    ]
    instead = f"; given instead: {', '.join(given)}" if given else ""
    return f"preset {preset}: {', '.join(kept) or 'nothing'}{instead}"
