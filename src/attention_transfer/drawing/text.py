"""Text in pictures: any name is shown as it is, in the room that there is."""

import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.textpath import text_to_path

from attention_transfer.terminal import escape_control_characters

__all__ = ["quiet_about_glyphs", "shortened", "text_height", "text_width", "wrapped", "write"]

OTHER_SCRIPTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
    "Noto Sans Devanagari",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
    "Unifont",
)
"""Fonts for what matplotlib's own has no signs for; used where they are installed."""

CAPITALS = 0.73
"""Their height, as a share of the size."""


def write(
    figure: Figure,
    text: str,
    left: float,
    top: float,
    size: float = 8.0,
    *,
    bold: bool = False,
    colour: str = "#222222",
    align: str = "left",
) -> None:
    """Text with the upper edge of its capitals at a place, in inches from the figure's upper left
    corner; no character of it means anything but itself.
    """
    width, height = figure.get_size_inches()
    for number, line in enumerate(text.split("\n")):
        baseline = top + CAPITALS * size / 72 + number * text_height("", size)
        figure.text(
            left / width,
            1 - baseline / height,
            line,
            color=colour,
            fontproperties=_font(size, bold),
            ha=align,
            va="baseline",
            parse_math=False,
            usetex=False,
        )


def text_height(text: str, size: float) -> float:
    """In inches, of all lines.

    >>> text_height("one line", 72.0)
    1.2
    """
    return 1.2 * size / 72 * (text.count("\n") + 1)


@lru_cache(maxsize=10_000)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """In inches, of one line, with what fitting it to dots may add."""
    with quiet_about_glyphs():
        width, _, _ = text_to_path.get_text_width_height_descent(text, _font(size, bold), False)
    return 1.04 * width / 72


def shortened(text: str, width: float, size: float, bold: bool = False) -> str:
    """The text, or its two ends with dots between them where it is wider than so many inches.

    >>> shortened("group1", 0.8, 6.5), shortened("denseblock4.denselayer16", 0.8, 6.5)
    ('group1', 'denseb…layer16')
    """
    text = escape_control_characters(text)
    if text_width(text, size, bold) <= width:
        return text
    kept = _most(
        len(text) - 1, lambda count: text_width(_two_ends(text, count), size, bold) <= width
    )
    return _two_ends(text, kept)


def wrapped(text: str, width: float, size: float, bold: bool = False, lines: int = 2) -> str:
    """The text in a few lines, broken after spaces and signs where it can be; the last is
    shortened if they do not suffice.

    >>> wrapped("a small network", 0.6, 8.0).splitlines()
    ['a small', 'network']
    """
    rest = escape_control_characters(text)
    found: list[str] = []
    while len(found) < lines - 1 and text_width(rest, size, bold) > width:
        end = _line_end(rest, width, size, bold)
        found.append(rest[:end].strip())
        rest = rest[end:].strip()
    return "\n".join([*found, shortened(rest, width, size, bold)])


def _line_end(text: str, width: float, size: float, bold: bool) -> int:
    """Where the first line of a text that is too wide ends."""
    most = max(1, _most(len(text), lambda count: text_width(text[:count], size, bold) <= width))
    breaks = [place for place in range(1 + most // 3, most + 1) if text[place - 1] in " -_/@:"]
    return breaks[-1] if breaks else most


def _two_ends(text: str, count: int) -> str:
    """So many characters of a text, half of them from its end.

    >>> _two_ends("abcdef", 3), _two_ends("abcdef", 0)
    ('a…ef', '…')
    """
    tail = (count + 1) // 2
    return f"{text[: count - tail]}…{text[len(text) - tail :]}"


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest count up to a limit that fits, if all smaller ones do."""
    return max(0, bisect_left(range(limit + 1), True, key=lambda count: not fits(count)) - 1)


@contextmanager
def quiet_about_glyphs() -> Iterator[None]:
    """Without a warning for every character that no font has; it is drawn as a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield


def _font(size: float, bold: bool) -> FontProperties:
    return FontProperties(
        family=["DejaVu Sans", *_installed()], size=size, weight="bold" if bold else "normal"
    )


@cache
def _installed() -> tuple[str, ...]:
    """The fonts of other scripts that this machine has."""
    there = {font.name for font in fontManager.ttflist}
    return tuple(name for name in OTHER_SCRIPTS if name in there)
