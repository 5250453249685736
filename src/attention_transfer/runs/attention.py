"""Raw attention maps in a run's folder, as arrays."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_transfer.errors import InputError
from attention_transfer.runs.record import AttentionRecord

__all__ = ["Arrays", "RunAttention", "read_arrays"]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class RunAttention:
    """Raw attention maps of one run: for each point an array (N, H, W)."""

    points: list[str]
    """Layer pairs "student:teacher", or the attention points of a student alone."""
    probes: Arrays
    """Probe images with labels, names and, where they are known, object masks."""
    student: dict[int, list[NDArray[np.float32]]]
    """Epoch -> the student's maps of the probe images, for each point."""
    answers: dict[int, NDArray[np.float32]]
    """Epoch -> the student's logits of the probe images."""
    teacher: list[NDArray[np.float32]]
    """The teacher's maps of the probe images, for each point; empty without a teacher."""
    examples: Arrays
    """Test images, with the final maps and logits of both networks."""
    function: tuple[str, float]
    """The map function: over channels "sum" or "max", and its power."""

    @classmethod
    def read(cls, folder: Path, record: AttentionRecord) -> "RunAttention | None":
        """Read the maps in a run's folder ``attention``; None if there are none.

        Raises:
            InputError: a file is damaged.
        """
        if not record.points or not (folder / "probes.npz").is_file():
            return None
        epochs = {
            int(path.stem.removeprefix("epoch-")): read_arrays(path)
            for path in sorted(folder.glob("epoch-*.npz"))
            if path.stem.removeprefix("epoch-").isdecimal()
        }
        if not epochs:
            return None
        count = len(record.points)
        teacher, examples = folder / "teacher.npz", folder / "examples.npz"
        return cls(
            points=list(record.points),
            probes=read_arrays(folder / "probes.npz"),
            student={epoch: _maps(arrays, "student", count) for epoch, arrays in epochs.items()},
            answers={
                epoch: arrays["student/logits"]
                for epoch, arrays in epochs.items()
                if "student/logits" in arrays
            },
            teacher=_maps(read_arrays(teacher), "teacher", count) if teacher.is_file() else [],
            examples=read_arrays(examples) if examples.is_file() else {},
            function=(record.map, record.power),
        )

    @property
    def epochs(self) -> list[int]:
        """Epochs after which maps of the probe images were saved, in order."""
        return sorted(self.student)

    @property
    def top(self) -> str:
        """The student's attention point with the smallest map; the last of several."""
        sizes = [maps[0].size for maps in self.student[self.epochs[-1]]]
        last = max(number for number, size in enumerate(sizes) if size == min(sizes))
        return self.points[last].partition(":")[0]

    def place(self, student: str) -> int | None:
        """Return the index in ``points`` of a student's attention point, or None."""
        names = [point.partition(":")[0] for point in self.points]
        return names.index(student) if student in names else None

    def of_examples(self, network: str) -> list[NDArray[np.float32]]:
        """Return a network's maps of the test images, for each point; empty if there are none."""
        return _maps(self.examples, network, len(self.points))


def read_arrays(path: Path) -> Arrays:
    """Read all arrays of an ``.npz`` file; pickled objects are refused.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        removable = path.parent if path.parent.name == "attention" else path
        raise InputError(
            f"{path} is damaged ({type(error).__name__}); remove {removable} to do without it, or "
            "train the run again"
        ) from None


def _maps(arrays: Arrays, network: str, count: int) -> list[NDArray[np.float32]]:
    names = [f"{network}/{number}" for number in range(count)]
    return [arrays[name] for name in names] if all(name in arrays for name in names) else []
