"""The work of ``attention-transfer export``: files of a run's network, checked and measured."""

import shlex
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attention_transfer.config import EvaluateConfig, ExportConfig
from attention_transfer.data import DataSet, Images, batches, resolve_workers
from attention_transfer.environment import describe_machine, package_versions
from attention_transfer.errors import InputError, TrainingError, first_line
from attention_transfer.export.forms import Form, latencies, logits_by_form, parameter_bytes
from attention_transfer.export.graphs import (
    Forward,
    check_packages,
    in_pytorch,
    onnx_forward,
    pt2_forward,
    write_int8,
    write_onnx,
    write_pt2,
)
from attention_transfer.export.model_card import model_card
from attention_transfer.export.network import exported_network
from attention_transfer.export.upload import check_login, upload
from attention_transfer.factories import OBJECT
from attention_transfer.files import replacing, write_json, write_text
from attention_transfer.models import LoadedModel, class_probabilities, load, split_models
from attention_transfer.network_inputs import preprocessing_for
from attention_transfer.runs import Run, writing_to
from attention_transfer.training.classification_metrics import compute_metrics
from attention_transfer.training.model_evaluation import load_with_data
from attention_transfer.waiting import waiting_for

__all__ = ["ExportResult", "export_run"]

FILES = {"onnx": "model.onnx", "pt2": "model.pt2", "int8": "model.int8.onnx"}
STUDENT = "student, PyTorch"
BATCH_SIZE = 64

LARGEST_DIFFERENCE = 1e-3
"""Of a probability of a graph that is not quantized from the network's in PyTorch."""


@dataclass(frozen=True)
class ExportResult:
    """The files of an export, and what was measured."""

    folder: Path
    forms: list[Form]
    validation_images: int
    notices: list[str] = field(default_factory=list)
    """What could not be measured."""
    uploaded: str | None = None
    """The MODEL on the hub, if it was uploaded."""


def export_run(config: ExportConfig) -> ExportResult:
    """Export the network of a finished run, check every file and measure it.

    The folder is written whole or not at all.

    Raises:
        InputError: the run is not finished; its data cannot be loaded; a package is missing; the
            folder exists; the network cannot be exported.
        TrainingError: an exported graph gives other probabilities than the network, or the hub
            refuses the upload.
    """
    run = Run.of_weights(config.run)
    run.record  # noqa: B018 - raises if it is not finished
    check_packages(config.formats)
    folder = config.out or config.run / "export"
    with writing_to(folder):
        if folder.exists():
            raise InputError(f"{folder} exists already; delete it, or choose another --out")
    if config.push is not None:
        check_login(config.push)
    evaluation = EvaluateConfig(
        model=str(config.run), data=config.data, split="validation", workers=config.workers
    )
    model, data, images = load_with_data(evaluation)
    if config.normalize_in_graph and data.pixel_range is not None:
        raise InputError(
            "graphs that normalize take pixels of 8 bits, and this network was trained on more; "
            "leave out --normalize-in-graph"
        )
    exporting = _Export(run, config, model, data, images)
    with writing_to(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as partial:
        partial.mkdir()
        result = exporting.write(partial, folder)
    if config.push is None:
        return result
    try:
        return replace(result, uploaded=upload(folder, config.push, config.public))
    except InputError as error:
        raise TrainingError(
            f"{error}; the files are in {folder}, and can be uploaded with: "
            + shlex.join(["hf", "upload", config.push, str(folder)])
        ) from error


class _Export:
    """One export: its network, data and settings."""

    def __init__(
        self, run: Run, config: ExportConfig, model: LoadedModel, data: DataSet, images: Images
    ) -> None:
        self.run, self.config, self.model, self.data, self.images = run, config, model, data, images
        self.preprocessing = preprocessing_for(model, data)
        inside = self.preprocessing if config.normalize_in_graph else None
        self.network = exported_network(model.network, inside)
        self.graphs: list[str] = [name for name in config.formats if name in FILES]
        self.notices: list[str] = []

    def write(self, folder: Path, final: Path) -> ExportResult:
        """Write all files into a folder, which gets its final name later."""
        assert self.model.card is not None  # a run has one
        shutil.copyfile(self.config.run / "model.safetensors", folder / "model.safetensors")
        self.model.card.write(folder / "model.json")
        first = next(self._inputs(self.images.subset(np.arange(1))))
        self._write_graphs(folder, torch.cat([first, first]))
        forms = self._measured(folder, first)
        result = ExportResult(final, forms, len(self.images), self.notices)
        document = {
            "schema_version": 1,
            "versions": package_versions(),
            "machine": describe_machine(),
            "validation_images": len(self.images),
            "forms": [asdict(form) for form in forms],
        }
        write_json(folder / "export.json", document)
        averaged = self.config.run != self.run.folder
        text = model_card(self.run, self.model.card, forms, len(self.images), averaged)
        write_text(folder / "MODEL_CARD.md", text)
        if "onnx" in self.graphs and self._is_for_photographs:
            script = files("attention_transfer.export") / "classify.py"
            write_text(folder / "classify.py", script.read_text(encoding="utf-8"))
        return result

    @property
    def _is_for_photographs(self) -> bool:
        """Whether the network takes grey or colour images of 8 bits."""
        card = self.model.card
        assert card is not None
        return card.input_size[0] in (1, 3) and card.pixel_range is None

    def _write_graphs(self, folder: Path, example: Tensor) -> None:
        """Write the network as a graph in each of the formats: pt2, ONNX, quantized ONNX.

        Args:
            folder: to write to.
            example: input of two samples: one alone would be taken for the only size of a batch.
        """
        formats = self.graphs
        if "pt2" in formats:
            with waiting_for("exporting the network as pt2"):
                write_pt2(self.network, example, folder / FILES["pt2"])
        if "onnx" not in formats and "int8" not in formats:
            return
        with waiting_for("exporting the network as onnx"):
            write_onnx(self.network, example, folder / FILES["onnx"])
        if "int8" in formats:
            with waiting_for("quantizing the network"):
                write_int8(folder / FILES["onnx"], folder / FILES["int8"], self._calibration())
        if "onnx" not in formats:
            (folder / FILES["onnx"]).unlink()

    def _inputs(self, images: Images) -> Iterator[Tensor]:
        """Yield batches of images as the graphs take them."""
        workers = resolve_workers(self.config.workers, images)
        for batch in batches(images, np.arange(len(images)), BATCH_SIZE, workers=workers):
            if self.config.normalize_in_graph:
                yield (255 * batch.images).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            else:
                yield self.preprocessing(batch.images).contiguous()

    def _calibration(self) -> Iterator[Tensor]:
        """Yield training images, evenly from the whole set, as the graphs take them."""
        train = self.data.train.resized(self.images.size, self.preprocessing.interpolation)
        count = min(self.config.calibration_images, len(train))
        yield from self._inputs(train.subset(np.linspace(0, len(train) - 1, count).astype(int)))

    def _measured(self, folder: Path, first: Tensor) -> list[Form]:
        """Return the figures of teachers, and of the student in PyTorch and in every file."""
        student: dict[str, Forward] = {STUDENT: in_pytorch(self.network)}
        for name in self.graphs:
            student[name] = (pt2_forward if name == "pt2" else onnx_forward)(folder / FILES[name])
        with waiting_for("comparing the files on the validation images"):
            logits = logits_by_form(student, self._inputs(self.images))
        errors: dict[str, float | None] = {
            name: compute_metrics(values, self.images.labels).error
            for name, values in logits.items()
        }
        assert self.model.card is not None  # a run has one
        kind = self.model.card.probabilities
        probabilities = {name: class_probabilities(values, kind) for name, values in logits.items()}
        differences = {
            name: float((values - probabilities[STUDENT]).abs().max())
            for name, values in probabilities.items()
        }
        self._check(differences)
        sizes = {name: (folder / FILES[name]).stat().st_size for name in self.graphs}
        sizes[STUDENT] = parameter_bytes(self.network)
        timed = {name: (forward, first) for name, forward in student.items()}
        teachers = dict(self._teachers())
        for name, (network, image) in teachers.items():
            timed = {name: (in_pytorch(network), image), **timed}
            sizes[name] = parameter_bytes(network)
            record = self.run.record.teacher
            errors[name] = record.validation_error if record and len(teachers) == 1 else None
        with waiting_for("measuring latencies"):
            milliseconds = latencies(timed)
        return [
            Form(
                name,
                FILES.get(name),
                sizes[name],
                milliseconds[name],
                errors[name],
                differences.get(name),
            )
            for name in timed
        ]

    def _check(self, differences: dict[str, float]) -> None:
        """Raise a TrainingError if a graph that is not quantized gives other probabilities."""
        for name, difference in differences.items():
            if name != "int8" and not difference <= LARGEST_DIFFERENCE:
                raise TrainingError(
                    f"the exported {name} gives other probabilities than the network, by up to "
                    f"{difference:.2g} on the validation images, expected at most "
                    f"{LARGEST_DIFFERENCE:g}; nothing was written. Leave {name} out of --formats"
                )

    def _teachers(self) -> Iterator[tuple[str, tuple[torch.nn.Module, Tensor]]]:
        """Yield the run's teachers that can be loaded, each with its input of one image."""
        models = self.run.config.teacher
        names = split_models(models) if models else []
        image = next(batches(self.images, np.arange(1), 1)).images
        for number, name in enumerate(names, start=1):
            try:
                if name.startswith(OBJECT):
                    raise InputError("it was given as a Python object")
                teacher = load(name, None, trained=True)
                network = exported_network(teacher.network, None)
                own = preprocessing_for(teacher, self.data)(image)
                network(own)
            except Exception as error:
                self.notices.append(f"the teacher {name} is not measured: {first_line(error)}")
                continue
            which = "teacher" if len(names) == 1 else f"teacher {number}"
            yield f"{which} {teacher.name}, PyTorch", (network, own)
