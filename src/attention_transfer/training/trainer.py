"""The training loop, for a network alone and for a student with a teacher, over Accelerate."""

import math
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from attention_transfer.cache import TargetCache
from attention_transfer.config import RunConfig
from attention_transfer.data import (
    AugmentedView,
    Batch,
    EpochPass,
    Images,
    batch_bounds,
    epoch_order,
    resolve_workers,
    stream,
)
from attention_transfer.environment import keep_freed_memory, make_accelerator
from attention_transfer.errors import InputError, Interrupted
from attention_transfer.network_inputs import preprocessing_for
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.runs import EpochMetrics, Run, new_folder
from attention_transfer.runs.checkpoints import load_last_checkpoint, save_checkpoint
from attention_transfer.runs.record import BestEpoch
from attention_transfer.training.classification_metrics import compute_metrics
from attention_transfer.training.epoch_meters import EpochMeters
from attention_transfer.training.evaluation import predict
from attention_transfer.training.monitoring.probes import Probes, probed_epochs
from attention_transfer.training.monitoring.progress import RunProgress, StepFigures
from attention_transfer.training.monitoring.tracking import Tracking
from attention_transfer.training.objects import NO_OBJECTS, RunObjects, check_objects
from attention_transfer.training.record import make_record
from attention_transfer.training.setup import RunSetup, set_up_run
from attention_transfer.training.summary import run_summary
from attention_transfer.training.train_step import StepIndex, TrainStep

__all__ = ["Trainer", "resume", "run"]


def run(
    config: RunConfig,
    progress: RunProgress | None = None,
    objects: RunObjects = NO_OBJECTS,
) -> Run:
    """Train what a configuration describes, in a new folder.

    Args:
        config: the whole configuration.
        progress: shows lines and a live view; silent by default.
        objects: what was given as Python objects, which the configuration cannot name.

    Returns:
        The finished run.

    Raises:
        InputError: a setting does not fit; nothing has been written then.
        TrainingError: the loss or the gradient is not finite.
    """
    accelerator = make_accelerator()
    if config.out is None:
        kind = "train" if config.teacher is None else "distill"
        (folder,) = broadcast_object_list([new_folder(kind)])
        config = config.replace(out=folder)
    assert config.out is not None
    Run.check_free(config.out)
    setup = set_up_run(config, objects)
    trainer = Trainer(setup, Run(config.out), accelerator, progress or RunProgress())
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        Run.create(config.out, setup.config)
    accelerator.wait_for_everyone()
    try:
        trainer.tracking.start()
    except (InputError, KeyboardInterrupt):
        shutil.rmtree(config.out, ignore_errors=True)  # it was empty or absent before
        raise
    return trainer.finish()


def resume(
    folder: str | Path,
    progress: RunProgress | None = None,
    objects: RunObjects = NO_OBJECTS,
) -> Run:
    """Resume a run after its last whole epoch, exactly as if it had never been interrupted.

    Args:
        folder: of the run.
        progress: shows lines and a live view; silent by default.
        objects: the Python objects that the run began with.

    Raises:
        InputError: the folder holds no run, the run is finished, or it has no checkpoint that
            fits its configuration.
    """
    interrupted = Run(Path(folder))
    if interrupted.is_finished:
        raise InputError(f"the run in {folder} is finished; there is nothing to resume")
    config = interrupted.config
    check_objects(config, objects)
    epoch, state = load_last_checkpoint(interrupted.checkpoints_folder)
    setup, accelerator = set_up_run(config, objects), make_accelerator()
    trainer = Trainer(setup, interrupted, accelerator, progress or RunProgress())
    trainer.restore(epoch, state)
    trainer.tracking.start()
    return trainer.finish()


class Trainer:
    """Trains one run, from its first step or a checkpoint to its record.

    Args:
        setup: of the run.
        run: its folder, which may be created later.
        accelerator: of this process.
        progress: shows lines and a live view, in the main process.
    """

    def __init__(
        self, setup: RunSetup, run: Run, accelerator: Accelerator, progress: RunProgress
    ) -> None:
        keep_freed_memory()
        self.setup, self.run, self.accelerator = setup, run, accelerator
        self.progress = progress if accelerator.is_main_process else RunProgress()
        self.config, self.data = setup.config, setup.data
        self.train_step = TrainStep(setup, accelerator)
        self.epoch, self.seconds = 0, 0.0
        self.best = BestEpoch(epoch=0, validation_error=math.inf)
        bounds = batch_bounds(
            len(self.data.train), self.config.batch_size, accelerator.num_processes
        )
        self.steps_per_epoch = len(bounds)
        self.probes: Probes | None = None
        if self.config.probes and accelerator.is_main_process:
            self.probes = Probes(setup, run.attention_folder)
        self.probed_epochs = probed_epochs(self.config.epochs, self.config.probe_every)
        self.cache: TargetCache | None = None
        self.seconds_building_cache = 0.0
        if setup.targets is not None:
            self.cache, self.seconds_building_cache = setup.targets.whole(
                self.progress.write_line, accelerator.device
            )
        self.tracking = Tracking(
            self.config, run.folder, self.progress.write_line, active=accelerator.is_main_process
        )

    def finish(self) -> Run:
        """Train the remaining epochs, read the test split once, write network and record."""
        with self.tracking:
            self._train()
            self._write_results()
        self.accelerator.wait_for_everyone()
        return self.run

    def restore(self, epoch: int, state: dict[str, Any]) -> None:
        """Load the state of the run after an epoch.

        Raises:
            InputError: the state does not fit the configuration.
        """
        try:
            self.train_step.restore(state)
            self.epoch, self.seconds = epoch, state["seconds"]
            self.best = BestEpoch.model_validate(state["best"])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            raise InputError(
                f"the checkpoint in {self.run.folder} does not fit its config.yaml; restore the "
                "configuration that the run began with, or start a new run"
            ) from None
        if self.accelerator.is_main_process:
            self.run.drop_metrics_after(epoch)

    def _train(self) -> None:
        for line in run_summary(self.setup):
            self.progress.write_line(line)
        epochs_left = self.config.epochs - self.epoch
        self.progress.begin(self.setup.student.name, epochs_left * len(self.data.train))
        try:
            if self.probes:
                self.probes.begin()
            if self.epoch == 0:
                self.tracking.add({"epoch": 0, "step": 0, "probes": self._probe()})
            with closing(self._batches()) as batches:
                while self.epoch < self.config.epochs:
                    self._train_epoch(islice(batches, self.steps_per_epoch))
        except KeyboardInterrupt:
            raise Interrupted(self._interrupted_message()) from None
        finally:
            self.progress.end()

    def _train_epoch(self, batches: Iterator[Batch]) -> None:
        began = time.perf_counter()
        meters = EpochMeters()
        self.train_step.set_train_mode()
        numbered = enumerate(batches)
        while True:
            waiting_since = time.perf_counter()
            step, batch = next(numbered, (None, None))
            if step is None or batch is None:
                break
            targets = None
            if self.cache is not None:
                targets = self.cache.read(self.epoch, batch.indices)
            meters.seconds_waiting += time.perf_counter() - waiting_since
            done = (self.epoch + step / self.steps_per_epoch) / self.config.epochs
            out = self.train_step.step(batch, targets, StepIndex(self.epoch, step, done))
            meters.add(out, batch.labels, step)
            seconds = time.perf_counter() - began
            self.progress.step(batch.total, self._step_figures(step, meters, seconds))
        seconds = time.perf_counter() - began
        self.seconds += seconds
        self.epoch += 1
        metrics = self._epoch_metrics(meters, seconds)
        if metrics.validation_error < self.best.validation_error:
            self.best = BestEpoch(epoch=self.epoch, validation_error=metrics.validation_error)
        if self.accelerator.is_main_process:
            self.run.append_metrics(metrics)
            self._save_checkpoint()
        self.tracking.add(metrics.model_dump())
        self.progress.epoch(metrics, self.config.epochs)

    def _save_checkpoint(self) -> None:
        state = {"seconds": self.seconds, "best": self.best.model_dump()}
        save_checkpoint(
            self.run.checkpoints_folder, self.epoch, {**self.train_step.state(), **state}
        )

    def _write_results(self) -> None:
        """Evaluate the last weights, write predictions, network and record."""
        self.setup.transfer.remove_compiled_passes()
        validation, test = self._predict(self.data.validation), self._predict(self.data.test)
        teacher_test_error = self._teacher_test_error()
        if not self.accelerator.is_main_process:
            return
        if self.probes:
            self.probes.end()
        self.run.write_predictions(test, self.data.test.labels)
        self.run.write_model(self.setup.student.network, self.setup.card)
        evaluations = {
            "validation": compute_metrics(validation, self.data.validation.labels),
            "test": compute_metrics(test, self.data.test.labels),
        }
        record = make_record(
            self.setup,
            best=self.best,
            evaluations=evaluations,
            teacher_test_error=teacher_test_error,
            attention=self.probes.record() if self.probes else None,
            seconds=self.seconds,
            seconds_building_cache=self.seconds_building_cache,
            seconds_waiting=sum(row.seconds_waiting_for_data for row in self.run.metrics),
            processes=self.accelerator.num_processes,
        )
        self.run.write_record(record)
        step = self.epoch * self.steps_per_epoch
        self.tracking.add({"step": step, "test_error": evaluations["test"].error})

    def _probe(self) -> dict[str, dict[str, float]]:
        """Save and measure attention maps of the probe images, after the epochs chosen for it."""
        if self.probes is None or self.epoch not in self.probed_epochs:
            return {}
        return self.probes.save_epoch(self.epoch)

    def _interrupted_message(self) -> str:
        if self.epoch == 0:
            return "interrupted in the first epoch, so there is no checkpoint to resume from"
        return f"interrupted; resume the run: attention-transfer resume {self.run.folder}"

    def _view(self, epoch: int) -> AugmentedView:
        """Return an epoch's augmented view; with a cache, epochs cycle through its views."""
        targets = self.setup.targets
        return AugmentedView(
            self.config.data_seed, epoch if targets is None else epoch % targets.views
        )

    def _batches(self) -> Generator[Batch]:
        """Yield the batches of all remaining epochs; the next epoch's load during validation."""
        count, config = len(self.data.train), self.config
        return stream(
            self.data.train,
            (
                EpochPass(epoch_order(count, config.seed, epoch), self._view(epoch))
                for epoch in range(self.epoch, config.epochs)
            ),
            config.batch_size,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            workers=resolve_workers(config.workers, self.data.train),
            device=self.accelerator.device,
        )

    def _step_figures(self, step: int, meters: EpochMeters, seconds: float) -> StepFigures:
        return StepFigures(
            epoch=self.epoch + 1,
            epochs=self.config.epochs,
            step=step + 1,
            steps=self.steps_per_epoch,
            images_per_second=meters.images * self.accelerator.num_processes / seconds,
            lr=self.train_step.lr,
            images=meters.images,
            wrong=meters.wrong,
            terms=meters.last_terms,
            agreement=meters.last_agreement,
        )

    def _epoch_metrics(self, meters: EpochMeters, seconds: float) -> EpochMetrics:
        logits = self._predict(self.data.validation)
        validation = compute_metrics(logits, self.data.validation.labels)
        return EpochMetrics(
            epoch=self.epoch,
            step=self.epoch * self.steps_per_epoch,
            lr=self.train_step.lr,
            **meters.means(self.accelerator, seconds),
            validation_error=validation.error,
            validation_loss=validation.loss,
            seconds_left=(self.config.epochs - self.epoch) * seconds,
            probes=self._probe(),
        )

    def _predict(self, images: Images) -> Tensor:
        """Return the student's logits of a split."""
        return self._logits(self.setup.student.network, images, self.setup.preprocessing)

    def _teacher_test_error(self) -> float | None:
        """Return the test error of the teachers' mean logits, in percent.

        None without a teacher, or if one has other classes than the data.
        """
        logits = []
        for teacher in self.setup.teachers:
            preprocessing = preprocessing_for(teacher, self.data)
            images = self.data.test.resized(
                preprocessing.size or self.data.test.size, preprocessing.interpolation
            )
            try:
                logits.append(self._logits(teacher.network, images, preprocessing))
            except InputError:
                return None
        if not logits:
            return None
        return compute_metrics(torch.stack(logits).mean(0), self.data.test.labels).error

    def _logits(self, network: nn.Module, images: Images, preprocessing: Preprocessing) -> Tensor:
        return predict(
            network,
            images,
            preprocessing,
            classes=len(self.data.class_names),
            precision=self.setup.precision,
            device=self.accelerator.device,
            workers=resolve_workers(self.config.workers, images),
        )
