"""A network's forward pass, compiled together with its taps."""

import functools
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attention_transfer.errors import InputError, first_line
from attention_transfer.taps import Inputs, Taps, own_precision

__all__ = ["CompiledForward", "compiler_fault"]

Finish = Callable[[object, dict[str, Tensor]], Any]


@functools.cache
def compiler_fault() -> str | None:
    """Return why ``torch.compile`` does not work on this machine, in a line; None if it does."""
    try:
        torch.compile(lambda values: values.sin().cos(), dynamic=False)(torch.ones(8))
    except Exception as error:
        return first_line(error)
    return None


class CompiledForward:
    """A network's forward pass on batches of one size, compiled with what is read in it.

    Hooks that are added after the first call of a compiled network would not fire: these are added
    before, and stay. Batches of another size than the first, such as an epoch's last, are left to
    the caller (see :meth:`takes`), so that nothing is ever compiled twice.

    Args:
        network: any module.
        taps: of the points to read, after a pass on such inputs.
        finish: makes the result of the network's output and the features (N, C, *S) by point; it
            is compiled too, and what it leaves out is not computed.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        >>> images = torch.rand(2, 3, 8, 8)
        >>> taps = Taps(network, ["0"])
        >>> with taps as outputs:
        ...     _ = network(images)
        >>> _ = taps.feature_maps(outputs, images)
        >>> compiled = CompiledForward(network, taps, lambda output, features: features["0"].shape)
        >>> compiled.takes(images), compiled.takes(images[:1])
        (True, False)
    """

    def __init__(self, network: nn.Module, taps: Taps, finish: Finish) -> None:
        self._tapped = _Tapped(network, taps, finish)
        # With code of its own: the compiler gives up on code that has served eight networks.
        forward = FunctionType(_Tapped.forward.__code__.replace(), _Tapped.forward.__globals__)
        self._compiled = torch.compile(MethodType(forward, self._tapped), dynamic=False)
        self._shapes: list[torch.Size] | None = None

    def takes(self, inputs: Inputs) -> bool:
        """Return whether inputs have the shapes of the first ones."""
        shapes = _shapes(inputs)
        if self._shapes is None:
            self._shapes = shapes
        return shapes == self._shapes

    def __call__(self, inputs: Inputs) -> Any:
        """Run the forward pass and return the result of ``finish``.

        Raises:
            InputError: a tap did not fire.
        """
        with own_precision(self._tapped.network, inputs):
            return self._compiled(inputs)

    def remove(self) -> None:
        """Remove the hooks from the network."""
        self._tapped.remove()


def _shapes(inputs: Inputs) -> list[torch.Size]:
    if isinstance(inputs, Tensor):
        return [inputs.shape]
    tensors = inputs.values() if isinstance(inputs, Mapping) else inputs
    return [tensor.shape for tensor in tensors]


class _Tapped(nn.Module):
    """A network whose forward pass keeps what its taps read, in this module's passes alone."""

    def __init__(self, network: nn.Module, taps: Taps, finish: Finish) -> None:
        super().__init__()
        self.network, self.taps, self.finish = network, taps, finish
        self.outputs: dict[str, Tensor] | None = None
        self._handles: list[RemovableHandle] = taps.watch(self._keep, self._keep_end)

    def forward(self, inputs: Inputs) -> Any:
        """Run the network and finish its output and features."""
        self.outputs = {}
        # Not call_network, whose check of the signature cannot be compiled.
        if isinstance(inputs, Tensor):
            output = self.network(inputs)
        elif isinstance(inputs, Mapping):
            output = self.network(**inputs)
        else:
            output = self.network(*inputs)
        outputs, self.outputs = self.outputs, None
        missing = [point for point in self.taps.points if point not in outputs]
        if missing:
            raise InputError(
                f"point {missing[0]!r} of the compiled network gave no output; use "
                "--no-compile, or choose a point that runs"
            )
        return self.finish(output, self.taps.feature_maps(outputs, inputs))

    def remove(self) -> None:
        """Remove the hooks from the network."""
        for handle in self._handles:
            handle.remove()

    def _keep(self, point: str, output: Tensor) -> None:
        if self.outputs is not None:
            self.outputs[point] = output.clone() if self.taps.overwritten(point) else output

    def _keep_end(self, point: str, output: Tensor) -> None:
        if self.outputs is not None and point not in self.outputs:
            self._keep(point, output)
