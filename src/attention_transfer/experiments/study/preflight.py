"""What is checked before a study trains anything: its data, its teachers, and earlier results."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attention_transfer.config import RunConfig
from attention_transfer.config.studies import PACKAGED, STEPS, StudyConfig
from attention_transfer.errors import InputError, first_problems
from attention_transfer.experiments.study.results import SCHEMA_VERSION, STUDY_FILE
from attention_transfer.files import read_json
from attention_transfer.model_names import run_folder, split_models, split_name, weights_file

__all__ = ["check_teachers", "check_unchanged", "needs_images", "training_images"]

LARGEST_STUDY = 2**26
"""Bytes of the largest ``study.json``."""

MAY_CHANGE = ("title", "note", "seeds", "compare", "paper")
"""Parts of a study that change no run."""

MAY_GROW = ("data", "teachers", "pairs", "variants", "arms")
"""Parts of a study that may get new names beside finished runs."""


def needs_images(study: StudyConfig) -> bool:
    """Return whether a length in the study is in steps, so that images must be counted."""
    parts = [study.settings, *study.data.values(), *study.variants.values(), *study.arms.values()]
    parts += [pair.settings for pair in study.pairs.values()]
    parts += [teacher.settings for teacher in study.teachers.values()]
    parts += [part for teacher in study.teachers.values() for part in teacher.on.values()]
    return any(STEPS in part for part in parts)


def training_images(study: StudyConfig) -> dict[str, int]:
    """Load each data set of a study, and return how many training images it has.

    Raises:
        InputError: data that are not there or cannot be read.
    """
    from attention_transfer.network_inputs import images_of

    counts, faults = {}, []
    for name, settings in study.data.items():
        of_data = {"data": name, **study.settings, **settings}
        of_data = {key: value for key, value in of_data.items() if key != STEPS}
        config = RunConfig.checked({"student": "any", "teacher": "any", **of_data})
        try:
            counts[name] = len(images_of(config, (32, 32)).train)
        except InputError as error:
            faults.append(f"data {name}: {error}")
    if faults:
        raise InputError("; ".join(faults))
    return counts


def check_teachers(study: StudyConfig) -> None:
    """Raise an InputError unless the files and folders of teachers exist."""
    models = [pair.teacher for pair in study.pairs.values() if pair.teacher not in study.teachers]
    models += [model for one in study.teachers.values() for model in one.ready.values()]
    faults = []
    for model in dict.fromkeys(models):
        for name in split_models(model):
            if name == PACKAGED or run_folder(name) is not None:
                continue
            network, weights = split_name(name)
            file = weights_file(weights)[0]
            if weights and weights not in ("random", "pretrained") and not file.exists():
                faults.append(f"the teacher {name}: there is no file {file}")
            elif not weights and "/" in network and ":" not in network:
                faults.append(f"the teacher {name}: there is no folder {network}")
    if faults:
        raise InputError("; ".join(faults))


def check_unchanged(study: StudyConfig, folder: Path) -> None:
    """Raise an InputError if the folder has results of a study that differs from this one.

    More seeds, and new arms, pairs or data, are no difference.
    """
    path = folder / STUDY_FILE
    if not path.is_file():
        return
    try:
        document = read_json(path, LARGEST_STUDY)
        version, began = document["schema_version"], document["study"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); remove it, and it is written again from the runs"
        ) from None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {version!r}, expected {SCHEMA_VERSION}; give another --out"
        )
    differences = list(_differences(began, study.model_dump(mode="json")))
    if differences:
        raise InputError(
            f"the study in {folder} was begun with other settings: {first_problems(differences)}; "
            "restore them, or give another --out"
        )


def _differences(began: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs between two studies in a way that changes runs."""
    before, after = (
        dict(_flat({key: value for key, value in one.items() if key not in MAY_CHANGE}))
        for one in (began, now)
    )
    names = {part: set(began.get(part) or ()) for part in MAY_GROW}
    for path in [*before, *(path for path in after if path not in before)]:
        part, *rest = path
        if part in MAY_GROW and rest and rest[0] not in names[part]:
            continue
        old, new = before.get(path, "none"), after.get(path, "none")
        if old != new:
            yield f"{' '.join(path)} was {old}, is {new}"


def _flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every plain value inside mappings with its path; an empty mapping is one too."""
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _flat(part, (*path, name))
    elif value not in ({}, []) or len(path) > 1:
        yield path, "none" if value is None else str(value)
