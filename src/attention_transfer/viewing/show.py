"""Where networks look, as a figure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from attention_transfer.drawing.maps import MapsFigure, draw_maps
from attention_transfer.errors import InputError
from attention_transfer.functional.maps import MapKind
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.transfer.terms.base import check_choice
from attention_transfer.viewing.images import Images, pictures_of
from attention_transfer.viewing.inference import MapRequest
from attention_transfer.viewing.layout import see
from attention_transfer.viewing.networks import NamedModel, Networks, networks_of

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
) -> MapsFigure:
    """Where networks look, as a matplotlib figure that a notebook shows by itself.

    For each image a row; in the columns each network's attention at each point, on the image and
    alone, on one scale: relative to an even spread. Under the image, what the networks take it for.

    Args:
        networks: one or several: a module, a run, what ``at.models.load`` gives, or a MODEL such as
            ``"timm:resnet18"``; or a dictionary of them by the names to show.
        images: a tensor (N, 3, H, W) or an array (H, W, 3), on a scale of 0 to 1 or uint8; PIL's
            image; a path, a folder or a pattern; or a list of such. They are brought to the size
            and normalisation of each network that says what it needs.
        points: by commas or as a list, each ``low``, ``middle`` or ``top``, ``all``, or a module's
            name, with ``*`` and ``?``; each network shows those it has. Gradient attention is read
            at the images, and takes none.
        attention: ``"activation"`` or ``"gradient"``, as in
            :func:`attention_transfer.attention_maps`.
        map: ``"sum"`` or ``"max"`` over channels.
        power: p > 0 in abs(A)^p.
        normalization: of modules' input, means and standard deviations, perhaps with a size; by
            default what a network of timm's says itself, or else none.
        class_names: of the networks that do not say what their classes are called: modules.
        names: what to call the images.
        crop: the middle of an image, as when networks are judged, instead of all of it.
        scale: ``"shared"`` by all maps, or ``"each"`` from none to its own most.

    Raises:
        InputError: a network or an image that cannot be had, points that there are not, or an
            argument that is none of those above.

    Example:
        >>> network = at.models.build("wrn-10-1", classes=10)
        >>> figure = at.show(network, torch.rand(2, 3, 32, 32), points="middle,top")
        >>> figure.savefig("maps.png")
    """
    check_choice("scale", scale, ("shared", "each"))
    own = None if normalization is None else Preprocessing(*normalization)
    viewed = [_told(network, own, class_names) for network in networks_of(networks)]
    look = MapRequest(points, attention, map, power, crop)
    pictures = pictures_of(images, names)
    seen, unreadable = see(viewed, pictures, look)
    for place, reason in unreadable.items():
        raise InputError(f"{pictures[place].name} cannot be read: {reason}; leave it out")
    limit = seen.limit() if scale == "shared" else None
    return draw_maps(seen.columns(), seen.rows(), limit, seen.caption())


def _told(
    network: NamedModel, normalization: Preprocessing | None, class_names: Sequence[str] | None
) -> NamedModel:
    """A network with what the caller knows about it and it does not say itself."""
    if normalization is not None and not network.certain:
        network = replace(network, normalization=normalization)
    if class_names is not None and not network.certain:
        network = replace(network, class_names=tuple(class_names))
    return network
