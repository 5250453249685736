"""The attention points whose maps are shown, chosen by level, name or pattern."""

from collections.abc import Sequence
from typing import NamedTuple

from attention_transfer.errors import InputError, nearest
from attention_transfer.transfer.pairing import PairingSide

__all__ = ["GRADIENT", "LEVELS", "MapPoint", "select_points"]

LEVELS = ("low", "middle", "top")


class MapPoint(NamedTuple):
    """An attention point of a network, with its headline in a picture."""

    label: str
    """A level that networks share, such as ``low level``, or the point's name."""
    name: str


GRADIENT = MapPoint("loss gradient", "input")
"""The only point of gradient attention."""


def select_points(
    names: Sequence[str], sides: Sequence[PairingSide], points: str | Sequence[str]
) -> list[list[MapPoint]]:
    """Return the selected attention points of each network, in the requested order.

    Args:
        names: the networks' names, for error messages.
        sides: the networks.
        points: a list or comma-separated text of ``low``, ``middle`` or ``top`` (among the points
            that a network declares or that are recommended), ``all``, and names or patterns with
            ``*`` and ``?``. Each network shows the points that it has.

    Raises:
        InputError: no network has a point, or a network has none of the points.
    """
    patterns = [
        str(point).strip() for point in (points.split(",") if isinstance(points, str) else points)
    ]
    selected: list[dict[str, MapPoint]] = [{} for _ in sides]
    for pattern in patterns:
        matches = [_matching(side, pattern) for side in sides]
        if not any(matches) and pattern not in LEVELS:
            raise _unknown_point(pattern, sides)
        for chosen, new in zip(selected, matches, strict=True):
            for point in new:
                chosen.setdefault(point.name, point)
    for name, chosen in zip(names, selected, strict=True):
        if not chosen:
            raise InputError(
                f"{name} has none of the points {', '.join(patterns)}; list its points with "
                "'attention-transfer points'"
            )
    return [list(chosen.values()) for chosen in selected]


def _matching(side: PairingSide, pattern: str) -> list[MapPoint]:
    """Return a network's points that match one level, name or pattern."""
    if pattern in LEVELS:
        return [point for point in _level_points(side) if point.label == f"{pattern} level"]
    if pattern == "all":
        return [MapPoint(point.name, point.name) for point in side.points]
    known = {name for point in side.points for name in (point.name, *point.aliases)}
    if pattern in known:
        return [MapPoint(pattern, pattern)]
    try:
        return [MapPoint(name, name) for name in side.matching(pattern) if name in known]
    except InputError:
        return []


def _level_points(side: PairingSide) -> list[MapPoint]:
    """Return the first, middle and last recommended points as the three levels.

    Two points are the low and the top level, a single one is the top level.
    """
    points = side.recommended
    indices = dict.fromkeys((0, len(points) // 2, len(points) - 1)) if points else {}
    levels = {3: LEVELS, 2: ("low", "top"), 1: ("top",), 0: ()}[len(indices)]
    return [
        MapPoint(f"{level} level", points[index])
        for level, index in zip(levels, indices, strict=True)
    ]


def _unknown_point(point: str, sides: Sequence[PairingSide]) -> InputError:
    """Return the error that says why a point has no attention map."""
    for side in sides:
        for unreadable in side.points.unreadable:
            if unreadable.name == point:
                return InputError(
                    f"point {point!r} ({unreadable.module}) has no attention map: "
                    f"{unreadable.reason}; choose another one"
                )
    known = [
        name for side in sides for found in side.points for name in (found.name, *found.aliases)
    ]
    words = dict.fromkeys([*LEVELS, "all", *known])
    return InputError(f"no network has a point {point!r}; {nearest(point, words)}")
