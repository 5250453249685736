"""Attention maps as a figure, for notebooks and scripts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from attention_transfer.drawing.maps import MapsFigure, draw_maps
from attention_transfer.errors import InputError
from attention_transfer.functional.maps import MapKind
from attention_transfer.inference.images import Images, source_images
from attention_transfer.inference.networks import NamedModel, Networks, named_models
from attention_transfer.preprocessing import PixelRange, Preprocessing
from attention_transfer.transfer.terms.base import check_choice
from attention_transfer.trust import trusting
from attention_transfer.viewing.layout import compute_grid, on_one_scale
from attention_transfer.viewing.network_maps import MapRequest

__all__ = ["show"]


def show(
    networks: Networks,
    images: Images,
    points: str | Sequence[str] = "low,middle,top",
    attention: Literal["activation", "gradient"] = "activation",
    map: MapKind = "sum",
    power: float = 2.0,
    *,
    normalization: Preprocessing | tuple[Sequence[float], Sequence[float]] | None = None,
    class_names: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    crop: bool = False,
    scale: Literal["shared", "each"] = "shared",
    trust: Sequence[str] = (),
    pixel_range: tuple[float, float] | None = None,
) -> MapsFigure:
    """Draw attention maps as a matplotlib figure, which a notebook displays by itself.

    Each image is a row. Each column shows one network's attention at one point, above laid over
    the image and below alone, in multiples of an even spread. Under each image are the networks'
    predictions.

    Args:
        networks: one or several: a module, a run, the result of ``at.load``, or a MODEL such as
            ``"timm:resnet18"``; or a dictionary from the names to display to networks.
        images: a tensor (N, 3, H, W) or an array (H, W, 3), uint8, from 0 to 1 or of integers of
            more than 8 bits; a PIL image; a path, folder or pattern; or a list of these. Grey
            images have one channel; networks of 4 and more take as many. Each network receives them
            at its own size and normalization, where it declares one.
        points: a list or comma-separated text of ``low``, ``middle``, ``top``, ``all``, and module
            names with ``*`` and ``?``; each network shows the points that it has. Gradient
            attention is read at the images and takes no points.
        attention: ``"activation"`` or ``"gradient"``, as in
            :func:`attention_transfer.attention_maps`.
        map: ``"sum"`` or ``"max"`` over channels.
        power: p > 0 in abs(A)^p.
        normalization: means and standard deviations, and optionally a size, of the input of
            modules; by default what a timm network declares, or none.
        class_names: of networks that do not declare their own.
        names: what to call the images.
        crop: show networks the centre of each image, as evaluation does, instead of all of it.
        scale: ``"shared"`` by all maps, or ``"each"`` map from zero to its own largest value.
        trust: factories, as ``"package.module:factory"``, that the folders of runs may name.
        pixel_range: the pixel values that become 0 and 1, of images of more than 8 bits; by default
            those that a run was trained with, or one range found from all the images.

    Returns:
        The figure.

    Raises:
        InputError: a network or an image cannot be loaded, a point does not exist, a map does not
            have two axes, or another argument has an unknown value.

    Example:
        >>> network = at.models.build("wrn-10-1", classes=10)
        >>> figure = at.show(network, torch.rand(2, 3, 32, 32), points="middle,top")
        >>> figure.savefig("maps.png")
    """
    check_choice("scale", scale, ("shared", "each"))
    preprocessing = None if normalization is None else Preprocessing(*normalization)
    with trusting(trust):
        models = [_completed(model, preprocessing, class_names) for model in named_models(networks)]
    request = MapRequest(points, attention, map, power, crop)
    given = None if pixel_range is None else PixelRange(*pixel_range)
    sources = source_images(
        images, names, channels=[model.channels for model in models], raw=given is not None
    )
    models = on_one_scale(models, sources, given)
    grid, unreadable = compute_grid(models, sources, request)
    for index, reason in unreadable.items():
        raise InputError(f"{sources[index].name} cannot be read: {reason}; leave it out")
    limit = grid.limit() if scale == "shared" else None
    return draw_maps(grid.columns(), grid.rows(), limit, grid.caption())


def _completed(
    model: NamedModel, preprocessing: Preprocessing | None, class_names: Sequence[str] | None
) -> NamedModel:
    """Add what the caller knows about a network that does not declare its preprocessing."""
    if model.declares_preprocessing:
        return model
    if preprocessing is not None:
        model = model.with_preprocessing(preprocessing)
    if class_names is not None:
        model = replace(model, class_names=tuple(class_names))
    return model
