"""Which student layer is to attend like which teacher layer."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from attention_transfer.errors import InputError
from attention_transfer.taps import unwrapped

__all__ = ["Pair", "Pairs", "declared_points", "resolve_pairs"]


class Pair(NamedTuple):
    """A student's point and the teacher's point it is compared with.

    >>> str(Pair("group1", "layer1"))
    'group1:layer1'
    """

    student: str
    teacher: str

    def __str__(self) -> str:
        return f"{self.student}:{self.teacher}"


Pairs = str | Sequence[tuple[str, str]]
"""``"auto"``, ``"s1:t1,s2:t2"``, or a sequence of (student point, teacher point)."""


def declared_points(network: nn.Module) -> tuple[str, ...]:
    """The points a network offers by itself, in its attribute ``attention_points``.

    Raises:
        InputError: it declares none.
    """
    network = unwrapped(network)
    points = getattr(network, "attention_points", None)
    if not points:
        raise InputError(
            f"{type(network).__name__} declares no attention points; name its modules by hand "
            "(pairs='student.layer:teacher.layer', or points=[...] for maps)"
        )
    return tuple(points)


def resolve_pairs(pairs: Pairs, student: nn.Module, teacher: nn.Module) -> list[Pair]:
    """Pairs as they were meant: parsed, or for ``"auto"`` the declared points of both networks,
    first with first and so on.

    Raises:
        InputError: nothing to pair, a pair that is not two names, or (auto) networks that
            declare no points or not equally many.

    Example:
        >>> resolve_pairs("group1:layer1, group2:layer2", nn.Module(), nn.Module())
        [Pair(student='group1', teacher='layer1'), Pair(student='group2', teacher='layer2')]
    """
    if pairs == "auto":
        ours, theirs = declared_points(student), declared_points(teacher)
        if len(ours) != len(theirs):
            raise InputError(
                f"pairs='auto' found {len(ours)} student points ({', '.join(ours)}) and "
                f"{len(theirs)} teacher points ({', '.join(theirs)}), expected as many; "
                "give the pairs by hand: pairs='student.layer:teacher.layer,...'"
            )
        return [Pair(*both) for both in zip(ours, theirs, strict=True)]
    if isinstance(pairs, str):
        pairs = [tuple(name.strip() for name in pair.split(":")) for pair in pairs.split(",")]  # type: ignore[misc]
    resolved = []
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2 or not all(pair):
            raise InputError(
                f"got the pair {':'.join(pair)!r}, expected student.layer:teacher.layer"
            )
        resolved.append(Pair(*pair))
    if not resolved:
        raise InputError("no pairs were given; expected pairs='auto' or at least one pair")
    return resolved
