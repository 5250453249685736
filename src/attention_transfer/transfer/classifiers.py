"""The linear classifier at a network's end, and the features whose mean it reads."""

from collections import Counter
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError
from attention_transfer.taps import Inputs, call_network, evaluating, unwrapped
from attention_transfer.transfer.forward import find_logits

__all__ = ["Classifier", "pooled_classifier"]


class Classifier(NamedTuple):
    """A linear layer on the mean over positions of a module's output."""

    name: str
    """The module's name: of the linear layer, or of the one that computes class maps itself."""
    point: str
    """The module whose output is averaged."""
    layer: nn.Linear | None
    """None: the output at the point has a map for each class, whose means are the logits."""
    rectified: bool = False
    """Whether the network rectifies that output first, by a function that is no module."""


class _Run(NamedTuple):
    module: str
    means: list[Tensor]
    """Over positions, of channels first and of channels last."""
    rectified_means: list[Tensor]


def pooled_classifier(network: nn.Module, inputs: Inputs) -> Classifier:
    """Return a network's classifier, found by one pass in eval mode.

    It is the last linear layer whose input is the mean over the positions of some module's output,
    or of what is positive in it; or, of a network that averages class maps, the module that
    computes these.

    Args:
        network: returns logits.
        inputs: as the network takes them.

    Raises:
        InputError: there is none, as where a classifier reads flattened features.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        ...                         nn.Flatten(), nn.Linear(4, 10))
        >>> pooled_classifier(network, torch.rand(1, 3, 8, 8))[:2]
        ('4', '1')
    """
    network = unwrapped(network)
    runs: list[_Run] = []
    linear: list[tuple[str, nn.Linear, Tensor]] = []
    count: Counter[str] = Counter()

    def see(name: str, module: nn.Module, given: tuple[object, ...], output: object) -> None:
        count[name] += 1
        if isinstance(module, nn.Linear) and given and isinstance(given[0], Tensor):
            linear.append((name, module, given[0]))
        if isinstance(output, Tensor) and output.dim() >= 3 and output.is_floating_point():
            runs.append(_Run(name, _means(output), _means(output.relu())))

    with ExitStack() as stack:
        for name, module in network.named_modules():
            stack.callback(
                module.register_forward_hook(
                    lambda module, given, output, name=name: see(name, module, given, output)
                ).remove
            )
        stack.enter_context(evaluating(network))
        stack.enter_context(torch.no_grad())
        logits = find_logits(call_network(network, inputs))
    once = [run for run in runs if count[run.module] == 1 and run.module]
    for name, layer, features in reversed(linear):
        found = _averaged(once, features)
        if found is not None:
            return Classifier(name, found[0], layer, found[1])
    found = None if logits is None else _averaged(once, logits)
    if found is not None:
        return Classifier(found[0], found[0], None, found[1])
    raise InputError(
        f"{type(network).__name__} has no linear classifier on the mean over positions of a "
        "module's output, which class maps are made with; use a network that ends in global "
        "average pooling and a linear layer, on images so large that there are positions left"
    )


def _averaged(runs: list[_Run], vectors: Tensor) -> tuple[str, bool] | None:
    """Return the last module whose output has these means, and whether it is rectified first."""
    for run in reversed(runs):
        for rectified, means in enumerate((run.means, run.rectified_means)):
            if any(_close(one, vectors) for one in means):
                return run.module, bool(rectified)
    return None


def _means(output: Tensor) -> list[Tensor]:
    """Return the means over more than one position, of channels first and of channels last."""
    axes = [tuple(range(2, output.dim())), tuple(range(1, output.dim() - 1))]
    return [output.mean(dim=one) for one in axes if any(output.shape[axis] > 1 for axis in one)]


def _close(one: Tensor, other: Tensor) -> bool:
    """Return whether two vectors of each sample agree up to rounding, and are not zero."""
    if one.shape != other.shape or not bool(other.any()):
        return False
    tolerance = 64 * torch.finfo(one.dtype).eps
    difference = (one.double() - other.double()).abs().max()
    return bool(difference <= tolerance * other.abs().max())
