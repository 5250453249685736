"""The frozen teacher: a network that only answers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import (
    Inputs,
    Taps,
    call_network,
    main_input,
    own_dtype,
    with_main_input,
)
from attention_transfer.transfer.compiled_forward import CompiledForward
from attention_transfer.transfer.forward import (
    FindLogits,
    ForwardResult,
    class_logits,
    find_logits,
    input_gradient,
    input_size,
    logits_in,
    preprocess,
    tapped_forward,
)
from attention_transfer.transfer.inference_optimization import inference_copy, lower_weights
from attention_transfer.transfer.targets import TargetField, Targets, TargetSpec

__all__ = ["FrozenTeacher"]


class FrozenTeacher:
    """A network that only answers: in eval mode and without gradients, whatever is called on it.

    Its parameters are frozen (``requires_grad_(False)``), and every call puts it into eval mode
    first, so a stray ``.train()`` cannot move its batch statistics.

    Args:
        network: the teacher.
        points: names of the modules to read.
        preprocessing: the teacher's own, of the inputs that the student gets too.
        logits: finds the logits in the network's output.

    Example:
        >>> teacher = FrozenTeacher(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), ["0"])
        >>> _ = teacher.network.train()
        >>> teacher(torch.zeros(2, 3, 8, 8)).features["0"].shape
        torch.Size([2, 4, 8, 8])
        >>> teacher.network.training
        False
    """

    def __init__(
        self,
        network: nn.Module,
        points: Sequence[str] = (),
        preprocessing: Preprocessing | None = None,
        logits: FindLogits = find_logits,
    ) -> None:
        self.network = network.requires_grad_(False).eval()
        self.preprocessing = preprocessing
        self.find_logits = logits
        self._taps = Taps(network, points, "the teacher")
        self._compiled: dict[TargetSpec, CompiledForward] | None = None

    def optimize_for_inference(self, example: Inputs, dtype: torch.dtype | None = None) -> None:
        """Answer from an inference copy from now on; the network itself stays as it is.

        Args:
            example: inputs to compare both on.
            dtype: to keep the weights in; they then run under autocast of that dtype alone.
        """
        network, compiled = self.network, self._compiled is not None
        own_inputs = preprocess(network, example, self.preprocessing)
        self.remove_compiled_passes()
        self.network = inference_copy(network, self._taps.points, own_inputs, self.find_logits)
        self._taps = Taps(self.network, self._taps.points)
        # A network in another dtype runs in that, and not under autocast.
        lowered = self.network is not network and own_dtype(network) == torch.float32
        if dtype is not None and lowered:
            lower_weights(self.network, dtype)
        device = main_input(example).device.type
        with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype is not None):
            self.forward(example)  # which tells how each point is read
        if compiled:
            self.compile_passes()

    def compile_passes(self) -> None:
        """Compile passes without gradients from now on, each when it is first run."""
        self._compiled = {}

    def remove_compiled_passes(self) -> None:
        """Remove the compiled passes, with their hooks, from the network."""
        for compiled in (self._compiled or {}).values():
            compiled.remove()
        self._compiled = None

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> ForwardResult:
        """Return output and whole features for inputs."""
        return self.forward(inputs)

    def forward(self, inputs: Inputs) -> ForwardResult:
        """Return output and whole features, differentiable in the inputs."""
        self.network.eval()
        return tapped_forward(self.network, self._taps, inputs, self.preprocessing)

    def targets(self, inputs: Inputs, labels: Tensor | None, spec: TargetSpec) -> Targets:
        """Return what is needed of the teacher, and compute no more.

        Features are reduced as soon as a layer has returned them, and dropped at once; the pass
        ends with the last layer that is needed.

        Args:
            inputs: of the networks.
            labels: of :func:`attention_transfer.functional.losses.summed_cross_entropy`, for the
                gradient.
            spec: what is needed; its points are among this teacher's.
        """
        self.learn_layouts(inputs)
        if spec.gradient:
            images = main_input(inputs).detach().requires_grad_()
            with torch.enable_grad():
                fields, output = self.read(with_main_input(inputs, images), spec)
            logits = class_logits(output, self.find_logits)
            return Targets(fields, logits.detach(), input_gradient(logits, labels, images))
        # Not inference_mode: what a network caches in a pass (grids of positions, say) would be of
        # no use in a later pass with gradients, its own or that of a network it shares them with.
        with torch.no_grad():
            fields, output = self.read(inputs, spec)
        return Targets(fields, None if output is None else logits_in(output, self.find_logits))

    @torch.no_grad()
    def learn_layouts(self, inputs: Inputs) -> None:
        """Find out how to read each point, by one pass on inputs of a size that is new."""
        if not self._taps.knows(input_size(inputs, self.preprocessing)):
            self.forward(inputs)

    def read(self, inputs: Inputs, spec: TargetSpec) -> tuple[dict[TargetField, Tensor], object]:
        """Return the fields, detached, and the output, or None of a pass that ended before it."""
        self.network.eval()
        own_inputs = preprocess(self.network, inputs, self.preprocessing)
        fields: dict[TargetField, Tensor] = {}
        output: object = None

        def read(point: str, features: Tensor) -> None:
            features = features.detach()
            for target in spec.fields:
                if target.point == point:
                    value = target.read(features)
                    memory = [one.untyped_storage().data_ptr() for one in (value, features)]
                    # A layer after the point may overwrite what a view still reads.
                    copied = memory[0] == memory[1] and self._taps.overwritten(point)
                    fields[target] = value.clone() if copied else value

        to_the_end = spec.logits or spec.gradient
        compiled = self._compiled_pass(spec)
        if compiled is not None and compiled.takes(own_inputs):
            result: tuple[dict[TargetField, Tensor], object] = compiled(own_inputs)
            return result
        with self._taps.reading(main_input(own_inputs), read, to_the_end=to_the_end):
            output = call_network(self.network, own_inputs)
        return fields, output if to_the_end else None

    def _compiled_pass(self, spec: TargetSpec) -> CompiledForward | None:
        """Return the compiled pass for what is needed; None where passes are not compiled."""
        if self._compiled is None or spec.gradient:
            return None
        if spec not in self._compiled:

            def finish(output: object, features: dict[str, Tensor]) -> Any:
                fields = {target: target.read(features[target.point]) for target in spec.fields}
                return fields, output if spec.logits else None

            self._compiled[spec] = CompiledForward(self.network, self._taps, finish)
        return self._compiled[spec]
