"""The folder of a run: its configuration, figures, attention maps and network."""

import hashlib
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attention_transfer.config import RunConfig
from attention_transfer.config.yaml_files import read_config_file, write_config_file
from attention_transfer.errors import InputError
from attention_transfer.files import (
    append_line,
    read_bytes,
    read_json,
    write_arrays,
    write_bytes,
    write_json,
    write_text,
)
from attention_transfer.runs.attention import Arrays, RunAttention, read_arrays
from attention_transfer.runs.confusion import Confusion
from attention_transfer.runs.record import (
    LARGEST_RECORD,
    EpochMetrics,
    RunRecord,
    metrics_line,
    read_metrics,
)
from attention_transfer.trust import factories_in, trust_flags

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attention_transfer.models import LoadedModel, ModelCard

__all__ = ["Run", "new_folder", "read_runs", "resume_command", "writing_to"]

ALONE = "alone"
"""The name of the folder of the student alone in a run's folder."""

CONFUSION = "confusion.npz"
"""The name of the file of which classes are taken for which, in a run's folder."""

AVERAGED = "ema"
"""The name of the folder of averaged weights in a run's folder."""

DEMO_RUNS = ("teacher", "alone", "at", "at+kd")
"""Folders of runs in a demo's folder."""


def new_folder(kind: str, parent: Path = Path("runs")) -> Path:
    """Return a path in ``runs/`` that does not exist yet, named by kind and time."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = parent / f"{kind}-{stamp}"
    number = 2
    while path.exists():
        path = parent / f"{kind}-{stamp}-{number}"
        number += 1
    return path


def resume_command(folder: Path, config: RunConfig | None = None, *flags: str) -> str:
    """Return the command that resumes a run, with the factories of its configuration trusted.

    >>> resume_command(Path("my runs/at"))
    "attention-transfer resume 'my runs/at'"
    """
    trust = [] if config is None else trust_flags(factories_in(config.model_dump()))
    return shlex.join(["attention-transfer", "resume", str(folder), *trust, *flags])


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn a failure to write to the folder that a user chose into an InputError.

    Raises:
        InputError: the folder, or a file in it, cannot be written.

    Example:
        >>> with writing_to(Path("/dev/null/run")):
        ...     Path("/dev/null/run").mkdir()
        Traceback (most recent call last):
        attention_transfer.errors.InputError: cannot write to /dev/null/run: Not a directory; \
make it writable, or choose another --out
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: the path contains a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"cannot write to {folder}: {reason}; make it writable, or choose another --out"
        ) from None


@dataclass(frozen=True)
class Run:
    """A run's folder and the files in it.

    ``config.yaml`` is the whole configuration, ``record.json`` the figures and what they depend
    on, ``metrics.jsonl`` a line per epoch, ``model.safetensors`` and ``model.json`` the network,
    ``ema/`` the same two with the moving average of its weights if it has one, ``predictions.npz``
    its predictions for the test images, ``confusion.npz`` which classes it takes for which,
    ``attention/`` raw attention maps, ``report.html`` the
    report, ``checkpoints/`` what resuming needs, ``diverged.txt`` why a run
    diverged, ``tensorboard/`` and ``trackers.json`` belong to experiment trackers.

    A file is read once, when its property is first used; to see what has been written since,
    make a new ``Run`` of the same folder.
    """

    folder: Path

    @classmethod
    def create(cls, folder: Path, config: RunConfig) -> "Run":
        """Create a run's folder and write its configuration.

        Raises:
            InputError: the folder is not empty, or cannot be created.
        """
        cls.check_free(folder)
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_config_file(config, folder / "config.yaml")
        return cls(folder)

    @staticmethod
    def check_free(folder: Path) -> None:
        """Raise an InputError unless a new run can be written to this folder."""
        if os.path.exists(folder / "config.yaml"):
            raise InputError(
                f"{folder} already holds a run; choose another --out, or resume it: "
                + resume_command(folder)
            )
        with writing_to(folder):
            # A lock is hidden, and no more than the beginning of a run.
            names = os.listdir(folder) if os.path.isdir(folder) else []
            free = not os.path.exists(folder) or (
                os.path.isdir(folder) and all(name.startswith(".") for name in names)
            )
        if not free:
            raise InputError(f"{folder} exists and is not an empty folder; choose another --out")

    @property
    def name(self) -> str:
        """The last part of the folder's path."""
        return self.folder.resolve().name

    @property
    def checkpoints_folder(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def attention_folder(self) -> Path:
        """The folder of raw attention maps."""
        return self.folder / "attention"

    @classmethod
    def of_weights(cls, folder: Path) -> "Run":
        """Return the run that a folder of weights is of: the run's own, or its averaged weights."""
        return cls(folder.parent if folder.name == AVERAGED else folder)

    @property
    def averaged_folder(self) -> Path:
        """The folder of the moving average of weights; it is a MODEL, as the run's own is."""
        return self.folder / AVERAGED

    @property
    def alone(self) -> "Run":
        """The run of the student alone that ``--baseline`` trains beside this one."""
        return Run(self.folder / ALONE)

    @property
    def is_finished(self) -> bool:
        """Whether the run has a record, which is written last."""
        return os.path.isfile(self.folder / "record.json")

    @property
    def divergence(self) -> str | None:
        """Why training diverged, if it did and was not resumed since."""
        path = self.folder / "diverged.txt"
        return read_bytes(path, LARGEST_RECORD).decode(errors="replace") if path.is_file() else None

    @cached_property
    def config(self) -> RunConfig:
        """The run's whole configuration.

        Raises:
            InputError: the folder holds no run, or its configuration is damaged.
        """
        path = self.folder / "config.yaml"
        if not os.path.isdir(self.folder):
            raise InputError(f"there is no folder {self.folder}, expected a run's folder")
        if not os.path.isfile(path):
            raise InputError(f"{self.folder} holds no run (no config.yaml)")
        values = read_config_file(path)
        try:
            return RunConfig.checked(values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @cached_property
    def record(self) -> RunRecord:
        """The figures of the finished run and what they depend on.

        Raises:
            InputError: the folder holds no run, the run is not finished, or its record is damaged.
        """
        if not self.is_finished:
            raise InputError(
                f"the run in {self.folder} is not finished (no record.json); resume it: "
                + resume_command(self.folder, self.config)
            )
        return RunRecord.read(self.folder / "record.json")

    @cached_property
    def metrics(self) -> list[EpochMetrics]:
        """The figures of each epoch.

        Raises:
            InputError: the file is damaged.
        """
        return read_metrics(self.folder / "metrics.jsonl")

    @property
    def test_error(self) -> float:
        """Test error of the last weights, in percent.

        Raises:
            InputError: the run was trained with ``--no-test``.
        """
        error = self.record.final.test_error
        if error is None:
            raise InputError(
                f"the run in {self.folder} left the test images unread (--no-test); evaluate it: "
                + shlex.join(["attention-transfer", "evaluate", str(self.folder)])
            )
        return error

    @property
    def test_set(self) -> tuple[str, str]:
        """The name of the data set, and the fingerprint of the images it was evaluated on."""
        data = self.record.data
        split = data.test if self.record.final.held_out.split == "test" else data.validation
        return data.name, split.fingerprint

    @cached_property
    def class_names(self) -> list[str]:
        """The names of the classes; numbers if the folder has no model card."""
        path = self.folder / "model.json"
        if not path.is_file():
            confusion = self.confusion("validation")
            return [str(number) for number in range(confusion.classes if confusion else 0)]
        try:  # ModelCard.read would import torch
            return [str(name) for name in read_json(path, LARGEST_RECORD)["class_names"]]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}), expected a model card") from None

    def confusion(
        self, split: Literal["validation", "test"], averaged: bool = False
    ) -> Confusion | None:
        """Return which classes are taken for which; None if each image is of several classes.

        Args:
            split: the images.
            averaged: of the moving average of weights, instead of the last.
        """
        path = self.folder / CONFUSION
        arrays = read_arrays(path) if path.is_file() else {}
        name = f"ema {split}" if averaged else split
        return Confusion(int(arrays["classes"]), arrays[name]) if name in arrays else None

    @cached_property
    def predictions(self) -> Arrays | None:
        """Labels, predicted classes and their probabilities for the test images, if saved."""
        path = self.folder / "predictions.npz"
        return read_arrays(path) if path.is_file() else None

    @cached_property
    def attention(self) -> RunAttention | None:
        """The raw attention maps, if any were saved."""
        saved = self.record.attention
        return None if saved is None else RunAttention.read(self.attention_folder, saved)

    @property
    def model_bytes(self) -> int | None:
        """The size of the weights' file in bytes; None without one."""
        path = self.folder / "model.safetensors"
        return path.stat().st_size if path.is_file() else None

    def load(self, trust: Iterable[str] = ()) -> "LoadedModel":
        """Return the trained network and its card.

        Args:
            trust: factories, as ``package.module:factory``, that the card may name.
        """
        from attention_transfer.models import load_run

        return load_run(self.folder, trust)

    def write_metrics(self, metrics: Sequence[EpochMetrics]) -> None:
        """Write the lines of all epochs so far: a resumed run trains later ones again."""
        lines = "".join(metrics_line(row) + "\n" for row in metrics)
        with writing_to(self.folder):
            write_text(self.folder / "metrics.jsonl", lines)
        self.__dict__.pop("metrics", None)

    def append_metrics(self, metrics: EpochMetrics) -> None:
        """Append an epoch's line to ``metrics.jsonl``."""
        append_line(self.folder / "metrics.jsonl", metrics_line(metrics))
        self.__dict__.pop("metrics", None)

    def write_model(
        self, network: "nn.Module", card: "ModelCard", *, averaged: bool = False
    ) -> None:
        """Write the network's weights, and its card, which says how to build it.

        Args:
            network: the network.
            card: its card, to which the weights' checksum is added.
            averaged: write them into the folder of averaged weights.
        """
        import torch
        from safetensors.torch import save

        # Copies: one tensor may have several names, and safetensors refuses shared memory.
        weights = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in network.state_dict().items()
        }
        content = save(weights)
        checksum = hashlib.sha256(content).hexdigest()
        folder = self.averaged_folder if averaged else self.folder
        folder.mkdir(exist_ok=True)
        write_bytes(folder / "model.safetensors", content)
        replace(card, weights_sha256=checksum).write(folder / "model.json")

    def write_predictions(self, logits: "Tensor", labels: "Tensor") -> None:
        """Write the predicted classes of the test images and their probabilities.

        Of images of several classes each, they are (N, classes).
        """
        if labels.dim() == 2:
            confidence, predicted = logits.sigmoid(), logits > 0
        else:
            confidence, predicted = logits.softmax(dim=1).max(dim=1)
        arrays = {"labels": labels, "predicted": predicted, "confidence": confidence}
        write_arrays(
            self.folder / "predictions.npz",
            {name: tensor.numpy() for name, tensor in arrays.items()},
        )

    def write_confusions(self, confusions: Mapping[str, Confusion | None]) -> None:
        """Write the confusions of the classes, by the names that :meth:`confusion` reads."""
        arrays: dict[str, Any] = {}
        for name, one in confusions.items():
            if one is not None:
                arrays |= {name: one.counts, "classes": one.classes}
        write_arrays(self.folder / CONFUSION, arrays)

    def write_divergence(self, reason: str | None) -> None:
        """Write why training diverged; None: remove that, as the run goes on."""
        with writing_to(self.folder):
            path = self.folder / "diverged.txt"
            path.unlink(missing_ok=True)
            if reason is not None:
                write_text(path, reason + "\n")

    def write_record(self, record: RunRecord) -> None:
        """Write the figures, last of all files: a folder with a record is a finished run."""
        write_json(self.folder / "record.json", record.model_dump(mode="json"))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the finished runs in some folders, each once; a demo's folder stands for its runs.

    Raises:
        InputError: a folder holds no finished run, or its files are damaged.
    """
    runs: dict[Path, Run] = {}
    for folder in (run for parent in folders for run in _runs_in(parent)):
        runs.setdefault(folder.resolve(), Run(folder))
    for run in runs.values():
        _ = run.config, run.record, run.metrics
    return list(runs.values())


def _runs_in(folder: Path) -> Iterator[Path]:
    if (folder / "demo.json").is_file():
        yield from (folder / name for name in DEMO_RUNS if (folder / name).is_dir())
    else:
        yield folder
