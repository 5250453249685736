"""Less memory for more time: the insides of a network's parts are not kept for the backward pass
but computed again in it, from what went into each part.

The result is the same. When a part runs again, random numbers and buffers are what they were before
its first run, and what it writes into buffers is dropped: batch statistics move once.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.utils.checkpoint import checkpoint

from attention_transfer.errors import InputError
from attention_transfer.taps import evaluating
from attention_transfer.training.memory.activations import Activations, lightest_parts
from attention_transfer.transfer import class_logits

__all__ = ["Recomputation", "plan_recomputation", "recomputing"]


class Recomputation(NamedTuple):
    """Which parts of a network are computed again, and what that leaves to hold."""

    parts: dict[str, nn.Module]
    """By name; none of them inside another."""
    share: float
    """The most activations held at any time, over all that autograd keeps without."""


@contextmanager
def recomputing(parts: Collection[nn.Module]) -> Iterator[None]:
    """In the block, a forward pass keeps what goes into the parts, and nothing of their insides.

    The backward pass may come after the block. Hooks on modules inside a part run again with it,
    if they are still there.

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
        for module, forward, own in forwards:
            if own:
                vars(module)["forward"] = forward
            else:
                vars(module).pop("forward", None)


def plan_recomputation(network: nn.Module, images: Tensor) -> Recomputation:
    """The parts of a network that leave least to hold, tried out: logits, gradients and buffers
    come out as without. The network is left as it was.

    Args:
        network: as it will be trained, frozen parts included.
        images: (1, C, H, W), as the network takes them.

    Raises:
        InputError: no part leaves less to hold, or the network is not the same when it runs again.

    Example:
        >>> def block():
        ...     return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
        >>> network = nn.Sequential(nn.Flatten(), block(), block(), block())
        >>> plan = plan_recomputation(network, torch.rand(1, 1, 2, 2))
        >>> list(plan.parts), plan.share < 1
        (['1', '2'], True)
    """
    kind = type(network).__name__
    images = torch.cat([images, images.flip(3)])
    with _told(kind), _undisturbed(network):
        activations = Activations(network, images)
    names = lightest_parts(activations)
    if not names:
        raise InputError(
            f"{kind} has no parts to compute again that would leave less to keep in memory; leave "
            "out --grad-checkpoint, or lower memory with --accumulate or --precision bf16"
        )
    modules = dict(network.named_modules())
    parts = {name: modules[name] for name in names}
    with _told(kind):
        plain, again = _trial(network, images, {}), _trial(network, images, parts)
    if not all(_alike(*both) for both in zip(plain, again, strict=True)):
        raise InputError(
            f"{kind} comes out differently when its parts run again: they depend on more than "
            "their input, weights, buffers and torch's random numbers; leave out --grad-checkpoint"
        )
    return Recomputation(parts, activations.peak(names)[0] / activations.peak(())[0])


# torch.compiler.disable, but that importing the compiler waits for the first call.
@_disable_dynamo
def _run(module: nn.Module, forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """A module's forward, of which the input alone is kept; eager, as compiled code has no buffers
    that could be others when it runs again.
    """
    buffers = _BuffersAsTheyAre(module)
    # Lists that the caller goes on filling, as DenseNet's, are kept as they are now.
    inputs = [list(value) if isinstance(value, list) else value for value in given]
    return checkpoint(
        partial(forward, **named),
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), buffers),
    )


class _BuffersAsTheyAre:
    """A context, for later and more than once, in which a module's buffers hold what they do now;
    after it they hold what they did before it, whatever was written into them in it.
    """

    def __init__(self, module: nn.Module) -> None:
        self._kept = [
            (owner, name, buffer.clone())
            for owner in module.modules()
            for name, buffer in owner.named_buffers(recurse=False)
        ]
        self._current: list[Tensor] = []

    def __enter__(self) -> None:
        self._current = [getattr(owner, name) for owner, name, _ in self._kept]
        for owner, name, buffer in self._kept:
            setattr(owner, name, buffer.clone())

    def __exit__(self, *error: object) -> None:
        for (owner, name, _), current in zip(self._kept, self._current, strict=True):
            setattr(owner, name, current)


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """The network in training mode; its modes, its buffers and torch's random numbers are put back
    after the block.
    """
    buffers = _BuffersAsTheyAre(network)
    with torch.random.fork_rng(devices=[]), evaluating(network), torch.enable_grad(), buffers:
        torch.manual_seed(0)
        network.train()
        yield


def _trial(network: nn.Module, images: Tensor, parts: dict[str, nn.Module]) -> list[Tensor]:
    """Logits, gradients and buffers of a step."""
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with _undisturbed(network):
        with recomputing(parts.values()):
            logits = class_logits(network(images))
        loss = (logits * torch.linspace(-1, 2, logits.numel()).view_as(logits)).sum()
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        return [logits.detach(), *gradients, *(buffer.clone() for buffer in network.buffers())]


@contextmanager
def _told(kind: str) -> Iterator[None]:
    """Whatever a network raises is the user's to see, in one line."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{kind} cannot be trained with --grad-checkpoint ({type(error).__name__}: {reason}); "
            "leave it out"
        ) from error


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    if one.shape != other.shape:
        return False
    one, other = one.double(), other.double()
    scale = float(one.nan_to_num().abs().max()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)
