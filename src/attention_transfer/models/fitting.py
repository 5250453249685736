"""Putting weights into a network: names without wrappers, heads of other classes, what differs."""

import sys
import warnings
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from attention_transfer.errors import InputError, first_line
from attention_transfer.taps import structure_copy, unwrapped

__all__ = ["Misfit", "check_fit", "fitted", "misfit", "put"]

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names that torch.compile and others put anywhere between those of modules."""

SHOWN = 3
"""Names of each cause that an error shows."""


class Misfit(NamedTuple):
    """How weights differ from a network's, by cause."""

    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    @property
    def names(self) -> set[str]:
        """The names of all weights that differ."""
        return {name for names in self for name in names}

    def describe(self, network: nn.Module, weights: Mapping[str, Tensor]) -> str:
        """Return the first names of each cause, for an error message."""
        expected = unwrapped(network).state_dict()
        shapes = [
            f"{name} {tuple(weights[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in self.reshaped
        ]
        causes = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": shapes,
        }
        return "; ".join(
            f"{cause}: {', '.join(names[:SHOWN])}"
            + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
            for cause, names in causes.items()
            if names
        )


def misfit(network: nn.Module, weights: Mapping[str, Tensor]) -> Misfit:
    """Return how weights differ from what ``network.load_state_dict(weights)`` takes.

    A copy of the network's structure tries it, without values: networks may convert older names
    and fill in what older files lack, such as batch norm's ``num_batches_tracked``.
    """
    network = unwrapped(network)
    expected = network.state_dict()
    reshaped = [
        name
        for name, value in expected.items()
        if name in weights
        and isinstance(value, Tensor)
        and not is_lazy(value)
        and weights[name].shape != value.shape
    ]
    fitting = {
        name: torch.empty_like(value, device="meta")
        for name, value in weights.items()
        if name not in reshaped
    }
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    if missing or unexpected:
        with suppress(Exception), warnings.catch_warnings():  # of a network that cannot be copied
            warnings.simplefilter("ignore")
            structure = structure_copy(network).to("meta")
            missing, unexpected = _load(structure, fitting)
    computed = {name for name, _ in network.named_buffers()} - expected.keys()
    return Misfit(
        [name for name in missing if name not in reshaped],
        [name for name in unexpected if name not in computed],
        reshaped,
    )


def fitted(
    network: nn.Module, weights: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Misfit, list[str]]:
    """Return weights under the network's names, how they still differ, and lines of what changed.

    Wrappers' names (``module.``, ``_orig_mod.``, ``backbone.``, ...) are taken off, and networks of
    timm convert weights of other sizes and of their authors' own code.
    """
    found = misfit(network, weights)
    if not found.names:
        return weights, found, []
    renamed, notices = _without_wrappers(weights, unwrapped(network).state_dict().keys())
    differs = misfit(network, renamed)
    if differs.names:
        converted = _converted(network, renamed)
        after = misfit(network, converted)
        if len(after.names) < len(differs.names):
            renamed, differs = converted, after
            notices.append("converted them to the network's input size and names")
    if len(differs.names) < len(found.names):
        return renamed, differs, notices
    return weights, found, []


def put(weights: Mapping[str, Tensor], network: nn.Module) -> None:
    """Load weights that fit, apart from a head that was left out, into a network.

    Raises:
        InputError: they hold no values, or of a kind that the network does not take.
    """
    try:
        _load(unwrapped(network), weights)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"the weights do not fit {type(unwrapped(network)).__name__}: {first_line(error)}"
        ) from error


def _load(network: nn.Module, weights: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Load what fits, and return the names that are missing and those that are unexpected.

    Without a version of their format, weights are taken for old ones, as torch's layers do it.
    """
    try:
        missing, unexpected = network.load_state_dict(weights, strict=False)
    except ValueError:  # of networks that want a version, such as torchvision's MNASNet
        versioned: OrderedDict[str, Tensor] = OrderedDict(weights)
        versioned._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
        missing, unexpected = network.load_state_dict(versioned, strict=False)
    return missing, unexpected


def check_fit(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise an InputError unless weights fit a network; the path is for the message."""
    found = misfit(network, weights)
    if found.names:
        raise InputError(
            f"{path} does not fit {type(unwrapped(network)).__name__}: "
            f"{found.describe(network, weights)}; give weights of the same architecture, class "
            "count and input size"
        )


def _without_wrappers(
    weights: dict[str, Tensor], expected: Collection[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights under names without wrappers, and a line about it."""
    names = {name: _unwrapped_name(name) for name in weights}
    counts = Counter(_starts(names.values(), expected))
    prefix = min(counts, key=lambda prefix: (-counts[prefix], len(prefix)), default="")
    if 2 * counts[prefix] < len(expected):  # endings that are the same by accident
        prefix = ""
    renamed = {
        name.removeprefix(prefix): weights[before]
        for before, name in names.items()
        if name.startswith(prefix)
    }
    removed = [
        f"{wrapper}." for wrapper in WRAPPERS if any(f"{wrapper}." in one for one in weights)
    ]
    removed += [prefix] if prefix else []
    notices = [f"took {' and '.join(removed)} off the names"] if removed else []
    left = [before for before, name in names.items() if not name.startswith(prefix)]
    if left:
        others = Counter(_starts(left, expected))
        chosen = max(others, key=lambda start: (others[start], -len(start)), default="")
        choice = (
            f", which FILE#{chosen[:-1]} chooses" if 2 * others[chosen] >= len(expected) else ""
        )
        notices.append(f"left out {len(left)} others ({left[0]}, ...){choice}")
    return renamed, notices


def _starts(names: Iterable[str], expected: Collection[str]) -> Iterator[str]:
    """Yield what names have before the names that a network expects."""
    for name in names:
        for rest in _endings(name):
            if rest in expected:
                yield name[: len(name) - len(rest)]


def _unwrapped_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _endings(name: str) -> list[str]:
    """Return a dotted name and its endings.

    >>> _endings("a.b.c")
    ['a.b.c', 'b.c', 'c']
    """
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _converted(network: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as the conversion of the network's own zoo makes them, if there is one."""
    network = unwrapped(network)
    module = sys.modules.get(type(network).__module__)
    convert = getattr(module, "checkpoint_filter_fn", None)  # timm's
    resize = getattr(module, "interpolate_embeddings", None)  # torchvision's
    try:
        if resize is not None:
            converted = resize(network.image_size, network.patch_size, OrderedDict(weights))
        elif convert is not None:
            converted = convert(dict(weights), network)
        else:
            return weights
    except Exception:  # it expects the weights of its network's authors
        return weights
    kept = isinstance(converted, Mapping)
    return {n: v for n, v in converted.items() if isinstance(v, Tensor)} if kept else weights
