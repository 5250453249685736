"""Experiment trackers, through Accelerate: a run's configuration, the figures of every epoch, and
contact sheets of attention maps.
"""

import json
import os
import re
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
    get_available_trackers,
)
from numpy.typing import NDArray

from attention_transfer.config import RunConfig
from attention_transfer.drawing.contact_sheet import contact_sheet
from attention_transfer.errors import InputError
from attention_transfer.files import read_json, write_text
from attention_transfer.runs import writing_to
from attention_transfer.runs.attention import Arrays, read_arrays

LARGEST_IDENTITIES = 100_000
"""Bytes of the largest ``trackers.json``."""

__all__ = ["Tracking", "check_installed", "scalars"]

PROJECT = "attention-transfer"
"""The project of all runs, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another."""

PREFIXES = {"terms": "term", "attention_agreement": "agreement"}
"""Keys of metrics.jsonl whose figures have another prefix in trackers."""

SKIPPED = ("step", "seconds", "seconds_left")


def check_installed(config: RunConfig) -> None:
    """Raise an InputError unless the packages of all configured trackers are installed."""
    available = [str(tracker) for tracker in get_available_trackers()]
    missing = [name for name in config.trackers if name not in available]
    if missing:
        raise InputError(
            f"track names {', '.join(missing)}, which is not installed; "
            "pip install 'attention-transfer[trackers]'"
        )


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Flatten a line of metrics.jsonl to one figure per name.

    >>> scalars({"epoch": 2, "step": 9, "terms": {"cross_entropy": 0.5}})
    {'epoch': 2.0, 'term/cross_entropy': 0.5}
    >>> scalars({"probes": {"group1:group1": {"cosine": 0.9}}, "seconds": 1.0})
    {'probes/group1:group1/cosine': 0.9}
    """
    figures = {PREFIXES.get(name, name): row[name] for name in row if name not in SKIPPED}
    return dict(_flattened(figures))


def _flattened(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", float(value)


def contact_sheets(attention: Path, epoch: int) -> dict[str, NDArray[np.uint8]]:
    """Return a picture of the probe images and their maps for each layer pair.

    Args:
        attention: the run's folder of raw maps.
        epoch: one after which the probes' maps were written.
    """
    arrays: Arrays = {}
    for name in ("probes", "teacher", f"epoch-{epoch:04d}"):
        if (attention / f"{name}.npz").exists():
            arrays |= read_arrays(attention / f"{name}.npz")
    networks = [name for name in ("teacher", "student") if f"{name}/0" in arrays]
    return {
        point: contact_sheet(
            arrays["images"], [arrays[f"{network}/{number}"] for network in networks]
        )
        for number, point in enumerate(arrays["points"].tolist())
    }


class Tracking:
    """The trackers of one run; ``with`` closes them however the run ends.

    A tracker that fails during the run is reported and dropped: hours of training do not end
    because a server cannot be reached.

    Args:
        config: of the run; ``track`` names the trackers.
        folder: of the run. Its ``trackers.json`` holds the identity of the run in each tracker, so
            that a resumed run continues there.
        write_line: prints a line for the user.
        active: whether this process is the one that tracks.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        write_line: Callable[[str], None],
        active: bool = True,
    ) -> None:
        self.config, self.folder, self.write_line = config, folder, write_line
        self.names = config.trackers if active else []
        self.trackers: list[GeneralTracker] = []

    def start(self) -> None:
        """Start the experiment trackers of the run.

        Raises:
            InputError: one does not start, or the run's folder cannot be written; the others are
                closed.
        """
        path = self.folder / "trackers.json"
        identities: dict[str, str] = {}
        with suppress(OSError, ValueError):  # a new run, or a damaged file
            known = read_json(path, LARGEST_IDENTITIES)
            identities = {str(name): str(value) for name, value in dict(known).items()}
        try:
            for name in self.names:
                self._start(name, identities)
            if self.names:
                with writing_to(self.folder):
                    write_text(path, json.dumps(identities) + "\n")
        except BaseException:
            self._close(failed=True)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close(failed=kind is not None)

    def add(self, row: Mapping[str, Any]) -> None:
        """Log the figures of a line of metrics.jsonl at its step.

        If the line has measures of the probe images, contact sheets of their maps are logged too.
        """
        if not self.trackers:
            return
        figures, step = scalars(row), row["step"]
        self._each(_log_figures, figures, step)
        if row.get("probes"):
            sheets = contact_sheets(self.folder / "attention", row["epoch"])
            for name, pixels in sheets.items():
                self._each(_log_picture, f"attention/{name}", pixels, step)

    def _start(self, name: str, identities: dict[str, str]) -> None:
        try:
            with redirect_stdout(sys.stderr):  # stdout belongs to the command
                tracker = _FACTORIES[name](self.folder, identities.get(name))
                tracker.start()
                self.trackers.append(tracker)
                if name not in identities:
                    tracker.store_init_configuration(_hyperparameters(self.config))
                    identities[name] = _identity(tracker)
        except Exception as error:
            raise InputError(
                f"{name} does not start ({_reason(error)}); fix this, or remove it from --track"
            ) from error

    def _each(self, action: Callable[..., None], *arguments: Any) -> None:
        """Call an action for every tracker; one that fails is reported, closed and dropped."""
        for tracker in list(self.trackers):
            try:
                action(tracker, *arguments)
            except Exception as error:
                self.trackers.remove(tracker)
                self.write_line(f"{tracker.name} failed and is no longer used: {_reason(error)}")
                with suppress(Exception):
                    _finish(tracker, failed=True)

    def _close(self, failed: bool) -> None:
        with redirect_stdout(sys.stderr):
            self._each(_finish, failed)
        self.trackers.clear()


def _tensorboard(folder: Path, identity: str | None) -> GeneralTracker:
    return TensorBoardTracker("tensorboard", folder)


def _wandb(folder: Path, identity: str | None) -> GeneralTracker:
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return WandBTracker(
        project, name=_name(folder), id=identity or uuid.uuid4().hex[:8], resume="allow"
    )


def _trackio(folder: Path, identity: str | None) -> GeneralTracker:
    name = identity or f"{_name(folder)}-{uuid.uuid4().hex[:8]}"  # trackio has no ids but names
    return TrackioTracker(PROJECT, name=name, resume="allow")


def _mlflow(folder: Path, identity: str | None) -> GeneralTracker:
    return MLflowTracker(PROJECT, run_name=_name(folder), run_id=identity)


_FACTORIES: dict[str, Callable[[Path, str | None], GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}


def _name(folder: Path) -> str:
    return folder.resolve().name


def _identity(tracker: GeneralTracker) -> str:
    """Return the id or name by which the tracker finds the run again."""
    if tracker.name == "mlflow":
        return str(tracker.tracker.info.run_id)
    if tracker.name == "wandb":
        return str(tracker.tracker.id)
    return str(tracker.tracker.name) if tracker.name == "trackio" else tracker.run_name


def _hyperparameters(config: RunConfig) -> dict[str, str | float]:
    """Return the configuration in types that every tracker accepts."""
    values = config.model_dump(mode="json")
    return {
        name: value if isinstance(value, int | float | str) else _as_text(value)
        for name, value in values.items()
    }


def _as_text(value: object) -> str:
    """Return a setting that is neither a number nor text as text."""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else "none"


def _log_figures(tracker: GeneralTracker, figures: Mapping[str, float], step: int) -> None:
    tracker.log({_allowed(name): value for name, value in figures.items()}, step=step)


def _log_picture(tracker: GeneralTracker, name: str, pixels: NDArray[Any], step: int) -> None:
    """Log a picture (H, W, 3); trackio and MLflow do not take one through Accelerate."""
    name = _allowed(name)
    if tracker.name == "tensorboard":
        tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")
    elif tracker.name == "wandb":
        tracker.log_images({name: [pixels]}, step=step)
    elif tracker.name == "trackio":
        import trackio

        tracker.log({name: trackio.Image(pixels)}, step=step)
    else:
        import mlflow

        mlflow.log_image(pixels, key=name, step=step, synchronous=True)


def _allowed(name: str) -> str:
    """Replace the characters that some tracker refuses on some system."""
    return re.sub(r"[^\w/. -]", "-", name)


def _finish(tracker: GeneralTracker, failed: bool) -> None:
    """Close a tracker, and mark its run as failed where the tracker can show that."""
    if tracker.name == "wandb":
        tracker.tracker.finish(exit_code=int(failed))
    elif tracker.name == "mlflow":
        import mlflow

        mlflow.end_run("FAILED" if failed else "FINISHED")
    elif tracker.name == "trackio":
        import trackio

        trackio.finish()  # the run's own finish would be repeated, with its output, at exit
    else:
        tracker.finish()


def _reason(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200)
