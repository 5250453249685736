"""The lines that a run prints before its first step."""

from collections.abc import Iterator

from attention_transfer.data.classes import abridged
from attention_transfer.training.optimization import describe_optimization
from attention_transfer.training.record import parameter_count
from attention_transfer.training.setup import RunSetup
from attention_transfer.transfer.output import PairDescription

__all__ = ["run_summary"]


def run_summary(setup: RunSetup) -> Iterator[str]:
    """Yield what is about to be trained, line by line, each layer pair with its weight."""
    config, data, student = setup.config, setup.data, setup.student
    yield (
        f"{student.name} ({parameter_count(student.network):,} parameters) on {data.name}: "
        f"{len(data.train)} training, {len(data.validation)} validation and {len(data.test)} test "
        f"images; {config.epochs} epochs at batch size {config.batch_size}, schedule "
        f"{config.schedule} with lr {config.lr:g}, precision {setup.precision}"
    )
    yield describe_optimization(config)
    for teacher in setup.teachers:
        yield f"teacher {teacher.name} ({parameter_count(teacher.network):,} parameters)"
    yield from _student_lines(setup)
    for network in (student, *setup.teachers):
        yield from network.notices
    yield from data.notices
    yield from setup.notices
    yield from _pairing_lines(setup)
    yield from _weight_lines(setup)


def _student_lines(setup: RunSetup) -> Iterator[str]:
    config, data, student = setup.config, setup.data, setup.student
    targets = setup.targets
    if targets is not None:
        cycle = f"; {config.epochs} epochs cycle through them"
        yield (
            f"teacher targets from {targets.folder}: {targets.views} views of each image"
            f"{cycle if targets.views < config.epochs else ''}"
        )
    card = student.card
    if card is not None and card.classes != len(data.class_names):
        yield (
            f"{student.name} gets a new last layer: its weights are for {card.classes} classes, "
            f"{data.name} has {len(data.class_names)}"
        )
    parts = setup.recomputation.parts
    if parts:
        yield (
            f"{student.name} recomputes the activations inside {len(parts)} modules "
            f"({abridged(list(parts), 2)}) in the backward pass and holds about "
            f"{setup.recomputation.share:.0%} of its activations at once"
        )


def _pairing_lines(setup: RunSetup) -> Iterator[str]:
    for name, pairing in setup.transfer.pairings.items():
        for network, points in (
            ("student", pairing.unpaired_student_points),
            ("teacher", pairing.unpaired_teacher_points),
        ):
            if points:
                yield f"{name}: the {network}'s {', '.join(points)} is in no layer pair"
    for pair in setup.transfer.pair_descriptions:
        yield _pair_line(pair)


def _pair_line(pair: PairDescription) -> str:
    student, *teachers = (
        "x".join(map(str, shape)) for shape in (pair.student_shape, *pair.teacher_shapes)
    )
    line = (
        f"{pair.term}: layer pair {pair.student} ({student}) <- {pair.teacher} "
        f"({', '.join(teachers)})"
    )
    weight = pair.effective_weight
    return line if weight is None else f"{line}: effective weight {weight:.4g} on {pair.unit}"


def _weight_lines(setup: RunSetup) -> Iterator[str]:
    """Yield the weights of terms as they were configured."""
    config = setup.config
    square = "^2" if config.gradient_form == "squared" else ""
    for name, beta, quantity in (
        ("gradient attention", config.gradient_beta, "d"),
        ("flip symmetry", config.flip_symmetry_beta, "d"),
        ("input gradient norm", config.input_gradient_norm_beta, "J"),
    ):
        if beta is not None:
            weight = beta if beta == "auto" else f"{beta / 2:g}"
            yield f"{name}: weight {weight} on ||{quantity}||{square} of input gradients"
    if config.teacher is not None and "activation" in config.attention:
        weight = config.beta if config.beta == "auto" else f"{config.beta:g}"
        yield f"activation attention: beta {weight}, {config.schedule_of_beta}, form {config.form}"
