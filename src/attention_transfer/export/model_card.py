"""The text of ``MODEL_CARD.md``: what a network is, what it was made from, and what it is worth."""

import re
from collections.abc import Iterator, Sequence

from attention_transfer.export.forms import Form
from attention_transfer.models import ModelCard
from attention_transfer.report.command_line import command_line
from attention_transfer.report.groups import Group, group_runs
from attention_transfer.runs import Run
from attention_transfer.runs.record import FinalMetrics

__all__ = ["model_card"]

MOST_CONFUSIONS = 5
"""Pairs of classes that the card names."""

LOSSES = {
    "cross_entropy": "cross-entropy with the labels",
    "binary_cross_entropy": "binary cross-entropy with the labels",
    "activation_attention": "attention transfer of activations",
    "knowledge_distillation": "knowledge distillation",
    "gradient_attention": "attention transfer of input gradients",
    "full_activation": "transfer of full activations",
    "flip_symmetry": "flip symmetry of input gradients",
    "input_gradient_norm": "the norm of input gradients",
}
"""What a reader calls the built-in terms."""


def model_card(
    run: Run,
    card: ModelCard,
    forms: Sequence[Form],
    validation_images: int,
    averaged: bool = False,
) -> str:
    """Return the model card, in Markdown with the front matter of the Hugging Face Hub.

    Args:
        run: finished.
        card: of its network.
        forms: what was exported and measured.
        validation_images: that their errors are of.
        averaged: whether the network has the run's averaged weights, instead of the last.
    """
    record = run.record
    taught = f", taught by {record.teacher.name}" if record.teacher else ""
    sections = {
        "Use": _use(card, forms),
        "Data": _data(run, card),
        "Method": _method(run),
        "Figures": _figures(run, averaged),
        "Forms": _forms(forms, validation_images),
        "Limits": _limits(run, card, averaged),
        "To repeat it": [*_repeat(run)],
    }
    lines = [
        *_front_matter(run),
        f"# {record.student.name}, trained on {record.data.name}",
        "",
        f"A classifier of images for {card.classes} classes, with {record.student.parameters:,} "
        f"parameters{taught}.",
    ]
    for title, text in sections.items():
        lines += ["", f"## {title}", "", *text]
    return "\n".join(lines) + "\n"


def _front_matter(run: Run) -> list[str]:
    tags = ["image-classification", "attention-transfer", "knowledge-distillation"]
    return [
        "---",
        "library_name: attention-transfer",
        "pipeline_tag: image-classification",
        f"tags: [{', '.join(tags if run.record.teacher else tags[:2])}]",
        "---",
        "",
    ]


def _use(card: ModelCard, forms: Sequence[Form]) -> Iterator[str]:
    channels, height, width = card.input_size
    yield from (
        "```python",
        "import attention_transfer as at",
        "",
        'classifier = at.load("FOLDER")  # of this file',
        'for prediction in classifier.predict("photos/*.jpg"):',
        "    print(prediction.image, prediction.label, prediction.probability)",
        "```",
    )
    if any(form.name == "onnx" for form in forms):
        yield from (
            "",
            "Without this library, with numpy, onnxruntime and pillow alone: `python classify.py "
            "photos/*.jpg`.",
        )
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (card.mean, card.std))
    yield from (
        "",
        f"The network takes {channels} channels of {height}x{width} pixels: the image is turned as "
        "its EXIF data say, transparent parts are laid on white, its middle "
        f"({card.crop_share:g} of the largest part of that shape) is resized "
        f"({card.interpolation}, with antialiasing), values are scaled to 0 to 1, and each channel "
        f"is normalized by mean {mean} and standard deviation {std}. `model.json` has the same for "
        "programs.",
    )


def _data(run: Run, card: ModelCard) -> Iterator[str]:
    data = run.record.data
    yield (
        f"{data.name}: {data.train.images:,} training, {data.validation.images:,} validation and "
        f"{data.test.images:,} test images. Test images were read once, at the end of training."
        if run.record.final.held_out.split == "test"
        else f"{data.name}: {data.train.images:,} training and {data.validation.images:,} "
        "validation images; the test images were left unread."
    )
    names = ", ".join(card.class_names[:20])
    more = f" and {card.classes - 20:,} more" if card.classes > 20 else ""
    yield from ("", f"Classes: {names}{more}.")
    for notice in data.notices:
        yield from ("", notice)
    if data.skipped:
        yield from ("", f"{data.skipped:,} corrupt images were skipped.")


def _method(run: Run) -> Iterator[str]:
    record, config = run.record, run.record.config
    terms = [LOSSES.get(name, name) for name in run.metrics[-1].terms] if run.metrics else []
    yield (
        f"{record.trained_epochs} epochs of {config.optimizer}, learning rate {config.lr:g} "
        f"({config.schedule}), batches of {config.batch_size}, weight decay "
        f"{config.weight_decay:g}, {record.precision}. Loss: {', '.join(terms)}."
    )
    teacher = record.teacher
    if teacher is None:
        return
    error = "" if teacher.test_error is None else f", test error {teacher.test_error:.2f} %"
    yield from ("", f"Teacher: {teacher.name}, {teacher.parameters:,} parameters{error}.")
    if record.pairs:
        yield from ("", "| loss | student's layer | teacher's layer |", "|---|---|---|")
        for pair in record.pairs:
            yield f"| {pair.term} | {pair.student} | {pair.teacher} |"


def _final(run: Run, averaged: bool) -> FinalMetrics:
    """Return the figures of the last or of the averaged weights."""
    average = run.record.ema if averaged else None
    return run.record.final if average is None else average.final


def _figures(run: Run, averaged: bool) -> Iterator[str]:
    group, final = _group(run), _final(run, averaged)
    errors = [_final(one, averaged).held_out.error for one in group.runs]
    split, images, _ = final.held_out
    of = "mean over runs" if len(group.runs) > 1 else "95 % interval of this many images"
    yield f"| | error on {images:,} {split} images | {of} |"
    yield "|---|---|---|"
    if len(group.runs) > 1:
        name = f"all {len(group.runs)} runs that differ in their seed alone"
        yield f"| {name} | {group.text_of(errors)} | {group.spread_of(errors)} |"
        yield f"| this one | {final.held_out.error:.2f} % | |"
    else:
        yield f"| this network | {final.held_out.error:.2f} % | {group.spread_of(errors)} |"
    calibration = (
        final.validation_calibration_error
        if final.test_calibration_error is None
        else final.test_calibration_error
    )
    yield from (
        "",
        f"Calibration error: {calibration:.2f} %. The weights are "
        + ("the moving average over training." if averaged else "those of the last step."),
    )


def _group(run: Run) -> Group:
    """Return the run with those beside it that differ only in their seed."""
    folders = [run.folder]
    if re.fullmatch(r"seed-\d+", run.name):
        others = sorted(run.folder.resolve().parent.glob("seed-*"))
        folders += [path for path in others if path != run.folder.resolve()]
    runs = [Run(folder) for folder in folders]
    return group_runs([one for one in runs if one.is_finished])[0]


def _forms(forms: Sequence[Form], validation_images: int) -> Iterator[str]:
    yield f"On the machine that exported them; errors on {validation_images:,} validation images."
    yield from ("", "| | file | size | one image | error | largest difference of a probability |")
    yield "|---|---|---|---|---|---|"
    for form in forms:
        error = "" if form.validation_error is None else f"{form.validation_error:.2f} %"
        difference = "" if form.largest_difference is None else f"{form.largest_difference:.1g}"
        yield (
            f"| {form.name} | {form.file or ''} | {form.bytes / 1e6:.2f} MB | "
            f"{form.milliseconds:.2f} ms | {error} | {difference} |"
        )


def _limits(run: Run, card: ModelCard, averaged: bool) -> Iterator[str]:
    yield (
        f"It knows the {card.classes} classes above and gives one of them for any image. It was "
        "judged on images like those it was trained on; on others its error is not known."
    )
    confusion = run.confusion(run.record.final.held_out.split, averaged)
    if confusion is None:
        return
    names, counts = card.class_names, confusion.images_by_class
    mistakes = [
        f"{names[true]} taken for {names[predicted]} ({images} of {counts[true]})"
        for true, predicted, images in confusion.mistakes(MOST_CONFUSIONS)
    ]
    if mistakes:
        yield from ("", "Most frequent mistakes: " + "; ".join(mistakes) + ".")


def _repeat(run: Run) -> Iterator[str]:
    yield from ("```", command_line(run.record.config.model_dump(mode="json")), "```", "")
    versions = [f"{name} {version}" for name, version in run.record.versions.items() if version]
    yield f"Trained with {', '.join(versions)}, on {run.record.machine.platform}."
