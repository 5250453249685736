"""What a run says before it starts and leaves when it is done."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from attention_transfer.cache import weights_fingerprint
from attention_transfer.environment import describe_machine, package_versions
from attention_transfer.models import LoadedModel
from attention_transfer.training.evaluation import Evaluation
from attention_transfer.training.setup import RunSetup, count_flops

__all__ = ["run_summary", "make_record", "parameter_count"]


def run_summary(prepared: RunSetup) -> Iterator[str]:
    """What is about to be trained, line by line, with every pair's effective weight."""
    config, data = prepared.config, prepared.data
    network = prepared.student.network
    yield (
        f"{prepared.student.name} ({parameter_count(network):,} parameters) on {data.name}: "
        f"{len(data.train)} images to train, {len(data.validation)} to validate, "
        f"{len(data.test)} to test; {config.epochs} epochs at batch {config.batch_size}, "
        f"{config.schedule} to lr {config.lr:g}, {prepared.precision}"
    )
    for teacher in prepared.teachers:
        yield f"teacher {teacher.name} ({parameter_count(teacher.network):,} parameters)"
    targets = prepared.targets
    if targets is not None:
        again = (
            f", which {config.epochs} epochs go round in" if targets.views < config.epochs else ""
        )
        yield f"targets from {targets.folder}: {targets.views} views of each image{again}"
    card = prepared.student.card
    if card is not None and card.classes != len(data.class_names):
        yield (
            f"{prepared.student.name} gets a new last layer: its weights are for {card.classes} "
            f"classes, {data.name} has {len(data.class_names)}"
        )
    parts = prepared.recomputation.parts
    if parts:
        yield (
            f"{prepared.student.name} computes the inside of {len(parts)} of its parts again in "
            f"the backward pass ({_several(list(parts))}) and holds about "
            f"{prepared.recomputation.share:.0%} of its activations at once"
        )
    yield from data.notices
    yield from prepared.notices
    for name, pairing in prepared.transfer.pairings.items():
        for whose, alone in (
            ("student", pairing.unpaired_student_points),
            ("teacher", pairing.unpaired_teacher_points),
        ):
            if alone:
                yield f"{name}: no partner for the {whose}'s {', '.join(alone)}"
    for pair in prepared.transfer.pair_descriptions:
        student, *teachers = (
            "x".join(map(str, shape)) for shape in (pair.student_shape, *pair.teacher_shapes)
        )
        yield (
            f"{pair.term}: {pair.student} ({student}) attends like {pair.teacher} "
            f"({', '.join(teachers)}), weight {pair.effective_weight:.4g} on {pair.unit}"
        )
    if config.teacher is None:
        return
    square = "^2" if config.gradient_form == "squared" else ""
    for name, beta, what in (
        ("gradient attention", config.gradient_beta, "d"),
        ("flip symmetry", config.flip_symmetry_beta, "d"),
        ("input gradient norm", config.input_gradient_norm_beta, "J"),
    ):
        if beta is not None:
            yield f"{name}: weight {beta / 2:g} on ||{what}||{square} of input gradients"
    if "activation" in config.attention:
        yield f"beta {config.beta:g}, {config.beta_schedule}, form {config.form}"


def make_record(
    prepared: RunSetup,
    *,
    best: Mapping[str, float],
    evaluations: Mapping[str, Evaluation],
    teacher_test_error: float | None,
    attention: Mapping[str, Any] | None,
    seconds: float,
    seconds_building_cache: float,
    seconds_waiting: float,
    processes: int,
) -> dict[str, Any]:
    """The contents of record.json but for its schema version."""
    config, data = prepared.config, prepared.data
    images = config.epochs * len(data.train)
    return {
        "command": "train" if config.teacher is None else "distill",
        "config": config.model_dump(mode="json"),
        "versions": package_versions(),
        "machine": {**describe_machine(), "processes": processes},
        "precision": prepared.precision,
        "compiled": prepared.compiled,
        "data": {
            "name": data.name,
            "notices": list(data.notices),
            **{
                split: {"images": len(images_), "fingerprint": images_.fingerprint}
                for split, images_ in (
                    ("train", data.train),
                    ("validation", data.validation),
                    ("test", data.test),
                )
            },
        },
        "student": _network_record([prepared.student], prepared),
        "teacher": {
            **_network_record(prepared.teachers, prepared),
            "test_error": teacher_test_error,
        }
        if prepared.teachers
        else None,
        "pairs": [asdict(pair) for pair in prepared.transfer.pair_descriptions],
        "final": {
            f"{split}_{figure}": value
            for split, evaluation in evaluations.items()
            for figure, value in asdict(evaluation).items()
        },
        "best_on_validation": dict(best),
        "attention": attention,
        "cache": None
        if prepared.targets is None
        else {
            "folder": str(prepared.targets.folder),
            "views": prepared.targets.views,
            "seconds_building": seconds_building_cache,
        },
        "seconds": seconds,
        "seconds_waiting_for_data": seconds_waiting,
        "images_per_second": images / seconds,
    }


def _several(names: list[str]) -> str:
    """The first and the last of many."""
    return ", ".join(names) if len(names) < 5 else f"{names[0]}, {names[1]}, ..., {names[-1]}"


def parameter_count(network: nn.Module) -> int:
    """How many numbers training sets."""
    return sum(parameter.numel() for parameter in network.parameters())


def _network_record(models: Sequence[LoadedModel], prepared: RunSetup) -> dict[str, Any]:
    """One network, or several teachers together."""
    data_size = prepared.data.input_size
    return {
        "name": ",".join(model.name for model in models),
        "parameters": sum(parameter_count(model.network) for model in models),
        "flops": sum(
            count_flops(
                model.network,
                (3, *model.preprocessing.size)
                if model.preprocessing and model.preprocessing.size
                else data_size,
            )
            for model in models
        ),
        "weights_fingerprint": weights_fingerprint([model.network for model in models]),
    }
