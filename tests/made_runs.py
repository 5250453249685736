"""Run folders with known figures and maps, written without training anything."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from attention_transfer.config import DistillConfig, RunConfig
from attention_transfer.runs import Run
from attention_transfer.runs.confusion import Confusion

EPOCHS = (0, 2, 4)
PROBES, EXAMPLES = 6, 12
GRIDS = ((8, 8), (4, 4))
POINTS = ("low:low", "top:top")
SPLITS = ("train", "validation", "test")
MACHINE = {
    "platform": "Linux x86_64",
    "python": "3.11.7",
    "cores": 2,
    "threads": 2,
    "cpu": "AVX512",
    "gpus": [],
    "fast_bf16": False,
    "processes": 1,
}


def one_position_maps(count: int, grid: tuple[int, int], shift: int) -> NDArray[np.float32]:
    """Return maps that are 1 at one position, which ``shift`` moves on, and 0 elsewhere."""
    maps = np.zeros((count, *grid), dtype=np.float32)
    places = (np.arange(count) + shift) % (grid[0] * grid[1])
    maps.reshape(count, -1)[np.arange(count), places] = 1
    return maps


def made_run(
    folder: Path,
    *,
    teacher: str | None = None,
    student: str = "wrn-10-1",
    classes: tuple[str, ...] = ("cat", "dog", "owl"),
    wrong: tuple[int, ...] = (1,),
    images: int = 100,
    data: str = "pets",
    probes: bool = True,
    size: int = 16,
    **settings: Any,
) -> Path:
    """Write the folder of a finished run.

    Args:
        folder: the run's folder.
        teacher: the teacher's name, if the run has one.
        student: the student's name.
        classes: names of the classes.
        wrong: indices of the test images that are predicted wrongly, as the next class.
        images: number of test images.
        data: name of the data set, also used as the fingerprint of its test images.
        probes: whether attention maps were saved.
        size: height and width of the saved images in pixels.
        settings: further settings of the configuration.
    """
    kind = RunConfig if teacher is None else DistillConfig
    names = {"student": student} if teacher is None else {"teacher": teacher, "student": student}
    config = kind.checked({**names, "epochs": 4, "data": data, "out": folder, **settings})
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    labels = np.arange(images) % len(classes)
    predicted = labels.copy()
    predicted[list(wrong)] = (predicted[list(wrong)] + 1) % len(classes)
    confusion = Confusion.of(labels, predicted, len(classes))
    confidence = np.full(images, 0.9, dtype=np.float32)
    np.savez(folder / "predictions.npz", labels=labels, predicted=predicted, confidence=confidence)
    points = list(POINTS if teacher else ("low", "top"))
    error = 100 * len(wrong) / images
    record: dict[str, Any] = {
        "schema_version": 2,
        "command": "train" if teacher is None else "distill",
        "config": config.model_dump(mode="json"),
        "versions": {"torch": "2.0"},
        "machine": MACHINE,
        "precision": "fp32",
        "compiled": False,
        "data": {
            "name": data,
            "notices": [],
            **{split: {"images": images, "fingerprint": data} for split in SPLITS},
        },
        "student": network(student, 77_850),
        "teacher": teacher and {**network("wrn-16-2", 691_674), "test_error": 2.0},
        "pairs": [],
        "final": {
            f"{split}_{name}": value
            for split in SPLITS[1:]
            for name, value in {
                "images": images,
                "error": error,
                "top5_error": None,
                "loss": 0.5,
                "calibration_error": 1.0,
            }.items()
        },
        "best_on_validation": {"epoch": 4, "validation_error": error},
        "attention": {
            "map": "sum",
            "power": 2.0,
            "points": points,
            "probes": PROBES,
            "epochs": list(EPOCHS),
        }
        if probes
        else None,
        "cache": None,
        "seconds": 48.0,
        "seconds_waiting_for_data": 0.4,
        "images_per_second": 1000.0,
    }
    Run(folder).write_confusions(dict.fromkeys(SPLITS[1:], confusion))
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "model.json").write_text(json.dumps({"class_names": classes}))
    (folder / "model.safetensors").write_bytes(bytes(320_000))
    rows = [row(epoch, points, error, teacher is not None) for epoch in range(1, 5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    if probes:
        write_maps(folder / "attention", teacher is not None, classes, labels, predicted, size)
    return folder


def network(name: str, parameters: int) -> dict[str, Any]:
    return {
        "name": name,
        "parameters": parameters,
        "flops": 25_000_000,
        "weights_fingerprint": f"{name} {parameters}",
    }


def row(epoch: int, points: list[str], error: float, taught: bool) -> dict[str, Any]:
    """Return an epoch's line of metrics.jsonl."""
    measures = {"student_entropy": 0.5, "inside": 0.25, "pointing": 0.75}
    if taught:
        measures |= {"cosine": epoch / 4, "rank_correlation": 0.5, "teacher_entropy": 0.25}
    terms = {"cross_entropy": 1 / epoch} | ({"activation_attention": 2 / epoch} if taught else {})
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "lr": 0.1,
        "terms": terms,
        "train_error": error + 4 - epoch,
        "attention_agreement": {},
        "images_per_second": 1000.0,
        "seconds": 12.0,
        "seconds_waiting_for_data": 0.1,
        "validation_error": error + 4 - epoch,
        "validation_loss": 0.5,
        "seconds_left": 0.0,
        "probes": dict.fromkeys(points, measures),
    }


def write_maps(
    folder: Path,
    taught: bool,
    classes: tuple[str, ...],
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    size: int,
) -> None:
    """Write raw maps: the student's approach the teacher's, epoch by epoch."""
    folder.mkdir()
    generator = np.random.default_rng(0)

    def pictures(count: int) -> dict[str, Any]:
        return {
            "images": generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
            "labels": labels[:count],
            "names": np.array([f"sample {index}" for index in range(count)]),
            "indices": np.arange(count),
        }

    def of(name: str, count: int, shift: int) -> dict[str, Any]:
        maps = {
            f"{name}/{at}": one_position_maps(count, grid, shift) for at, grid in enumerate(GRIDS)
        }
        return {**maps, f"{name}/logits": 4 * np.eye(len(classes))[predicted[:count]]}

    np.savez(folder / "probes.npz", **pictures(PROBES))
    for epoch in EPOCHS:
        np.savez(folder / f"epoch-{epoch:04d}.npz", **of("student", PROBES, 4 - epoch))
    examples = {**pictures(EXAMPLES), **of("student", EXAMPLES, 1)}
    if taught:
        np.savez(folder / "teacher.npz", **of("teacher", PROBES, 0))
        examples |= of("teacher", EXAMPLES, 0)
    np.savez(folder / "examples.npz", **examples)
