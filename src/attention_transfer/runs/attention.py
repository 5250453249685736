"""Raw attention maps in a run's folder, as arrays."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_transfer.errors import InputError
from attention_transfer.runs.record import AttentionRecord

__all__ = ["Arrays", "RunAttention", "read_arrays"]

Arrays = dict[str, NDArray[Any]]

MOST_BYTES = 2**30
"""Bytes of all arrays of a run that are read at once."""


@dataclass(frozen=True)
class RunAttention:
    """Raw attention maps of one run: for each point an array (N, H, W)."""

    points: list[str]
    """Layer pairs "student:teacher", or the attention points of a student alone."""
    probes: Arrays
    """Probe images with labels, names and, where they are known, object masks."""
    student_maps: dict[int, list[NDArray[np.float32]]]
    """Epoch -> the student's maps of the probe images, for each point."""
    student_logits: dict[int, NDArray[np.float32]]
    """Epoch -> the student's logits of the probe images."""
    teacher_maps: list[NDArray[np.float32]]
    """The teacher's maps of the probe images, for each point; empty without a teacher."""
    examples: Arrays
    """Test images, with the final maps and logits of both networks."""
    map_function: tuple[str, float]
    """The map function: over channels "sum" or "max", and its power."""

    @classmethod
    def read(cls, folder: Path, record: AttentionRecord) -> "RunAttention | None":
        """Read the maps in a run's folder ``attention``; None if there are none.

        Raises:
            InputError: a file is damaged.
        """
        if not record.points or not (folder / "probes.npz").is_file():
            return None
        check_unpacked(sorted(folder.glob("*.npz")))
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
            student_maps={
                epoch: _maps(arrays, "student", count) for epoch, arrays in epochs.items()
            },
            student_logits={
                epoch: arrays["student/logits"]
                for epoch, arrays in epochs.items()
                if "student/logits" in arrays
            },
            teacher_maps=_maps(read_arrays(teacher), "teacher", count) if teacher.is_file() else [],
            examples=read_arrays(examples) if examples.is_file() else {},
            map_function=(record.map, record.power),
        )

    @property
    def epochs(self) -> list[int]:
        """Epochs after which maps of the probe images were saved, in order."""
        return sorted(self.student_maps)

    @property
    def coarsest_point(self) -> str:
        """The student's attention point with the smallest map; the last of several."""
        sizes = [maps[0].size for maps in self.student_maps[self.epochs[-1]]]
        last = max(number for number, size in enumerate(sizes) if size == min(sizes))
        return self.points[last].partition(":")[0]

    def point_index(self, student_point: str) -> int | None:
        """Return the index in ``points`` of a student's attention point, or None."""
        names = [point.partition(":")[0] for point in self.points]
        return names.index(student_point) if student_point in names else None

    def example_maps(self, network: str) -> list[NDArray[np.float32]]:
        """Return a network's maps of the test images, for each point; empty if there are none."""
        return _maps(self.examples, network, len(self.points))


def read_arrays(path: Path) -> Arrays:
    """Read all arrays of an ``.npz`` file; pickled objects are refused.

    Raises:
        InputError: the file is damaged, or its arrays are too large.
    """
    check_unpacked([path])
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # a damaged archive can raise anything
        raise _damaged(path, type(error).__name__) from None


def check_unpacked(paths: Sequence[Path]) -> None:
    """Raise an InputError if the arrays in some files would take more than MOST_BYTES together.

    An archive states each array's size, and no more than that is unpacked.
    """
    total = 0
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:
                total += sum(entry.file_size for entry in archive.infolist())
        except Exception as error:
            raise _damaged(path, type(error).__name__) from None
        if total > MOST_BYTES:
            raise _damaged(
                path,
                f"with it the arrays are larger than {MOST_BYTES / 1e9:.1f} GB, unlike any run's",
            )


def _damaged(path: Path, why: str) -> InputError:
    removable = path.parent if path.parent.name == "attention" else path
    return InputError(
        f"{path} is damaged ({why}); remove {removable} to do without it, or train the run again"
    )


def _maps(arrays: Arrays, network: str, count: int) -> list[NDArray[np.float32]]:
    names = [f"{network}/{number}" for number in range(count)]
    return [arrays[name] for name in names] if all(name in arrays for name in names) else []
