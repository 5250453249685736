"""Taps: reading what named modules of a network put out, without touching the network.

A tap is a forward hook that lives as long as a ``with`` block. A point is a module's name, as in
``network.named_modules()``.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attention_transfer.errors import InputError, nearest

__all__ = ["Taps", "evaluating", "unwrapped"]


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile``.

    Example:
        >>> inner = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(inner)) is inner
        True
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(network, wrappers):
            network = network.module
        elif isinstance(getattr(network, "_orig_mod", None), nn.Module):
            network = network._orig_mod  # type: ignore[assignment]
        else:
            return network


@contextmanager
def evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """The network in eval mode inside the block; every module's own mode is put back after it."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield network
    finally:
        for module, training in modes:
            module.training = training


class Taps:
    """Captures the outputs of named modules while a ``with`` block is open.

    A layer that overwrites a tapped feature map in place (an in-place ReLU after it, a residual
    ``+=``) is recognised by the tensor's version. A tap hands out what its module put out, not
    what came after: the first pass copies every feature map, and finds which of them are
    overwritten; later passes copy those alone.

    Args:
        network: any module, also wrapped by DataParallel, DDP or ``torch.compile``.
        points: names of its modules; a wrapper's prefix is left out.

    Raises:
        InputError: a point is not a module of the network; the nearest names are offered.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
        >>> taps = Taps(network, ["0"])
        >>> with taps as features:
        ...     _ = network(torch.zeros(2, 3, 8, 8))
        >>> features["0"].shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, network: nn.Module, points: Iterable[str]) -> None:
        self.points = list(dict.fromkeys(points))
        modules = dict(unwrapped(network).named_modules())
        for point in self.points:
            if not point or point not in modules:
                known = [name for name in modules if name]
                raise InputError(
                    f"{type(unwrapped(network)).__name__} has no point {point!r}; "
                    f"{nearest(point, known)}"
                )
        self._modules = {point: modules[point] for point in self.points}
        self._copied: set[str] = set(self.points)
        self._outputs: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> dict[str, Tensor]:
        """Starts capturing; the dictionary fills as the network runs."""
        if self._handles:
            raise RuntimeError("these taps are already open")
        self._features: dict[str, Tensor] = {}
        for point, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(point)))
        return self._features

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        try:
            if error is None:
                self._check()
        finally:
            self._outputs.clear()
            self._versions.clear()

    def _hook(self, point: str) -> Callable[[nn.Module, object, object], None]:
        def capture(module: nn.Module, _: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise InputError(
                    f"point {point!r} ({type(module).__name__}) puts out a "
                    f"{type(output).__name__}, expected a tensor; choose a point inside it"
                )
            if point in self._features:
                raise InputError(
                    f"point {point!r} ran more than once in one pass, so its attention is not "
                    "one map; choose a point that runs once"
                )
            self._features[point] = output.clone() if point in self._copied else output
            self._outputs[point] = output
            self._versions[point] = 0 if output.is_inference() else output._version

        return capture

    def _check(self) -> None:
        """Every tap fired, and no uncopied output was overwritten."""
        silent = [point for point in self.points if point not in self._features]
        if silent:
            raise InputError(
                f"no output was seen at point {silent[0]!r}: the network did not run it, or was "
                "compiled before it was tapped; choose a point that runs, or pass the network "
                "as it was before torch.compile"
            )
        for point, output in self._outputs.items():
            # Tensors of inference mode have no version: never trusted, always copied.
            overwritten = output.is_inference() or output._version != self._versions[point]
            if overwritten and point not in self._copied:
                self._copied.add(point)
                raise RuntimeError(
                    f"the output of point {point!r} was overwritten in place, which it was not in "
                    "the first pass; run the pass again: from now on it is copied"
                )
            if not overwritten:
                self._copied.discard(point)
