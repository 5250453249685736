"""A teacher's copy that only answers, for less."""

import copy
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from attention_transfer.taps import Taps, evaluating, unwrapped
from attention_transfer.taps.modules import module_of

__all__ = ["inference_copy", "lower_weights"]

TOLERANCE = 1e-3
"""Of the largest magnitude, by which a folded network's features may differ: rounding stays far
below, and a batch norm folded where it must not be is far above.
"""


def inference_copy(network: nn.Module, points: Sequence[str], example: Tensor) -> nn.Module:
    """A frozen copy in eval mode whose batch norms are folded into the convolutions before them,
    where nothing else sees what is between: W' = W g / s, b' = (b - m) g / s + h, for batch norm's
    mean m, standard deviation s, weight g and bias h.

    What it puts out, at the points and at its end, is compared with the network's on the example
    and on its negative; a network that would answer otherwise is copied as it is, and one that
    cannot be copied answers itself.

    Args:
        network: any module; it stays as it is.
        points: names of modules that are to be read.
        example: images (N, C, H, W), as the network takes them.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> inference_copy(network, ["2"], torch.rand(1, 3, 8, 8))[1]
        Identity()
    """
    try:
        plain = copy.deepcopy(unwrapped(network)).requires_grad_(False).eval()
    except Exception:  # whatever a module raises that holds a lock, a file, a graph
        return network
    example = torch.cat([example, -example])
    folded = copy.deepcopy(plain)
    found = _foldable(folded, {module_of(point) for point in points}, example)
    for convolution, norm in found.items():
        before, after = folded.get_submodule(convolution), folded.get_submodule(norm)
        assert isinstance(before, nn.Conv2d)
        assert isinstance(after, nn.BatchNorm2d)
        _replace(folded, convolution, fuse_conv_bn_eval(before, after))
        _replace(folded, norm, nn.Identity())
    if not found or not _agree(plain, folded, points, example):
        return plain
    return folded.requires_grad_(False)


def lower_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Keeps the weights of convolutions and linear layers in the dtype that autocast would cast
    them to at every call; the network then runs under autocast only.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)


@torch.no_grad()
def _foldable(network: nn.Module, read: set[str], example: Tensor) -> dict[str, str]:
    """Convolutions and the batch norms that take their output, where both run once."""
    runs: Counter[str] = Counter()
    outputs: dict[str, Tensor] = {}
    takers: dict[str, str] = {}

    def hook(name: str) -> Any:
        def see(module: nn.Module, given: tuple[object, ...], output: object) -> None:
            runs[name] += 1
            if type(module) is nn.Conv2d and isinstance(output, Tensor):
                outputs[name] = output
            elif type(module) is nn.BatchNorm2d and module.running_mean is not None:
                takers.update({source: name for source in outputs if outputs[source] is given[0]})

        return see

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if type(module) in (nn.Conv2d, nn.BatchNorm2d):
                hooks.callback(module.register_forward_hook(hook(name)).remove)
        network(example)
    return {
        source: taker
        for source, taker in takers.items()
        if source not in read and runs[source] == runs[taker] == 1
    }


@torch.no_grad()
def _agree(plain: nn.Module, folded: nn.Module, points: Sequence[str], example: Tensor) -> bool:
    """Whether two networks show the same at the points, and put out the same."""
    seen = []
    for network in (plain, folded):
        taps = Taps(network, points)
        with evaluating(network), taps as features:
            output = network(example)
        seen.append([*features.values(), *([output] if isinstance(output, Tensor) else [])])
    return all(
        bool((one - other).abs().max() <= TOLERANCE * one.abs().max())
        for one, other in zip(*seen, strict=True)
    )


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, own = name.rpartition(".")
    setattr(network.get_submodule(owner), own, module)
