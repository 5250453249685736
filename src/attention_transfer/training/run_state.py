"""What a checkpoint must hold besides weights, and where a run goes on from it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)
from torch import Tensor

from attention_transfer.data import batch_bounds
from attention_transfer.errors import InputError, first_problems
from attention_transfer.runs.differences import differences
from attention_transfer.runs.record import ChangeRecord, EpochMetrics

__all__ = ["RunState", "changes_since", "place", "position_lines", "resumed_step"]


def _scalar(value: Tensor) -> Tensor:
    if value.dim() != 0:
        raise ValueError(f"expected one number, got shape {tuple(value.shape)}")
    return value


_Scalar = Annotated[Tensor, AfterValidator(_scalar)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Schema(BaseModel):
    # Weights and optimizer have keys of their own, which torch compares.
    model_config = ConfigDict(
        strict=True, extra="ignore", frozen=True, arbitrary_types_allowed=True
    )


class _MetersState(_Schema):
    """The sums of an unfinished epoch in a checkpoint, as ``EpochMeters.state`` returns them."""

    images: PositiveInt
    wrong: _Scalar
    terms: dict[str, _Scalar]
    agreement_images: NonNegativeInt
    agreement: dict[str, _Scalar]
    betas: dict[str, dict[str, _Scalar]]
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    seconds_waiting: _Seconds

    @model_validator(mode="after")
    def _has_images(self) -> Self:
        if self.agreement and not self.agreement_images:
            raise ValueError("attention agreement of no images")
        return self


class _AverageState(_Schema):
    """The moving average of weights in a checkpoint, as ``WeightAverage.state`` returns it."""

    updates: NonNegativeInt
    values: dict[str, Tensor]


class RunState(_Schema):
    """The state of a run besides its weights and optimizer, as a checkpoint holds it."""

    epoch: NonNegativeInt
    """Whole epochs, with their validation."""
    step: NonNegativeInt
    """Steps of the next epoch."""
    steps_taken: NonNegativeInt
    """Steps of the optimizer since the beginning of the run."""
    steps_per_epoch: PositiveInt
    batch_size: PositiveInt
    training_images: PositiveInt
    processes: PositiveInt
    seconds: _Seconds
    metrics: list[EpochMetrics]
    meters: list[_MetersState]
    """Of the next epoch, for each process; empty before its first step."""
    identity: Annotated[dict[str, str], Field(min_length=1)]
    changes: list[ChangeRecord]
    """What the run went on with instead of what it began with."""
    optimizer_name: str
    optimizer_parameters: list[list[str]]
    """The names of the parameters in each of the optimizer's groups."""
    average: _AverageState | None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        bounds = batch_bounds(self.training_images, self.batch_size, self.processes)
        if len(bounds) != self.steps_per_epoch:
            raise ValueError(f"{self.steps_per_epoch} steps per epoch, expected {len(bounds)}")
        if self.step > self.steps_per_epoch:
            raise ValueError(f"step {self.step} of {self.steps_per_epoch}")
        if [row.epoch for row in self.metrics] != list(range(1, self.epoch + 1)):
            raise ValueError(f"metrics of {len(self.metrics)} epochs, expected {self.epoch}")
        if len(self.meters) != (self.processes if self.step else 0):
            raise ValueError(f"meters of {len(self.meters)} processes after step {self.step}")
        return self

    @classmethod
    def checked(cls, state: dict[str, Any], folder: Path) -> Self:
        """Return the state that a checkpoint holds.

        Args:
            state: of the checkpoint.
            folder: of the run, for the error message.

        Raises:
            InputError: something is missing, of a wrong type, or contradicts the rest.
        """
        try:
            return cls.model_validate(state)
        except ValidationError as error:
            problems = [
                ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"])))
                for fault in error.errors()
            ]
            raise InputError(
                f"the checkpoint in {folder} is not the state of a run "
                f"({first_problems(problems)}); start a new run"
            ) from None

    def check_epochs(self, epochs: int, folder: Path) -> None:
        """Raise an InputError if more has been trained than the configured epochs."""
        if self.epoch + bool(self.step) > epochs:
            steps = f" and {self.step} steps of the next" if self.step else ""
            raise InputError(
                f"the run in {folder} has trained {self.epoch} epochs{steps}, more than the "
                f"{epochs} of its config.yaml; set epochs to {self.epoch + bool(self.step)} or "
                "more there, or start a new run"
            )


def place(epoch: int, step: int, epochs: int) -> str:
    """Return where a run is, in words.

    >>> place(1, 4, 15), place(15, 0, 15)
    ('after step 4 of epoch 2 of 15', 'after the last of 15 epochs')
    """
    if epoch == epochs:
        return f"after the last of {epochs} epochs"
    return f"after step {step} of epoch {epoch + 1} of {epochs}"


def resumed_step(state: RunState, bounds: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the step of the epoch at which a run goes on, and the images that it passes over.

    It is the one whose batch begins where the last one ended. There is none if the batches are
    others now; then the nearest is taken, and some images are left out (or, if negative, trained
    a second time) in this epoch.

    Args:
        state: of the checkpoint.
        bounds: of the batches that the epoch has now.
    """
    images = bounds[-1][1]
    before = batch_bounds(state.training_images, state.batch_size, state.processes)
    trained = before[state.step - 1][1] if state.step else 0
    if images != state.training_images:
        trained = round(trained * images / state.training_images)
    starts = [*(start for start, _ in bounds), images]
    step = min(range(len(starts)), key=lambda step: (abs(starts[step] - trained), -step))
    return step, starts[step] - trained


def changes_since(
    state: RunState, identity: Mapping[str, str], processes: int
) -> Iterator[ChangeRecord]:
    """Yield what a run goes on with instead of what it had at a checkpoint.

    Args:
        state: of the checkpoint.
        identity: of the run now.
        processes: that train it now.
    """
    had = {**state.identity, "processes": str(state.processes)}
    for name, before, after in differences(had, {**identity, "processes": str(processes)}):
        yield ChangeRecord(
            name=name, before=before, after=after, epoch=state.epoch, step=state.step
        )


def position_lines(
    state: RunState, processes: int, bounds: list[tuple[int, int]], passed: int
) -> Iterator[str]:
    """Yield what is not as if the run had never been interrupted.

    Args:
        state: of the checkpoint.
        processes: that resume the run.
        bounds: of the batches that an epoch has now.
        passed: images that :func:`resumed_step` passes over.
    """
    if processes != state.processes:
        yield (
            f"begun by {state.processes} and resumed by {processes} processes: images "
            "and their order stay the same; rounding differs, and so do the statistics of "
            "batch norm, which each process takes over its own images"
        )
        if state.batch_size == bounds[0][1] and len(bounds) != state.steps_per_epoch:
            yield (
                f"an epoch now has {len(bounds)} steps in place of {state.steps_per_epoch}: a "
                "last batch of fewer images than processes is joined to the one before it"
            )
    if passed:
        fate = "left out" if passed > 0 else "trained a second time"
        yield (
            f"{abs(passed)} images of epoch {state.epoch + 1} are {fate}: no batch begins after "
            f"step {state.step} as it was before"
        )
