"""One training step: learning rate, micro-batches, gradient and the optimizer's step."""

import math
from contextlib import nullcontext
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

__all__ = ["StepIndex", "TrainStep"]


class StepIndex(NamedTuple):
    """The position of a step in a run."""

    epoch: int
    """From 0."""
    step: int
    """Of the epoch, from 0."""
    progress: float
    """The share of the run's steps before this one, from 0 to 1."""


class TrainStep:
    """The objective on its device, with SGD and the gradient scaler that fp16 needs.

    Args:
        setup: of the run.
        accelerator: of this process.
    """

    def __init__(self, setup: RunSetup, accelerator: Accelerator) -> None:
        self.setup, self.accelerator, self.config = setup, accelerator, setup.config
        self.transfer = setup.transfer.to(accelerator.device)
        for teacher in setup.teachers:
            teacher.network.to(accelerator.device)
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.transfer, self.config.backbone_lr, setup.heads),
            lr=self.config.lr,
            momentum=self.config.momentum,
            nesterov=self.config.nesterov and self.config.momentum > 0,
            weight_decay=self.config.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(
            accelerator.device.type, enabled=setup.precision == "fp16"
        )
        # The whole objective is wrapped, so that the terms' own parameters are synchronised too.
        self.objective: nn.Module = accelerator.prepare_model(self.transfer)

    def state(self) -> dict[str, Any]:
        """Return everything that a step depends on and changes."""
        return {
            "transfer": self.transfer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state that :meth:`state` returned.

        Raises:
            AttributeError, LookupError, RuntimeError, TypeError, ValueError: it does not fit.
        """
        self.transfer.load_state_dict(state["transfer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[-1]["lr"])

    def set_train_mode(self) -> None:
        """Put the student into training mode, except for its frozen modules."""
        self.transfer.student.train()
        for module in self.setup.frozen:
            module.eval()

    def step(self, batch: Batch, targets: Targets | None, step_index: StepIndex) -> TransferOutput:
        """Train one step on this process's share of a batch.

        Args:
            batch: training images and labels.
            targets: the teacher's targets for these images, if they come from a cache.
            step_index: the position in the run.

        Returns:
            The output for this process's share of the batch, detached.

        Raises:
            TrainingError: the loss or the gradient is not finite; the weights stay as they were.
        """
        images, labels = batch.images, batch.labels
        if not self.config.channels_last:
            images = images.contiguous()
        for group in self.optimizer.param_groups:
            rate = self.config.lr * learning_rate_factor(self.config.schedule, step_index.progress)
            group["lr"] = rate * group["scale"]
        # Dropout too is a function of the seed and the step, as all randomness is.
        torch.manual_seed(step_seed(self.config.seed, step_index.epoch, step_index.step))
        if targets is not None:
            targets = targets.to(images.device)
        *others, last = micro_batches(len(labels), self.config.accumulate)
        outputs = []
        for part in (*others, last):
            # Processes exchange gradients once, after the last micro-batch.
            with nullcontext() if part is last else self.accelerator.no_sync(self.objective):
                part_targets = targets and targets.part(part)
                out = self._forward(images[part], labels[part], part_targets, step_index)
                self._backward(out.loss, len(labels[part]), batch.total)
            logits = None if out.logits is None else out.logits.detach()
            outputs.append(replace(out, loss=out.loss.detach(), logits=logits))
        self._update_weights(step_index)
        return merge_outputs(outputs)

    def _forward(
        self, images: Tensor, labels: Tensor, targets: Targets | None, step_index: StepIndex
    ) -> TransferOutput:
        dtype = AUTOCAST.get(self.setup.precision)
        with (
            torch.autocast(self.accelerator.device.type, dtype, enabled=dtype is not None),
            recomputing(self.setup.recomputation.parts.values()),
        ):
            out: TransferOutput = self.objective(images, labels, step_index.progress, targets)
        culprits = [name for name, value in out.terms.items() if not bool(value.isfinite())]
        if culprits:
            raise self._not_finite(f"the loss ({', '.join(culprits)})", step_index)
        return out

    def _backward(self, loss: Tensor, images: int, total: int) -> None:
        """Add the gradient of a micro-batch of a batch of ``total`` images."""
        # Processes average their gradients; their shares of a batch can differ by one image.
        share = images * self.accelerator.num_processes / total
        self.scaler.scale(loss * share).backward()

    def _update_weights(self, step_index: StepIndex) -> None:
        """Take the optimizer's step along the accumulated gradient."""
        self.scaler.unscale_(self.optimizer)
        limit = self.config.clip_gradient or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.transfer.parameters(), limit)
        # In fp16 the scaler itself skips such a step and lowers its scale.
        if not self.scaler.is_enabled() and not bool(norm.isfinite()):
            raise self._not_finite("the gradient", step_index)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def _not_finite(self, what: str, step_index: StepIndex) -> TrainingError:
        return TrainingError(
            f"{what} is not finite in epoch {step_index.epoch + 1}, step {step_index.step + 1}; "
            f"the weights are as before this step. Lower --lr (now {self.config.lr:g}) or the "
            "weight of a term, or bound the gradient with --clip-gradient"
        )
