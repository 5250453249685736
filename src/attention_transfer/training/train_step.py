"""One training step: learning rate, micro-batches, gradient and the optimizer's step."""

import math
from collections.abc import Callable, Mapping, Sequence
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
from attention_transfer.errors import DivergedError, first_problems
from attention_transfer.training.fine_tuning import parameter_groups
from attention_transfer.training.memory.recomputation import recomputing
from attention_transfer.training.micro_batches import merge_outputs, micro_batches
from attention_transfer.training.optimizers import make_optimizer
from attention_transfer.training.processes import Processes, StepAgreement
from attention_transfer.training.schedule import learning_rate_factor
from attention_transfer.training.setup import RunSetup
from attention_transfer.training.weight_average import WeightAverage
from attention_transfer.transfer import Targets, Transfer, TransferOutput
from attention_transfer.transfer.terms.inputs import PairedMaps

__all__ = ["NotFiniteError", "StepIndex", "TrainStep"]

GROUP_SETTINGS = ("scale", "weight_decay", "momentum", "nesterov")
"""Settings of an optimizer's parameter groups that a run's configuration decides."""

LOWEST_SCALE = 2.0**-14
"""Of the losses in fp16. The scaler halves it after each step without a finite gradient; one that
overflows even at this scale is no matter of fp16.
"""

WEIGHT_SHAPED = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
"""Names in an optimizer's state of what has its parameter's shape, or is one number."""

IMAGES_NAMED = 8
"""Images of a batch that an error names."""


class NotFiniteError(DivergedError):
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
    """The objective on its device, with its optimizer, the gradient scaler that fp16 needs, and the
    moving average of the student's weights, if the run has one.

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
        groups = parameter_groups(
            self.transfer,
            self.config.backbone_lr,
            setup.heads,
            weight_decay_exclude=self.config.weight_decay_exclude,
            layer_decay=self.config.layer_decay,
        )
        self._names = _names_in(groups, self.transfer)
        self.optimizer = make_optimizer(self.config, groups, accelerator.device)
        self.average: WeightAverage | None = None
        if self.config.ema is not None:
            self.average = WeightAverage(self.transfer.student, self.config.ema)
        self.scaler = torch.amp.GradScaler(
            accelerator.device.type, enabled=setup.precision == "fp16"
        )
        self.transfer.measure_gradients()
        balance = self.transfer.gradient_balance
        if balance is not None:
            balance.to(accelerator.device).steps_by_hand = True
        # The whole objective is wrapped, so that the terms' own parameters are synchronised too.
        self.objective: nn.Module = accelerator.prepare_model(self.transfer)
        self._synchronized = self.config.sync_batch_norm and processes.count > 1
        # In fp16 a gradient that is not finite is no fault, so it cannot carry one to the others.
        every_step = self.scaler.is_enabled() or self.config.checkpoint_steps is not None
        self._agreement = StepAgreement(processes, every_step)
        self._settings = [
            {name: group[name] for name in GROUP_SETTINGS if name in group}
            for group in self.optimizer.param_groups
        ]

    def state(self) -> dict[str, Any]:
        """Return everything that a step depends on and changes."""
        return {
            "transfer": self.transfer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_name": self.config.optimizer,
            "optimizer_parameters": self._names,
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state that :meth:`state` returned.

        With another optimizer, or an average that the state lacks, these begin anew.

        Raises:
            AttributeError, LookupError, RuntimeError, TypeError, ValueError: it does not fit.
        """
        weights = state["transfer"]
        if self.transfer.gradient_balance is None:  # no layers are compared any more
            own = [name for name in weights if not name.startswith("gradient_balance.")]
            weights = {name: weights[name] for name in own}
        self.transfer.load_state_dict(weights)
        if self.average is not None:
            # The weights have just changed: an average that begins here begins with them.
            self.average = WeightAverage(self.transfer.student, self.average.decay)
            if state["average"] is not None:
                self.average.restore(state["average"])
        # It begins anew where the run stopped because of its scale, or had another precision.
        if state["scaler"].get("scale", 0.0) >= LOWEST_SCALE:
            self.scaler.load_state_dict(state["scaler"])
        if state["optimizer_name"] != self.config.optimizer:
            return
        # Torch counts the parameters of a group only.
        if state["optimizer_parameters"] != self._names:
            raise ValueError("the parameters are in other groups")
        self.optimizer.load_state_dict(state["optimizer"])
        # The state brings back the settings of its groups as well: the configuration has them.
        for group, settings in zip(self.optimizer.param_groups, self._settings, strict=True):
            group.update(settings)
        _check_shapes(self.optimizer)

    @property
    def lr(self) -> float:
        """The learning rate of the last step, of what learns fastest."""
        fastest = max(self.optimizer.param_groups, key=lambda group: float(group["scale"]))
        return float(fastest["lr"])

    def gradient_ratios(self, progress: float) -> dict[str, dict[str, float]]:
        """Return the gradient of each layer pair over that of everything else at its point.

        Args:
            progress: of the run, for weights with a schedule.
        """
        balance = self.transfer.gradient_balance
        if balance is None:
            return {}
        terms = self.transfer.named_terms.items()
        return balance.ratios({name: term.weight_at(progress) for name, term in terms})

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
            wishes: what this process would do after the step, or after one of the next ones.

        Returns:
            The output for this process's share of the batch, detached; and the largest of all
            processes' wishes, place by place, or zeros if they agree at a later step only.

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
        if not self.config.channels_last:
            batch = batch._replace(images=batch.images.contiguous())
        rate = self.config.lr * self._learning_rate_factor(step_index.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        # Dropout too is a function of the seed and the step, as all randomness is; each process
        # has masks of its own, for images of its own.
        process = self.accelerator.process_index
        seed = step_seed(self.config.seed, step_index.epoch, step_index.step, process)
        torch.manual_seed(seed)
        if targets is not None:
            targets = targets.to(batch.images.device)
        output, fault, agreeing = self._add_gradients(batch, targets, step_index, wishes)
        return output, self._update_weights(batch, step_index, fault, agreeing)

    def _add_gradients(
        self,
        batch: Batch,
        targets: Targets | None,
        step_index: StepIndex,
        wishes: tuple[int, ...],
    ) -> tuple[TransferOutput, str, Callable[[], tuple[int, ...]]]:
        """Add the gradients of a batch, micro-batch by micro-batch.

        Returns:
            The output; what is not finite in this process's losses; and what waits until all
            processes know whether one has such a fault, and their largest wishes.
        """
        images, labels = batch.images, batch.labels
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
                    agreeing = self._agreement.beginning(bool(fault), *wishes)
                    if fault and not self.scaler.is_enabled():
                        # The others learn of it by the gradient, which all have in common.
                        out = replace(out, loss=out.loss * math.nan)
                self._backward(out.loss, len(labels[part]), batch.total)
        return output, fault, agreeing

    def _update_weights(
        self,
        batch: Batch,
        step_index: StepIndex,
        fault: str,
        agreeing: Callable[[], tuple[int, ...]],
    ) -> tuple[int, ...]:
        """Take the optimizer's step along the accumulated gradient, if all processes can."""
        self.scaler.unscale_(self.optimizer)
        limit = self.config.clip_gradient or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.transfer.parameters(), limit)
        faulty, *agreed = agreeing()
        # All processes have the same gradient. In fp16 the scaler itself skips a step without a
        # finite one and lowers its scale.
        if faulty or not (self.scaler.is_enabled() or bool(norm.isfinite())):
            raise self._not_finite(fault, batch, step_index)
        if self.transfer.gradient_balance is not None:
            self.transfer.gradient_balance.end_step(self.processes.total)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        return tuple(agreed)

    def _learning_rate_factor(self, progress: float) -> float:
        config = self.config
        warmup = None if config.warmup is None else config.warmup / config.epochs
        return learning_rate_factor(config.schedule, progress, warmup)

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

    def _fault_of_scale(self) -> str:
        """Name the gradient if the scaler has skipped so many steps that it never gets finite."""
        if not self.scaler.is_enabled() or self.scaler.get_scale() >= LOWEST_SCALE:
            return ""
        return f"the gradient, in fp16 with the loss scaled by {self.scaler.get_scale():g},"

    def _not_finite(self, fault: str, batch: Batch, step_index: StepIndex) -> NotFiniteError:
        """Return the error of all processes, which names the images of those whose loss has a
        fault; if none has, it is the gradient's, and all images are named.
        """
        images = self.setup.data.train
        names = [images.name(int(index)) for index in batch.indices]
        gathered = self.processes.gather((fault, names))
        faults = dict.fromkeys(one for one, _ in gathered if one)
        batch_names = [name for one, part in gathered if one or not faults for name in part]
        faults = faults or {"the gradient": None}
        return NotFiniteError(
            f"{' and '.join(faults)} is not finite in epoch {step_index.epoch + 1}, step "
            f"{step_index.step + 1}, with the images {first_problems(batch_names, IMAGES_NAMED)}; "
            "weights and checkpoint are as before this step. Lower --lr (now "
            f"{self.config.lr:g}) or the weight of a term, or bound the gradient with "
            "--clip-gradient, in a new run, or in config.yaml and with resume --allow-changes"
        )


def _names_in(groups: Sequence[Mapping[str, Any]], transfer: Transfer) -> list[list[str]]:
    """Return the names of the parameters in each group."""
    names = {parameter: name for name, parameter in transfer.named_parameters()}
    return [[names[parameter] for parameter in group["params"]] for group in groups]


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
