"""Which points of each network to look at."""

from collections.abc import Sequence
from typing import NamedTuple

from attention_transfer.errors import InputError, nearest
from attention_transfer.transfer.pairing import PairingSide

__all__ = ["GRADIENT", "LEVELS", "MapPoint", "chosen_spots"]

LEVELS = ("low", "middle", "top")


class MapPoint(NamedTuple):
    """A point of a network, and what networks have in common there."""

    label: str
    """Such as ``low level``; or the point's name."""
    point: str


GRADIENT = MapPoint("loss gradient", "input")
"""Where gradient attention is read."""


def chosen_spots(
    names: Sequence[str], sides: Sequence[PairingSide], points: str | Sequence[str]
) -> list[list[MapPoint]]:
    """The spots of each network, in the order they were asked for.

    Args:
        names: of the networks, for errors.
        sides: the networks.
        points: by commas or as a list, each ``low``, ``middle`` or ``top``, of the points that a
            network declares or that are recommended; ``all`` points; or a name or pattern with
            ``*`` and ``?``, of which each network takes what it has.

    Raises:
        InputError: a point that no network has, or a network that has none of them.
    """
    asked = points.split(",") if isinstance(points, str) else points
    wanted = [str(point).strip() for point in asked]
    spots: list[list[MapPoint]] = [[] for _ in sides]
    for point in wanted:
        found = [_matching(side, point) for side in sides]
        if not any(found) and point not in LEVELS:
            raise _unknown(point, sides)
        for own, more in zip(spots, found, strict=True):
            own += [spot for spot in more if spot.point not in {known.point for known in own}]
    for name, own in zip(names, spots, strict=True):
        if not own:
            raise InputError(
                f"{name} has none of the points {', '.join(wanted)}; see which it has with "
                "'attention-transfer points'"
            )
    return spots


def _matching(side: PairingSide, point: str) -> list[MapPoint]:
    """What a network has of a point that was asked for."""
    if point in LEVELS:
        return [spot for spot in _levels(side) if spot.label == f"{point} level"]
    if point == "all":
        return [MapPoint(found.name, found.name) for found in side.points]
    known = {name for found in side.points for name in (found.name, *found.aliases)}
    if point in known:
        return [MapPoint(point, point)]
    try:
        return [MapPoint(name, name) for name in side.matching(point) if name in known]
    except InputError:
        return []


def _levels(side: PairingSide) -> list[MapPoint]:
    """The first, the middle and the last of the recommended points; of two the outer ones, and the
    last if there is one.
    """
    points = side.recommended
    middle = dict.fromkeys((0, len(points) // 2, len(points) - 1))
    places = {3: LEVELS, 2: ("low", "top"), 1: ("top",)}.get(len(middle), ()) if points else ()
    return [
        MapPoint(f"{level} level", points[index])
        for level, index in zip(places, middle, strict=False)
    ]


def _unknown(point: str, sides: Sequence[PairingSide]) -> InputError:
    """Why nothing can be seen at a point."""
    for side in sides:
        for unreadable in side.points.unreadable:
            if unreadable.name == point:
                return InputError(
                    f"point {point!r} ({unreadable.module}) has no attention map: "
                    f"{unreadable.reason}; choose another one"
                )
    known = {
        name: None
        for side in sides
        for found in side.points
        for name in (found.name, *found.aliases)
    }
    words = dict.fromkeys([*LEVELS, "all", *known])
    return InputError(f"no network has a point {point!r}; {nearest(point, words)}")
