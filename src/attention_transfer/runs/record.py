"""Runs as they are on the disk: what was asked, what came out, and raw maps. Nothing is run."""

import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, PositiveInt, TypeAdapter, ValidationError

from attention_transfer.config.yaml_files import read_config_file
from attention_transfer.errors import InputError

__all__ = ["Arrays", "Attention", "RunRecord", "read_runs"]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Attention:
    """Raw maps of one run, (N, H, W) for each point, by the names that the run gave them."""

    points: list[str]
    probes: Arrays
    """Images, labels, names, and masks where they are known."""
    student: dict[int, list[NDArray[np.float32]]]
    """Epoch -> the student's maps of the probes, for each point."""
    answers: dict[int, NDArray[np.float32]]
    """Epoch -> the student's logits."""
    teacher: list[NDArray[np.float32]]
    """The teacher's maps of the probes; empty without a teacher that is compared."""
    examples: Arrays
    """Test images, with the maps and logits of both networks at the end."""
    function: tuple[str, float]
    """F over channels, and its power."""

    @property
    def epochs(self) -> list[int]:
        """After which the probes were looked at."""
        return sorted(self.student)

    @property
    def top(self) -> str:
        """The student's place with the coarsest map, the last of them."""
        sizes = [maps[0].size for maps in self.student[self.epochs[-1]]]
        last = max(number for number, size in enumerate(sizes) if size == min(sizes))
        return self.points[last].partition(":")[0]

    def place(self, student: str) -> int | None:
        """Where a place of the student stands among the points."""
        names = [point.partition(":")[0] for point in self.points]
        return names.index(student) if student in names else None

    def of_examples(self, network: str) -> list[NDArray[np.float32]]:
        """A network's maps of the test images, for each point; empty if there are none."""
        return _maps(self.examples, network, len(self.points))


@dataclass(frozen=True)
class RunRecord:
    """A finished run."""

    folder: Path
    config: dict[str, Any]
    record: dict[str, Any]
    metrics: list[dict[str, Any]] = field(repr=False)

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.resolve().name

    @property
    def student(self) -> str:
        """The network that was trained."""
        return str(self.record["student"]["name"])

    @property
    def teacher(self) -> str | None:
        """The network that it learned from, if any."""
        teacher = self.record.get("teacher")
        return None if teacher is None else str(teacher["name"])

    @property
    def final(self) -> dict[str, Any]:
        """The figures of the last weights."""
        found: dict[str, Any] = self.record["final"]
        return found

    @property
    def test_error(self) -> float:
        """Percent."""
        return float(self.final["test_error"])

    @property
    def data(self) -> tuple[str, str]:
        """The set's name, and the fingerprint of its test images."""
        data = self.record["data"]
        return str(data["name"]), str(data["test"]["fingerprint"])

    @property
    def bytes(self) -> int | None:
        """Of the weights' file."""
        path = self.folder / "model.safetensors"
        return path.stat().st_size if path.is_file() else None

    @cached_property
    def class_names(self) -> list[str]:
        """Of the card; numbers without one."""
        path = self.folder / "model.json"
        names = _json(path).get("class_names") if path.is_file() else None
        if isinstance(names, list):
            return [str(name) for name in names]
        return [str(number) for number in range(len(self.final["test_confusion"]))]

    @cached_property
    def predictions(self) -> Arrays | None:
        """Labels, predicted classes and their probabilities on the test images, if kept."""
        path = self.folder / "predictions.npz"
        return _arrays(path) if path.is_file() else None

    @cached_property
    def attention(self) -> Attention | None:
        """The raw maps, if any were kept."""
        kept = self.record.get("attention")
        folder = self.folder / "attention"
        if not kept or not kept["points"] or not (folder / "probes.npz").is_file():
            return None
        count = len(kept["points"])
        looks = {
            int(path.stem.removeprefix("epoch-")): _arrays(path)
            for path in sorted(folder.glob("epoch-*.npz"))
            if path.stem.removeprefix("epoch-").isdecimal()
        }
        teacher, examples = folder / "teacher.npz", folder / "examples.npz"
        if not looks:
            return None
        return Attention(
            points=[str(point) for point in kept["points"]],
            probes=_arrays(folder / "probes.npz"),
            student={epoch: _maps(look, "student", count) for epoch, look in looks.items()},
            answers={
                epoch: look["student/logits"]
                for epoch, look in looks.items()
                if "student/logits" in look
            },
            teacher=_maps(_arrays(teacher), "teacher", count) if teacher.is_file() else [],
            examples=_arrays(examples) if examples.is_file() else {},
            function=(kept.get("map", "sum"), kept.get("power", 2.0)),
        )


class _Network(BaseModel):
    name: str
    parameters: int
    flops: int
    weights_fingerprint: str


class _Test(BaseModel):
    fingerprint: str


class _Data(BaseModel):
    name: str
    test: _Test


class _Final(BaseModel):
    validation_error: float
    test_error: float
    test_images: PositiveInt
    test_confusion: list[list[int]]


class _Best(BaseModel):
    epoch: int
    validation_error: float


class _Kept(BaseModel):
    points: list[str]


class _Record(BaseModel):
    """What the page needs of a record.json; there may be more."""

    data: _Data
    student: _Network
    teacher: _Network | None
    final: _Final
    best_on_validation: _Best
    attention: _Kept | None = None
    versions: dict[str, str | None]
    seconds: float
    images_per_second: float


class _Row(BaseModel):
    """What it needs of a line of metrics.jsonl."""

    epoch: int
    terms: dict[str, float]
    train_error: float
    validation_error: float
    probes: dict[str, dict[str, float]] = {}


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """The finished runs in some folders, each once; a demo's folder stands for the runs in it.

    Raises:
        InputError: a folder that holds no finished run, or files that are damaged.
    """
    runs: dict[Path, RunRecord] = {}
    for folder in (found for given in folders for found in _runs_in(given)):
        runs.setdefault(folder.resolve(), _read(folder))
    return list(runs.values())


def _runs_in(folder: Path) -> Iterator[Path]:
    if (folder / "demo.json").is_file():
        arms = (folder / name for name in ("teacher", "alone", "at", "at+kd"))
        yield from (arm for arm in arms if arm.is_dir())
    else:
        yield folder


def _read(folder: Path) -> RunRecord:
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; expected that of a finished run")
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder} holds no run (no config.yaml); expected a run's folder")
    if not (folder / "record.json").is_file():
        raise InputError(
            f"the run in {folder} is not finished (no record.json); go on with it: "
            f"attention-transfer resume {folder}"
        )
    run = RunRecord(
        folder,
        read_config_file(folder / "config.yaml"),
        _json(folder / "record.json"),
        _lines(folder / "metrics.jsonl"),
    )
    try:
        _Record.model_validate(run.record)
        TypeAdapter(list[_Row]).validate_python(run.metrics)
    except ValidationError as error:
        fault = error.errors()[0]
        raise InputError(
            f"{folder} holds no whole record of a run ({'.'.join(map(str, fault['loc']))}: "
            f"{fault['msg']}); train it again"
        ) from None
    return run


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); it should hold JSON") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: it holds a {type(found).__name__}, not a mapping")
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error}); it should hold a line of JSON an epoch"
        ) from None


def _arrays(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}); remove "
            f"{path.parent if path.parent.name == 'attention' else path} to do without it, or "
            "train again"
        ) from None


def _maps(arrays: Arrays, network: str, count: int) -> list[NDArray[np.float32]]:
    names = [f"{network}/{number}" for number in range(count)]
    return [arrays[name] for name in names] if all(name in arrays for name in names) else []
