"""The forms of a network, in PyTorch and in files: their errors, sizes and latencies."""

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attention_transfer.export.graphs import Forward

__all__ = ["Form", "latencies", "logits_by_form", "parameter_bytes"]

WARM_UP, ROUNDS = 5, 40
"""Calls before and while latencies are measured."""


@dataclass(frozen=True)
class Form:
    """One form of a network: in PyTorch, or in a file."""

    name: str
    file: str | None
    bytes: int
    """Of the file; without one, of the parameters in float32."""
    milliseconds: float
    """The median of a forward pass of one image."""
    validation_error: float | None
    """In percent; None if the network has other classes than the data."""
    largest_difference: float | None
    """Of any probability from the student's in PyTorch, over the validation images."""


def logits_by_form(forwards: Mapping[str, Forward], inputs: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the logits (N, K) of each network for all inputs, which are prepared once.

    Args:
        forwards: networks by name.
        inputs: batches of their input.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in forwards}
    for batch in inputs:
        for name, forward in forwards.items():
            parts[name].append(forward(batch).float())
    return {name: torch.cat(logits) for name, logits in parts.items()}


def latencies(forwards: Mapping[str, tuple[Forward, Tensor]]) -> dict[str, float]:
    """Return the median milliseconds of each network for its input; the networks take turns.

    Args:
        forwards: name -> a network and its input, one image.
    """
    times: dict[str, list[float]] = {name: [] for name in forwards}
    for number in range(WARM_UP + ROUNDS):
        for name, (forward, image) in forwards.items():
            began = time.perf_counter()
            forward(image)
            if number >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(one) for name, one in times.items()}


def parameter_bytes(network: torch.nn.Module) -> int:
    """Return the bytes of a network's parameters in float32."""
    return 4 * sum(parameter.numel() for parameter in network.parameters())
