"""Settings of runs: of training one network, and of distillation."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from attention_transfer.config.checked import Config
from attention_transfer.config.fields import (
    Beta,
    Count,
    Names,
    Positive,
    Seed,
    as_several,
    in_order,
    known_trackers,
)
from attention_transfer.config.images import ImagesConfig
from attention_transfer.config.optimization import OptimizationConfig
from attention_transfer.config.presets import Preset, with_preset

__all__ = [
    "NEEDS_TEACHER",
    "DistillConfig",
    "RunConfig",
    "TrainingConfig",
    "flag_of",
]


MAIN = ("teacher", "student", "data", "epochs", "batch_size", "lr", "seed", "out")
"""The settings that most runs give."""


class TrainingConfig(OptimizationConfig, ImagesConfig):
    """Settings of training one network, alone or with a teacher."""

    @classmethod
    def groups(cls) -> dict[str, str]:
        """Return the heading of each field: the ones that every run has first."""
        fields = cls.model_fields
        of_gradients = [name for name in fields if re.match("(input_)?gradient|flip", name)]
        of_losses = [name for name in fields if name not in TrainingConfig.model_fields]
        parts = {
            "what is trained": MAIN,
            "losses": ["terms", *(name for name in of_losses if name not in of_gradients)],
            "losses over input gradients": of_gradients,
            "optimization": OptimizationConfig.model_fields,
            "images and numerics": ImagesConfig.model_fields,
            "the run": TrainingConfig.model_fields,
        }
        found: dict[str, str] = {}
        for title, names in parts.items():
            for name in names:
                if name in fields:
                    found.setdefault(name, title)
        return found

    student: str = Field(description="the network that learns, such as wrn-16-1")
    terms: Annotated[tuple[str, ...], BeforeValidator(as_several)] = Field(
        (),
        description="a further loss term: a name, such as dist or dkd(beta=4), or one of your "
        "own, package.module:factory or package.module:factory(weight=0.5); added to the others "
        "(replaces one of the same name); repeatable",
    )
    masks: Path | None = Field(
        None,
        description="folder of object masks (cat/1.png for cat/1.jpg, white: the object), to "
        "measure how much attention is on the object",
    )
    batch_size: Count = Field(64, description="images in a step, of all processes together")
    accumulate: Count = Field(
        1,
        description="micro-batches that each batch is split into, to save memory; the gradient is "
        "unchanged, except that batch norm and dropout see micro-batches",
    )
    grad_checkpoint: bool = Field(
        False,
        description="recompute activations inside the student's stages in the backward pass: less "
        "memory, more time, the same result",
    )
    sync_batch_norm: bool = Field(
        False,
        description="batch norm statistics over the images of all processes instead of each "
        "process's own; worth it where a process has few images a step",
    )
    freeze: Names | None = Field(
        None, description="modules whose weights stay fixed, such as conv1,layer[12]"
    )
    seed: Seed = Field(0, description="seed of the initialization and of the order of the images")
    compile: bool = Field(
        False, description="compile the forward passes with torch.compile; pays off in long runs"
    )
    probes: int = Field(
        32,
        ge=0,
        description="validation images whose attention maps are saved during training; 0: none",
    )
    probe_every: Count | None = Field(
        None, description="epochs between two savings of these maps; default: a twelfth of the run"
    )
    track: Annotated[Names, AfterValidator(known_trackers)] | None = Field(
        None,
        description="experiment trackers, separated by commas: tensorboard, wandb, trackio, mlflow",
    )
    test: bool = Field(
        True,
        description="evaluate on the test split at the end; --no-test: leave it unread, as in runs "
        "that choose settings by the validation error",
    )
    report: bool = Field(True, description="write report.html at the end")
    checkpoint_minutes: Positive = Field(
        5.0,
        description="minutes between two checkpoints, or a hundred times what a checkpoint takes, "
        "if that is longer; an interruption such as a power cut loses no more training than this",
    )
    checkpoint_steps: Count | None = Field(
        None,
        description="steps between two checkpoints; none: checkpoint_minutes decides",
    )
    timeout: Positive = Field(
        300.0,
        description="seconds after which a process that stays behind the others in a step counts "
        "as hanging, and the run ends",
    )
    out: Path | None = Field(None, description="run folder; default: a new one in runs/")

    @field_validator("accumulate")
    @classmethod
    def _parts_of_two(cls, parts: int, info: ValidationInfo) -> int:
        """Refuse micro-batches of a single image, on which batch norm cannot be trained."""
        batch_size = info.data.get("batch_size", 2 * parts)
        if parts > max(1, batch_size // 2):
            raise PydanticCustomError(
                "parts",
                "should be at most {most}: each micro-batch of a batch of {batch_size} needs at "
                "least two images",
                {"most": max(1, batch_size // 2), "batch_size": batch_size},
            )
        return parts

    @model_validator(mode="after")
    def _sync_batch_norm_runs_eagerly(self) -> Self:
        """Refuse what runs batch norm where it cannot be synchronised."""
        for name in ("compile", "grad_checkpoint"):
            if self.sync_batch_norm and getattr(self, name):
                raise PydanticCustomError(
                    "sync_batch_norm",
                    "sync_batch_norm does not go with {name}; leave one of them out",
                    {"name": name},
                )
        return self

    @property
    def trackers(self) -> list[str]:
        """The names of the experiment trackers."""
        return self.track.split(",") if self.track else []


class RunConfig(TrainingConfig):
    """Settings of a whole run: a student that learns from a teacher or, without one, alone."""

    teacher: Names | None = Field(
        None,
        description="the network to learn from: a run folder, NAME or NAME@FILE[#KEY]; "
        "several, separated by commas, are averaged; none: the student learns alone",
    )
    trust_teacher: bool = Field(
        False,
        description="no warning if the teacher answers the validation images no better than "
        "chance, has its classes in another order or expects another normalisation; its error is "
        "printed all the same",
    )
    baseline: bool = Field(
        False,
        description="also train the student alone, with the same settings, in the folder alone of "
        "the run's, and say whether the teacher helped",
    )
    preset: Preset | None = Field(
        None,
        description="losses of a paper or of well-known code: sets the settings of its terms, as "
        "docs/methods.md lists; other flags override it; none: off",
    )
    attention: Annotated[
        Literal["activation", "gradient", "activation,gradient", "none"],
        BeforeValidator(in_order),
    ] = Field("activation", description="kind of attention to transfer")
    map: Literal["sum", "max"] = Field("sum", description="sum or max over channels of |A|^p")
    power: Positive = Field(2.0, description="the power p > 0")
    form: Literal["code", "paper", "paper-eq2"] = Field(
        "code",
        description="code: beta * mean square of the difference of maps (the authors' code); "
        "paper: beta/2 * its norm; paper-eq2: that divided by H*W (the paper's own beta is 1000)",
    )
    pooling: Literal["maps", "features"] = Field(
        "maps",
        description="what is pooled to the smaller size where a pair's sizes differ: the maps, or "
        "the features that they are made of",
    )
    beta: Beta = Field(
        1000.0,
        description="weight of attention transfer; auto: one for each layer pair, from the norms "
        "of gradients, so that attention is never stronger than what else the student learns from",
    )
    beta_schedule: Literal["constant", "linear", "cosine"] | None = Field(
        None,
        description="beta during training: constant, or falling to 0; default: constant, but "
        "linear where beta is auto and there is distillation",
    )
    pairs: Names = Field(
        "auto",
        description="layer pairs: auto, auto-N (the last N of them), or "
        "student.layer:teacher.layer,... with * and ?; teacher.a+teacher.b averages two maps",
    )
    kd_alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="weight alpha of knowledge distillation; cross-entropy gets 1 - alpha; "
        "none: off",
    )
    temperature: Positive = Field(4.0, description="temperature of knowledge distillation")
    kd_form: Literal["alpha", "2017"] = Field(
        "alpha",
        description="alpha: alpha * T^2 * KL (the authors' code since 2018); 2017: twice that, "
        "divided by the number of classes (before)",
    )
    full_activation_beta: Beta | None = Field(
        None, description="weight of full-activation transfer, a baseline, or auto; none: off"
    )

    gradient_beta: Beta | None = Field(
        None,
        description="weight of gradient attention transfer, which --attention gradient needs, or "
        "auto; none: off",
    )
    gradient_form: Literal["paper", "squared"] = Field(
        "paper",
        description="form of the gradient terms: beta/2 times the norm of the difference of input "
        "gradients (paper), or times its square",
    )
    gradient_inputs: Literal["images", "normalized"] = Field(
        "images",
        description="input gradients of all gradient terms are those at the images, or at the "
        "images as normalized for the student (times the standard deviation of each channel)",
    )
    gradient_map: Literal["sum", "max"] | None = Field(
        None,
        description="compare attention maps of the gradients, with this reduction over channels; "
        "none: the gradients themselves",
    )
    gradient_normalize: bool = Field(
        False, description="normalize gradients to unit length before they are compared"
    )
    flip_symmetry_beta: Beta | None = Field(
        None, description="weight of the flip-symmetry term, or auto; none: off"
    )
    flip_axis: Literal["horizontal", "vertical"] = Field(
        "horizontal", description="flip left and right, or top and bottom"
    )
    flip_classes: Names | None = Field(
        None,
        pattern=r"^\d+(,\d+)*$",
        description="indices of the classes that the flip does not change, such as 0,1,3,8; "
        "none: all",
    )
    input_gradient_norm_beta: Beta | None = Field(
        None, description="weight of the input gradient's norm, a baseline, or auto; none: off"
    )
    cache: Path | None = Field(
        None,
        description="cache folder of teacher targets, built if missing; none: run the teacher live",
    )
    cache_views: Count | None = Field(
        None,
        description="augmented views of each image in the cache, which epochs cycle through; "
        "default: those of an existing cache, or as many as epochs",
    )

    @model_validator(mode="before")
    @classmethod
    def _add_preset(cls, values: Any) -> Any:
        """Add the settings of a preset, where none are given."""
        return with_preset(values)

    def alone(self) -> "RunConfig":
        """Return the settings of the same student trained alone: by the labels, without terms."""
        names = TrainingConfig.model_fields.keys() - {"terms", "out", "report"}
        return RunConfig(**{name: getattr(self, name) for name in names}, report=False)

    @property
    def schedule_of_beta(self) -> Literal["constant", "linear", "cosine"]:
        """The schedule of the attention's weight, chosen where it is not given."""
        if self.beta_schedule is not None:
            return self.beta_schedule
        return "linear" if self.beta == "auto" and self.kd_alpha is not None else "constant"

    @model_validator(mode="after")
    def _transfer_needs_a_teacher(self) -> Self:
        """Refuse settings that mean nothing without a teacher."""
        if self.teacher is None:
            for name in NEEDS_TEACHER:
                if getattr(self, name) != RunConfig.model_fields[name].default:
                    raise PydanticCustomError(
                        "teacher", "{name} needs a teacher, got none", {"name": name}
                    )
        return self


class DistillConfig(RunConfig):
    """Settings of a run in which the student learns from a teacher."""

    teacher: Names | None = Field(description=RunConfig.model_fields["teacher"].description)


def flag_of(name: str, config: type[Config] = RunConfig) -> str:
    """Return the command line's flag for a field; ``train`` calls its student ``--model``.

    Example:
        >>> flag_of("batch_size"), flag_of("student", TrainingConfig)
        ('--batch-size', '--model')
    """
    if config is TrainingConfig and name == "student":
        return "--model"
    if name == "terms":
        return "--term"
    return "--" + name.replace("_", "-")


NEEDS_TEACHER = (
    "trust_teacher",
    "baseline",
    "preset",
    "attention",
    "map",
    "power",
    "form",
    "pooling",
    "beta",
    "beta_schedule",
    "pairs",
    "kd_alpha",
    "temperature",
    "kd_form",
    "full_activation_beta",
    "gradient_beta",
    "gradient_map",
    "gradient_normalize",
    "cache",
    "cache_views",
)
"""Settings of a transfer; without a teacher they must have their defaults."""
