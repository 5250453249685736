"""The last layer of a file's weights, which may be another than the network's or have its name."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from attention_transfer.models.fitting import Misfit, fitted, misfit
from attention_transfer.models.heads import logit_layers
from attention_transfer.taps import unwrapped

__all__ = ["FittedWeights", "fitted_with_head", "head_names"]


class FittedWeights(NamedTuple):
    """Weights under a network's names."""

    tensors: dict[str, Tensor]
    differs: Misfit
    notices: list[str]
    """Lines of what changed."""
    other_head: list[str]
    """The names of a last layer of another kind, which was left out."""


def head_names(network: nn.Module, size: tuple[int, int, int]) -> list[str]:
    """Return the names of the weights and biases that compute the logits, weights first."""
    try:
        heads = logit_layers(network, size)
    except Exception:  # a network that has none, or does not run on such images
        return []
    names = network.state_dict().keys()
    return [
        f"{head}.{one}" for one in ("weight", "bias") for head in heads if f"{head}.{one}" in names
    ]


def fitted_with_head(
    network: nn.Module, weights: dict[str, Tensor], size: tuple[int, int, int]
) -> FittedWeights:
    """Return weights under a network's names, a last layer of another name included.

    A file may have it beside the rest (``head`` beside ``backbone``), in a sequence (``fc.1``), or
    as several layers, which are left out.

    Args:
        network: for the weights.
        weights: of a file.
        size: channels, height and width of the network's images.
    """
    tensors, differs, notices = fitted(network, weights)
    head = head_names(network, size) if differs.missing else []
    if not head or not set(differs.missing) <= set(head):
        return FittedWeights(tensors, differs, notices, [])
    modules = {_module(name) for name in head}
    known = {one for name in unwrapped(network).state_dict() for one in _starts(_module(name))}
    if any(not _at_head(_module(name), modules, known) for name in differs.unexpected):
        return FittedWeights(tensors, differs, notices, [])
    own = {id(value) for value in tensors.values()}
    beside = {name: value for name, value in weights.items() if id(value) not in own}
    candidates = {name: tensors[name] for name in differs.unexpected} or beside
    renamed = _renamed(network, head, candidates)
    if renamed is None:
        rest = {name: tensors[name] for name in tensors if name not in differs.unexpected}
        return FittedWeights(rest, misfit(network, rest), notices, differs.unexpected)
    taken = {id(value) for value in renamed.values()}
    rest = {name: value for name, value in weights.items() if id(value) not in taken}
    tensors, _, notices = fitted(network, rest)
    tensors |= renamed
    before, after = _module(next(iter(candidates))), _module(head[0])
    notices.append(f"took {before} for the last layer, {after}")
    return FittedWeights(tensors, misfit(network, tensors), notices, [])


def _renamed(
    network: nn.Module, head: list[str], candidates: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Return a head under the network's names; None if candidates are no single layer like it."""
    expected = unwrapped(network).state_dict()
    modules = {_module(name) for name in candidates}
    renamed = {f"{_module(head[0])}.{_last(name)}": value for name, value in candidates.items()}
    alike = renamed.keys() == set(head) and all(
        value.shape[1:] == expected[name].shape[1:] for name, value in renamed.items()
    )
    return renamed if alike and len(modules) == 1 else None


def _at_head(module: str, heads: set[str], known: set[str]) -> bool:
    """Return whether a module that a network lacks stands where its last layer does."""
    new = next((start for start in _starts(module) if start not in known), None)
    parent = module if new is None else _module(new)
    return bool(module) and any(not parent or f"{head}.".startswith(f"{parent}.") for head in heads)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _starts(module: str) -> list[str]:
    """Return a module's name and those of the modules around it, the outermost first.

    >>> _starts("a.b.c")
    ['a', 'a.b', 'a.b.c']
    """
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
