"""A run's folder: what was asked, what came out, and the network."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from attention_transfer.config import (
    DistillConfig,
    RunConfig,
    RunConfig,
)
from attention_transfer.config.yaml_files import read_config_file, write_config_file
from attention_transfer.errors import InputError
from attention_transfer.models import LoadedModel, ModelCard, load_run

__all__ = ["Run", "new_folder", "writing_to"]

SCHEMA_VERSION = 1


def new_folder(kind: str, parent: Path = Path("runs")) -> Path:
    """A path in ``runs/`` that nothing has yet, named by kind and time."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = parent / f"{kind}-{stamp}"
    number = 2
    while path.exists():
        path = parent / f"{kind}-{stamp}-{number}"
        number += 1
    return path


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """What is done first in a folder that a user chose.

    Raises:
        InputError: the folder, or what is in it, cannot be written.

    Example:
        >>> with writing_to(Path("/dev/null/run")):
        ...     Path("/dev/null/run").mkdir()
        Traceback (most recent call last):
        attention_transfer.errors.InputError: cannot write to /dev/null/run: Not a directory; \
choose another --out
    """
    try:
        yield
    except (OSError, ValueError) as error:  # a ValueError: the path has a null byte in it
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot write to {folder}: {reason}; choose another --out") from None


@dataclass(frozen=True)
class Run:
    """A run's folder and the files in it.

    ``config.yaml`` the whole configuration, ``record.json`` figures and what they depend on,
    ``metrics.jsonl`` a line an epoch, ``model.safetensors`` and ``model.json`` the network,
    ``predictions.npz`` its answers on the test images, ``attention/`` raw maps, ``report.html``
    all of it to look at, ``checkpoints/`` what resuming needs, ``tensorboard/`` and
    ``trackers.json`` what experiment trackers do.
    """

    folder: Path

    @classmethod
    def create(cls, folder: Path, config: RunConfig) -> "Run":
        """A new folder with its configuration.

        Raises:
            InputError: the folder holds something already, or cannot be made.
        """
        cls.check_free(folder)
        run = cls(folder)
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_config_file(config, run.folder / "config.yaml")
        return run

    @staticmethod
    def check_free(folder: Path) -> None:
        """Raises an InputError unless a run can be begun in this folder."""
        if os.path.exists(folder / "config.yaml"):
            raise InputError(
                f"{folder} already holds a run; choose another --out, or go on with it: "
                f"attention-transfer resume {folder}"
            )
        with writing_to(folder):
            free = not os.path.exists(folder) or (os.path.isdir(folder) and not os.listdir(folder))
        if not free:
            raise InputError(f"{folder} exists and is not an empty folder; choose another --out")

    @property
    def config(self) -> RunConfig:
        """What was asked.

        Raises:
            InputError: the folder holds no run, or its configuration is damaged.
        """
        path = self.folder / "config.yaml"
        if not os.path.isfile(path):
            raise InputError(f"{self.folder} holds no run (no config.yaml)")
        values = read_config_file(path)
        return RunConfig.checked(values)

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def attention(self) -> Path:
        """The folder of raw attention maps."""
        return self.folder / "attention"

    @property
    def record(self) -> dict[str, Any]:
        """The figures of a finished run.

        Raises:
            InputError: there is no record, so the run is not finished.
        """
        try:
            return json.loads((self.folder / "record.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
        except (OSError, ValueError):
            raise InputError(
                f"{self.folder} holds no finished run (no whole record.json)"
            ) from None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The figures of each epoch."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    @property
    def test_error(self) -> float:
        """Percent, of the last weights."""
        return float(self.record["final"]["test_error"])

    def load(self) -> LoadedModel:
        """The trained network and its card."""
        return load_run(self.folder)

    def keep_metrics(self, epochs: int) -> None:
        """Drops the lines of epochs after a number of them: they are done again."""
        lines = [json.dumps(row) + "\n" for row in self.metrics[:epochs]]
        (self.folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Appends an epoch's line."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def write_model(self, network: nn.Module, card: ModelCard) -> None:
        """The network's weights, in float32, and how to build it."""
        # Copies: a module may stand under several names, and a file has no shared memory.
        weights = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in network.state_dict().items()
        }
        (self.folder / "model.safetensors").write_bytes(save(weights))
        card.write(self.folder / "model.json")

    def write_predictions(self, logits: Tensor, labels: Tensor) -> None:
        """The network's answers on the test images, with their probabilities."""
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        np.savez_compressed(
            self.folder / "predictions.npz",
            labels=labels.numpy(),
            predicted=predicted.numpy(),
            confidence=confidence.numpy(),
        )

    def write_record(self, record: Mapping[str, Any]) -> None:
        """The figures, written last: a folder with a record is a finished run."""
        partial = self.folder / "record.json.partial"
        partial.write_text(
            json.dumps({"schema_version": SCHEMA_VERSION, **record}, indent=2) + "\n",
            encoding="utf-8",
        )
        partial.rename(self.folder / "record.json")
