"""The last layers of networks, which compute the logits, and new ones for other classes."""

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError
from attention_transfer.models.channels import input_channels
from attention_transfer.taps import evaluating

__all__ = ["logit_layers", "replace_head"]


def logit_layers(network: nn.Module, input_size: tuple[int, int, int]) -> dict[str, nn.Module]:
    """Return the linear layers or convolutions that compute the logits, by name.

    timm's networks name them. In others it is the last layer to run, on a black image, of those
    with as many output channels as there are logits.

    Args:
        network: returns logits (N, classes).
        input_size: channels, height and width of its images.

    Raises:
        InputError: there is no such layer.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 10))
        >>> list(logit_layers(network, (3, 4, 4)))
        ['2']
    """
    layers: dict[str, nn.Module] = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    if hasattr(network, "get_classifier"):
        heads = network.get_classifier()  # type: ignore[operator]
        inside = {
            id(module)
            for head in (heads if isinstance(heads, tuple) else (heads,))
            for module in head.modules()
        }
        logits = {name: module for name, module in layers.items() if id(module) in inside}
    else:
        logits = _last_to_run(network, layers, input_size)
    if not logits:
        raise InputError(
            f"{type(network).__name__} has no linear layer or convolution that computes its "
            "logits; it cannot get a new last layer, or a learning rate of its own for it"
        )
    return logits


def _last_to_run(
    network: nn.Module, layers: dict[str, nn.Module], input_size: tuple[int, int, int]
) -> dict[str, nn.Module]:
    """Return the last layer to run with as many output channels as there are logits."""
    outputs: list[tuple[nn.Module, Tensor]] = []

    def hook(layer: nn.Module, _: object, output: Tensor) -> None:
        outputs.append((layer, output))

    weight = next(network.parameters())
    channels = input_channels(network, input_size[1:], input_size[0])
    images = torch.zeros(2, channels, *input_size[1:], dtype=weight.dtype, device=weight.device)
    with ExitStack() as stack:
        for layer in layers.values():
            stack.callback(layer.register_forward_hook(hook).remove)
        stack.enter_context(evaluating(network))
        stack.enter_context(torch.no_grad())
        logits = network(images)
    classes = logits.shape[-1] if isinstance(logits, Tensor) else None
    axis = {id(layer): -1 if isinstance(layer, nn.Linear) else 1 for layer in layers.values()}
    last = [layer for layer, output in outputs if output.shape[axis[id(layer)]] == classes][-1:]
    return {name: layer for name, layer in layers.items() if layer in last}


def replace_head(network: nn.Module, classes: int, input_size: tuple[int, int, int]) -> None:
    """Replace the layers that compute the logits by new ones for another number of classes.

    Raises:
        InputError: there is no such layer.
    """
    if hasattr(network, "reset_classifier"):
        network.reset_classifier(classes)  # type: ignore[operator]
        return
    for name, head in logit_layers(network, input_size).items():
        parent, _, attribute = name.rpartition(".")
        if isinstance(head, nn.Linear):
            layer: nn.Module = nn.Linear(head.in_features, classes, head.bias is not None)
        else:
            assert isinstance(head, nn.Conv2d)
            layer = nn.Conv2d(head.in_channels, classes, head.kernel_size)  # type: ignore[arg-type]
        setattr(network.get_submodule(parent), attribute, layer)
