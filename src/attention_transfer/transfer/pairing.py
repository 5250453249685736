"""Layer pairs: which student layer is compared with which teacher layer."""

import fnmatch
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from attention_transfer.errors import InputError, nearest
from attention_transfer.taps import (
    AttentionPoint,
    Inputs,
    PointTable,
    attention_points,
    declared_points,
    unwrapped,
)

__all__ = ["Pair", "Pairing", "Pairs", "PairingSide", "match_stages", "resolve_pairs"]


class Pair(NamedTuple):
    """A layer pair: a student's attention point and the teacher's that it is compared with.

    >>> str(Pair("group1", "layer1"))
    'group1:layer1'
    """

    student: str
    teacher: str
    """Several points, whose maps are averaged, are joined by ``+``."""

    @property
    def teacher_points(self) -> tuple[str, ...]:
        """The teacher's points, as a rule one.

        >>> Pair("group1", "0.layer1+1.stages.0").teacher_points
        ('0.layer1', '1.stages.0')
        """
        return tuple(self.teacher.split("+"))

    def __str__(self) -> str:
        return f"{self.student}:{self.teacher}"


Pairs = str | Sequence[tuple[str, str]]
"""``"auto"``, ``"auto-N"`` (the last N of them), ``"s1:t1,s2:t2"``, or a sequence of (student
point, teacher point). A name may be a pattern with ``*`` and ``?``. Maps of several teacher points
are averaged: ``"s1:t1+t2"``. Of several teachers, a point's name begins with the number of its
teacher: ``"s1:0.t1+1.t1"``.
"""


class Pairing(NamedTuple):
    """The layer pairs of two networks, and the recommended points that are in none."""

    pairs: list[Pair]
    unpaired_student_points: tuple[str, ...] = ()
    unpaired_teacher_points: tuple[str, ...] = ()


class PairingSide:
    """One network of a pairing; its points are searched for when they are first needed.

    Args:
        network: student or teacher.
        input_size: channels and spatial axes of its main input; None if not known yet.
        inputs: example inputs of a network that takes several tensors.
    """

    def __init__(
        self,
        network: nn.Module,
        input_size: tuple[int, ...] | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        self.network, self.input_size, self.inputs = unwrapped(network), input_size, inputs
        self._points: PointTable | None = None

    @property
    def declared(self) -> tuple[str, ...]:
        """The points that the network declares."""
        return declared_points(self.network)

    @property
    def points(self) -> PointTable:
        """All attention points of the network.

        Raises:
            InputError: the input size is not known.
        """
        if self.input_size is None:
            raise InputError(
                f"to find the points of {type(self.network).__name__}, the size of its images must "
                "be known; give example_input=images[:1], or name its modules by hand "
                "(pairs='student.layer:teacher.layer', or points=[...] for maps)"
            )
        if self._points is None:
            self._points = attention_points(self.network, self.input_size, inputs=self.inputs)
        return self._points

    @property
    def recommended(self) -> tuple[str, ...]:
        """The declared points, or the recommended ones that were found."""
        return self.declared or tuple(point.name for point in self.points.recommended)

    def matching(self, pattern: str) -> list[str]:
        """Return the points that a name or a pattern means, in the order of execution.

        Raises:
            InputError: a pattern that no point's name matches.
        """
        if not any(mark in pattern for mark in "*?"):
            return [pattern]
        names = [[point.name, *point.aliases] for point in self.points]
        found = [
            match
            for same in names
            for match in fnmatch.filter(same, pattern.replace("[", "[[]"))[:1]
        ]
        if not found:
            known = [name for same in names for name in same]
            raise InputError(
                f"no point of {type(self.network).__name__} matches {pattern!r}; "
                f"{nearest(pattern, known)}"
            )
        return found


def resolve_pairs(pairs: Pairs, student: PairingSide, *teachers: PairingSide) -> Pairing:
    """Return the layer pairs: parsed, with patterns expanded, or found (``"auto"``).

    With several teachers, ``"auto"`` pairs the student with each of them, and joins the pairs that
    have the student's point in common.

    Raises:
        InputError: nothing to pair, a pair that is not two names, patterns that do not match
            equally many points; for ``"auto"`` and patterns also an unknown input size.

    Example:
        >>> sides = PairingSide(nn.Module()), PairingSide(nn.Module())
        >>> resolve_pairs("group1:layer1, group2:layer2", *sides).pairs
        [Pair(student='group1', teacher='layer1'), Pair(student='group2', teacher='layer2')]
    """
    automatic = re.fullmatch(r"auto(?:-([1-9]\d*))?", pairs) if isinstance(pairs, str) else None
    if automatic:
        return _last(_automatic(student, teachers), int(automatic[1] or 0))
    if isinstance(pairs, str):
        pairs = [tuple(name.strip() for name in pair.split(":")) for pair in pairs.split(",")]  # type: ignore[misc]
    if not isinstance(pairs, Sequence):
        raise InputError(
            f"pairs must be 'auto', 'student.layer:teacher.layer,...' or a list of pairs, got "
            f"{pairs!r}"
        )
    resolved: list[Pair] = []
    for pair in pairs:
        names: object = pair
        if not (
            isinstance(names, list | tuple)
            and len(names) == 2
            and all(isinstance(name, str) and name for name in names)
        ):
            got = ":".join(map(str, pair)) if isinstance(names, list | tuple) else pair
            raise InputError(f"got the pair {got!r}, expected student.layer:teacher.layer")
        ours, theirs = student.matching(pair[0]), _teacher_points(pair[1], teachers)
        if len(ours) != len(theirs):
            raise InputError(
                f"the pair {':'.join(pair)} means {len(ours)} student points ({', '.join(ours)}) "
                f"and {len(theirs)} teacher points ({', '.join(theirs)}), expected the same "
                "number of both"
            )
        resolved += [Pair(*both) for both in zip(ours, theirs, strict=True)]
    repeated = [pair for pair, count in Counter(resolved).items() if count > 1]
    if repeated:
        raise InputError(f"the pair {repeated[0]} is given more than once; give each pair once")
    if not resolved:
        raise InputError("no pairs were given; expected pairs='auto' or at least one pair")
    return Pairing(resolved)


def _teacher_points(pattern: str, teachers: Sequence[PairingSide]) -> list[str]:
    """Return the teacher points of a pair's pattern, joined where they are to be averaged."""
    ends = [_points_of_one(part, teachers) for part in pattern.split("+")]
    if len({len(names) for names in ends}) > 1:
        raise InputError(
            f"the parts of {pattern} mean {' and '.join(str(len(names)) for names in ends)} "
            "teacher points, expected the same number of each"
        )
    return ["+".join(names) for names in zip(*ends, strict=True)]


def _points_of_one(pattern: str, teachers: Sequence[PairingSide]) -> list[str]:
    if len(teachers) == 1:
        return teachers[0].matching(pattern)
    number, _, name = pattern.partition(".")
    if not (number.isdecimal() and int(number) < len(teachers) and name):
        raise InputError(
            f"got the teacher point {pattern!r}, expected one that begins with the number of its "
            f"teacher, 0 to {len(teachers) - 1}, such as 0.{pattern}"
        )
    return [f"{int(number)}.{found}" for found in teachers[int(number)].matching(name)]


def _automatic(student: PairingSide, teachers: Sequence[PairingSide]) -> Pairing:
    pairings = [_matched(student, teacher) for teacher in teachers]
    if len(pairings) == 1:
        return pairings[0]
    partners: dict[str, list[str]] = {name: [] for name in student.recommended}
    for number, pairing in enumerate(pairings):
        for pair in pairing.pairs:
            partners[pair.student].append(f"{number}.{pair.teacher}")
    return Pairing(
        [Pair(name, "+".join(theirs)) for name, theirs in partners.items() if theirs],
        tuple(name for name, theirs in partners.items() if not theirs),
        tuple(
            f"{number}.{name}"
            for number, pairing in enumerate(pairings)
            for name in pairing.unpaired_teacher_points
        ),
    )


def _matched(student: PairingSide, teacher: PairingSide) -> Pairing:
    if student.declared and len(student.declared) == len(teacher.declared):
        both = zip(student.declared, teacher.declared, strict=True)
        return Pairing([Pair(*names) for names in both])
    sides = [[side.points[name] for name in side.recommended] for side in (student, teacher)]
    for side, points in zip((student, teacher), sides, strict=True):
        if not points:
            raise InputError(
                f"no attention map was found in {type(side.network).__name__} at input "
                f"{side.input_size}, channels first; see 'attention-transfer points', and for a "
                "network that takes (N, length, channels) give one that takes (N, channels, length)"
            )
    return match_stages(*sides)


def _last(pairing: Pairing, count: int) -> Pairing:
    """Return the last few pairs; 0: all."""
    if count == 0 or count >= len(pairing.pairs):
        return pairing
    return Pairing(pairing.pairs[-count:])


def match_stages(student: Sequence[AttentionPoint], teacher: Sequence[AttentionPoint]) -> Pairing:
    """Pair the points of two networks, each list in the order of execution.

    Points are paired by relative stride: as many halvings before the network's last stage. Where a
    network has one size of map only (a plain vision transformer), or several points at one stride,
    they are paired by relative depth: in order, with the least total difference.
    """
    ours, theirs = _by_height(student), _by_height(teacher)
    if len(ours) == 1 or len(theirs) == 1:
        pairs = _by_depth(student, teacher)
    else:
        pairs = [
            pair
            for height in sorted(ours.keys() & theirs.keys(), reverse=True)
            for pair in _by_depth(ours[height], theirs[height])
        ]
    met = {name for pair in pairs for name in (("s", pair.student), ("t", pair.teacher))}
    return Pairing(
        pairs,
        tuple(point.name for point in student if ("s", point.name) not in met),
        tuple(point.name for point in teacher if ("t", point.name) not in met),
    )


def _by_height(points: Sequence[AttentionPoint]) -> dict[int, list[AttentionPoint]]:
    """Group points by how many halvings of the map come after them."""
    axes, last = len(points[-1].stage), sum(points[-1].stage)
    heights: dict[int, list[AttentionPoint]] = {}
    for point in points:
        heights.setdefault(round((last - sum(point.stage)) / axes), []).append(point)
    return heights


def _by_depth(student: Sequence[AttentionPoint], teacher: Sequence[AttentionPoint]) -> list[Pair]:
    """Return as many pairs as the shorter list allows, of least total difference in depth."""
    if len(student) > len(teacher):
        return [Pair(ours, theirs) for theirs, ours in _by_depth(teacher, student)]
    # best[j]: the least total for the points so far, the last of them paired before teacher[j].
    best: list[tuple[float, list[Pair]]] = [(0.0, [])] * (len(teacher) + 1)
    for point in student:
        extended: list[tuple[float, list[Pair]]] = [(float("inf"), [])]
        for index, other in enumerate(teacher):
            total, pairs = best[index]
            with_this = (
                total + abs(point.depth - other.depth),
                [*pairs, Pair(point.name, other.name)],
            )
            extended.append(min(extended[-1], with_this, key=lambda found: found[0]))
        best = extended
    return best[-1][1]
