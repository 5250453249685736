"""A network's attention maps, to look at or to measure."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError, first_line
from attention_transfer.functional.maps import MapKind, activation_map
from attention_transfer.taps import Inputs, Taps, as_floats, evaluating, main_input, with_main_input
from attention_transfer.transfer.forward import (
    class_logits,
    input_gradient,
    input_size,
    tapped_forward,
)
from attention_transfer.transfer.input_gradients import check_images
from attention_transfer.transfer.pairing import PairingSide
from attention_transfer.transfer.teacher_ensemble import MeanAndDeviation, as_preprocessing

__all__ = ["Attention", "attention_maps", "attention_of"]


class Attention(NamedTuple):
    """A network's maps by point, each (N, *S), and its output in the same forward pass."""

    maps: dict[str, Tensor]
    output: object


def attention_maps(
    model: nn.Module,
    images: Inputs,
    points: Sequence[str] | None = None,
    attention: Literal["activation", "gradient"] = "activation",
    map: MapKind = "sum",
    power: float = 2.0,
    normalization: MeanAndDeviation | None = None,
    labels: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return where a network looks, as attention maps.

    A map is F of the activations at a point, or of the loss's gradient at the images. The network
    runs once, in eval mode; its mode and its gradients stay as they were.

    Args:
        model: the network.
        images: (N, C, H, W), or signals (N, C, L) or volumes (N, C, D, H, W), as the network takes
            them; or all its inputs, as of :class:`attention_transfer.Transfer`.
        points: names of modules; by default those the network declares, or the recommended ones of
            :func:`attention_transfer.attention_points`. Gradient attention is read
            at the images, and takes none.
        attention: ``"activation"``, F(A) at each point, or ``"gradient"``, F(J) with J the gradient
            of the cross-entropy at the images (paper, section 3.2).
        map: ``"sum"`` or ``"max"`` over channels, or over the images' colours.
        power: p > 0 in |A|^p.
        normalization: (means, standard deviations) of the network's input, if the images are not
            normalized yet.
        labels: of the loss, for gradient attention: (N,) class indices; by default the classes
            that the network predicts.

    Returns:
        Each point's maps, (N, H, W) or of as many axes as the images, in at least float32; of
        gradient attention, those of ``"input"``.

    Raises:
        InputError: an unknown point or attention, no points known, points or labels given where
            they mean nothing, or a loss that does not depend on the images.
        ValueError: p is not positive.

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
    images: Inputs,
    points: Sequence[str] | None = None,
    attention: Literal["activation", "gradient"] = "activation",
    map: MapKind = "sum",
    power: float = 2.0,
    normalization: MeanAndDeviation | None = None,
    labels: Tensor | None = None,
) -> Attention:
    """Return the maps of :func:`attention_maps` and the output of the same forward pass."""
    if attention not in ("activation", "gradient"):
        raise InputError(f'attention must be "activation" or "gradient", got {attention!r}')
    if attention == "gradient":
        if points is not None:
            raise InputError(f"gradient attention is read at the images, got points {points}")
        gradient, logits = _input_gradient(model, images, normalization, labels)
        return Attention({"input": activation_map(gradient, map, power)}, logits)
    if labels is not None:
        raise InputError('activation attention needs no labels; did you mean attention="gradient"?')
    preprocessing = as_preprocessing(normalization)
    if points is None:
        inputs = None if isinstance(images, Tensor) else images
        points = PairingSide(model, input_size(images, preprocessing), inputs).recommended
    taps = Taps(model, points)
    try:
        with evaluating(model), torch.no_grad():
            result = tapped_forward(model, taps, images, preprocessing)
    except RuntimeError as error:
        kind = main_input(images).dtype
        if kind.is_floating_point:
            raise
        raise InputError(
            f"{type(model).__name__} does not run on {kind} ({first_line(error)}); images are "
            f"floating-point numbers, such as {as_floats(kind)}"
        ) from error
    maps = {point: activation_map(result.features[point], map, power) for point in taps.points}
    return Attention(maps, result.output)


def _input_gradient(
    model: nn.Module,
    inputs: Inputs,
    normalization: MeanAndDeviation | None,
    labels: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return J, in the shape of the images, and the logits."""
    images = main_input(inputs)
    check_images(images)
    images = images.detach().clone().requires_grad_()
    inputs = with_main_input(inputs, images)
    with evaluating(model), torch.enable_grad():
        result = tapped_forward(model, Taps(model, []), inputs, as_preprocessing(normalization))
        logits = class_logits(result.output)
    labels = logits.argmax(dim=1) if labels is None else labels
    return input_gradient(logits, labels, images), logits.detach()
