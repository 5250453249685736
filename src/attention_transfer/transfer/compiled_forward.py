"""A network's pass, compiled together with the taps in it."""

import functools
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attention_transfer.errors import InputError
from attention_transfer.taps import Taps

__all__ = ["CompiledPass", "compiler_fault"]

Finish = Callable[[object, dict[str, Tensor]], Any]


@functools.cache
def compiler_fault() -> str | None:
    """Why ``torch.compile`` does not work on this machine, in a line; None if it does."""
    try:
        torch.compile(lambda values: values.sin().cos(), dynamic=False)(torch.ones(8))
    except Exception as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None


class CompiledPass:
    """A network's forward pass on batches of one size, compiled with what is read in it.

    Hooks that are added after the first call of a compiled network would not fire: these are added
    before, and stay. Batches of another size than the first one, such as an epoch's last, are left
    to whoever asks: see :meth:`takes`. So nothing is ever compiled twice.

    Args:
        network: any module.
        taps: of the points to read, after a pass on such images.
        finish: makes the result of the network's output and the features (N, C, H, W) by point; it
            is compiled too, and what it leaves out is not computed.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        >>> images = torch.rand(2, 3, 8, 8)
        >>> taps = Taps(network, ["0"])
        >>> with taps as outputs:
        ...     _ = network(images)
        >>> _ = taps.feature_maps(outputs, images)
        >>> compiled = CompiledPass(network, taps, lambda output, seen: seen["0"].shape)
        >>> compiled.takes(images), compiled.takes(images[:1])
        (True, False)
    """

    def __init__(self, network: nn.Module, taps: Taps, finish: Finish) -> None:
        self._tapped = _Tapped(network, taps, finish)
        # With code of its own: the compiler gives up on code that has served eight networks.
        forward = FunctionType(_Tapped.forward.__code__.replace(), _Tapped.forward.__globals__)
        self._compiled = torch.compile(MethodType(forward, self._tapped), dynamic=False)
        self._shape: torch.Size | None = None

    def takes(self, images: Tensor) -> bool:
        """Whether images (N, C, H, W) are of the size of the first ones that were asked about."""
        if self._shape is None:
            self._shape = images.shape
        return images.shape == self._shape

    def __call__(self, images: Tensor) -> Any:
        """What ``finish`` makes of a pass.

        Raises:
            InputError: a tap did not fire.
        """
        return self._compiled(images)

    def remove(self) -> None:
        """Takes the hooks off the network."""
        self._tapped.remove()


class _Tapped(nn.Module):
    """A network whose forward pass keeps what its taps see; other passes are not looked at."""

    def __init__(self, network: nn.Module, taps: Taps, finish: Finish) -> None:
        super().__init__()
        self.network, self.taps, self.finish = network, taps, finish
        self.seen: dict[str, Tensor] | None = None
        self._handles: list[RemovableHandle] = taps.watch(self._see)

    def forward(self, images: Tensor) -> Any:
        """The network's output and features, finished."""
        self.seen = {}
        output = self.network(images)
        seen, self.seen = self.seen, None
        missing = [point for point in self.taps.points if point not in seen]
        if missing:
            raise InputError(
                f"no output was seen at point {missing[0]!r} of the compiled network; use "
                "--no-compile, or choose a point that runs"
            )
        return self.finish(output, self.taps.feature_maps(seen, images))

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _see(self, point: str, output: Tensor) -> None:
        if self.seen is not None:
            self.seen[point] = output.clone() if self.taps.overwritten(point) else output
