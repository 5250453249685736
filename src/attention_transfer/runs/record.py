"""The schema of what a run writes down: ``record.json`` and the lines of ``metrics.jsonl``.

Training writes these values; the report, the demo and the benchmarks read them. Every key that is
written has its field here.
"""

import json
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from attention_transfer.config import RunConfig
from attention_transfer.errors import InputError, first_problems
from attention_transfer.files import read_bytes

__all__ = [
    "SCHEMA_VERSION",
    "AttentionRecord",
    "AverageRecord",
    "BestEpoch",
    "CacheRecord",
    "ChangeRecord",
    "CorruptImageRecord",
    "DataRecord",
    "EpochMetrics",
    "FinalMetrics",
    "MachineRecord",
    "NetworkRecord",
    "PairRecord",
    "RunRecord",
    "SplitMetrics",
    "SplitRecord",
    "TeacherRecord",
]

SCHEMA_VERSION: Literal[2] = 2

LARGEST_RECORD = 2**26
"""Bytes of the largest record, or metrics."""


class _Schema(BaseModel):
    """Base of all values here: typed, complete, frozen, no unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Self:
        """Return the value that JSON text holds.

        Args:
            text: the JSON.
            where: the file, for the error message.

        Raises:
            InputError: the text is not JSON, lacks a key, or has a wrong or unknown one.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            faults = {".".join(map(str, fault["loc"])): fault for fault in error.errors()}
            if "schema_version" in faults:
                raise InputError(
                    f"{where} has schema version {faults['schema_version']['input']!r}, expected "
                    f"{SCHEMA_VERSION}; use the version of attention-transfer that wrote it, or "
                    "train the run again"
                ) from None
            problems = [f"{key}: {fault['msg']}".lstrip(": ") for key, fault in faults.items()]
            raise InputError(
                f"{where} is damaged ({first_problems(problems)}); train the run again"
            ) from None


class EpochMetrics(_Schema):
    """Figures of one epoch: a line of ``metrics.jsonl``. Errors are in percent."""

    epoch: PositiveInt
    step: PositiveInt
    """Optimizer steps since the beginning of the run."""
    lr: float
    terms: dict[str, float]
    """Term name -> its weighted value, the mean over the epoch's training images."""
    betas: dict[str, dict[str, float]] = {}
    """Term whose beta is "auto" -> layer pair -> its weight, schedule included, the mean over the
    epoch's training images.
    """
    gradient_ratios: dict[str, dict[str, float]] = {}
    """Term -> layer pair -> norm of its gradient at the student's point over that of everything
    else there, at the end of the epoch.
    """
    train_error: float
    attention_agreement: dict[str, float]
    """Layer pair -> cosine similarity of both attention maps on training images; may be empty."""
    images_per_second: float
    seconds: float
    seconds_waiting_for_data: float
    validation_error: float
    validation_loss: float
    ema: dict[str, float] = {}
    """"validation_error" and "validation_loss" of the moving average of weights; empty without
    one.
    """
    seconds_left: float
    probes: dict[str, dict[str, float]]
    """Layer pair, or attention point of a student alone -> measures of its maps of the probe
    images; empty after epochs at which no probe maps are saved.
    """


class MachineRecord(_Schema):
    """The machine that a run was trained on."""

    platform: str
    python: str
    cores: int | None
    threads: int
    cpu: str
    gpus: list[str]
    fast_bf16: bool
    processes: PositiveInt


class SplitRecord(_Schema):
    """One split of a data set."""

    images: NonNegativeInt
    fingerprint: str


class CorruptImageRecord(_Schema):
    """An image that was skipped because it cannot be decoded."""

    name: str
    """Its path, or what messages call it."""
    reason: str


class DataRecord(_Schema):
    """The data set of a run."""

    name: str
    notices: list[str]
    skipped: NonNegativeInt = 0
    """How many corrupt images were skipped, in all splits."""
    skipped_images: list[CorruptImageRecord] = []
    """The first 1000 of them."""
    train: SplitRecord
    validation: SplitRecord
    test: SplitRecord


class NetworkRecord(_Schema):
    """A network: its size, and the cost of one image's forward pass in FLOPs."""

    name: str
    parameters: int
    flops: int
    weights_fingerprint: str


class TeacherRecord(NetworkRecord):
    """The teacher, or several teachers together."""

    test_error: float | None
    """In percent; None if the teacher has other classes than the data."""
    validation_error: float | None = None
    """In percent, before the first step; None if the teacher has other classes than the data."""
    validation_images: NonNegativeInt = 0
    """How many validation images that error is of."""
    warnings: list[str] = []
    """What is wrong with those answers, unless ``trust_teacher`` is set."""


class PairRecord(_Schema):
    """A layer pair of one term: its points, feature shapes (C, H, W) and effective weight."""

    term: str
    student: str
    teacher: str
    student_shape: tuple[int, ...]
    teacher_shapes: tuple[tuple[int, ...], ...]
    effective_weight: float | None
    unit: str | None
    """The quantity that the effective weight multiplies."""


class FinalMetrics(_Schema):
    """Figures of the last weights on validation and test images, as ``Evaluation`` defines them.

    The test figures are None in a run with ``test: false``, which leaves the test images unread.
    """

    validation_images: PositiveInt
    validation_error: float
    validation_top5_error: float | None
    validation_loss: float
    validation_calibration_error: float
    test_images: PositiveInt | None = None
    test_error: float | None = None
    test_top5_error: float | None = None
    test_loss: float | None = None
    test_calibration_error: float | None = None

    @property
    def held_out(self) -> "SplitMetrics":
        """The figures on test images, or on validation images where those were left unread."""
        if self.test_error is None or self.test_images is None:
            return SplitMetrics("validation", self.validation_images, self.validation_error)
        return SplitMetrics("test", self.test_images, self.test_error)


class SplitMetrics(NamedTuple):
    """Figures on the images of one split."""

    split: Literal["validation", "test"]
    images: int
    error: float
    """In percent."""


class BestEpoch(_Schema):
    """The epoch with the lowest validation error, in percent."""

    epoch: NonNegativeInt
    validation_error: float


class AverageRecord(_Schema):
    """The exponential moving average of the student's weights."""

    decay: float
    final: FinalMetrics
    best_on_validation: BestEpoch


class AttentionRecord(_Schema):
    """The raw attention maps in a run's folder ``attention``."""

    map: Literal["sum", "max"]
    power: float
    points: list[str]
    """Layer pairs "student:teacher", or the attention points of a student alone."""
    probes: int
    """How many validation images are followed."""
    epochs: list[int]
    """The epochs after which maps of the probe images were saved."""


class CacheRecord(_Schema):
    """The cache of teacher targets that a run read."""

    folder: str
    views: PositiveInt
    seconds_building: float


class ChangeRecord(_Schema):
    """Something that a run was resumed with instead of what it began with."""

    name: str
    """Such as "setting lr" or "teacher weights"."""
    before: str
    after: str
    epoch: NonNegativeInt
    """Whole epochs that were trained before the change."""
    step: NonNegativeInt
    """Steps of the next epoch that were trained before the change."""


class RunRecord(_Schema):
    """The figures of a finished run and what they depend on: the contents of ``record.json``."""

    schema_version: Literal[2] = SCHEMA_VERSION
    command: Literal["train", "distill"]
    config: RunConfig
    """As the run ended; ``changes`` has what differed before."""
    versions: dict[str, str | None]
    machine: MachineRecord
    precision: str
    compiled: bool
    data: DataRecord
    student: NetworkRecord
    teacher: TeacherRecord | None
    pairs: list[PairRecord]
    final: FinalMetrics
    best_on_validation: BestEpoch
    ema: AverageRecord | None = None
    """Figures of the moving average of weights, which the folder ``ema`` holds."""
    epochs_trained: PositiveInt | None = None
    """Fewer than configured after early stopping; None in records of earlier versions."""
    attention: AttentionRecord | None
    cache: CacheRecord | None
    changes: list[ChangeRecord] = []
    """In the order in which they were made, with --allow-changes or more processes."""
    seconds: float
    """Training time, without validation, test and building a cache."""
    seconds_waiting_for_data: float
    images_per_second: float

    @property
    def trained_epochs(self) -> int:
        """How many epochs were trained."""
        return self.epochs_trained or self.config.epochs

    @classmethod
    def read(cls, path: Path) -> "RunRecord":
        """Read and check a ``record.json``.

        Raises:
            InputError: the file cannot be read or is damaged.
        """
        try:
            return cls.from_json(_in_this_schema(read_bytes(path, LARGEST_RECORD)), str(path))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None


def _in_this_schema(text: bytes) -> str | bytes:
    """Return the text of a record, without the confusions that version 1 had: they have a file."""
    try:
        values = json.loads(text)
        if values["schema_version"] != 1:
            return text
        for final in (values["final"], (values.get("ema") or {}).get("final", {})):
            for split in ("validation", "test"):
                final.pop(f"{split}_confusion", None)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return text  # damaged: its validation raises the error
    return json.dumps({**values, "schema_version": SCHEMA_VERSION})


def read_metrics(path: Path) -> list[EpochMetrics]:
    """Read a ``metrics.jsonl``; a missing file has no epochs yet.

    Raises:
        InputError: the file cannot be read or a line is damaged.
    """
    try:
        lines = read_bytes(path, LARGEST_RECORD).splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    return [
        EpochMetrics.from_json(line, f"{path} line {number}")
        for number, line in enumerate(lines, start=1)
    ]


def metrics_line(metrics: EpochMetrics) -> str:
    """Return the line of ``metrics.jsonl`` for an epoch."""
    return json.dumps(metrics.model_dump(mode="json"))
