"""Whole runs from Python: what the commands ``train``, ``distill`` and ``resume`` do."""

import shlex
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn

from attention_transfer import training
from attention_transfer.config import DistillConfig, RunConfig
from attention_transfer.errors import InputError
from attention_transfer.factories import OBJECT
from attention_transfer.report.page import write_report
from attention_transfer.runs import Run
from attention_transfer.training import RunProgress
from attention_transfer.training.objects import NO_OBJECTS, RunObjects, named
from attention_transfer.transfer import Term
from attention_transfer.trust import trusting

__all__ = ["distill", "resume", "run", "train"]

Network = str | nn.Module | Run
"""A MODEL as the command line takes it, a module, or a run (its trained network)."""


def train(
    model: Network,
    *,
    data: Any = "cluttered-digits",
    terms: Sequence[str | Term] = (),
    progress: RunProgress | None = None,
    resume_or_start: bool = False,
    allow_changes: bool = False,
    trust: Sequence[str] = (),
    **settings: Any,
) -> Run:
    """Train one network alone, as ``attention-transfer train`` does.

    Args:
        model: a MODEL, such as ``"wrn-16-2"``; a module, which is trained in place; or a run.
        data: DATA, such as ``"folder:photos"``; a :class:`attention_transfer.data.DataSet`; a
            map-style dataset, a pair (train, test) or a dictionary of them.
        terms: loss terms of your own, as objects or as ``"package.module:factory"``, beside the
            cross-entropy; one named ``cross_entropy`` takes its place.
        progress: shows lines and a live view; silent by default.
        resume_or_start: resume the run in the folder ``out`` if one was begun there, and return it
            at once if it is finished.
        allow_changes: resume it with other settings, data or teacher, too.
        trust: factories, as ``"package.module:factory"``, that the folders of runs may name.
        settings: the flags' words: ``epochs=15``, ``lr=0.1``, ...

    Raises:
        InputError: bad settings; nothing has been written then.
        TrainingError: the loss or the gradient is not finite.

    Example (2 minutes on two cores)::

        run = at.train("wrn-16-2", epochs=22, out="runs/teacher")
        print(run.test_error)
    """
    names, objects = named(student=model, data=data, terms=terms)
    config = RunConfig.checked({**settings, **names})
    with trusting(trust):
        return run(
            config, progress, objects, resume_or_start=resume_or_start, allow_changes=allow_changes
        )


def distill(
    *,
    teacher: Network | Sequence[Network],
    student: Network,
    data: Any = "cluttered-digits",
    terms: Sequence[str | Term] = (),
    progress: RunProgress | None = None,
    resume_or_start: bool = False,
    allow_changes: bool = False,
    trust: Sequence[str] = (),
    **settings: Any,
) -> Run:
    """Train a student to look where a teacher looks, as ``attention-transfer distill`` does.

    Args:
        teacher: a MODEL with trained weights, such as a run's folder; a module, whose weights are
            frozen; a run; or several of them, whose maps and logits are averaged.
        student: a MODEL, such as ``"wrn-16-1"``; a module, which is trained in place; or a run.
        data: DATA, such as ``"folder:photos"``; a :class:`attention_transfer.data.DataSet`; a
            map-style dataset, a pair (train, test) or a dictionary of them.
        terms: loss terms of your own, as objects or as ``"package.module:factory"``, beside those
            of the settings; one of the same name takes the place of theirs. An object is copied.
        progress: shows lines and a live view; silent by default.
        resume_or_start: resume the run in the folder ``out`` if one was begun there, and return it
            at once if it is finished.
        allow_changes: resume it with other settings, data or teacher, too.
        trust: factories, as ``"package.module:factory"``, that the folders of runs may name.
        settings: the flags' words: ``beta=1000.0``, ``kd_alpha=0.9``, ``epochs=15``, ...

    Raises:
        InputError: bad settings; nothing has been written then.
        TrainingError: the loss or the gradient is not finite.

    Example (2 minutes on two cores)::

        run = at.distill(teacher="runs/teacher", student="wrn-16-1", kd_alpha=0.9)
        print(run.test_error)
    """
    names, objects = named(student=student, teacher=teacher, data=data, terms=terms)
    config = DistillConfig.checked({**settings, **names})
    with trusting(trust):
        return run(
            config, progress, objects, resume_or_start=resume_or_start, allow_changes=allow_changes
        )


def run(
    config: RunConfig,
    progress: RunProgress | None = None,
    objects: RunObjects = NO_OBJECTS,
    *,
    resume_or_start: bool = False,
    allow_changes: bool = False,
) -> Run:
    """Train what a configuration describes, and write the run's report.

    With ``baseline`` the student is then trained alone as well.

    See :func:`attention_transfer.training.run`.
    """
    if config.baseline and config.student.startswith(OBJECT):
        raise InputError(
            "--baseline builds the student a second time, by its name, and got a module; leave it "
            "out, and train a copy with at.train before"
        )
    finished = training.run(
        config,
        progress,
        objects,
        resume_or_start=resume_or_start,
        allow_changes=allow_changes,
    )
    _train_alone(finished, progress, objects)
    return _with_report(finished)


def resume(
    folder: str | Path,
    *,
    student: nn.Module | None = None,
    teacher: nn.Module | Sequence[nn.Module] | None = None,
    data: Any = None,
    terms: Sequence[Term] = (),
    progress: RunProgress | None = None,
    workers: int | None = None,
    allow_changes: bool = False,
    trust: Sequence[str] = (),
) -> Run:
    """Resume a run from its last checkpoint, exactly as if it had never been interrupted.

    A run that has no checkpoint yet begins again.

    Args:
        folder: of the run.
        student: the module that the run began with, if it was an object; its weights are put back
            from the checkpoint.
        teacher: the same of the teacher; of several, a sequence.
        data: the data set that the run began with, if it was an object.
        terms: the terms that the run began with as objects.
        progress: shows lines and a live view; silent by default.
        workers: processes that decode image files; None: as many as the run began with.
        allow_changes: accept another configuration, other data or another teacher.
        trust: the factories, as ``"package.module:factory"``, that the run's folder may name.

    Raises:
        InputError: the folder holds no run, the run (and the student alone,
            where ``baseline`` asks for it) is finished, another process trains it, its
            checkpoints are damaged, or it would go on with something else than it began with;
            objects are missing, or of another type.
        UntrustedError: the folder names code that is not trusted.
    """
    _, objects = named(student=student, teacher=teacher, data=data, terms=terms)
    begun = Run(Path(folder))
    with trusting(trust):
        if begun.is_finished and begun.config.baseline and not begun.alone.is_finished:
            finished = begun
        else:
            finished = training.resume(
                folder, progress, objects, workers=workers, allow_changes=allow_changes
            )
        _train_alone(finished, progress, objects)
    return _with_report(finished)


def _train_alone(finished: Run, progress: RunProgress | None, objects: RunObjects) -> None:
    """Train the student of a run alone, if its configuration asks for it."""
    if finished.config.baseline and not finished.alone.is_finished:
        config = finished.config.alone().replace(out=finished.alone.folder)
        if progress is not None:
            progress.write_line(f"the student alone: {config.out}")
        alone = replace(objects, student=None, teachers=(), terms=())
        training.run(config, progress, alone, resume_or_start=True)


def _with_report(finished: Run) -> Run:
    """Write the run's report; a page that cannot be written is a warning, and costs no run."""
    if finished.config.report and PartialState().is_main_process:
        try:
            write_report(finished)
        except Exception as error:
            warnings.warn(
                f"the run is finished, but its report could not be written ({error}); try again: "
                f"attention-transfer report {shlex.quote(str(finished.folder))}",
                stacklevel=3,
            )
    return finished
