"""How many channels a network takes."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.taps import evaluating

__all__ = ["input_channels"]

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def input_channels(network: nn.Module, size: tuple[int, ...], likely: int = 3) -> int:
    """Return the number of channels of a network's input.

    It is the likely one, unless the network does not run on so many and the first convolution that
    gets its images takes others.

    Args:
        network: takes images.
        size: height and width of its images.
        likely: the number to try first.

    Example:
        >>> input_channels(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), (8, 8))
        1
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _Convolution)]
    if not layers or layers[0].in_channels in (likely, 0):  # 0: not known before the first run
        return likely
    taken: list[int] = []

    def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        image = inputs[0] if inputs else None
        if not taken and isinstance(image, Tensor) and image.dim() > 2:
            assert isinstance(layer, _Convolution)
            taken.append(layer.in_channels if image.shape[1] == likely else likely)

    weight = layers[0].weight
    images = torch.zeros(1, likely, *size, dtype=weight.dtype, device=weight.device)
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(hook).remove)
        stack.enter_context(evaluating(network))
        stack.enter_context(torch.no_grad())
        try:
            network(images)
        except Exception:
            return taken[0] if taken else likely
    return likely
