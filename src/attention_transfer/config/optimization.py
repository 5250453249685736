"""Settings of how a network is trained: optimizer, learning rate, regularization and averaging."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from attention_transfer.config.checked import Config
from attention_transfer.config.fields import Count, NonNegative, Positive

__all__ = ["CHOSEN_BY_THE_RUN", "OptimizationConfig"]

CHOSEN_BY_THE_RUN = (
    "optimizer",
    "lr",
    "schedule",
    "warmup",
    "weight_decay",
    "weight_decay_exclude",
    "clip_gradient",
)
"""Settings whose defaults depend on the network and on the optimizer. The fields' own defaults are
those of convolutional networks; a run replaces those that were not given, and records what it took.
"""


def _lower(name: object) -> object:
    return name.strip().lower() if isinstance(name, str) else name


class OptimizationConfig(Config):
    """Settings of how a network is trained."""

    epochs: Count = Field(15, description="passes over the training images")
    optimizer: Annotated[str, BeforeValidator(_lower)] = Field(
        "sgd",
        description="optimizer, by timm's name: sgd, adamw, lamb, muon, lion, ...; default: sgd, "
        "and adamw for transformers and ConvNeXt",
    )
    lr: Positive = Field(
        0.4,
        description="largest learning rate; with the step schedule the paper's is 0.1; default: "
        "0.4 for sgd, 0.001 for adamw, 0.0001 if its student begins with trained weights",
    )
    schedule: Literal["one-cycle", "step", "cosine"] = Field(
        "one-cycle",
        description="learning rate: one-cycle; the paper's steps, x0.2 at 30, 60 and 80 % of the "
        "run; or cosine, after a warmup down to 0; default: one-cycle for SGD, cosine for others",
    )
    warmup: NonNegative | None = Field(
        None,
        description="epochs over which the learning rate rises; none: 30 % of a one-cycle run, 0 "
        "otherwise; default: none for SGD, else a tenth of the run and at most 5",
    )
    momentum: float = Field(
        0.9, ge=0, lt=1, description="momentum of SGD, and of other optimizers that have one"
    )
    nesterov: bool = Field(True, description="SGD's Nesterov momentum (the paper: no)")
    weight_decay: NonNegative = Field(
        5e-4,
        description="weight decay, on the parameters of terms too; default: 0.0005 for SGD, "
        "0.05 where the optimizer decouples it from the gradient, as adamw does",
    )
    weight_decay_exclude: Literal["norms-and-biases"] | None = Field(
        None,
        description="norms-and-biases: no weight decay on them, nor on what the network excludes, "
        "such as position embeddings; none: on all; default: none for SGD, else "
        "norms-and-biases",
    )
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="layer-wise learning rate decay, for fine-tuning: each layer learns this much "
        "slower than the one above it, such as 0.75; none: all alike",
    )
    backbone_lr: NonNegative = Field(
        1.0, description="factor of lr for all layers but the last; 0: they stay as they are"
    )
    clip_gradient: Positive | None = Field(
        None,
        description="largest l2 norm of the gradient; none: not clipped; default: none, and 1 "
        "for transformers and ConvNeXt",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each label that is spread over all classes, such as 0.1",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of the student's weights, such as "
        "0.999, which is evaluated and written too (to ema/ in the run folder, a MODEL as well); "
        "it begins lower, so that short runs have one; none: off",
    )
    early_stopping: Count | None = Field(
        None,
        description="stop after so many epochs without a lower validation error; the last weights "
        "are written; none: train all epochs",
    )

    @field_validator("warmup")
    @classmethod
    def _warmup_ends_within_the_run(
        cls, warmup: float | None, info: ValidationInfo
    ) -> float | None:
        epochs = info.data.get("epochs")
        if warmup is not None and epochs is not None and warmup >= epochs:
            raise PydanticCustomError(
                "warmup", "should be less than the {epochs} epochs of the run", {"epochs": epochs}
            )
        return warmup
