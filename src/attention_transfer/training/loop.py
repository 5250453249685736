"""The training loop: one for a network alone and for a student with a teacher, over Accelerate."""

import math
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from attention_transfer.cache import TargetCache
from attention_transfer.config import DistillConfig, TrainConfig
from attention_transfer.data import (
    Batch,
    DataSet,
    Images,
    Pass,
    View,
    batch_bounds,
    epoch_order,
    resolve_workers,
    stream,
)
from attention_transfer.data.randomness import step_seed
from attention_transfer.errors import InputError, Interrupted, TrainingError
from attention_transfer.feeding import model_normalization
from attention_transfer.machine import AUTOCAST, devices_and_processes, keep_freed_memory
from attention_transfer.training.accumulation import joined, parts_of
from attention_transfer.training.checkpoints import load_last_checkpoint, save_checkpoint
from attention_transfer.training.evaluation import judge, predict
from attention_transfer.training.fine_tuning import parameter_groups
from attention_transfer.training.preparation import Prepared, prepare
from attention_transfer.training.probes import Probes, probed_epochs
from attention_transfer.training.progress import Moment, RunProgress
from attention_transfer.training.recomputation import recomputing
from attention_transfer.training.record import introduction, make_record
from attention_transfer.training.run import Run, new_folder
from attention_transfer.training.schedule import learning_rate_factor
from attention_transfer.training.totals import Totals
from attention_transfer.training.tracking import Tracking
from attention_transfer.transfer import Normalization, Targets, TransferOutput

__all__ = ["resume", "run"]


def run(
    config: TrainConfig | DistillConfig,
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
        kind = "distill" if isinstance(config, DistillConfig) else "train"
        (folder,) = broadcast_object_list([new_folder(kind)])
        config = config.replace(out=folder)
    assert config.out is not None
    Run.check_free(config.out)
    prepared = prepare(config, data)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        Run.create(config.out, config)
    accelerator.wait_for_everyone()
    fit = _Fit(prepared, Run(config.out), accelerator, progress or RunProgress())
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
    fit = _Fit(prepare(config), interrupted, devices_and_processes(), progress or RunProgress())
    fit.restore(epoch, state)
    fit.tracking.start()
    return fit.finish()


class _Fit:
    """One run, from its first step or a checkpoint to its record."""

    def __init__(
        self, prepared: Prepared, run: Run, accelerator: Accelerator, progress: RunProgress
    ) -> None:
        keep_freed_memory()
        self.prepared, self.run, self.accelerator = prepared, run, accelerator
        self.progress = progress if accelerator.is_main_process else RunProgress()
        self.config, self.data = prepared.config, prepared.data
        self.transfer = prepared.transfer.to(accelerator.device)
        for teacher in prepared.teachers:
            teacher.network.to(accelerator.device)
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.transfer, self.config.backbone_lr, prepared.heads),
            lr=self.config.lr,
            momentum=self.config.momentum,
            nesterov=self.config.nesterov and self.config.momentum > 0,
            weight_decay=self.config.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(
            accelerator.device.type, enabled=prepared.precision == "fp16"
        )
        # Wraps the whole objective, so that the terms' own parameters are synchronised too.
        self.objective: nn.Module = accelerator.prepare_model(self.transfer)
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
        for line in introduction(self.prepared):
            self.progress.say(line)
        if self.prepared.targets is not None:
            say, device = self.progress.say, self.accelerator.device
            self.cache, self.seconds_building = self.prepared.targets.whole(say, device)
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
        validation, test = self._predict("validation"), self._predict("test")
        teacher_test_error = self._teacher_test_error()
        if not self.accelerator.is_main_process:
            return
        if self.probes:
            self.probes.end()
        self.run.write_predictions(test, self.data.test.labels)
        self.run.write_model(self.prepared.student.network, self.prepared.card)
        evaluations = {
            "validation": judge(validation, self.data.validation.labels),
            "test": judge(test, self.data.test.labels),
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
            self.transfer.load_state_dict(state["transfer"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
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
        totals = Totals()
        self.transfer.student.train()
        for module in self.prepared.frozen:
            module.eval()
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
            self._step(step, batch, targets, totals)
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
                    "transfer": self.transfer.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
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

    def _step(self, step: int, batch: Batch, targets: Targets | None, totals: Totals) -> None:
        images, labels = batch.images, batch.labels
        if not self.config.channels_last:
            images = images.contiguous()
        progress = self._progress(step)
        for group in self.optimizer.param_groups:
            rate = self.config.lr * learning_rate_factor(self.config.schedule, progress)
            group["lr"] = rate * group["scale"]
        # Dropout and the like: a function of the seed and the step, as all randomness is.
        torch.manual_seed(step_seed(self.config.seed, self.epoch, step))
        known = None if targets is None else targets.to(images.device)
        parts = parts_of(len(labels), self.config.accumulate)
        out = joined(
            [
                self._part(
                    images[part],
                    labels[part],
                    known and known.part(part),
                    batch.total,
                    step,
                    last=part is parts[-1],
                )
                for part in parts
            ]
        )
        self.scaler.unscale_(self.optimizer)
        limit = self.config.clip_gradient or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.transfer.parameters(), limit)
        if not self.scaler.is_enabled() and not bool(norm.isfinite()):
            raise self._not_finite("the gradient", step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        totals.add(out, batch, labels, step)

    def _part(
        self,
        images: Tensor,
        labels: Tensor,
        targets: Targets | None,
        total: int,
        step: int,
        last: bool,
    ) -> TransferOutput:
        """Adds the gradient of a part of a batch; processes wait for each other after the last."""
        with nullcontext() if last else self.accelerator.no_sync(self.objective):
            with self._autocast(), recomputing(self.prepared.recomputation.parts.values()):
                out: TransferOutput = self.objective(images, labels, self._progress(step), targets)
            culprits = [name for name, value in out.terms.items() if not bool(value.isfinite())]
            if culprits:
                raise self._not_finite(f"the loss ({', '.join(culprits)})", step)
            # Processes average their gradients; their shares of a batch can differ by one image.
            share = len(labels) * self.accelerator.num_processes / total
            self.scaler.scale(out.loss * share).backward()
        return replace(out, loss=out.loss.detach(), logits=out.logits.detach())

    def _how_to_go_on(self) -> str:
        if self.epoch == 0:
            return "interrupted before the end of the first epoch; nothing was saved to resume from"
        return f"interrupted; go on with: attention-transfer resume {self.run.folder}"

    def _progress(self, step: int) -> float:
        """The share of the run's steps that is done."""
        return (self.epoch + step / self.steps_an_epoch) / self.config.epochs

    def _autocast(self) -> AbstractContextManager[None]:
        dtype = AUTOCAST.get(self.prepared.precision)
        return torch.autocast(self.accelerator.device.type, dtype, enabled=dtype is not None)

    def _view(self, epoch: int) -> View:
        """The samples' view in an epoch; cached ones go round."""
        targets = self.prepared.targets
        return View(self.config.data_seed, epoch if targets is None else epoch % targets.views)

    def _batches(self) -> Generator[Batch]:
        """Those of all epochs that are left; while one is judged, the next one's are made."""
        count, config = len(self.data.train), self.config
        return stream(
            self.data.train,
            (
                Pass(epoch_order(count, config.seed, epoch), self._view(epoch))
                for epoch in range(self.epoch, config.epochs)
            ),
            config.batch_size,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            workers=resolve_workers(config.workers, self.data.train),
            device=self.accelerator.device,
        )

    def _not_finite(self, what: str, step: int) -> TrainingError:
        """Stops the run before a step that would ruin the weights."""
        return TrainingError(
            f"{what} is not finite in epoch {self.epoch + 1}, step {step + 1}; the step was not "
            f"taken. Lower --lr (now {self.config.lr:g}) or the weight of a term, or bound the "
            "gradient with --clip-gradient"
        )

    def _moment(self, step: int, totals: Totals, rate: float) -> Moment:
        return Moment(
            epoch=self.epoch + 1,
            epochs=self.config.epochs,
            step=step + 1,
            steps=self.steps_an_epoch,
            images_per_second=rate,
            lr=self._lr,
            images=totals.images,
            wrong=totals.wrong,
            terms=totals.last_terms,
            agreement=totals.last_agreement,
        )

    @property
    def _lr(self) -> float:
        return float(self.optimizer.param_groups[-1]["lr"])

    def _row(self, totals: Totals, seconds: float) -> dict[str, Any]:
        """An epoch's line in metrics.jsonl."""
        validation = judge(self._predict("validation"), self.data.validation.labels)
        left = self.config.epochs - self.epoch
        return {
            "epoch": self.epoch,
            "step": self.epoch * self.steps_an_epoch,
            "lr": self._lr,
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
            own = model_normalization(teacher, self.data)
            images = self.data.test.resized(own.size or self.data.test.size, own.interpolation)
            try:
                logits.append(self._logits(teacher.network, images, own))
            except InputError:
                return None
        return judge(torch.stack(logits).mean(0), self.data.test.labels).error if logits else None

    def _logits(self, network: nn.Module, images: Images, own: Normalization) -> Tensor:
        return predict(
            network,
            images,
            own,
            classes=len(self.data.class_names),
            precision=self.prepared.precision,
            device=self.accelerator.device,
            workers=resolve_workers(self.config.workers, images),
        )
