"""A run that is only planned: its networks, and what a few measured steps say of the rest."""

import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from attention_transfer.benchmark.memory import peak_memory, reset_peak_memory
from attention_transfer.cache import free_bytes
from attention_transfer.config import RunConfig
from attention_transfer.data import batch_bounds
from attention_transfer.environment import keep_freed_memory, make_accelerator
from attention_transfer.errors import InputError
from attention_transfer.network_inputs import network_input_size
from attention_transfer.runs import Run
from attention_transfer.training import RunProgress
from attention_transfer.training.evaluation import BATCH_SIZE
from attention_transfer.training.processes import Processes
from attention_transfer.training.record import parameter_count
from attention_transfer.training.remaining_batches import remaining_batches
from attention_transfer.training.setup import RunSetup, count_flops, set_up_run
from attention_transfer.training.shared_evaluation import SharedEvaluation
from attention_transfer.training.summary import run_summary
from attention_transfer.training.teacher_check import TeacherCheck, check_teachers
from attention_transfer.training.train_step import StepIndex, TrainStep

__all__ = ["DryRun", "dry_run"]

WARM_UP, MOST_STEPS = 2, 12
"""Steps before the timed ones, in which memory is measured; and all steps."""

LONGEST = 10.0
"""Seconds after which no further step is begun, once one has been timed."""


@dataclass(frozen=True)
class DryRun:
    """The networks, layer pairs and cost of a run; times in seconds, memory in megabytes."""

    networks: list[dict[str, Any]]
    """Role, name, parameters and FLOPs of an image's forward pass."""
    images: dict[str, int]
    pairs: list[dict[str, Any]]
    """Layer pairs with their feature shapes and effective weights."""
    precision: str
    processes: int
    steps: int
    """Of the whole run."""
    steps_timed: int
    seconds_a_step: float
    """The median, waiting for data included."""
    peak_megabytes: float
    """The most memory of a process in a step: of the GPU if there is one, else of the whole
    process.
    """
    seconds_training: float
    seconds_evaluating: float
    """Of validation after each epoch, and of both splits at the end."""
    seconds_building_cache: float
    cache: dict[str, Any] | None
    """Folder, views, and bytes in all, missing and free; None for a run without a cache."""
    teacher_validation_error: float | None
    warnings: list[str]
    """About the teacher."""

    @property
    def seconds(self) -> float:
        """The duration of the whole run, without its start."""
        return self.seconds_training + self.seconds_evaluating + self.seconds_building_cache


def dry_run(config: RunConfig, progress: RunProgress) -> DryRun | None:
    """Set up a run and train a few steps, and write nothing; weights of a zoo are fetched.

    All processes must call this; it returns None in all but the main one.

    Args:
        config: of the run.
        progress: shows what is set up.

    Raises:
        InputError: as when the run is begun; or the data would have to be downloaded.
        TrainingError: a step fails.
    """
    keep_freed_memory()
    accelerator = make_accelerator()
    if config.out is not None:
        Run.check_free(config.out)
    with Processes(accelerator, config.timeout, "start the dry run again").watched() as processes:
        return _dry_run(config, progress, accelerator, processes)


def _dry_run(
    config: RunConfig, progress: RunProgress, accelerator: Accelerator, processes: Processes
) -> DryRun | None:
    setup = _set_up(config)
    processes.wait()
    evaluation = SharedEvaluation(processes, setup.precision, accelerator.device, config.workers)
    progress = progress if processes.is_main else RunProgress()
    for line in run_summary(setup):
        progress.write_line(line)
    train_step = TrainStep(setup, accelerator, processes)
    check = check_teachers(setup, evaluation, progress)
    measured = _measure(setup, train_step, processes)
    seconds_an_image = _seconds_to_evaluate(setup, evaluation)
    if not processes.is_main:
        return None
    return _planned(setup, measured, seconds_an_image, check, processes)


def _set_up(config: RunConfig) -> RunSetup:
    try:
        return set_up_run(config.replace(download=False))
    except InputError as error:
        if not config.download:
            raise
        raise InputError(f"{error} (a dry run downloads no data)") from None


@dataclass(frozen=True)
class _Measured:
    seconds: list[float]
    """Of the timed steps."""
    peak_megabytes: float
    seconds_a_target: float
    """Of the teacher's forward pass, for each image."""


def _measure(setup: RunSetup, train_step: TrainStep, processes: Processes) -> _Measured:
    """Train a few steps of the run; the targets that a cache would hold are computed aside."""
    train_step.set_train_mode()
    began = time.perf_counter()
    seconds, peaks, teacher = [], [], []
    device = train_step.accelerator.device
    with closing(remaining_batches(setup, 0, 0, processes, device)) as batches:
        for number in range(MOST_STEPS):
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            waited = time.perf_counter() - start
            targets = None
            if setup.targets is not None:
                start = time.perf_counter()
                targets = setup.transfer.targets(batch.images, batch.labels)
                teacher.append((time.perf_counter() - start) / len(batch.labels))
            if number < WARM_UP:
                reset_peak_memory()
            start = time.perf_counter()
            out, _ = train_step.step(batch, targets, StepIndex(0, number, 0.0))
            _ = float(out.loss)  # waits for the device
            seconds.append(waited + time.perf_counter() - start)
            if number < WARM_UP:
                peaks.append(peak_memory())
            late = len(seconds) > WARM_UP and time.perf_counter() - began > LONGEST
            if any(processes.agree(int(late))):
                break
    timed = seconds[WARM_UP:] or seconds[-1:]
    return _Measured(timed, max(peaks), statistics.median(teacher) if teacher else 0.0)


def _seconds_to_evaluate(setup: RunSetup, evaluation: SharedEvaluation) -> float:
    """Return the seconds that the evaluation of the student takes for each validation image."""
    validation = setup.data.validation
    images = validation.subset(np.arange(min(BATCH_SIZE, len(validation))))
    start = time.perf_counter()
    evaluation.logits(
        setup.student.network, images, setup.preprocessing, len(setup.data.class_names)
    )
    return (time.perf_counter() - start) / len(images)


def _planned(
    setup: RunSetup,
    measured: _Measured,
    seconds_an_image: float,
    check: TeacherCheck,
    processes: Processes,
) -> DryRun:
    config, data = setup.config, setup.data
    splits = {name: len(getattr(data, name)) for name in ("train", "validation", "test")}
    steps = config.epochs * len(batch_bounds(splits["train"], config.batch_size, processes.count))
    seconds_a_step = statistics.median(measured.seconds)
    evaluated = (config.epochs + 1) * splits["validation"] + splits["test"] * config.test
    cache = _cache(setup)
    rows = 0.0
    if cache is not None and setup.targets is not None:
        rows = cache["missing_bytes"] / setup.targets.source.contents.row.itemsize
    return DryRun(
        networks=list(_networks(setup)),
        images=splits,
        pairs=[asdict(pair) for pair in setup.transfer.pair_descriptions],
        precision=setup.precision,
        processes=processes.count,
        steps=steps,
        steps_timed=len(measured.seconds),
        seconds_a_step=seconds_a_step,
        peak_megabytes=measured.peak_megabytes,
        seconds_training=steps * seconds_a_step,
        seconds_evaluating=evaluated * seconds_an_image,
        seconds_building_cache=rows * measured.seconds_a_target / processes.count,
        cache=cache,
        teacher_validation_error=check.error,
        warnings=check.warnings,
    )


def _networks(setup: RunSetup) -> Iterator[dict[str, Any]]:
    roles = ["student", *["teacher"] * len(setup.teachers)]
    for role, model in zip(roles, [setup.student, *setup.teachers], strict=True):
        yield {
            "role": role,
            "name": model.name,
            "parameters": parameter_count(model.network),
            "flops": count_flops(model.network, network_input_size(model, setup.data)),
        }


def _cache(setup: RunSetup) -> dict[str, Any] | None:
    """Return the figures of the run's cache, of which none or a part may exist."""
    targets = setup.targets
    if targets is None:
        return None
    contents = (targets.cache or targets.source).contents
    missing = contents.bytes
    if targets.cache is not None:
        rows = sum(map(contents.rows_in, targets.cache.missing()))
        missing = rows * contents.row.itemsize
    return {
        "folder": str(targets.folder),
        "views": contents.views,
        "bytes": contents.bytes,
        "missing_bytes": missing,
        "free_bytes": free_bytes(Path(targets.folder)),
    }
