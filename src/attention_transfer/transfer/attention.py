"""A network's attention maps, for looking at."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError
from attention_transfer.maps import MapKind, activation_map
from attention_transfer.taps import Taps, evaluating
from attention_transfer.transfer.pairing import declared_points
from attention_transfer.transfer.teacher import Normalization, observe

__all__ = ["attention_maps"]


def attention_maps(
    model: nn.Module,
    images: Tensor,
    points: Sequence[str] | None = None,
    attention: Literal["activation"] = "activation",
    map: MapKind = "sum",
    power: float = 2.0,
    normalization: Normalization | tuple[Sequence[float], Sequence[float]] | None = None,
) -> dict[str, Tensor]:
    """Where a network looks: the attention map F of its activations at some points.

    The network runs once, in eval mode and without gradients; its mode is put back.

    Args:
        model: the network.
        images: (N, C, H, W), as the network takes them.
        points: names of modules; by default those the network declares.
        attention: ``"activation"``.
        map: ``"sum"`` or ``"max"`` over channels.
        power: p > 0 in |A|^p.
        normalization: (means, standard deviations) of the network's input, if the images are not
            normalised yet.

    Returns:
        Each point's maps, (N, H, W), in at least float32.

    Raises:
        InputError: an unknown point or attention, or no points known.
        ValueError: p is not positive, or features are not (N, C, H, W).

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())
        >>> {point: tuple(maps.shape) for point, maps in
        ...     attention_maps(network, torch.rand(2, 3, 8, 8), points=["1"]).items()}
        {'1': (2, 4, 4)}
    """
    if attention != "activation":
        raise InputError(f'attention must be "activation", got {attention!r}')
    taps = Taps(model, declared_points(model) if points is None else points)
    own = Normalization(*normalization) if normalization is not None else None
    with evaluating(model), torch.no_grad():
        features = observe(model, taps, images, own).features
    return {point: activation_map(features[point], map, power) for point in taps.points}
