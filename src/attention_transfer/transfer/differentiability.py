"""Finding, before training starts, what keeps a network from being differentiated twice."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attention_transfer.double_backward import DoubleBackward
from attention_transfer.errors import InputError
from attention_transfer.losses import summed_cross_entropy
from attention_transfer.taps import evaluating, unwrapped
from attention_transfer.transfer.gradients import check_images
from attention_transfer.transfer.teacher import Normalization

__all__ = ["check_twice_differentiable", "is_compiled", "refuse_sharded"]


def is_compiled(network: nn.Module) -> bool:
    """Whether ``torch.compile`` was applied to the network or a part of it.

    >>> is_compiled(nn.Linear(2, 2))
    False
    """
    return any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in network.modules()
    )


def refuse_sharded(network: nn.Module) -> None:
    """Raises an InputError if FSDP, of either generation, holds any of the weights.

    >>> refuse_sharded(nn.Linear(2, 2))
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    sharding = (FSDPModule, FullyShardedDataParallel)
    sharded = any(isinstance(module, sharding) for module in network.modules()) or any(
        isinstance(weight, DTensor) or type(weight).__name__ == "FlatParameter"
        for weight in network.parameters()
    )
    if sharded:
        raise InputError(
            "gradient attention needs double backpropagation, which FSDP does not support: "
            "sharded weights are freed between the two backward passes; use "
            "DistributedDataParallel, or leave the gradient terms out"
        )


def check_twice_differentiable(
    network: nn.Module, images: Tensor, normalization: Normalization | None = None
) -> None:
    """Tries double backpropagation on one image, in eval mode.

    Args:
        network: the student.
        images: (N, C, H, W); the first is used.
        normalization: of its input.

    Raises:
        InputError: the loss does not depend on the images, an operation overwrites in place what
            is needed, or something has no second derivative; the module is named.
    """
    check_images(images)
    inner = unwrapped(network)
    images = images[:1].detach().clone().requires_grad_()
    with evaluating(inner), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        try:
            _differentiate_twice(inner, images, normalization)
        except (RuntimeError, NotImplementedError) as error:
            calls = _calls(inner, images, normalization)
            raise InputError(_explanation(inner, calls, _first_line(error))) from error
        # A module whose gradient is cut off from its own derivative would go unnoticed.
        for call in _calls(inner, images, normalization):
            fault = None if list(call.module.children()) else _fault(call)
            if fault:
                raise InputError(
                    f"gradient attention differentiates the network twice, but {call} {fault}"
                )


def _differentiate_twice(
    network: nn.Module, images: Tensor, normalization: Normalization | None
) -> None:
    given = images if normalization is None else normalization(images)
    with DoubleBackward() as double:
        logits = functional_call(network, _copies(network), (given,))
    labels = torch.zeros(1, dtype=torch.long, device=logits.device)
    gradient = double.gradient(summed_cross_entropy(logits, labels), images)
    torch.autograd.backward(gradient.square().sum())


def _copies(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers to run a module with, whose own and their hooks are not touched."""
    copies = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for name, weight in module.named_parameters():
        copies[name] = weight.detach().clone().requires_grad_(weight.requires_grad)
    return copies


@dataclass
class _Call:
    """One module's call in a forward pass."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    settings: dict[str, Any]
    output: Tensor
    version: int

    def __str__(self) -> str:
        kind = type(self.module).__name__
        return f"{self.name!r} ({kind})" if self.name else f"the network itself ({kind})"

    @property
    def overwritten(self) -> bool:
        """Whether the output was changed in place since."""
        return self.output._version != self.version

    def again(self) -> tuple[list[Tensor], Tensor]:
        """The module alone: copies of its inputs that can have a gradient, and its output."""
        leaves = [
            value.detach().clone().requires_grad_() if _has_gradient(value) else value
            for value in self.inputs
        ]
        # Modules may overwrite what they are given, and leaves must not be.
        given = tuple(leaf.clone() if _has_gradient(leaf) else leaf for leaf in leaves)
        output = functional_call(self.module, _copies(self.module), given, self.settings)
        return [leaf for leaf in leaves if _has_gradient(leaf)], output


def _has_gradient(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _calls(network: nn.Module, images: Tensor, normalization: Normalization | None) -> list[_Call]:
    """What ran, inner modules before outer ones; ends where the pass itself fails."""
    calls: list[_Call] = []
    names = {module: name for name, module in network.named_modules()}

    def record(module: nn.Module, inputs: Any, settings: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            call = _Call(names[module], module, inputs, settings, output, output._version)
            calls.append(call)

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in names]
    try:
        with DoubleBackward():
            network(images if normalization is None else normalization(images))
    except RuntimeError:
        pass  # the first attempt told what; the calls so far tell where
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _explanation(network: nn.Module, calls: list[_Call], reason: str) -> str:
    """The sentence that names the module and the way out."""
    begin = "gradient attention differentiates the network twice, but "
    if "leaf Variable" in reason:
        where = f"near {calls[0]}" if calls else f"in {type(network).__name__}"
        return (
            f"{begin}the images are overwritten in place ({where}); "
            "write x = (x - mean) / std instead of x.sub_(mean).div_(std), use inplace=False"
        )
    if "inplace operation" in reason:
        overwritten = [call for call in calls if call.overwritten]
        guilty = [call for call in overwritten if _saves_its_output(call)] or overwritten
        what = f"the output of {guilty[0]}" if guilty else "a tensor inside it"
        return (
            f"{begin}{what} is overwritten in place after it was saved for the backward pass; "
            "use inplace=False, or x = x + y instead of x += y, in what follows it"
        )
    for call in calls:
        fault = _fault(call)
        if fault:
            return f"{begin}{call} {fault}"
    return f"{begin}{type(network).__name__} cannot be: {reason}"


def _saves_its_output(call: _Call) -> bool:
    """Whether the module's backward pass needs the output that was overwritten."""
    inputs, output = call.again()
    try:
        torch.autograd.grad(output.mul_(1).sum(), inputs, allow_unused=True)
    except RuntimeError:
        return True
    return False


def _fault(call: _Call) -> str | None:
    """Why a module cannot be differentiated twice, and the way out; None if it can."""
    with DoubleBackward() as double:
        inputs, output = call.again()
    if not inputs or not output.is_floating_point():
        return None
    upstream = torch.ones_like(output).requires_grad_()
    instead = "replace it by a module that has one, or leave the gradient terms out"
    for value in inputs:
        try:
            gradient = double.gradient((output * upstream).sum(), value)
        except RuntimeError:
            return (
                "cuts the gradient (detach, no_grad, or an operation without a derivative), so "
                "the loss does not depend on the images; let gradients through it"
            )
        if not gradient.requires_grad:
            return f"has a gradient that is detached, so no second derivative; {instead}"
        try:
            torch.autograd.backward(gradient.square().sum(), retain_graph=True)
        except (RuntimeError, NotImplementedError) as error:
            return f"has no second derivative ({_first_line(error)}); {instead}"
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
