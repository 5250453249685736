"""The layers that give a network's logits, and new ones for other classes."""

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError
from attention_transfer.taps import evaluating

__all__ = ["logit_layers", "replace_head"]


def logit_layers(network: nn.Module, input_size: tuple[int, int, int]) -> dict[str, nn.Module]:
    """The linear layers or convolutions that give the logits, by name.

    timm's networks say which they are. Of others it is the last that runs, on a black image, among
    those that put out as many values as there are logits.

    Args:
        network: gives logits (N, classes).
        input_size: channels, height and width of its images.

    Raises:
        InputError: there is none.

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
        found = {name: module for name, module in layers.items() if id(module) in inside}
    else:
        found = _last_run(network, layers, input_size)
    if not found:
        raise InputError(
            f"{type(network).__name__} has no linear layer or convolution that gives its logits, "
            "to be replaced or to learn faster than the rest"
        )
    return found


def _last_run(
    network: nn.Module, layers: dict[str, nn.Module], input_size: tuple[int, int, int]
) -> dict[str, nn.Module]:
    run: list[tuple[nn.Module, Tensor]] = []

    def hook(layer: nn.Module, _: object, output: Tensor) -> None:
        run.append((layer, output))

    like = next(network.parameters())
    images = torch.zeros(2, *input_size, dtype=like.dtype, device=like.device)
    with ExitStack() as stack:
        for layer in layers.values():
            stack.callback(layer.register_forward_hook(hook).remove)
        stack.enter_context(evaluating(network))
        stack.enter_context(torch.no_grad())
        logits = network(images)
    classes = logits.shape[-1] if isinstance(logits, Tensor) else None
    axis = {id(layer): -1 if isinstance(layer, nn.Linear) else 1 for layer in layers.values()}
    last = [layer for layer, output in run if output.shape[axis[id(layer)]] == classes][-1:]
    return {name: layer for name, layer in layers.items() if layer in last}


def replace_head(network: nn.Module, classes: int, input_size: tuple[int, int, int]) -> None:
    """Puts new layers for other classes in place of those that give the logits.

    Raises:
        InputError: there are none.
    """
    if hasattr(network, "reset_classifier"):
        network.reset_classifier(classes)  # type: ignore[operator]
        return
    for name, head in logit_layers(network, input_size).items():
        parent, _, attribute = name.rpartition(".")
        if isinstance(head, nn.Linear):
            fresh: nn.Module = nn.Linear(head.in_features, classes, head.bias is not None)
        else:
            assert isinstance(head, nn.Conv2d)
            fresh = nn.Conv2d(head.in_channels, classes, head.kernel_size)  # type: ignore[arg-type]
        setattr(network.get_submodule(parent), attribute, fresh)
