"""An exponential moving average of a network's weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.functional.maps import to_float32

__all__ = ["WeightAverage", "decay_after"]


def decay_after(updates: int, decay: float) -> float:
    """Return the decay of an average's next update.

    It rises from 0 to the decay as 1 - (1 + updates)^(-2/3), so that the first weights, which are
    random, are soon forgotten, and a run of any length has a useful average (timm's warmup).

    Example:
        >>> [round(decay_after(updates, 0.999), 3) for updates in (0, 100, 10_000, 100_000)]
        [0.0, 0.954, 0.998, 0.999]
    """
    return min(decay, 1.0 - math.pow(1 + updates, -2 / 3))


class WeightAverage:
    """The exponential moving average of a network's parameters and running statistics.

    It is kept in at least float32, in which small updates of half-precision weights are not lost.

    Args:
        network: whose weights are averaged, on its device.
        decay: in (0, 1), the share of the average in its next value.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.updates = 0
        self.values = {
            name: (to_float32(value) if value.is_floating_point() else value).detach().clone()
            for name, value in self._weights().items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's weights, after a step."""
        share = 1 - decay_after(self.updates, self.decay)
        self.updates += 1
        weights = self._weights()
        means = {name: mean for name, mean in self.values.items() if mean.is_floating_point()}
        targets = [weights[name].to(mean.dtype) for name, mean in means.items()]
        torch._foreach_lerp_(list(means.values()), targets, share)
        for name in self.values.keys() - means.keys():
            self.values[name].copy_(weights[name])  # counters

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the average's weights inside the block, and its own after it."""
        own = {name: value.detach().clone() for name, value in self._weights().items()}
        self._put(self.values)
        try:
            yield
        finally:
            self._put(own)

    def state(self) -> dict[str, Any]:
        """Return the average, for a checkpoint."""
        return {"updates": self.updates, "values": dict(self.values)}

    def restore(self, state: dict[str, Any]) -> None:
        """Load what :meth:`state` returned.

        Raises:
            LookupError, ValueError: it does not fit the network.
        """
        values = state["values"]
        for name, value in self.values.items():
            if values[name].shape != value.shape:  # copying would broadcast
                raise ValueError(f"the average of {name} has shape {tuple(values[name].shape)}")
        self.updates = int(state["updates"])
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, value in self._weights().items():
            value.copy_(values[name])

    def _weights(self) -> dict[str, Tensor]:
        """Return the tensors of the network's state, by name, in their own memory."""
        return self.network.state_dict()
