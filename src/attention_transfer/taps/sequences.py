"""Sequences whose modules run without them, as activation checkpointing runs them.

``torch.utils.checkpoint.checkpoint_sequential`` and timm's ``set_grad_checkpointing`` call the
modules in an ``nn.Sequential`` one after the other, so that the sequence itself returns nothing.
Its output is that of its last module, and is read there.
"""

from collections.abc import Iterator

from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["PartsRun", "is_sequence", "parts_of"]


def is_sequence(module: nn.Module) -> bool:
    """Return whether a module's output is its last child's.

    >>> is_sequence(nn.Sequential(nn.ReLU())), is_sequence(nn.Linear(2, 2))
    (True, False)
    """
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and any(True for _ in parts_of(module))
    )


def parts_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children of a module by name; in place of a sequence in a sequence, its children.

    >>> [name for name, _ in parts_of(nn.Sequential(nn.Sequential(nn.ReLU()), nn.Flatten()))]
    ['0.0', '1']
    """
    # By position: a module that is in a sequence twice runs twice.
    for name, child in module._modules.items():
        if child is None:
            continue
        if isinstance(module, nn.Sequential) and isinstance(child, nn.Sequential):
            yield from ((f"{name}.{inner}", part) for inner, part in parts_of(child))
        else:
            yield name, child


class PartsRun:
    """The calls of a module's parts in one forward pass, which hooks report.

    Example:
        >>> sequence = nn.Sequential(nn.ReLU(), nn.Flatten())
        >>> run = PartsRun(sequence)
        >>> handles = run.watch()
        >>> _ = sequence[1](sequence[0](torch.rand(2, 3, 4)))
        >>> run.is_sequence
        True
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parts = [part for _, part in parts_of(module)]
        self._calls = 0
        self._chained = True
        self._output: object = None

    def watch(self) -> list[RemovableHandle]:
        """Add the hooks, and return their handles."""
        return [part.register_forward_hook(self._see) for part in dict.fromkeys(self._parts)]

    @property
    def any(self) -> bool:
        """Whether any part ran."""
        return self._calls > 0

    @property
    def is_sequence(self) -> bool:
        """Whether all parts ran as in a sequence: in order, each on the output of the last."""
        return is_sequence(self._module) and self._chained and self._calls == len(self._parts)

    def _see(self, part: nn.Module, given: tuple[object, ...], output: object) -> None:
        place = self._calls
        expected = place < len(self._parts) and self._parts[place] is part
        follows = place == 0 or (len(given) > 0 and given[0] is self._output)
        self._chained = self._chained and expected and follows
        self._calls, self._output = place + 1, output
