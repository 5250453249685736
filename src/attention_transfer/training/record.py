"""The record that a run leaves when it is finished."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

from torch import Tensor, nn

from attention_transfer.cache import weights_fingerprint
from attention_transfer.data import DataSet, Images
from attention_transfer.environment import describe_machine, package_versions
from attention_transfer.models import LoadedModel
from attention_transfer.network_inputs import network_input_size
from attention_transfer.runs.record import (
    AttentionRecord,
    AverageRecord,
    CacheRecord,
    ChangeRecord,
    CorruptImageRecord,
    DataRecord,
    EpochMetrics,
    FinalMetrics,
    MachineRecord,
    NetworkRecord,
    PairRecord,
    RunRecord,
    SplitRecord,
    TeacherRecord,
)
from attention_transfer.training.classification_metrics import Evaluation, compute_metrics
from attention_transfer.training.history import best_epoch, best_epoch_of_average
from attention_transfer.training.setup import RunSetup, count_flops
from attention_transfer.training.teacher_check import TeacherCheck

__all__ = ["evaluate_splits", "make_record", "parameter_count"]

MOST_SKIPPED = 1000
"""Corrupt images that a record lists."""


def make_record(
    setup: RunSetup,
    *,
    rows: Sequence[EpochMetrics],
    evaluations: Mapping[str, Evaluation],
    teacher_test_error: float | None,
    teacher_check: TeacherCheck,
    attention: AttentionRecord | None,
    seconds: float,
    seconds_building_cache: float,
    processes: int,
    changes: Sequence[ChangeRecord],
) -> RunRecord:
    """Return the record of a finished run.

    Args:
        setup: of the run.
        rows: the figures of its epochs.
        evaluations: of the last weights, by split, "validation" and "test"; and of the moving
            average of weights if there is one, "ema validation" and "ema test".
        teacher_test_error: in percent; None without a teacher with the data's classes.
        teacher_check: what the teacher answered before the first step.
        attention: the attention maps that were saved.
        seconds: of training.
        seconds_building_cache: of building the cache of teacher targets.
        processes: that trained together.
        changes: what the run was resumed with instead of what it began with.
    """
    config = setup.config
    images = sum(row.images_per_second * row.seconds for row in rows)
    return RunRecord(
        command="train" if config.teacher is None else "distill",
        config=config,
        versions=package_versions(),
        machine=MachineRecord.model_validate({**describe_machine(), "processes": processes}),
        precision=setup.precision,
        compiled=setup.compiled,
        data=_data_record(setup),
        student=_network_record([setup.student], setup),
        teacher=_teacher_record(setup, teacher_test_error, teacher_check),
        pairs=[PairRecord(**asdict(pair)) for pair in setup.transfer.pair_descriptions],
        final=_final_metrics(evaluations),
        best_on_validation=best_epoch(rows),
        ema=_average_record(setup, rows, evaluations),
        epochs_trained=len(rows),
        attention=attention,
        cache=_cache_record(setup, seconds_building_cache),
        changes=list(changes),
        seconds=seconds,
        seconds_waiting_for_data=sum(row.seconds_waiting_for_data for row in rows),
        images_per_second=images / seconds,
    )


def _teacher_record(
    setup: RunSetup, test_error: float | None, check: TeacherCheck
) -> TeacherRecord | None:
    if not setup.teachers:
        return None
    return TeacherRecord(
        **_network_record(setup.teachers, setup).model_dump(),
        test_error=test_error,
        validation_error=check.error,
        validation_images=check.images,
        warnings=check.warnings,
    )


def _average_record(
    setup: RunSetup, rows: Sequence[EpochMetrics], evaluations: Mapping[str, Evaluation]
) -> AverageRecord | None:
    if setup.config.ema is None:
        return None
    return AverageRecord(
        decay=setup.config.ema,
        final=_final_metrics(evaluations, "ema "),
        best_on_validation=best_epoch_of_average(rows),
    )


def _cache_record(setup: RunSetup, seconds_building: float) -> CacheRecord | None:
    targets = setup.targets
    if targets is None:
        return None
    return CacheRecord(
        folder=str(targets.folder), views=targets.views, seconds_building=seconds_building
    )


def evaluate_splits(logits: Mapping[str, Tensor | None], data: DataSet) -> dict[str, Evaluation]:
    """Return the figures of logits, where there are any.

    Args:
        logits: by split, "validation" and "test", with "ema " before those of averaged weights.
        data: with the splits' labels.
    """
    labels = {"validation": data.validation.labels, "test": data.test.labels}
    return {
        name: compute_metrics(values, labels[name.removeprefix("ema ")])
        for name, values in logits.items()
        if values is not None
    }


def _final_metrics(evaluations: Mapping[str, Evaluation], prefix: str = "") -> FinalMetrics:
    return FinalMetrics(
        **{
            f"{split}_{one.name}": getattr(evaluations[prefix + split], one.name)
            for split in ("validation", "test")
            if prefix + split in evaluations
            for one in fields(Evaluation)
            if one.name != "confusion"
        }
    )


def parameter_count(network: nn.Module) -> int:
    """Return the number of a network's trainable and frozen weights, without buffers."""
    return sum(parameter.numel() for parameter in network.parameters())


def _data_record(setup: RunSetup) -> DataRecord:
    def split(images: Images) -> SplitRecord:
        return SplitRecord(images=len(images), fingerprint=images.fingerprint)

    data = setup.data
    return DataRecord(
        name=data.name,
        notices=list(data.notices),
        skipped=len(data.corrupt),
        skipped_images=[
            CorruptImageRecord(name=name, reason=reason)
            for name, reason in data.corrupt[:MOST_SKIPPED]
        ],
        train=split(data.train),
        validation=split(data.validation),
        test=split(data.test),
    )


def _network_record(models: Sequence[LoadedModel], setup: RunSetup) -> NetworkRecord:
    """Return the record of one network, or of several teachers together."""
    return NetworkRecord(
        name=",".join(model.name for model in models),
        parameters=sum(parameter_count(model.network) for model in models),
        flops=sum(
            count_flops(model.network, network_input_size(model, setup.data)) for model in models
        ),
        weights_fingerprint=weights_fingerprint([model.network for model in models]),
    )
