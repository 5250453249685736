"""Run a network on copies of its parameters and buffers, so that its own are not touched."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["call_with_cloned_state"]


def call_with_cloned_state(
    network: nn.Module,
    inputs: Any,
    settings: Mapping[str, Any] | None = None,
    *,
    parameters: bool = True,
) -> Any:
    """Call a network on copies of its buffers and, if ``parameters``, of its parameters.

    Args:
        network: any module.
        inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        settings: further keyword arguments.
        parameters: whether parameters are copied too.

    Each module is taken once, whatever number of names it has, and each tensor is copied once.
    (``functional_call`` on ``state_dict()`` gives back a module of two names with tensors in place
    of its parameters.)

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> _ = call_with_cloned_state(norm, (torch.rand(4, 2),), parameters=False)
        >>> int(norm.num_batches_tracked)
        0
    """
    copies: dict[str, Tensor] = {}
    made: dict[int, Tensor] = {}
    for prefix, module in network.named_modules():
        own = list(module.named_buffers(recurse=False, remove_duplicate=False))
        if parameters:
            own += module.named_parameters(recurse=False, remove_duplicate=False)
        for name, tensor in own:
            if id(tensor) not in made:
                made[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
            copies[f"{prefix}.{name}" if prefix else name] = made[id(tensor)]
    arguments, keywords = inputs, dict(settings or {})
    if isinstance(inputs, Mapping):
        arguments, keywords = (), {**inputs, **keywords}
    return functional_call(network, copies, arguments, keywords, tie_weights=False)
