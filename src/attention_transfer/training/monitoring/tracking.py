"""What experiment trackers are told of a run, through Accelerate's: its configuration, the figures
of every epoch, and pictures of where the networks look.
"""

import json
import os
import re
import sys
import textwrap
import uuid
from collections.abc import Callable, Mapping
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

__all__ = ["Tracking", "check_installed", "scalars"]

PROJECT = "attention-transfer"
"""Where runs are gathered, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another place."""

GROUPS = {"terms": "term", "attention_agreement": "agreement"}
"""Keys of metrics.jsonl whose figures go by another word."""

LEFT_OUT = ("step", "seconds", "seconds_left")


def check_installed(config: RunConfig) -> None:
    """Raises an InputError unless the packages of all trackers asked for are there."""
    available = [str(tracker) for tracker in get_available_trackers()]
    missing = [name for name in config.trackers if name not in available]
    if missing:
        raise InputError(
            f"track asks for {', '.join(missing)}, which is not installed; "
            "pip install 'attention-transfer[trackers]'"
        )


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """A line of metrics.jsonl by flat names.

    >>> scalars({"epoch": 2, "step": 9, "terms": {"cross_entropy": 0.5}})
    {'epoch': 2.0, 'term/cross_entropy': 0.5}
    >>> scalars({"probes": {"group1:group1": {"cosine": 0.9}}})
    {'probes/group1:group1/cosine': 0.9}
    """
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            inner = scalars(value).items()
            found |= {f"{GROUPS.get(name, name)}/{key}": figure for key, figure in inner}
        elif name not in LEFT_OUT:
            found[name] = float(value)
    return found


def contact_sheets(attention: Path, epoch: int) -> dict[str, NDArray[np.uint8]]:
    """Return a picture of the probe images and their maps for each layer pair.

    Args:
        attention: the run's folder of raw maps.
        epoch: one after which the probes' maps were written.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name in ("probes", "teacher", f"epoch-{epoch:04d}"):
        if (attention / f"{name}.npz").exists():
            with np.load(attention / f"{name}.npz", allow_pickle=False) as file:
                arrays |= file
    networks = [name for name in ("teacher", "student") if f"{name}/0" in arrays]
    return {
        point: contact_sheet(
            arrays["images"], [arrays[f"{network}/{number}"] for network in networks]
        )
        for number, point in enumerate(arrays["points"].tolist())
    }


class Tracking:
    """The trackers of one run: ``with`` closes them at its end, however it ends.

    A tracker that fails while the run goes on is told of and left out: hours of training do not
    end because a server cannot be reached.

    Args:
        config: of the run; ``track`` names the trackers.
        folder: the run's. ``trackers.json`` in it holds by what name each tracker knows the run,
            so that a resumed run goes on where it was.
        say: told what a person should know.
        active: whether this process is the one that tracks.
    """

    def __init__(
        self, config: RunConfig, folder: Path, say: Callable[[str], None], active: bool = True
    ) -> None:
        self.config, self.folder, self.say = config, folder, say
        self.names = config.trackers if active else []
        self.trackers: list[GeneralTracker] = []

    def start(self) -> None:
        """Starts them.

        Raises:
            InputError: one does not start; none is left open.
        """
        path = self.folder / "trackers.json"
        known: dict[str, str] = {}
        with suppress(OSError, ValueError):  # a new run, or a damaged file
            known = json.loads(path.read_text(encoding="utf-8"))
        try:
            for name in self.names:
                self._start(name, known)
        except BaseException:
            self._close(failed=True)
            raise
        if self.names:
            path.write_text(json.dumps(known) + "\n", encoding="utf-8")

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
        """Tells the figures of a line of metrics.jsonl, at its step; with measures of the probes
        also pictures of them.
        """
        if not self.trackers:
            return
        figures, step = scalars(row), row["step"]
        self._each(_log_figures, figures, step)
        if row.get("probes"):
            sheets = contact_sheets(self.folder / "attention", row["epoch"])
            for name, pixels in sheets.items():
                self._each(_log_picture, f"attention/{name}", pixels, step)

    def _start(self, name: str, known: dict[str, str]) -> None:
        try:
            with redirect_stdout(sys.stderr):  # stdout is the command's own
                tracker = _MAKERS[name](self.folder, known.get(name))
                tracker.start()
                self.trackers.append(tracker)
                if name not in known:
                    tracker.store_init_configuration(_hyperparameters(self.config))
                    known[name] = _identity(tracker)
        except Exception as error:
            raise InputError(
                f"{name} does not start ({_reason(error)}); mend that, or leave it out of track"
            ) from error

    def _each(self, tell: Callable[..., None], *arguments: Any) -> None:
        for tracker in list(self.trackers):
            try:
                tell(tracker, *arguments)
            except Exception as error:
                self.trackers.remove(tracker)
                self.say(f"{tracker.name} fails and is left out from here on: {_reason(error)}")
                with suppress(Exception):
                    _finish(tracker, failed=True)

    def _close(self, failed: bool) -> None:
        with redirect_stdout(sys.stderr):
            self._each(_finish, failed)
        self.trackers.clear()


def _tensorboard(folder: Path, known: str | None) -> GeneralTracker:
    return TensorBoardTracker("tensorboard", folder)


def _wandb(folder: Path, known: str | None) -> GeneralTracker:
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return WandBTracker(
        project, name=_name(folder), id=known or uuid.uuid4().hex[:8], resume="allow"
    )


def _trackio(folder: Path, known: str | None) -> GeneralTracker:
    name = known or f"{_name(folder)}-{uuid.uuid4().hex[:8]}"  # it knows runs by name alone
    return TrackioTracker(PROJECT, name=name, resume="allow")


def _mlflow(folder: Path, known: str | None) -> GeneralTracker:
    return MLflowTracker(PROJECT, run_name=_name(folder), run_id=known)


_MAKERS: dict[str, Callable[[Path, str | None], GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}


def _name(folder: Path) -> str:
    return folder.resolve().name


def _identity(tracker: GeneralTracker) -> str:
    """By which a tracker finds a run again."""
    if tracker.name == "mlflow":
        return str(tracker.tracker.info.run_id)
    if tracker.name == "wandb":
        return str(tracker.tracker.id)
    return str(tracker.tracker.name) if tracker.name == "trackio" else tracker.run_name


def _hyperparameters(config: RunConfig) -> dict[str, str | float]:
    """The configuration in types that every tracker takes."""
    values = config.model_dump(mode="json")
    return {name: "none" if value is None else value for name, value in values.items()}


def _log_figures(tracker: GeneralTracker, figures: Mapping[str, float], step: int) -> None:
    tracker.log({_allowed(name): value for name, value in figures.items()}, step=step)


def _log_picture(tracker: GeneralTracker, name: str, pixels: NDArray[Any], step: int) -> None:
    """Two of the trackers take images through Accelerate, two by themselves."""
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
    """With only those characters that every tracker takes on every system."""
    return re.sub(r"[^\w/. -]", "-", name)


def _finish(tracker: GeneralTracker, failed: bool) -> None:
    """Closes one; those that can show it are told whether the run failed."""
    if tracker.name == "wandb":
        tracker.tracker.finish(exit_code=int(failed))
    elif tracker.name == "mlflow":
        import mlflow

        mlflow.end_run("FAILED" if failed else "FINISHED")
    elif tracker.name == "trackio":
        import trackio

        trackio.finish()  # where the run's own is called, it is called and heard again at exit
    else:
        tracker.finish()


def _reason(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200)
