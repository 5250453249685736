"""A teacher's copy that answers for less: batch norms folded, weights in autocast's dtype."""

import copy
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from attention_transfer.taps import Inputs, Taps, call_network, evaluating, map_inputs, unwrapped
from attention_transfer.taps.modules import module_of
from attention_transfer.transfer.forward import FindLogits, find_logits, logits_in

__all__ = ["inference_copy", "lower_weights"]

TOLERANCE = 1e-3
"""Of the largest magnitude, by which a folded network's features may differ: rounding stays far
below, and a batch norm folded where it must not be is far above.
"""


def inference_copy(
    network: nn.Module, points: Sequence[str], example: Inputs, logits: FindLogits = find_logits
) -> nn.Module:
    """Return a frozen copy in eval mode with batch norms folded into the convolutions before them.

    W' = W g / s, b' = (b - m) g / s + h, for batch norm's mean m, standard deviation s, weight g
    and bias h, where nothing else reads what is between. The copy's features at the points
    and its logits are compared with the network's on the example and on its negative; where they
    differ, the copy is a plain one, and a network that cannot be copied is returned itself.

    Args:
        network: any module; it stays as it is.
        points: names of the modules to read.
        example: inputs, as the network takes them.
        logits: finds the logits in the network's output.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> inference_copy(network, ["2"], torch.rand(1, 3, 8, 8))[1]
        Identity()
    """
    try:
        plain = copy.deepcopy(unwrapped(network)).requires_grad_(False).eval()
    except Exception:  # whatever a module raises that holds a lock, a file, a graph
        return network
    example = map_inputs(_with_negative, example)
    folded = copy.deepcopy(plain)
    found = _foldable(folded, {module_of(point) for point in points}, example)
    for convolution, norm in found.items():
        before, after = folded.get_submodule(convolution), folded.get_submodule(norm)
        assert isinstance(before, nn.Conv2d)
        assert isinstance(after, nn.BatchNorm2d)
        _replace(folded, convolution, fuse_conv_bn_eval(before, after))
        _replace(folded, norm, nn.Identity())
    if not found or not _agree(plain, folded, points, example, logits):
        return plain
    return folded.requires_grad_(False)


def lower_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Convert the weights of convolutions and linear layers to the dtype of autocast.

    Autocast would cast them at every call; the network then runs under it alone.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)


@torch.no_grad()
def _foldable(network: nn.Module, read: set[str], example: Inputs) -> dict[str, str]:
    """Return convolutions and the batch norms that take their output, where both run once."""
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
        call_network(network, example)
    return {
        source: taker
        for source, taker in takers.items()
        if source not in read and runs[source] == runs[taker] == 1
    }


@torch.no_grad()
def _agree(
    plain: nn.Module,
    folded: nn.Module,
    points: Sequence[str],
    example: Inputs,
    find: FindLogits,
) -> bool:
    """Return whether two networks' features at the points, and their logits, agree."""
    seen = []
    for network in (plain, folded):
        taps = Taps(network, points)
        with evaluating(network), taps as features:
            output = call_network(network, example)
        logits = logits_in(output, find)
        seen.append([*features.values(), *([] if logits is None else [logits])])
    return all(
        bool((one - other).abs().max() <= TOLERANCE * one.abs().max())
        for one, other in zip(*seen, strict=True)
    )


def _with_negative(value: Tensor) -> Tensor:
    """Return floating-point samples and their negatives; others twice."""
    return torch.cat([value, -value if value.is_floating_point() else value])


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, own = name.rpartition(".")
    setattr(network.get_submodule(owner), own, module)
