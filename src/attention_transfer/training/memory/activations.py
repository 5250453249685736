"""The activations that autograd saves in a forward pass, and the modules whose recomputation lowers
the peak of memory most.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from attention_transfer.taps.modules import outputs_of

__all__ = ["Activations", "lightest_parts"]

TOLERANCE = 1.01
"""Recomputing a module that lowers the peak by less than 1 % is not worth its time."""


@dataclass
class _Call:
    """One call of a module: its inputs, and the range of saved tensors that it covers."""

    start: int
    inputs: list[Tensor]
    end: int = 0
    versions: list[int] = field(default_factory=list)

    @property
    def input_sizes(self) -> dict[int, int]:
        """The bytes of each input's storage, by its address."""
        return dict(map(_storage, self.inputs))

    @property
    def overwritten(self) -> bool:
        """Whether an input was changed in place, so that the module cannot run again."""
        return [tensor._version for tensor in self.inputs] != self.versions


class Activations:
    """The tensors that autograd saves in one forward pass, in order, with the modules they are in.

    Weights, buffers and images do not count, as they are in memory anyway.

    Args:
        network: runs once, in its current mode.
        images: (N, C, H, W), preprocessed.

    Example:
        >>> def block():
        ...     return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
        >>> activations = Activations(nn.Sequential(block(), block(), block()), torch.zeros(1, 4))
        >>> activations.peak(()), activations.peak(["0", "1"])  # 6 and 4 tensors of 16 bytes
        ((96, None), (64, None))
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self._free = {_storage(tensor)[0] for tensor in (*network.parameters(), images)}
        self._free |= {_storage(buffer)[0] for buffer in network.buffers()}
        self._saved: list[Tensor] = []
        self._calls: dict[str, _Call] = {}
        self._call_counts: Counter[str] = Counter()
        self._children: dict[str, list[str]] = defaultdict(list)
        self._open_modules = [""]
        with ExitStack() as stack:
            for name, module in network.named_modules():
                if name:
                    before = module.register_forward_pre_hook(self._before(name), with_kwargs=True)
                    stack.callback(before.remove)
                    stack.callback(module.register_forward_hook(self._after(name)).remove)
            stack.enter_context(saved_tensors_hooks(self._saved.append, _refuse))
            network(images)

    def parts(self, name: str = "") -> Iterator[str]:
        """Yield the outermost modules inside a module that can run again."""
        for child in self._children[name]:
            if self._call_counts[child] == 1 and not self._calls[child].overwritten:
                yield child
            elif self._call_counts[child] == 1:
                yield from self.parts(child)

    def peak(self, recomputed: Collection[str]) -> tuple[int, str | None]:
        """Return the peak of memory if the insides of some modules are recomputed.

        During the backward pass through one of them, memory holds what was saved before its call
        and everything that its own forward pass saves.

        Args:
            recomputed: names of modules, none inside another.

        Returns:
            The peak in bytes, and the module at whose backward pass it occurs; None if it occurs
            at the end of the forward pass.
        """
        highest: tuple[int, str | None] = 0, None
        held: dict[int, int] = {}
        position = 0
        for name in sorted(recomputed, key=lambda name: self._calls[name].start):
            call = self._calls[name]
            held |= self._sizes(position, call.start)
            held |= {key: size for key, size in call.input_sizes.items() if key not in self._free}
            inside = sum((held | self._sizes(call.start, call.end)).values())
            highest = max(highest, (inside, name), key=lambda peak: peak[0])
            position = call.end
        held |= self._sizes(position, len(self._saved))
        return max((sum(held.values()), None), highest, key=lambda peak: peak[0])

    def _sizes(self, start: int, end: int) -> dict[int, int]:
        """Return the bytes, by storage, of a range of the saved tensors."""
        sizes = dict(map(_storage, self._saved[start:end]))
        return {key: size for key, size in sizes.items() if key not in self._free}

    def _before(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            inputs = [
                value for _, value in outputs_of("", (args, kwargs)) if isinstance(value, Tensor)
            ]
            versions = [tensor._version for tensor in inputs]
            self._calls[name] = _Call(len(self._saved), inputs, versions=versions)
            if not self._call_counts[name]:
                self._children[self._open_modules[-1]].append(name)
            self._call_counts[name] += 1
            self._open_modules.append(name)

        return hook

    def _after(self, name: str) -> Any:
        def hook(*_: object) -> None:
            self._calls[name].end = len(self._saved)
            self._open_modules.pop()

        return hook


def lightest_parts(activations: Activations) -> list[str]:
    """Return the modules to recompute in the backward pass for the lowest peak of memory.

    The search starts with the outermost modules and repeatedly replaces the one at which the peak
    occurs by the modules inside it. Of the best choice, modules that hardly matter are removed.

    Returns:
        Names in order of execution; an empty list if nothing would be gained.
    """
    parts = list(activations.parts())
    best: list[str] = []
    lowest, _ = activations.peak(best)
    while True:
        peak, highest = activations.peak(parts)
        if peak < lowest:
            best, lowest = list(parts), peak
        children = [] if highest is None else list(activations.parts(highest))
        if highest is None or not children:
            break
        position = parts.index(highest)
        parts[position : position + 1] = children
    for name in reversed(list(best)):
        fewer = [other for other in best if other != name]
        if activations.peak(fewer)[0] <= TOLERANCE * lowest:
            best = fewer
    return best


def _storage(tensor: Tensor) -> tuple[int, int]:
    """Return the address and the bytes of a tensor's storage."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _refuse(_: object) -> Tensor:
    raise AssertionError("the measured forward pass must have no backward pass")
