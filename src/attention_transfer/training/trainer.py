"""The training loop: one for a network alone and for a student with a teacher, over Accelerate."""

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
    DataSet,
    EpochPass,
    Images,
    batch_bounds,
    epoch_order,
    resolve_workers,
    stream,
)
from attention_transfer.environment import devices_and_processes, keep_freed_memory
from attention_transfer.errors import InputError, Interrupted
from attention_transfer.network_inputs import preprocessing_for
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.runs.checkpoints import load_last_checkpoint, save_checkpoint
from attention_transfer.runs.folder import Run, new_folder
from attention_transfer.training.epoch_meters import EpochMeters
from attention_transfer.training.evaluation import compute_metrics, predict
from attention_transfer.training.monitoring.probes import Probes, probed_epochs
from attention_transfer.training.monitoring.progress import Moment, RunProgress
from attention_transfer.training.monitoring.tracking import Tracking
from attention_transfer.training.record import make_record, run_summary
from attention_transfer.training.setup import RunSetup, set_up_run
from attention_transfer.training.train_step import StepIndex, TrainStep

__all__ = ["resume", "run"]


def run(
    config: RunConfig,
    progress: RunProgress | None = None,
    data: DataSet | None = None,
) -> Run:
    """Trains what a configuration asks for, in a new folder.

    Args:
        config: complete and checked.
        progress: told about every step; silent by default.
        data: the configuration's data, if they are loaded already.

    Returns:
        The finished run.

    Raises:
        InputError: before anything is written, whatever would not fit.
        TrainingError: the loss is not finite.
    """
    accelerator = devices_and_processes()
    if config.out is None:
        kind = "train" if config.teacher is None else "distill"
        (folder,) = broadcast_object_list([new_folder(kind)])
        config = config.replace(out=folder)
    assert config.out is not None
    Run.check_free(config.out)
    prepared = set_up_run(config, data)
    fit = _Fit(prepared, Run(config.out), accelerator, progress or RunProgress())
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        Run.create(config.out, prepared.config)
    accelerator.wait_for_everyone()
    try:
        fit.tracking.start()
    except (InputError, KeyboardInterrupt):
        shutil.rmtree(config.out, ignore_errors=True)  # which was empty before, or not there
        raise
    return fit.finish()


def resume(folder: str | Path, progress: RunProgress | None = None) -> Run:
    """Goes on with a run from the end of its last whole epoch, exactly as if never interrupted.

    Raises:
        InputError: the folder holds no run, the run is finished, or it has no checkpoint that
            fits its configuration.
    """
    folder = Path(folder)
    interrupted = Run(folder)
    config = interrupted.config
    if (folder / "record.json").exists():
        raise InputError(f"the run in {folder} is finished; there is nothing to resume")
    epoch, state = load_last_checkpoint(interrupted.checkpoints)
    fit = _Fit(set_up_run(config), interrupted, devices_and_processes(), progress or RunProgress())
    fit.restore(epoch, state)
    fit.tracking.start()
    return fit.finish()


class _Fit:
    """One run, from its first step or a checkpoint to its record."""

    def __init__(
        self, prepared: RunSetup, run: Run, accelerator: Accelerator, progress: RunProgress
    ) -> None:
        keep_freed_memory()
        self.prepared, self.run, self.accelerator = prepared, run, accelerator
        self.progress = progress if accelerator.is_main_process else RunProgress()
        self.config, self.data = prepared.config, prepared.data
        self.learner = TrainStep(prepared, accelerator)
        self.epoch, self.seconds = 0, 0.0
        self.best: dict[str, float] = {"epoch": 0, "validation_error": math.inf}
        bounds = batch_bounds(
            len(self.data.train), self.config.batch_size, accelerator.num_processes
        )
        self.steps_an_epoch = len(bounds)
        self.probes: Probes | None = None
        if self.config.probes and accelerator.is_main_process:
            self.probes = Probes(prepared, run.attention)
            self.probed = probed_epochs(self.config.epochs, self.config.probe_every)
        self.cache: TargetCache | None = None
        self.seconds_building = 0.0
        if prepared.targets is not None:
            self.cache, self.seconds_building = prepared.targets.whole(
                self.progress.say, accelerator.device
            )
        self.tracking = Tracking(
            self.config, run.folder, self.progress.say, active=accelerator.is_main_process
        )

    def finish(self) -> Run:
        """Trains the epochs that are left, reads the test split once, writes model and record."""
        with self.tracking:
            self._train()
            self._conclude()
        self.accelerator.wait_for_everyone()
        return self.run

    def _train(self) -> None:
        for line in run_summary(self.prepared):
            self.progress.say(line)
        left = self.config.epochs - self.epoch
        self.progress.begin(self.prepared.student.name, left * len(self.data.train))
        try:
            if self.probes:
                self.probes.begin()
            if self.epoch == 0:
                self.tracking.add({"epoch": 0, "step": 0, "probes": self._look()})
            with closing(self._batches()) as source:
                while self.epoch < self.config.epochs:
                    self._train_epoch(islice(source, self.steps_an_epoch))
        except KeyboardInterrupt:
            raise Interrupted(self._how_to_go_on()) from None
        finally:
            self.progress.end()

    def _conclude(self) -> None:
        """Reads the test split, writes model and record."""
        self.prepared.transfer.remove_compiled_passes()
        validation, test = self._predict("validation"), self._predict("test")
        teacher_test_error = self._teacher_test_error()
        if not self.accelerator.is_main_process:
            return
        if self.probes:
            self.probes.end()
        self.run.write_predictions(test, self.data.test.labels)
        self.run.write_model(self.prepared.student.network, self.prepared.card)
        evaluations = {
            "validation": compute_metrics(validation, self.data.validation.labels),
            "test": compute_metrics(test, self.data.test.labels),
        }
        self.run.write_record(
            make_record(
                self.prepared,
                best=self.best,
                evaluations=evaluations,
                teacher_test_error=teacher_test_error,
                attention=self.probes.summary() if self.probes else None,
                seconds=self.seconds,
                seconds_building_cache=self.seconds_building,
                seconds_waiting=sum(row["seconds_waiting_for_data"] for row in self.run.metrics),
                processes=self.accelerator.num_processes,
            )
        )
        step = self.epoch * self.steps_an_epoch
        self.tracking.add({"step": step, "test_error": evaluations["test"].error})

    def restore(self, epoch: int, state: dict[str, Any]) -> None:
        """Puts everything back as it was after an epoch.

        Raises:
            InputError: the state is that of another run.
        """
        try:
            self.learner.restore(state)
            self.epoch, self.seconds, self.best = epoch, state["seconds"], state["best"]
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            raise InputError(
                f"the checkpoint in {self.run.folder} does not fit its config.yaml; put back the "
                "configuration that the run began with, or start a new run"
            ) from None
        if self.accelerator.is_main_process:
            self.run.keep_metrics(epoch)

    def _train_epoch(self, batches: Iterator[Batch]) -> None:
        began = time.perf_counter()
        totals = EpochMeters()
        self.learner.train()
        source = enumerate(batches)
        while True:
            waiting = time.perf_counter()
            step, batch = next(source, (None, None))
            if step is None or batch is None:
                break
            targets = None
            if self.cache is not None:
                targets = self.cache.read(self.epoch, batch.indices)
            totals.seconds_waiting += time.perf_counter() - waiting
            place = StepIndex(self.epoch, step, self._progress(step))
            totals.add(self.learner.step(batch, targets, place), batch.labels, step)
            rate = totals.images * self.accelerator.num_processes / (time.perf_counter() - began)
            self.progress.step(batch.total, self._moment(step, totals, rate))
        seconds = time.perf_counter() - began
        self.seconds += seconds
        self.epoch += 1
        row = self._row(totals, seconds)
        row["probes"] = self._look()
        if row["validation_error"] < self.best["validation_error"]:
            self.best = {"epoch": self.epoch, "validation_error": row["validation_error"]}
        if self.accelerator.is_main_process:
            self.run.add_metrics(row)
            save_checkpoint(
                self.run.checkpoints,
                self.epoch,
                {
                    **self.learner.state(),
                    "seconds": self.seconds,
                    "best": self.best,
                },
            )
        self.tracking.add(row)
        self.progress.epoch(row, self.config.epochs)

    def _look(self) -> dict[str, dict[str, float]]:
        """Keeps and measures attention on the probes, after the epochs at which it is looked at."""
        if self.probes is None or self.epoch not in self.probed:
            return {}
        return self.probes.look(self.epoch)

    def _how_to_go_on(self) -> str:
        if self.epoch == 0:
            return "interrupted before the end of the first epoch; nothing was saved to resume from"
        return f"interrupted; go on with: attention-transfer resume {self.run.folder}"

    def _progress(self, step: int) -> float:
        """The share of the run's steps that is done."""
        return (self.epoch + step / self.steps_an_epoch) / self.config.epochs

    def _view(self, epoch: int) -> AugmentedView:
        """The samples' view in an epoch; cached ones go round."""
        targets = self.prepared.targets
        return AugmentedView(
            self.config.data_seed, epoch if targets is None else epoch % targets.views
        )

    def _batches(self) -> Generator[Batch]:
        """Those of all epochs that are left; while one is judged, the next one's are made."""
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

    def _moment(self, step: int, totals: EpochMeters, rate: float) -> Moment:
        return Moment(
            epoch=self.epoch + 1,
            epochs=self.config.epochs,
            step=step + 1,
            steps=self.steps_an_epoch,
            images_per_second=rate,
            lr=self.learner.lr,
            images=totals.images,
            wrong=totals.wrong,
            terms=totals.last_terms,
            agreement=totals.last_agreement,
        )

    def _row(self, totals: EpochMeters, seconds: float) -> dict[str, Any]:
        """An epoch's line in metrics.jsonl."""
        validation = compute_metrics(self._predict("validation"), self.data.validation.labels)
        left = self.config.epochs - self.epoch
        return {
            "epoch": self.epoch,
            "step": self.epoch * self.steps_an_epoch,
            "lr": self.learner.lr,
            **totals.row(self.accelerator, seconds),
            "validation_error": validation.error,
            "validation_loss": validation.loss,
            "seconds_left": left * seconds,
        }

    def _predict(self, split: str) -> Tensor:
        student = self.prepared.student.network
        return self._logits(student, getattr(self.data, split), self.prepared.normalization)

    def _teacher_test_error(self) -> float | None:
        """Percent; None without a teacher that tells the data's classes apart."""
        logits = []
        for teacher in self.prepared.teachers:
            own = preprocessing_for(teacher, self.data)
            images = self.data.test.resized(own.size or self.data.test.size, own.interpolation)
            try:
                logits.append(self._logits(teacher.network, images, own))
            except InputError:
                return None
        return (
            compute_metrics(torch.stack(logits).mean(0), self.data.test.labels).error
            if logits
            else None
        )

    def _logits(self, network: nn.Module, images: Images, own: Preprocessing) -> Tensor:
        return predict(
            network,
            images,
            own,
            classes=len(self.data.class_names),
            precision=self.prepared.precision,
            device=self.accelerator.device,
            workers=resolve_workers(self.config.workers, images),
        )
