"""What autograd keeps of a pass for the backward pass, and which parts of a network, computed again
instead, leave least to keep.
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
"""Parts that lower the peak by less than the hundredth part of it are not worth their time."""


@dataclass
class _Call:
    """A module's run: between which of the tensors that are kept, and on what."""

    start: int
    inputs: list[Tensor]
    end: int = 0
    versions: list[int] = field(default_factory=list)

    @property
    def input_sizes(self) -> dict[int, int]:
        """Bytes by storage."""
        return dict(map(_storage, self.inputs))

    @property
    def overwritten(self) -> bool:
        """Whether any of its inputs is no longer what it was, so that it could not run again."""
        return [tensor._version for tensor in self.inputs] != self.versions


class Activations:
    """What one pass of a network makes autograd keep, in order, and inside which modules.

    Weights, buffers and the images do not count: they are there anyway.

    Args:
        network: runs once, in the mode it is in.
        images: (N, C, H, W), as the network takes them.

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
        self._kept: list[Tensor] = []
        self._calls: dict[str, _Call] = {}
        self._runs: Counter[str] = Counter()
        self._inside: dict[str, list[str]] = defaultdict(list)
        self._running = [""]
        with ExitStack() as stack:
            for name, module in network.named_modules():
                if name:
                    before = module.register_forward_pre_hook(self._before(name), with_kwargs=True)
                    stack.callback(before.remove)
                    stack.callback(module.register_forward_hook(self._after(name)).remove)
            stack.enter_context(saved_tensors_hooks(self._kept.append, _never))
            network(images)

    def parts(self, name: str = "") -> Iterator[str]:
        """The outermost modules that run inside a module, of those that can run again."""
        for inner in self._inside[name]:
            if self._runs[inner] == 1 and not self._calls[inner].overwritten:
                yield inner
            elif self._runs[inner] == 1:
                yield from self.parts(inner)

    def peak(self, recomputed: Collection[str]) -> tuple[int, str | None]:
        """The most that is held at any time, if the insides of some modules are computed again.

        While one of them is gone through backwards, that is what was kept until it began and all
        that it keeps itself.

        Args:
            recomputed: names of modules, none inside another.

        Returns:
            Bytes, and the module that is gone through then; None at the end of the forward pass.
        """
        highest: tuple[int, str | None] = 0, None
        held: dict[int, int] = {}
        reached = 0
        for name in sorted(recomputed, key=lambda name: self._calls[name].start):
            call = self._calls[name]
            held |= self._sizes(reached, call.start)
            held |= {key: size for key, size in call.input_sizes.items() if key not in self._free}
            within = sum((held | self._sizes(call.start, call.end)).values())
            highest = max(highest, (within, name), key=lambda found: found[0])
            reached = call.end
        held |= self._sizes(reached, len(self._kept))
        return max((sum(held.values()), None), highest, key=lambda found: found[0])

    def _sizes(self, start: int, end: int) -> dict[int, int]:
        """Bytes by storage of what was kept between two moments."""
        sizes = dict(map(_storage, self._kept[start:end]))
        return {key: size for key, size in sizes.items() if key not in self._free}

    def _before(self, name: str) -> Any:
        def hook(_: nn.Module, given: tuple[object, ...], named: dict[str, object]) -> None:
            inputs = [
                value for _, value in outputs_of("", (given, named)) if isinstance(value, Tensor)
            ]
            versions = [tensor._version for tensor in inputs]
            self._calls[name] = _Call(len(self._kept), inputs, versions=versions)
            if not self._runs[name]:
                self._inside[self._running[-1]].append(name)
            self._runs[name] += 1
            self._running.append(name)

        return hook

    def _after(self, name: str) -> Any:
        def hook(*_: object) -> None:
            self._calls[name].end = len(self._kept)
            self._running.pop()

        return hook


def lightest_parts(activations: Activations) -> list[str]:
    """Modules whose insides, computed again in the backward pass, leave the lowest peak.

    From the outermost modules on, the one at which the peak stands is opened up into those inside
    it, as long as there are any; the best of these choices is taken, without the modules that make
    no difference to it.

    Returns:
        Names, in order of execution; none where nothing would be gained.
    """
    parts = list(activations.parts())
    best: list[str] = []
    lowest, _ = activations.peak(best)
    while True:
        peak, highest = activations.peak(parts)
        if peak < lowest:
            best, lowest = list(parts), peak
        inner = [] if highest is None else list(activations.parts(highest))
        if highest is None or not inner:
            break
        position = parts.index(highest)
        parts[position : position + 1] = inner
    for name in reversed(list(best)):
        fewer = [other for other in best if other != name]
        if activations.peak(fewer)[0] <= TOLERANCE * lowest:
            best = fewer
    return best


def _storage(tensor: Tensor) -> tuple[int, int]:
    """A tensor's memory and its bytes."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _never(_: object) -> Tensor:
    raise AssertionError("this pass has no backward pass")
