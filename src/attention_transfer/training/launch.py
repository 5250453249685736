"""Begin a run, or resume one: in a new folder, or in the folder of an interrupted run."""

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from attention_transfer.config import RunConfig
from attention_transfer.config.yaml_files import write_config_file
from attention_transfer.environment import make_accelerator
from attention_transfer.errors import InputError
from attention_transfer.runs import Run, new_folder, writing_to
from attention_transfer.runs.checkpoints import load_last_checkpoint
from attention_transfer.runs.lock import locked
from attention_transfer.training.identity import check_identity, check_same_settings
from attention_transfer.training.monitoring.progress import RunProgress
from attention_transfer.training.objects import NO_OBJECTS, RunObjects, check_objects
from attention_transfer.training.setup import set_up_run
from attention_transfer.training.trainer import Trainer
from attention_transfer.trust import check_settings

__all__ = ["resume", "run"]


def run(
    config: RunConfig,
    progress: RunProgress | None = None,
    objects: RunObjects = NO_OBJECTS,
    *,
    resume_or_start: bool = False,
    allow_changes: bool = False,
) -> Run:
    """Train what a configuration describes, in a new folder.

    Args:
        config: the whole configuration.
        progress: shows lines and a live view; silent by default.
        objects: what was given as Python objects, which the configuration cannot name.
        resume_or_start: resume the run in ``config.out`` if one was begun there, and return it at
            once if it is finished. In a process that torchrun has restarted it is on.
        allow_changes: resume it with another configuration, other data or another teacher, too.

    Returns:
        The finished run.

    Raises:
        InputError: a setting does not fit; nothing has been written then.
        Interrupted: a signal ended the run; its state is saved.
        TrainingError: training cannot continue, as when the loss is not finite.
    """
    progress = progress or RunProgress()
    accelerator = make_accelerator()
    if config.out is None:
        if resume_or_start:
            raise InputError("--resume-or-start needs the run's folder; give --out DIR")
        kind = "train" if config.teacher is None else "distill"
        (folder,) = broadcast_object_list([new_folder(kind)])
        config = config.replace(out=folder)
    folder = config.out
    assert folder is not None
    if resume_or_start or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
        # What the main process sees: it may create the folder while another one looks.
        (begun,) = broadcast_object_list([os.path.isfile(folder / "config.yaml")])
        if begun:
            found = Run(folder)
            if found.is_finished:
                return found
            recorded = found.config
            if not allow_changes:
                check_same_settings(recorded, config, shlex.quote(str(folder)))
            config = config.replace(
                cache_views=config.cache_views or recorded.cache_views,
                pixel_range=config.pixel_range or recorded.pixel_range,
            )
            return _resume(found, config, accelerator, progress, objects, allow_changes)
    Run.check_free(folder)
    setup = set_up_run(config, objects)
    trainer = Trainer(setup, Run(folder), accelerator, progress)
    accelerator.wait_for_everyone()
    with _held(folder, accelerator):
        if accelerator.is_main_process:
            Run.create(folder, setup.config)
        accelerator.wait_for_everyone()
        try:
            trainer.tracking.start()
        except (InputError, KeyboardInterrupt):
            shutil.rmtree(folder, ignore_errors=True)  # it was empty or absent before
            raise
        return trainer.finish()


def resume(
    folder: str | Path,
    progress: RunProgress | None = None,
    objects: RunObjects = NO_OBJECTS,
    *,
    workers: int | None = None,
    allow_changes: bool = False,
) -> Run:
    """Resume a run from its last checkpoint, exactly as if it had never been interrupted.

    A run that has no checkpoint yet begins again.

    Args:
        folder: of the run.
        progress: shows lines and a live view; silent by default.
        objects: the Python objects that the run began with.
        workers: processes that decode image files; None: as many as the run began with.
        allow_changes: accept another configuration, other data or another teacher.

    Raises:
        InputError: the folder holds no run, the run is finished, another process trains it, all
            checkpoints are damaged, or the run would go on with something else than it began with.
        Interrupted, TrainingError: as of :func:`run`.
    """
    found = Run(Path(folder))
    if found.is_finished:
        raise InputError(f"the run in {folder} is finished; there is nothing to resume")
    config = found.config
    check_settings(found.folder / "config.yaml", config.model_dump())
    if workers is not None:
        config = config.replace(workers=workers)
    check_objects(config, objects, allow_changes)
    accelerator = make_accelerator()
    return _resume(found, config, accelerator, progress or RunProgress(), objects, allow_changes)


def _resume(
    found: Run,
    config: RunConfig,
    accelerator: Accelerator,
    progress: RunProgress,
    objects: RunObjects,
    allow_changes: bool,
) -> Run:
    with _held(found.folder, accelerator):
        checkpoint, damaged = load_last_checkpoint(found.checkpoints_folder)
        setup = set_up_run(config, objects)
        trainer = Trainer(setup, found, accelerator, progress)
        for line in damaged:
            trainer.progress.write_line(f"{line}; the one before is used")
        if checkpoint is None:
            trainer.progress.write_line("there is no checkpoint yet: the run begins again")
            if accelerator.is_main_process:
                found.write_metrics([])
        else:
            began = checkpoint.state.get("identity")
            if began is not None and not allow_changes:
                check_identity(began, trainer.identity, shlex.quote(str(found.folder)))
            trainer.restore(checkpoint)  # which refuses a state without an identity, too
        if accelerator.is_main_process and setup.config != found.config:
            with writing_to(found.folder):
                write_config_file(setup.config, found.folder / "config.yaml")
        trainer.tracking.start()
        return trainer.finish()


@contextmanager
def _held(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the lock of a run's folder, which is created if need be, in the main process."""
    if not accelerator.is_main_process:
        yield
        return
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        yield
