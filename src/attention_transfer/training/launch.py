"""Begin a run, or resume one: in a new folder, or in the folder of an interrupted run."""

import os
import shlex
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from attention_transfer.config import RunConfig
from attention_transfer.config.yaml_files import write_config_file
from attention_transfer.environment import make_accelerator
from attention_transfer.errors import DivergedError, InputError, first_line
from attention_transfer.runs import Run, new_folder, writing_to
from attention_transfer.runs.checkpoints import Checkpoint, load_checkpoint, load_last_checkpoint
from attention_transfer.runs.differences import (
    as_recorded,
    check_identity,
    check_same_settings,
)
from attention_transfer.runs.lock import locked
from attention_transfer.torchrun import most_restarts, restarts
from attention_transfer.training.monitoring.progress import RunProgress
from attention_transfer.training.objects import NO_OBJECTS, RunObjects, check_objects
from attention_transfer.training.processes import Processes
from attention_transfer.training.run_state import RunState
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
    if config.out is None and resume_or_start:
        raise InputError("--resume-or-start needs the run's folder; give --out DIR")
    if config.out is None and most_restarts():
        raise InputError(
            f"torchrun may restart this run up to {most_restarts()} times, and a restarted run "
            "finds its checkpoints by its folder; give --out DIR"
        )
    accelerator = make_accelerator()
    with Processes(accelerator, config.timeout).watched() as processes:
        if config.out is None:
            kind = "train" if config.teacher is None else "distill"
            config = config.replace(out=processes.from_main(new_folder(kind)))
        launch = _Launch(accelerator, processes, progress or RunProgress(), objects, allow_changes)
        # torchrun's agents on several machines count differently.
        if resume_or_start or any(processes.gather_in_all(restarts())):
            return launch.resume_or_begin(config)
        return launch.begin(config)


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
    # All settings count as given, those too that the file lacks: none is chosen anew.
    config = found.config.replace(**found.config.model_dump())
    check_settings(found.folder / "config.yaml", config.model_dump())
    if workers is not None:
        config = config.replace(workers=workers)
    check_objects(config, objects, allow_changes)
    accelerator = make_accelerator()
    with Processes(accelerator, config.timeout).watched() as processes:
        launch = _Launch(accelerator, processes, progress or RunProgress(), objects, allow_changes)
        return launch.resume(found, config)


@dataclass(frozen=True)
class _Launch:
    """Begins or resumes a run, with the processes, progress and objects that both need."""

    accelerator: Accelerator
    processes: Processes
    progress: RunProgress
    objects: RunObjects
    allow_changes: bool

    def begin(self, config: RunConfig) -> Run:
        assert config.out is not None
        folder = config.out
        Run.check_free(folder)
        trainer = self._trainer(config, Run(folder))
        trainer.prepare_targets()
        self.processes.wait()
        before = set(os.listdir(folder)) if os.path.isdir(folder) else None
        with self._held(folder):
            if self.processes.is_main:
                Run.create(folder, trainer.config)
            self.processes.wait()
            try:
                trainer.tracking.start()
            except BaseException:
                if self.processes.is_main:
                    _remove_all_but(before, folder)
                raise
            return self._finish(trainer)

    def resume_or_begin(self, config: RunConfig) -> Run:
        assert config.out is not None
        found = Run(config.out)
        # What the main process sees: it may create the folder while another one looks.
        begun, finished = self.processes.from_main(
            (os.path.isfile(found.folder / "config.yaml"), found.is_finished)
        )
        if not begun:
            return self.begin(config)
        if finished:
            return found
        recorded = found.config
        if not self.allow_changes:
            check_same_settings(recorded, config, shlex.quote(str(found.folder)))
        config = as_recorded(config, recorded)
        return self.resume(found, config)

    def resume(self, found: Run, config: RunConfig) -> Run:
        with self._held(found.folder):
            checkpoint, damaged = self._checkpoint(found.checkpoints_folder)
            trainer = self._trainer(config, found)
            for line in damaged:
                trainer.progress.write_line(f"{line}; the one before is used")
            if checkpoint is None:
                trainer.progress.write_line("there is no checkpoint yet: the run begins again")
            else:
                state = RunState.checked(checkpoint.state, found.folder)
                if not self.allow_changes:
                    check_identity(state.identity, trainer.identity, shlex.quote(str(found.folder)))
                trainer.restore(checkpoint, state)
            # What may write something comes after the checks.
            trainer.prepare_targets()
            if self.processes.is_main:
                found.write_metrics(trainer.rows)
            if self.processes.is_main and trainer.config != found.config:
                with writing_to(found.folder):
                    write_config_file(trainer.config, found.folder / "config.yaml")
            trainer.tracking.start()
            return self._finish(trainer)

    def _finish(self, trainer: Trainer) -> Run:
        """Train to the end; a run that diverges leaves a file that says so."""
        if self.processes.is_main:
            trainer.run.write_divergence(None)
        try:
            return trainer.finish()
        except DivergedError as error:
            if self.processes.is_main:
                trainer.run.write_divergence(first_line(error))
            raise

    def _trainer(self, config: RunConfig, run: Run) -> Trainer:
        setup = set_up_run(config, self.objects)
        return Trainer(setup, run, self.accelerator, self.progress, self.processes)

    def _checkpoint(self, folder: Path) -> tuple[Checkpoint | None, list[str]]:
        """Load the checkpoint that the main process chooses, which holds the lock.

        Raises:
            InputError: a process cannot load it.
        """
        checkpoint: Checkpoint | None = None
        damaged: list[str] = []
        fault = ""
        if self.processes.is_main:
            checkpoint, damaged = load_last_checkpoint(folder)
        chosen = self.processes.from_main(
            None if checkpoint is None else (checkpoint.epoch, checkpoint.step, checkpoint.sha256)
        )
        if chosen is not None and not self.processes.is_main:
            try:
                checkpoint = load_checkpoint(folder, *chosen)
            except InputError as error:
                fault = str(error)
        for rank, other in enumerate(self.processes.gather_in_all(fault)):
            if other:
                raise InputError(
                    f"process {rank} cannot resume from the checkpoint of process 0: {other}; all "
                    "processes must see the same run folder, on a disk that their machines share"
                )
        return checkpoint, damaged

    @contextmanager
    def _held(self, folder: Path) -> Iterator[None]:
        """Hold the lock of a run's folder, which is created if need be, in the main process."""
        if not self.processes.is_main:
            yield
            return
        with ExitStack() as stack:
            with writing_to(folder):
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(folder))
            yield


def _remove_all_but(before: Collection[str] | None, folder: Path) -> None:
    """Remove what has come into a folder since it held these names; None: since it was absent."""
    if before is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for name in set(os.listdir(folder)) - set(before):
        if os.path.isdir(folder / name):
            shutil.rmtree(folder / name, ignore_errors=True)
        else:
            (folder / name).unlink(missing_ok=True)
