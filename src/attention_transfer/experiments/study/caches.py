"""Which runs of a study share a cache of their teacher's targets. No torch here."""

import hashlib
from collections.abc import Mapping
from typing import Any

from attention_transfer.config import RunConfig
from attention_transfer.config.presets import with_preset
from attention_transfer.config.studies import slug

__all__ = ["FROM_FIELDS", "FROM_LOGITS", "cache_folder", "field_terms"]

DEPENDS_ON = (
    *("data", "columns", "label_offset", "class_order", "pixel_range"),
    *("randaugment", "random_erasing", "mixup", "cutmix", "validation", "data_seed"),
    *("precision", "channels_last", "map", "power", "cache_views"),
)
"""Settings on which the targets in a cache depend, beside the teacher, the size of the images and
the number of views.
"""

FROM_LOGITS = ("dist", "dkd", "knowledge_distillation", "logit_standardization")
"""Terms of the package that read a teacher's logits alone, which every cache has."""

FROM_FIELDS = ("activation_attention", "attention_distillation", "class_attention")
"""Terms of the package that read fields of their own from a cache."""


def cache_folder(settings: Mapping[str, Any], data: str, teacher: str) -> str | None:
    """Return the folder of a run's cache in a study; None where its terms need the teacher itself.

    Args:
        settings: of the run, with its teacher.
        data: the study's name of the data set.
        teacher: the study's name of the teacher.
    """
    settings = dict(with_preset(settings))
    terms = settings.get("terms") or ()
    if any(_name(term) not in (*FROM_LOGITS, *FROM_FIELDS) for term in terms):
        return None
    if settings.get("full_activation_beta") is not None or settings.get("pooling") == "features":
        return None
    attention = str(settings.get("attention", "activation"))
    uses_maps = "activation" in attention
    gradient = settings.get("gradient_beta") is not None or "gradient" in attention
    if uses_maps and not str(settings.get("pairs", "auto")).startswith("auto"):
        return None
    if not (uses_maps or gradient or terms) and settings.get("kd_alpha") is None:
        return None
    defaults = RunConfig.model_fields
    depends = {name: str(settings.get(name, defaults[name].default)) for name in DEPENDS_ON}
    student = str(settings["student"])
    depends["image_size"] = str(settings.get("image_size") or _size_of(student))
    depends["views"] = str(settings.get("cache_views") or settings.get("epochs"))
    # A run with distillation alone makes a cache without maps, which serves no other.
    depends |= {"teacher": str(settings["teacher"]), "gradient": str(gradient)}
    depends["maps"] = str(uses_maps)
    fields = field_terms(settings)
    if fields:
        depends |= {"terms": ", ".join(fields), "pairs of": student}
    digest = hashlib.sha256(repr(sorted(depends.items())).encode()).hexdigest()[:8]
    return f"caches/{slug(data)}/{slug(teacher)[-40:]}-{digest}"


def field_terms(settings: Mapping[str, Any]) -> list[str]:
    """Return the terms of a run that read fields of their own from its cache."""
    return sorted(term for term in settings.get("terms") or () if _name(term) in FROM_FIELDS)


def _name(term: str) -> str:
    return term.partition("(")[0].strip()


def _size_of(student: str) -> str:
    """Return the name of a student that decides the size of images in files; empty if it does not,
    as the networks of this package do not.
    """
    return student if any(mark in student for mark in ":/") else ""
