"""A network's attention maps, for looking at."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError
from attention_transfer.functional.maps import MapKind, activation_map
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import Taps, evaluating
from attention_transfer.transfer.input_gradients import check_images
from attention_transfer.transfer.pairing import PairingSide
from attention_transfer.transfer.teacher import (
    input_gradient,
    input_size,
    tapped_forward,
)

__all__ = ["Attention", "attention_maps", "attention_of"]


class Attention(NamedTuple):
    """A network's maps by point, each (N, H, W), and what it put out."""

    maps: dict[str, Tensor]
    output: object


def attention_maps(
    model: nn.Module,
    images: Tensor,
    points: Sequence[str] | None = None,
    attention: Literal["activation", "gradient"] = "activation",
    map: MapKind = "sum",
    power: float = 2.0,
    normalization: Preprocessing | tuple[Sequence[float], Sequence[float]] | None = None,
    labels: Tensor | None = None,
) -> dict[str, Tensor]:
    """Where a network looks: the attention map F of its activations at some points, or of its
    loss's gradient at the images.

    The network runs once, in eval mode; its mode and its gradients stay as they were.

    Args:
        model: the network.
        images: (N, C, H, W), as the network takes them.
        points: names of modules; by default those the network declares, or the recommended ones of
            :func:`attention_transfer.attention_points`. Gradient attention is read
            at the images, and takes none.
        attention: ``"activation"``, F(A) at each point, or ``"gradient"``, F(J) with J the gradient
            of the cross-entropy at the images (paper, section 3.2).
        map: ``"sum"`` or ``"max"`` over channels, or over the images' colours.
        power: p > 0 in |A|^p.
        normalization: (means, standard deviations) of the network's input, if the images are not
            normalised yet.
        labels: of the loss, for gradient attention: (N,) class indices; by default the classes
            that the network predicts.

    Returns:
        Each point's maps, (N, H, W), in at least float32; of gradient attention, ``"input"``'s.

    Raises:
        InputError: an unknown point or attention, no points known, points or labels given where
            they mean nothing, or a loss that does not depend on the images.
        ValueError: p is not positive, or features are not (N, C, H, W).

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())
        >>> {point: tuple(maps.shape) for point, maps in
        ...     attention_maps(network, torch.rand(2, 3, 8, 8), points=["1"]).items()}
        {'1': (2, 4, 4)}
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10))
        >>> attention_maps(network, torch.rand(2, 3, 8, 8), attention="gradient")["input"].shape
        torch.Size([2, 8, 8])
    """
    return attention_of(model, images, points, attention, map, power, normalization, labels).maps


def attention_of(
    model: nn.Module,
    images: Tensor,
    points: Sequence[str] | None = None,
    attention: Literal["activation", "gradient"] = "activation",
    map: MapKind = "sum",
    power: float = 2.0,
    normalization: Preprocessing | tuple[Sequence[float], Sequence[float]] | None = None,
    labels: Tensor | None = None,
) -> Attention:
    """The maps of :func:`attention_maps`, and the output of the pass they were read in."""
    if attention not in ("activation", "gradient"):
        raise InputError(f'attention must be "activation" or "gradient", got {attention!r}')
    if attention == "gradient":
        if points is not None:
            raise InputError(f"gradient attention is read at the images, got points {points}")
        gradient, logits = _input_gradient(model, images, normalization, labels)
        return Attention({"input": activation_map(gradient, map, power)}, logits)
    if labels is not None:
        raise InputError('activation attention needs no labels; did you mean attention="gradient"?')
    own = Preprocessing(*normalization) if normalization is not None else None
    if points is None:
        points = PairingSide(model, input_size(images, own)).recommended
    taps = Taps(model, points)
    with evaluating(model), torch.no_grad():
        seen = tapped_forward(model, taps, images, own)
    maps = {point: activation_map(seen.features[point], map, power) for point in taps.points}
    return Attention(maps, seen.output)


def _input_gradient(
    model: nn.Module,
    images: Tensor,
    normalization: Preprocessing | tuple[Sequence[float], Sequence[float]] | None,
    labels: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """J, (N, C, H, W), and the logits."""
    check_images(images)
    images = images.detach().clone().requires_grad_()
    own = Preprocessing(*normalization) if normalization is not None else None
    with evaluating(model), torch.enable_grad():
        logits = tapped_forward(model, Taps(model, []), images, own).logits
    labels = logits.argmax(dim=1) if labels is None else labels
    return input_gradient(logits, labels, images), logits.detach()
