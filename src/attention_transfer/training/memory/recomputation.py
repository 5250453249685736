"""Recomputation (gradient checkpointing): less memory for more time.

The activations inside some modules are not saved for the backward pass but computed again in it,
from the modules' inputs. The result is the same: when a module runs again, random numbers and
buffers are as before its first run, and what it writes into buffers is dropped, so that batch
statistics change once.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.utils.checkpoint import checkpoint

from attention_transfer.errors import InputError, first_line
from attention_transfer.taps import evaluating
from attention_transfer.training.memory.activations import Activations, lightest_parts
from attention_transfer.transfer import class_logits

__all__ = ["Recomputation", "plan_recomputation", "recomputing"]


class Recomputation(NamedTuple):
    """The modules of a network whose insides are recomputed."""

    parts: dict[str, nn.Module]
    """Module name -> module; none is inside another."""
    share: float
    """The peak of activations in memory, as a share of the peak without recomputation."""


@contextmanager
def recomputing(parts: Collection[nn.Module]) -> Iterator[None]:
    """Make forward passes in the block save the modules' inputs and nothing inside them.

    The backward pass may come after the block. Hooks on inner modules run again with them, if
    they have not been removed.

    Args:
        parts: modules of one network, none inside another.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> with recomputing([network]):
        ...     loss = network(torch.ones(3, 2)).sum()
        >>> loss.backward()
        >>> network[0].weight.grad is not None
        True
    """
    forwards = [(module, module.forward, "forward" in vars(module)) for module in parts]
    try:
        for module, forward, _ in forwards:
            vars(module)["forward"] = partial(_run, module, forward)
        yield
    finally:
        for module, forward, is_own in forwards:
            if is_own:
                vars(module)["forward"] = forward
            else:
                vars(module).pop("forward", None)


def plan_recomputation(network: nn.Module, images: Tensor) -> Recomputation:
    """Choose the modules to recompute, and check that the results stay the same.

    A step with and a step without recomputation must give the same logits, gradients and buffers.
    The network is left as it was.

    Args:
        network: as it will be trained, with its frozen modules.
        images: (1, C, H, W), preprocessed.

    Raises:
        InputError: no choice lowers the peak of memory, or results change.

    Example:
        >>> def block():
        ...     return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
        >>> network = nn.Sequential(nn.Flatten(), block(), block(), block())
        >>> plan = plan_recomputation(network, torch.rand(1, 1, 2, 2))
        >>> list(plan.parts), plan.share < 1
        (['1', '2'], True)
    """
    name = type(network).__name__
    images = torch.cat([images, images.flip(3)])
    with _failures_as_input_errors(name), _restored(network):
        activations = Activations(network, images)
    chosen = lightest_parts(activations)
    if not chosen:
        raise InputError(
            f"{name} has no modules whose recomputation would save memory; leave out "
            "--grad-checkpoint, or lower memory with --accumulate or --precision bf16"
        )
    modules = dict(network.named_modules())
    parts = {part: modules[part] for part in chosen}
    with _failures_as_input_errors(name):
        expected, result = _trial_step(network, images, {}), _trial_step(network, images, parts)
    if not all(_all_close(*pair) for pair in zip(expected, result, strict=True)):
        raise InputError(
            f"{name} gives other results when its modules run again: they depend on more than "
            "their input, weights, buffers and torch's random numbers; leave out --grad-checkpoint"
        )
    return Recomputation(parts, activations.peak(chosen)[0] / activations.peak(())[0])


# Like torch.compiler.disable, which would import the compiler at once instead of when needed.
@_disable_dynamo
def _run(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a module and save its input alone.

    It runs eagerly: compiled code could not read other buffers when it runs again.
    """
    buffers = _BufferSnapshot(module)
    # A list that the caller extends later, as DenseNet does, is copied as it is now.
    inputs = [list(value) if isinstance(value, list) else value for value in args]
    return checkpoint(
        partial(forward, **kwargs),
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), buffers),
    )


class _BufferSnapshot:
    """A reusable context in which a module's buffers have the values of its construction.

    On exit they get back the values of the entry; what the block writes into them is dropped.
    """

    def __init__(self, module: nn.Module) -> None:
        self._snapshot = [
            (owner, name, buffer.clone())
            for owner in module.modules()
            for name, buffer in owner.named_buffers(recurse=False)
        ]
        self._current: list[Tensor] = []

    def __enter__(self) -> None:
        self._current = [getattr(owner, name) for owner, name, _ in self._snapshot]
        for owner, name, buffer in self._snapshot:
            setattr(owner, name, buffer.clone())

    def __exit__(self, *error: object) -> None:
        for (owner, name, _), current in zip(self._snapshot, self._current, strict=True):
            setattr(owner, name, current)


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """Put the network into training mode; restore modes, buffers and random numbers after."""
    buffers = _BufferSnapshot(network)
    with torch.random.fork_rng(devices=[]), evaluating(network), torch.enable_grad(), buffers:
        torch.manual_seed(0)
        network.train()
        yield


def _trial_step(network: nn.Module, images: Tensor, parts: dict[str, nn.Module]) -> list[Tensor]:
    """Return the logits, gradients and buffers of a step with some modules recomputed."""
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with _restored(network):
        with recomputing(parts.values()):
            logits = class_logits(network(images))
        loss = (logits * torch.linspace(-1, 2, logits.numel()).view_as(logits)).sum()
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        return [logits.detach(), *gradients, *(buffer.clone() for buffer in network.buffers())]


@contextmanager
def _failures_as_input_errors(name: str) -> Iterator[None]:
    """Turn anything that a network raises into an InputError of one line."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"{name} cannot be trained with --grad-checkpoint ({type(error).__name__}: "
            f"{first_line(error)}); leave it out"
        ) from error


def _all_close(expected: Tensor, result: Tensor) -> bool:
    """Return whether two tensors are equal up to rounding."""
    if expected.shape != result.shape:
        return False
    expected, result = expected.double(), result.double()
    scale = float(expected.nan_to_num().abs().max()) if expected.numel() else 0.0
    return torch.allclose(expected, result, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)
