"""A cache's shards on the disk: each whole or absent, with its checksum, memory-mapped."""

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from attention_transfer.cache.contents import Contents, difference
from attention_transfer.errors import InputError, TrainingError
from attention_transfer.files import move_into_place, partial_path, read_json
from attention_transfer.transfer import Targets

__all__ = ["Shard", "TargetCache", "check_room", "free_bytes", "remove_cache"]

SCHEMA_VERSION = 2
MANIFEST = "cache.json"
CHECKSUM_BYTES = 32

LARGEST_MANIFEST = 2**20
"""Bytes of the largest cache description."""

SPARE_BYTES = 2**28
"""Bytes left free on a disk, beside what a cache takes."""

Shard = tuple[int, int]
"""The number of a view, and the first of the shard's samples."""


@dataclass(frozen=True)
class TargetCache:
    """A folder of teacher targets.

    ``cache.json`` describes them, and each ``view-*-sample-*.rows`` is a shard: rows of one view,
    followed by a SHA-256 of them and of the description.
    """

    folder: Path
    contents: Contents
    _open: dict[Shard, NDArray[np.void]] = field(default_factory=dict, compare=False, repr=False)
    _checked: set[Shard] = field(default_factory=set, compare=False, repr=False)

    @classmethod
    def open(cls, folder: Path) -> "TargetCache":
        """Open the cache in a folder, whole or in part.

        Raises:
            InputError: there is none, or its description is damaged.
        """
        try:
            values = read_json(folder / MANIFEST, LARGEST_MANIFEST)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(
                f"{folder} holds no cache of targets (no {MANIFEST}); build one with "
                "attention-transfer cache build"
            ) from None
        except (OSError, ValueError) as error:
            raise InputError(
                f"the cache in {folder} cannot be read: {error}; remove it "
                f"({_remove_command(folder)}) and build it again"
            ) from None
        try:
            if values["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"its schema is {values['schema_version']}, not {SCHEMA_VERSION}")
            return cls(folder, Contents.from_json(values))
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"the cache in {folder} cannot be used: its {MANIFEST} is damaged or of another "
                f"version ({error}); remove it ({_remove_command(folder)}) and "
                "build it again"
            ) from None

    @classmethod
    def find(cls, folder: Path) -> "TargetCache | None":
        """Open the cache in a folder; return None where there is nothing yet.

        Raises:
            InputError: something else is there, or the folder cannot be read.
        """
        try:
            names = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(
                f"{folder} cannot be a cache's folder: {error.strerror}; choose another one"
            ) from None
        return cls.open(folder) if names else None

    @classmethod
    def create(cls, folder: Path, contents: Contents) -> "TargetCache":
        """Create the cache of some contents, or open it if it exists.

        Raises:
            InputError: another cache is there, the folder cannot be written, or the disk is too
                small.
        """
        if not os.path.exists(folder / MANIFEST):
            contents.check_counts()
            check_room(folder, contents.bytes)
            _write_manifest(folder, contents)
        cache = cls.open(folder)
        cache.check_made_like(contents)
        if cache.contents.holds != contents.holds:
            raise InputError(
                f"the cache in {folder} holds {_summary(cache.contents)}, and "
                f"{_summary(contents)} are needed; choose another folder, or remove this one: "
                + _remove_command(folder)
            )
        return cache

    def check_made_like(self, contents: Contents) -> None:
        """Raise an InputError, with the difference, if the cache has another provenance."""
        found = difference(self.contents, contents)
        if found is not None:
            raise InputError(
                f"the cache in {self.folder} is of something else ({found}); choose another "
                "folder for a cache of this teacher and these images"
            )

    def read(self, view: int, indices: NDArray[np.int64]) -> Targets:
        """Return the targets of a view of some samples, in float32; views cycle after the last.

        Raises:
            TrainingError: a shard is missing or damaged.
        """
        view %= self.contents.views
        size = self.contents.samples_a_shard
        rows = np.empty(len(indices), self.contents.row)
        starts = indices // size * size
        for start in np.unique(starts):
            here = starts == start
            rows[here] = self._rows((view, int(start)))[indices[here] - start]
        return self.contents.unpack(rows)

    def missing(self) -> list[Shard]:
        """Return the shards that are missing, or not of their size."""
        with os.scandir(self.folder) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        return [
            shard
            for shard in self.contents.shards
            if sizes.get(self.path(shard).name) != self._bytes(shard)
        ]

    def damaged(self, shards: Sequence[Shard] | None = None) -> Iterator[tuple[Path, str]]:
        """Yield the files of missing and damaged shards, with the fault.

        All of them are read, by as many threads as there are cores: about a second for each GB and
        core, if the disk is as fast.

        Args:
            shards: to look at; None: all. Whole ones are not checked again when they are read.
        """
        shards = self.contents.shards if shards is None else shards
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for shard, fault in zip(shards, pool.map(self._fault, shards), strict=True):
                if fault is not None:
                    yield self.path(shard), fault
                else:
                    self._checked.add(shard)

    def path(self, shard: Shard) -> Path:
        """Return the file of a shard."""
        view, start = shard
        return self.folder / f"view-{view:04d}-sample-{start:09d}.rows"

    @contextmanager
    def claim(self, shard: Shard) -> Iterator[bool]:
        """Yield whether this process is to compute a shard: it is missing, and no one else does.

        The claim is the system's lock on a file beside the shard, and ends with the process.
        """
        path = self.folder / f".{self.path(shard).name}.lock"
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield not self._whole(shard)
        finally:
            self._partial(shard).unlink(missing_ok=True)
            with suppress(OSError):  # Windows deletes no open file
                path.unlink()
            lock.release()

    def write(self, shard: Shard, rows: NDArray[np.void]) -> None:
        """Write a claimed shard; it gets its name only when all of it is on the disk."""
        partial = self._partial(shard)
        content = rows.tobytes()
        with partial.open("wb") as file:
            file.write(content)
            digest = self._sealed(shard)
            digest.update(content)
            file.write(digest.digest())
        move_into_place(partial, self.path(shard))

    def _rows(self, shard: Shard) -> NDArray[np.void]:
        """Return a shard's rows, checked at the first read; close the shards of other views."""
        if shard not in self._open:
            checked = shard in self._checked and self._whole(shard)
            fault = None if checked else self._fault(shard)
            if fault is not None:
                raise TrainingError(
                    f"{self.path(shard)}: {fault}; build it again: delete the file, then "
                    "attention-transfer cache build, or resume the run"
                )
            self._checked.add(shard)
            for other in [other for other in self._open if other[0] != shard[0]]:
                del self._open[other]
            count = self.contents.rows_in(shard)
            self._open[shard] = np.memmap(self.path(shard), self.contents.row, "r", shape=(count,))
        return self._open[shard]

    def _fault(self, shard: Shard) -> str | None:
        size = self._bytes(shard)
        try:
            with self.path(shard).open("rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found != size:
                    return f"has {found} bytes, expected {size}: it is cut short"
                digest = self._sealed(shard)
                left = size - CHECKSUM_BYTES
                while left > 0 and (part := file.read(min(left, 2**22))):
                    digest.update(part)
                    left -= len(part)
                return None if file.read() == digest.digest() else "its checksum is wrong"
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read: {error.strerror}"

    def _sealed(self, shard: Shard) -> "hashlib._Hash":
        """Return a checksum begun with the cache's description, so that no other's shard passes."""
        whose = {**self.contents.as_json(), "views": None, "example": None, "shard": shard}
        return hashlib.sha256(json.dumps(whose, sort_keys=True).encode())

    def _whole(self, shard: Shard) -> bool:
        path = self.path(shard)
        return path.exists() and path.stat().st_size == self._bytes(shard)

    def _bytes(self, shard: Shard) -> int:
        return self.contents.rows_in(shard) * self.contents.row.itemsize + CHECKSUM_BYTES

    def _partial(self, shard: Shard) -> Path:
        return partial_path(self.path(shard))


def check_room(folder: Path, needed: int) -> None:
    """Raise an InputError if that many bytes more would fill the disk of a folder."""
    free = free_bytes(folder)
    if needed and needed + SPARE_BYTES > free:
        raise InputError(
            f"the cache needs {needed / 1e9:.2f} GB more and {free / 1e9:.2f} GB are free at "
            f"{folder}; give fewer --views, or a folder on another disk"
        )


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which may not exist yet."""
    while not os.path.exists(folder):
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def remove_cache(folder: Path) -> int:
    """Delete a cache's files, whole or damaged, and the folder if nothing else is in it.

    Returns:
        The size of its shards in bytes.

    Raises:
        InputError: there is no cache, or it cannot be deleted.
    """
    if not os.path.exists(folder / MANIFEST):
        raise InputError(f"{folder} holds no cache of targets (no {MANIFEST})")
    try:
        freed = 0
        for path in [*folder.glob("view-*.rows"), *folder.glob(".view-*")]:
            freed += path.stat().st_size
            path.unlink(missing_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise InputError(f"cannot remove the cache in {folder}: {error.strerror}") from None
    return freed


def _remove_command(folder: Path) -> str:
    return shlex.join(["attention-transfer", "cache", "remove", str(folder)])


def _write_manifest(folder: Path, contents: Contents) -> None:
    """Write the description, whole or not at all; another process's stays if it was first."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **contents.as_json()}, indent=2) + "\n"
    partial = folder / f".{MANIFEST}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
        if MANIFEST in names:
            return
        if names:
            raise InputError(f"{folder} is not empty and holds no cache; choose another folder")
        partial.write_text(text, encoding="utf-8")
        try:
            os.link(partial, folder / MANIFEST)
        except FileExistsError:
            pass
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror}; choose another folder for the cache"
        ) from None


def _summary(contents: Contents) -> str:
    names = [str(target) for target in contents.spec.fields]
    names += ["logits"] * contents.spec.logits + ["gradients"] * contents.spec.gradient
    return f"{contents.views} views of {', '.join(names)}"
