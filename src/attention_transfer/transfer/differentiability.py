"""Find, before training starts, what keeps a network from being differentiated twice."""

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from attention_transfer.double_backward import DoubleBackward
from attention_transfer.errors import InputError, first_line
from attention_transfer.functional.losses import summed_cross_entropy
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import (
    Inputs,
    evaluating,
    main_input,
    map_inputs,
    own_precision,
    unwrapped,
    with_main_input,
)
from attention_transfer.transfer.cloned_state import call_with_cloned_state
from attention_transfer.transfer.forward import FindLogits, class_logits, find_logits, preprocess
from attention_transfer.transfer.input_gradients import check_images

__all__ = ["check_twice_differentiable", "refuse_sharded", "warn_if_compiled"]


def is_compiled(network: nn.Module) -> bool:
    """Return whether ``torch.compile`` was applied to the network or a part of it.

    >>> is_compiled(nn.Linear(2, 2))
    False
    """
    return any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in network.modules()
    )


def warn_if_compiled(student: nn.Module, compiling: bool = False) -> None:
    """Warn that a compiled student runs eagerly with gradient terms.

    Args:
        student: the network.
        compiling: whether it is being compiled now.
    """
    if compiling or is_compiled(student):
        warnings.warn(
            "the student is compiled, and a compiled graph has no second derivative: with "
            "gradient terms it runs eagerly",
            stacklevel=2,
        )


def refuse_sharded(network: nn.Module) -> None:
    """Raise an InputError if FSDP, of either generation, holds any of the weights.

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
    network: nn.Module,
    inputs: Inputs,
    preprocessing: Preprocessing | None = None,
    logits: FindLogits = find_logits,
) -> None:
    """Try double backpropagation on copies of the weights.

    It runs on one image in eval mode and, if the network is in another, on two in its own.

    Args:
        network: the student.
        inputs: of the network; the first samples are used.
        preprocessing: of its main input.
        logits: finds the logits (N, classes) in its output.

    Raises:
        InputError: the loss does not depend on the images, an operation overwrites in place what
            is needed, or something has no second derivative or a detached one; the module is
            named.
    """
    images = main_input(inputs)
    check_images(images)
    inner = unwrapped(network)
    generators = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(generators), torch.enable_grad():
        with evaluating(inner):
            one = map_inputs(lambda value: value[:1], inputs)
            _try(_Attempt(inner, one, preprocessing, logits))
        if any(module.training for module in inner.modules()):
            _try(_Attempt(inner, _two_samples(inputs), preprocessing, logits))


def _two_samples(inputs: Inputs) -> Inputs:
    """Return the first two samples; of a single one, it and its mirror image."""
    if len(main_input(inputs)) > 1:
        return map_inputs(lambda value: value[:2], inputs)
    return map_inputs(lambda value: torch.cat([value, value.flip(-1)]), inputs)


@dataclass
class _Attempt:
    """A network, in its current mode, and the inputs to try it on."""

    network: nn.Module
    inputs: Inputs
    preprocessing: Preprocessing | None
    find_logits: FindLogits

    def run(self) -> tuple[DoubleBackward, Tensor, object]:
        """Run it on copies of the weights; return the block, the images as a leaf, the output."""
        leaf = main_input(self.inputs).detach().clone().requires_grad_()
        with DoubleBackward() as double:
            inputs = with_main_input(self.inputs, leaf)
            own_inputs = preprocess(self.network, inputs, self.preprocessing)
            with own_precision(self.network, own_inputs):
                output = call_with_cloned_state(self.network, own_inputs)
        return double, leaf, output


def _try(attempt: _Attempt) -> None:
    try:
        double, images, output = attempt.run()
        logits = class_logits(output, attempt.find_logits)
        with torch.autocast(images.device.type, enabled=False):
            loss = summed_cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.long))
            # A derivative that is detached from its own would go unnoticed.
            detached = _detached(loss)
            gradient = double.gradient(loss, images)
            torch.autograd.backward(gradient.square().sum())
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(_explanation(attempt, first_line(error))) from error
    if detached:
        raise InputError(_explanation(attempt, f"the gradient of {detached[0]} is detached"))


def _detached(output: Tensor) -> list[str]:
    """Return the names of operations whose gradient is detached from its own derivative.

    The list is filled in by the differentiable backward passes to come; gradients of zero, which
    lose nothing, are left out.
    """
    found: list[str] = []

    def watch(node: Any) -> None:
        def look(inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor | None, ...]) -> None:
            arriving = any(value is not None and value.requires_grad for value in outputs)
            leaving = [value for value in inputs if value is not None]
            cut = leaving and not any(value.requires_grad for value in leaving)
            if arriving and cut and any(bool(value.any()) for value in leaving):
                found.append(node.name())

        node.register_hook(look)

    reached, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in reached:
            reached.add(node)
            watch(node)
            waiting += [following for following, _ in node.next_functions]
    return found


@dataclass
class _Call:
    """A call of one module in a forward pass."""

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
        """Whether the output was overwritten in place later."""
        return self.output._version != self.version

    def again(self) -> tuple[list[Tensor], Tensor]:
        """Run the module alone; return copies of its differentiable inputs, and its output."""
        leaves = [
            value.detach().clone().requires_grad_() if _has_gradient(value) else value
            for value in self.inputs
        ]
        # Modules may overwrite what they are given, and leaves must not be.
        given = tuple(leaf.clone() if _has_gradient(leaf) else leaf for leaf in leaves)
        output = call_with_cloned_state(self.module, given, self.settings)
        return [leaf for leaf in leaves if _has_gradient(leaf)], output


def _has_gradient(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _calls(attempt: _Attempt) -> list[_Call]:
    """Return the modules' calls, inner before outer; they end where the pass itself fails."""
    calls: list[_Call] = []
    names = {module: name for name, module in attempt.network.named_modules()}

    def record(module: nn.Module, inputs: Any, settings: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            inputs, settings = tree_map_only(Tensor, Tensor.detach, (inputs, settings))
            call = _Call(names[module], module, inputs, settings, output, output._version)
            calls.append(call)

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in names]
    try:
        attempt.run()
    except RuntimeError:
        pass  # the first attempt has the error; the calls so far show where
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _explanation(attempt: _Attempt, reason: str) -> str:
    """Return the sentence that names the module and the way out."""
    network, calls = type(attempt.network).__name__, _calls(attempt)
    begin = "gradient attention differentiates the network twice, but "
    if "checkpoint" in reason:
        return (
            f"{begin}activation checkpointing, which computes features again in the backward pass, "
            "does not allow it; switch it off, in timm by set_grad_checkpointing(False)"
        )
    if "leaf Variable" in reason:
        where = f"near {calls[0]}" if calls else f"in {network}"
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
    faults = [(call, fault) for call in calls if (fault := _fault(call)) is not None]
    if not faults:
        return f"{begin}{network} cannot be: {reason}"
    # What cuts a gradient need not be on the images' way (learned positions, a mask): it is last.
    call, fault = min(faults, key=lambda found: found[1].cuts)
    return f"{begin}{call} {fault.text}"


def _saves_its_output(call: _Call) -> bool:
    """Return whether the module's backward pass needs the output that was overwritten."""
    inputs, output = call.again()
    try:
        torch.autograd.grad(output.mul_(1).sum(), inputs, allow_unused=True)
    except RuntimeError:
        return True
    return False


class _Fault(NamedTuple):
    """Why a module cannot be differentiated twice, and the way out."""

    text: str
    cuts: bool = False
    """Whether the fault is only that the output does not depend on the inputs."""


_INSTEAD = "replace it by a module that has one, or leave the gradient terms out"
_CUT = _Fault(
    "cuts the gradient (detach, no_grad, or an operation without a derivative), so the loss does "
    "not depend on the images; let gradients through it",
    cuts=True,
)
_DETACHED = _Fault(f"has a gradient that is detached, so no second derivative; {_INSTEAD}")


def _fault(call: _Call) -> _Fault | None:
    """Return what is wrong with a module; None if it can be differentiated twice."""
    with DoubleBackward() as double:
        inputs, output = call.again()
    if not inputs or not output.is_floating_point():
        return None
    weighted = (output * torch.ones_like(output).requires_grad_()).sum()
    detached = _detached(weighted)
    fault: _Fault | None = _CUT
    for value in inputs:
        try:
            gradient = double.gradient(weighted, value)
        except RuntimeError:
            continue  # the output does not depend on this one
        if detached:
            return _DETACHED
        try:
            torch.autograd.backward(gradient.square().sum(), retain_graph=True)
        except (RuntimeError, NotImplementedError) as error:
            return _Fault(f"has no second derivative ({first_line(error)}); {_INSTEAD}")
        fault = None
    return fault
