"""A student's weights, and what moves them: one step of the optimizer after another."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from attention_transfer.data import Batch
from attention_transfer.data.randomness import step_seed
from attention_transfer.environment import AUTOCAST
from attention_transfer.errors import TrainingError
from attention_transfer.training.fine_tuning import parameter_groups
from attention_transfer.training.memory.recomputation import recomputing
from attention_transfer.training.micro_batches import merge_outputs, micro_batches
from attention_transfer.training.schedule import learning_rate_factor
from attention_transfer.training.setup import RunSetup
from attention_transfer.transfer import Targets, TransferOutput

__all__ = ["TrainStep", "StepIndex"]


class StepIndex(NamedTuple):
    """Where in a run a step is."""

    epoch: int
    step: int
    """Of the epoch, from 0."""
    progress: float
    """The share of the run's steps that is done."""


class TrainStep:
    """The objective on its device, SGD, and the scaler that fp16 needs."""

    def __init__(self, prepared: RunSetup, accelerator: Accelerator) -> None:
        self.prepared, self.accelerator, self.config = prepared, accelerator, prepared.config
        self.transfer = prepared.transfer.to(accelerator.device)
        for teacher in prepared.teachers:
            teacher.network.to(accelerator.device)
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.transfer, self.config.backbone_lr, prepared.heads),
            lr=self.config.lr,
            momentum=self.config.momentum,
            nesterov=self.config.nesterov and self.config.momentum > 0,
            weight_decay=self.config.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(
            accelerator.device.type, enabled=prepared.precision == "fp16"
        )
        # Wraps the whole objective, so that the terms' own parameters are synchronised too.
        self.objective: nn.Module = accelerator.prepare_model(self.transfer)

    def state(self) -> dict[str, Any]:
        """All that a step depends on and changes."""
        return {
            "transfer": self.transfer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Puts a state back.

        Raises:
            AttributeError, LookupError, RuntimeError, TypeError, ValueError: it is another run's.
        """
        self.transfer.load_state_dict(state["transfer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[-1]["lr"])

    def train(self) -> None:
        """Puts the student into training mode, but for what is frozen in it."""
        self.transfer.student.train()
        for module in self.prepared.frozen:
            module.eval()

    def step(self, batch: Batch, targets: Targets | None, place: StepIndex) -> TransferOutput:
        """One step on this process's share of a batch.

        Args:
            batch: of training images.
            targets: the teacher's answers to them, if they are known.
            place: where in the run.

        Raises:
            TrainingError: the loss or the gradient is not finite; the step is not taken.
        """
        images, labels = batch.images, batch.labels
        if not self.config.channels_last:
            images = images.contiguous()
        for group in self.optimizer.param_groups:
            rate = self.config.lr * learning_rate_factor(self.config.schedule, place.progress)
            group["lr"] = rate * group["scale"]
        # Dropout and the like: a function of the seed and the step, as all randomness is.
        torch.manual_seed(step_seed(self.config.seed, place.epoch, place.step))
        known = None if targets is None else targets.to(images.device)
        *others, last = micro_batches(len(labels), self.config.accumulate)
        outputs = []
        for part in (*others, last):
            with nullcontext() if part is last else self.accelerator.no_sync(self.objective):
                mine = known and known.part(part)
                outputs.append(self._learn(images[part], labels[part], mine, batch.total, place))
        self._move(place)
        return merge_outputs(outputs)

    def _learn(
        self, images: Tensor, labels: Tensor, targets: Targets | None, total: int, place: StepIndex
    ) -> TransferOutput:
        """Adds the gradient of a part of a batch of ``total`` images."""
        with self._autocast(), recomputing(self.prepared.recomputation.parts.values()):
            out: TransferOutput = self.objective(images, labels, place.progress, targets)
        culprits = [name for name, value in out.terms.items() if not bool(value.isfinite())]
        if culprits:
            raise self._not_finite(f"the loss ({', '.join(culprits)})", place)
        # Processes average their gradients; their shares of a batch can differ by one image.
        share = len(labels) * self.accelerator.num_processes / total
        self.scaler.scale(out.loss * share).backward()
        return replace(
            out, loss=out.loss.detach(), logits=None if out.logits is None else out.logits.detach()
        )

    def _move(self, place: StepIndex) -> None:
        """The optimizer's step along the gradient that has been added up."""
        self.scaler.unscale_(self.optimizer)
        limit = self.config.clip_gradient or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.transfer.parameters(), limit)
        if not self.scaler.is_enabled() and not bool(norm.isfinite()):
            raise self._not_finite("the gradient", place)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def _autocast(self) -> AbstractContextManager[None]:
        dtype = AUTOCAST.get(self.prepared.precision)
        return torch.autocast(self.accelerator.device.type, dtype, enabled=dtype is not None)

    def _not_finite(self, what: str, place: StepIndex) -> TrainingError:
        """Stops the run before a step that would ruin the weights."""
        return TrainingError(
            f"{what} is not finite in epoch {place.epoch + 1}, step {place.step + 1}; the step was "
            f"not taken. Lower --lr (now {self.config.lr:g}) or the weight of a term, or bound the "
            "gradient with --clip-gradient"
        )
