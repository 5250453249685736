"""The training loop, for a network alone and for a student with a teacher, over Accelerate."""

import errno
import signal
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext, suppress
from functools import cached_property
from itertools import islice
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from attention_transfer.cache import TargetCache
from attention_transfer.data import Batch, Images, batch_bounds
from attention_transfer.data.loader_workers import LoaderWorkerError
from attention_transfer.environment import keep_freed_memory
from attention_transfer.errors import InputError, Interrupted, TrainingError
from attention_transfer.runs import EpochMetrics, Run
from attention_transfer.runs.checkpoints import Checkpoint
from attention_transfer.runs.folder import resume_command
from attention_transfer.runs.gradient_ratios import overpowering_terms
from attention_transfer.runs.record import ChangeRecord
from attention_transfer.training.checkpointing import Checkpointing
from attention_transfer.training.classification_metrics import validation_figures
from attention_transfer.training.epoch_meters import EpochMeters
from attention_transfer.training.history import patience_is_over, stopped_early
from attention_transfer.training.identity import identity_of
from attention_transfer.training.monitoring.probes import Probes, probed_epochs
from attention_transfer.training.monitoring.progress import RunProgress, StepFigures
from attention_transfer.training.monitoring.tracking import Tracking
from attention_transfer.training.processes import Processes
from attention_transfer.training.record import evaluate_splits, make_record
from attention_transfer.training.remaining_batches import remaining_batches
from attention_transfer.training.run_state import (
    RunState,
    changes_since,
    place,
    position_lines,
    resumed_step,
)
from attention_transfer.training.setup import RunSetup
from attention_transfer.training.shared_evaluation import SharedEvaluation
from attention_transfer.training.signals import StopAgreedError
from attention_transfer.training.summary import run_summary
from attention_transfer.training.teacher_check import check_teachers
from attention_transfer.training.train_step import NotFiniteError, StepIndex, TrainStep

__all__ = ["Trainer"]

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class Trainer:
    """Trains one run, from its first step or a checkpoint to its record.

    Args:
        setup: of the run.
        run: its folder, which may be created later.
        accelerator: of this process.
        progress: shows lines and a live view, in the main process.
        processes: that train the run; None: those of the accelerator.
    """

    def __init__(
        self,
        setup: RunSetup,
        run: Run,
        accelerator: Accelerator,
        progress: RunProgress,
        processes: Processes | None = None,
    ) -> None:
        keep_freed_memory()
        self.setup, self.run, self.accelerator = setup, run, accelerator
        self.config, self.data = setup.config, setup.data
        self.processes = processes or Processes(accelerator, self.config.timeout)
        self.stop = self.processes.stop
        self.progress = progress if self.processes.is_main else RunProgress()
        self.train_step = TrainStep(setup, accelerator, self.processes)
        self.checkpointing = Checkpointing(run.checkpoints_folder, self.config)
        self.evaluation = SharedEvaluation(
            self.processes,
            setup.precision,
            accelerator.device,
            self.config.workers,
            self._stop_if_agreed,
        )
        self.bounds = batch_bounds(
            len(self.data.train), self.config.batch_size, self.processes.count
        )
        self.steps_per_epoch = len(self.bounds)
        self.epoch, self.step, self.steps_taken, self.seconds = 0, 0, 0, 0.0
        self.changes: list[ChangeRecord] = []
        self.meters = EpochMeters()
        self.rows: list[EpochMetrics] = []
        self.probes: Probes | None = None
        if self.config.probes and self.processes.is_main:
            self.probes = Probes(setup, run.attention_folder)
        self.probed_epochs = probed_epochs(self.config.epochs, self.config.probe_every)
        self.cache: TargetCache | None = None
        self.seconds_building_cache = 0.0
        self.tracking = Tracking(
            self.config, run.folder, self.progress.write_line, active=self.processes.is_main
        )

    def finish(self) -> Run:
        """Train the remaining steps, read the test split once, write network and record.

        Raises:
            Interrupted: a signal asked the run to stop; its state is saved.
            TrainingError: training cannot continue.
        """
        with self.tracking, self.stop.caught():
            try:
                self.processes.wait()
                self._train()
                self._write_results()
            except StopAgreedError as stopped:
                self._save_checkpoint()
                raise Interrupted(self._stopped_message(stopped.signal), stopped.signal) from None
            except KeyboardInterrupt as error:  # raised by code of the user's, or in a thread
                self._save_after(error)
                message = self._stopped_message(signal.SIGINT)
                raise Interrupted(message, signal.SIGINT) from None
            except Exception as error:
                self._save_after(error)
                lost_worker = isinstance(error, LoaderWorkerError) and self.processes.count == 1
                if lost_worker and self.stop.signal:  # it was sent to the whole group
                    message = self._stopped_message(self.stop.signal)
                    raise Interrupted(message, self.stop.signal) from None
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise TrainingError(
                        f"cannot write to {self.run.folder}: {error.strerror}; make room, then "
                        f"resume the run: {resume_command(self.run.folder, self.config)}"
                    ) from None
                raise
        self.processes.wait()
        return self.run

    @cached_property
    def identity(self) -> dict[str, str]:
        """What decides the run's figures, by name."""
        setup, device = self.setup, self.accelerator.device
        return identity_of(self.config, self.data, setup.teachers, setup.precision, device.type)

    def prepare_targets(self) -> None:
        """Build the cache of teacher targets, if the run has one and it is not whole."""
        if self.setup.targets is not None:
            self.cache, self.seconds_building_cache = self.setup.targets.whole(
                self.progress.write_line, self.accelerator.device, self.processes
            )

    def restore(self, checkpoint: Checkpoint, state: RunState) -> None:
        """Load the state of the run that a checkpoint holds; nothing is written.

        Args:
            checkpoint: with weights and optimizer.
            state: the rest of it, checked.

        Raises:
            InputError: the state does not fit the configuration.
        """
        state.check_epochs(self.config.epochs, self.run.folder)
        meters = checkpoint.state["meters"]
        shared = len(meters) == self.processes.count
        own = meters[self.processes.index :][:1] if shared else meters
        try:
            self.train_step.restore(checkpoint.state)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            raise InputError(
                f"the checkpoint in {self.run.folder} does not fit its config.yaml; restore the "
                "configuration that the run began with, or start a new run"
            ) from None
        self.meters = EpochMeters.restored(own, self.accelerator.device)
        if not (shared or self.processes.is_main):  # which counts the images of all
            self.meters = self.meters.without_images()
        self.epoch, self.steps_taken, self.seconds = state.epoch, state.steps_taken, state.seconds
        self.rows = list(state.metrics)
        self.step, passed = resumed_step(state, self.bounds)
        self.changes = [*state.changes, *changes_since(state, self.identity, self.processes.count)]
        self.checkpointing.number = checkpoint.number
        for line in position_lines(state, self.processes.count, self.bounds, passed):
            self.progress.write_line(line)

    def _train(self) -> None:
        for line in run_summary(self.setup):
            self.progress.write_line(line)
        self.teacher_check = check_teachers(self.setup, self.evaluation, self.progress)
        if self.epoch or self.step:
            self.progress.write_line(f"resumed {self._place}")
        steps = (self.config.epochs - self.epoch) * self.steps_per_epoch - self.step
        images = steps * len(self.data.train) // self.steps_per_epoch
        self.progress.begin(self.setup.student.name, images)
        try:
            if self.probes:
                self.probes.begin()
            if self.epoch == self.step == 0:
                self.tracking.add({"epoch": 0, "step": 0, "probes": self._probe(0)})
            batches = remaining_batches(
                self.setup, self.epoch, self.step, self.processes, self.accelerator.device
            )
            with closing(batches):
                while not self._is_over():
                    self._train_epoch(islice(batches, self.steps_per_epoch - self.step))
        finally:
            self.progress.end()
        if self.epoch < self.config.epochs and self.processes.is_main:
            self.progress.write_line(stopped_early(self.rows, self.config))
        for line in overpowering_terms(self.rows):  # there are rows in the main process alone
            self.progress.write_line(f"warning: {line}")

    def _is_over(self) -> bool:
        """Return whether no step is left; all processes must call this."""
        if self.epoch == self.config.epochs:
            return True
        stops = (
            self.step == 0 and self.processes.is_main and patience_is_over(self.rows, self.config)
        )
        return bool(self.processes.agree(int(stops))[0])

    def _train_epoch(self, batches: Iterator[Batch]) -> None:
        self.train_step.set_train_mode()
        while self.step < self.steps_per_epoch:
            began = time.perf_counter()
            batch = next(batches)
            targets = None if self.cache is None else self.cache.read(self.epoch, batch.indices)
            waited = time.perf_counter() - began
            position = StepIndex(self.epoch, self.step, self._progress(self.step))
            due = self.processes.is_main and self.checkpointing.due(self.steps_taken + 1)
            out, (stop, save) = self.train_step.step(
                batch, targets, position, self.stop.signal, int(due)
            )
            self.step += 1
            self.steps_taken += 1
            self.meters.add(out, batch.labels, position.step, self.setup.multi_label)
            self.meters.seconds_waiting += waited
            self.meters.seconds += time.perf_counter() - began
            if stop:
                raise StopAgreedError(stop)
            if save:
                self._save_checkpoint()
            self.progress.step(batch.total, self._step_figures())
        self._end_epoch()

    def _progress(self, step: int) -> float:
        """Return the share of the run's steps before one of this epoch's."""
        steps = self.epoch * self.steps_per_epoch + step
        return steps / (self.config.epochs * self.steps_per_epoch)

    def _end_epoch(self) -> None:
        """Evaluate the epoch, write its figures down, and save the state if that is due."""
        metrics = self._epoch_metrics()
        self.seconds += self.meters.seconds
        self.epoch, self.step, self.meters = self.epoch + 1, 0, EpochMeters()
        if metrics is None:
            return
        self.rows.append(metrics)
        self.run.append_metrics(metrics)
        last = self.epoch == self.config.epochs or patience_is_over(self.rows, self.config)
        if last or self.checkpointing.due(metrics.step, end_of_epoch=True):
            self._write_checkpoint([])
        self.tracking.add(metrics.model_dump())
        self.progress.epoch(metrics, self.config.epochs)

    def _save_checkpoint(self) -> None:
        """Save the state after the last whole step; all processes must call this."""
        meters = self.processes.gather(self.meters.state() if self.step else None)
        if self.processes.is_main:
            self._write_checkpoint([state for state in meters if state is not None])

    def _write_checkpoint(self, meters: list[dict[str, Any]]) -> None:
        state = {
            **self.train_step.state(),
            "meters": meters,
            "metrics": [row.model_dump(mode="json") for row in self.rows],
            "seconds": self.seconds,
            "steps_taken": self.steps_taken,
            "steps_per_epoch": self.steps_per_epoch,
            "batch_size": self.config.batch_size,
            "training_images": len(self.data.train),
            "changes": [change.model_dump() for change in self.changes],
            "processes": self.processes.count,
            "identity": self.identity,
        }
        self.checkpointing.save(self.epoch, self.step, state)

    def _save_after(self, error: BaseException) -> None:
        """Save the state after an error, if all processes are there to do so."""
        if self.processes.count == 1 or isinstance(error, NotFiniteError):
            with suppress(OSError, TrainingError):
                self._save_checkpoint()

    def _stop_if_agreed(self) -> None:
        """Stop between two batches of an evaluation, if a process got a signal."""
        (stop,) = self.processes.agree(self.stop.signal)
        if stop:
            raise StopAgreedError(stop)

    def _write_results(self) -> None:
        """Evaluate the last weights, and their average; write predictions, networks and record."""
        self.setup.transfer.remove_compiled_passes()
        average, network = self.train_step.average, self.setup.student.network
        splits = {"validation": self.data.validation}
        splits |= {"test": self.data.test} if self.config.test else {}
        logits = {name: self._logits(images) for name, images in splits.items()}
        logits |= {f"ema {name}": self._logits(splits[name], True) for name in splits if average}
        tested = self.setup.teachers if self.config.test else []
        teacher_error = self.evaluation.teachers_error(tested, self.data)
        if not self.processes.is_main:
            return
        if self.probes:
            self.probes.end()
        if (test := logits.get("test")) is not None:
            self.run.write_predictions(test, self.data.test.labels)
        self.run.write_model(network, self.setup.card)
        if average is not None:
            with average.applied():
                self.run.write_model(network, self.setup.card, averaged=True)
        evaluations = evaluate_splits(logits, self.data)
        self.run.write_confusions({name: one.confusion for name, one in evaluations.items()})
        record = make_record(
            self.setup,
            rows=self.rows,
            evaluations=evaluations,
            teacher_test_error=teacher_error,
            teacher_check=self.teacher_check,
            attention=self.probes.record(self.epoch) if self.probes else None,
            seconds=self.seconds,
            seconds_building_cache=self.seconds_building_cache,
            processes=self.processes.count,
            changes=self.changes,
        )
        self.run.write_record(record)
        split, _, error = record.final.held_out
        self.tracking.add({"step": self.steps_taken, f"{split}_error": error})

    def _probe(self, epoch: int, last: bool = False) -> dict[str, dict[str, float]]:
        """Save and measure attention maps of the probe images, after the epochs chosen for it."""
        if self.probes is None or not (last or epoch in self.probed_epochs):
            return {}
        return self.probes.save_epoch(epoch)

    def _stopped_message(self, number: int) -> str:
        command = resume_command(self.run.folder, self.config)
        return f"stopped by {signal.Signals(number).name} {self._place}; resume the run: {command}"

    @property
    def _place(self) -> str:
        return place(self.epoch, self.step, self.config.epochs)

    def _step_figures(self) -> StepFigures:
        meters = self.meters
        return StepFigures(
            epoch=self.epoch + 1,
            epochs=self.config.epochs,
            step=self.step,
            steps=self.steps_per_epoch,
            images_per_second=meters.images * self.processes.count / meters.seconds,
            lr=self.train_step.lr,
            images=meters.images,
            wrong=meters.wrong,
            terms=meters.last_terms,
            agreement=meters.last_agreement,
        )

    def _epoch_metrics(self) -> EpochMetrics | None:
        """Return the figures of the epoch in the main process, None in the others."""
        means = self.meters.means(self.accelerator)
        images = self.data.validation
        logits = self._logits(images)
        average = self._logits(images, averaged=True) if self.train_step.average else None
        if logits is None:
            return None
        metrics = EpochMetrics(
            epoch=self.epoch + 1,
            step=self.steps_taken,
            lr=self.train_step.lr,
            gradient_ratios=self.train_step.gradient_ratios(self._progress(self.step - 1)),
            **(means | validation_figures(logits, images.labels)),
            ema={} if average is None else validation_figures(average, images.labels),
            seconds_left=(self.config.epochs - self.epoch - 1) * self.meters.seconds,
            probes={},
        )
        last = patience_is_over([*self.rows, metrics], self.config)
        return metrics.model_copy(update={"probes": self._probe(metrics.epoch, last)})

    def _logits(self, images: Images, averaged: bool = False) -> Tensor | None:
        """Return the logits of a split, by the weights or their average; None outside of main."""
        student, preprocessing = self.setup.student.network, self.setup.preprocessing
        average = self.train_step.average if averaged else None
        with nullcontext() if average is None else average.applied():
            return self.evaluation.logits(
                student, images, preprocessing, len(self.data.class_names)
            )
