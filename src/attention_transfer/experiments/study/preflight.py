"""What is checked before a study trains anything: its data, its teachers, and earlier results."""

from pathlib import Path
from typing import Any

from attention_transfer.config import RunConfig
from attention_transfer.config.studies import PACKAGED, STEPS, StudyConfig
from attention_transfer.errors import InputError, first_problems
from attention_transfer.experiments.packaged_teacher import packaged_teacher
from attention_transfer.experiments.study.plan import PlannedRun
from attention_transfer.experiments.study.results import SCHEMA_VERSION, STUDY_FILE
from attention_transfer.files import read_json
from attention_transfer.model_names import run_folder, split_models, split_name, weights_file
from attention_transfer.runs import Run
from attention_transfer.runs.differences import as_recorded, differences, settings_of

__all__ = ["check_document", "check_teachers", "check_unchanged", "needs_images", "training_images"]

LARGEST_STUDY = 2**26
"""Bytes of the largest ``study.json``."""


def needs_images(study: StudyConfig) -> bool:
    """Return whether a length in the study is in steps, so that images must be counted."""
    parts = [study.settings, *study.data.values(), *study.variants.values(), *study.arms.values()]
    parts += [pair.settings for pair in study.pairs.values()]
    parts += [teacher.settings for teacher in study.teachers.values()]
    parts += [part for teacher in study.teachers.values() for part in teacher.on.values()]
    chosen = [selection.setting for selection in study.selections]
    return STEPS in chosen or any(STEPS in part for part in parts)


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


def check_document(folder: Path) -> None:
    """Raise an InputError if a study's folder has a document that cannot be written anew."""
    path = folder / STUDY_FILE
    if not path.is_file():
        return
    try:
        version = read_json(path, LARGEST_STUDY)["schema_version"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); remove it, and it is written again from the runs"
        ) from None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {version!r}, expected {SCHEMA_VERSION}; give another --out"
        )


def check_unchanged(planned: PlannedRun, folder: Path) -> None:
    """Raise an InputError if a planned run was begun with other settings.

    The study's folder may have been moved, so its path is no difference. A setting that waits to be
    chosen is compared when it is.

    Args:
        planned: a run of the study.
        folder: of the study.
    """
    run = Run(folder / planned.folder)
    if not (run.folder / "config.yaml").is_file():
        return
    began = run.config
    began_in = Path(str(began.out).removesuffix(f"/{planned.folder}"))
    now = as_recorded(planned.config(began_in), began)
    same: dict[str, Any] = {}
    if planned.settings.get("teacher") == PACKAGED and _is_packaged(began.teacher):
        same["teacher"] = now.teacher  # where the package is installed
    if began.cache is not None and now.cache is not None:
        same["cache"] = now.cache
    if planned.waits_for:
        same[planned.waits_for] = getattr(now, planned.waits_for)
    found = [
        f"{name} was {before}, is {after}"
        for name, before, after in differences(settings_of(began.replace(**same)), settings_of(now))
    ]
    if found:
        raise InputError(
            f"{run.folder} holds a run with other settings: {first_problems(found)}; restore them, "
            "remove that folder, or give another --out"
        )


def _is_packaged(teacher: str | None) -> bool:
    return teacher is not None and Path(teacher).name == packaged_teacher().name
