"""One training step: learning rate, micro-batches, gradient and the optimizer's step."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from attention_transfer.data import Batch
from attention_transfer.data.randomness import step_seed
from attention_transfer.double_backward import SynchronizedBatchNorm
from attention_transfer.environment import AUTOCAST
from attention_transfer.errors import TrainingError, first_problems
from attention_transfer.training.fine_tuning import parameter_groups
from attention_transfer.training.memory.recomputation import recomputing
from attention_transfer.training.micro_batches import merge_outputs, micro_batches
from attention_transfer.training.processes import Processes
from attention_transfer.training.schedule import learning_rate_factor
from attention_transfer.training.setup import RunSetup
from attention_transfer.transfer import Targets, TransferOutput
from attention_transfer.transfer.terms.base import PairedMaps

__all__ = ["NotFiniteError", "StepIndex", "TrainStep"]

LOWEST_SCALE = 2.0**-14
"""Of the losses in fp16. The scaler halves it after each step without a finite gradient; one that
overflows even at this scale is no matter of fp16.
"""

WEIGHT_SHAPED = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
"""Names in an optimizer's state of what has its parameter's shape, or is one number."""

IMAGES_NAMED = 8
"""Images of a batch that an error names."""


class NotFiniteError(TrainingError):
    """The loss or the gradient is not finite: raised by all processes in the same step."""


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
        processes: that train together.
    """

    def __init__(self, setup: RunSetup, accelerator: Accelerator, processes: Processes) -> None:
        self.setup, self.accelerator, self.config = setup, accelerator, setup.config
        self.processes = processes
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
        self._synchronized = self.config.sync_batch_norm and processes.count > 1
        self._settings = [
            {name: value for name, value in group.items() if name not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]

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
        # The state brings back the settings of its groups as well: the configuration has them.
        for group, settings in zip(self.optimizer.param_groups, self._settings, strict=True):
            group.update(settings)
        _check_shapes(self.optimizer)
        # It begins anew where the run stopped because of its scale, or had another precision.
        if state["scaler"].get("scale", 0.0) >= LOWEST_SCALE:
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

    def step(
        self, batch: Batch, targets: Targets | None, step_index: StepIndex, *wishes: int
    ) -> tuple[TransferOutput, tuple[int, ...]]:
        """Train one step on this process's share of a batch.

        Args:
            batch: training images and labels.
            targets: the teacher's targets for these images, if they come from a cache.
            step_index: the position in the run.
            wishes: what this process would do after the step.

        Returns:
            The output for this process's share of the batch, detached; and the largest of all
            processes' wishes, place by place.

        Raises:
            NotFiniteError: the loss or the gradient is not finite; the state is that before the
                step, as after any other error.
        """
        # Batch norm's statistics move in the forward pass already.
        before = {name: buffer.detach().clone() for name, buffer in self.transfer.named_buffers()}
        try:
            return self._step(batch, targets, step_index, wishes)
        except BaseException:
            with torch.no_grad():
                for name, buffer in self.transfer.named_buffers():
                    buffer.copy_(before[name])
            self.optimizer.zero_grad()
            raise

    def _step(
        self,
        batch: Batch,
        targets: Targets | None,
        step_index: StepIndex,
        wishes: tuple[int, ...],
    ) -> tuple[TransferOutput, tuple[int, ...]]:
        self.processes.passed()  # from here on it may wait for the others
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
            with (
                nullcontext() if part is last else self.accelerator.no_sync(self.objective),
                SynchronizedBatchNorm() if self._synchronized else nullcontext(),
            ):
                part_targets = targets and targets.part(part)
                out = self._forward(images[part], labels[part], part_targets, step_index)
                logits = None if out.logits is None else out.logits.detach()
                outputs.append(replace(out, loss=out.loss.detach(), logits=logits))
                if part is last:
                    output = merge_outputs(outputs)
                    fault = _fault_of_terms(output) or self._fault_of_scale()
                    # Behind the backward pass, so that agreeing costs no time of its own.
                    agreeing = self.processes.agreeing(bool(fault), *wishes)
                self._backward(out.loss, len(labels[part]), batch.total)
        norm = self._gradient_norm()
        faulty, *agreed = agreeing()
        # All processes have the same gradient. In fp16 the scaler itself skips a step without a
        # finite one and lowers its scale.
        if not faulty and not self.scaler.is_enabled() and not bool(norm.isfinite()):
            faulty, fault = True, "the gradient"
        if faulty:
            raise self._not_finite(fault, batch, step_index)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return output, tuple(agreed)

    def _forward(
        self, images: Tensor, labels: Tensor, targets: Targets | None, step_index: StepIndex
    ) -> TransferOutput:
        dtype = AUTOCAST.get(self.setup.precision)
        with (
            torch.autocast(self.accelerator.device.type, dtype, enabled=dtype is not None),
            recomputing(self.setup.recomputation.parts.values()),
        ):
            out: TransferOutput = self.objective(images, labels, step_index.progress, targets)
        return out

    def _backward(self, loss: Tensor, images: int, total: int) -> None:
        """Add the gradient of a micro-batch of a batch of ``total`` images."""
        # Processes average their gradients; their shares of a batch can differ by one image.
        share = images * self.accelerator.num_processes / total
        self.scaler.scale(loss * share).backward()

    def _gradient_norm(self) -> Tensor:
        """Bound the accumulated gradient and return the norm that it had."""
        self.scaler.unscale_(self.optimizer)
        limit = self.config.clip_gradient or math.inf
        return torch.nn.utils.clip_grad_norm_(self.transfer.parameters(), limit)

    def _fault_of_scale(self) -> str:
        """Name the gradient if the scaler has skipped so many steps that it never gets finite."""
        if not self.scaler.is_enabled() or self.scaler.get_scale() >= LOWEST_SCALE:
            return ""
        return f"the gradient, in fp16 with the loss scaled by {self.scaler.get_scale():g},"

    def _not_finite(self, fault: str, batch: Batch, step_index: StepIndex) -> NotFiniteError:
        """Return the error of all processes, which names the images of those with a fault."""
        images = self.setup.data.train
        names = [images.name(int(index)) for index in batch.indices] if fault else []
        gathered = self.processes.gather((fault, names))
        faults = dict.fromkeys(one for one, _ in gathered if one) or {fault or "the loss": None}
        batch_names = [name for _, part in gathered for name in part]
        return NotFiniteError(
            f"{' and '.join(faults)} is not finite in epoch {step_index.epoch + 1}, step "
            f"{step_index.step + 1}, with the images {first_problems(batch_names, IMAGES_NAMED)}; "
            "weights and checkpoint are as before this step. Lower --lr (now "
            f"{self.config.lr:g}) or the weight of a term, or bound the gradient with "
            "--clip-gradient, in a new run, or in config.yaml and with resume --allow-changes"
        )


def _check_shapes(optimizer: torch.optim.Optimizer) -> None:
    """Raise a ValueError if a loaded state has other shapes than its parameters: torch does not."""
    for parameter, values in optimizer.state.items():
        for name in WEIGHT_SHAPED:
            value = values.get(name)
            if value is not None and value.shape not in (parameter.shape, ()):
                raise ValueError(f"{name} has shape {tuple(value.shape)}")


def _fault_of_terms(out: TransferOutput) -> str:
    """Name the terms that are not finite, with the points where their features are not."""
    faults = [
        name + _points_at_fault(out.maps.get(name, {}))
        for name, value in out.terms.items()
        if not bool(value.isfinite())
    ]
    return f"the loss ({', '.join(faults)})" if faults else ""


def _points_at_fault(maps: Mapping[str, PairedMaps]) -> str:
    """Name the points of a term's pairs whose features gave no finite map."""
    points = []
    for pair, both in maps.items():
        student, _, teacher = pair.partition(":")
        if not bool(both.student.isfinite().all()):
            points.append(f"the student's {student}")
        if not bool(both.teacher.isfinite().all()):
            points.append(f"the teacher's {teacher}")
    return f" of {first_problems(points)}" if points else ""
