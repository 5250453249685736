"""Text in figures: any name is shown literally, shortened to the space available."""

import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.textpath import text_to_path

from attention_transfer.terminal import escape_control_characters

__all__ = ["draw_text", "ignore_missing_glyphs", "shorten", "text_height", "text_width", "wrap"]

FALLBACK_FONTS = (
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
"""Fonts for characters that matplotlib's own font lacks; used where they are installed."""

CAPITAL_HEIGHT = 0.73
"""Height of capital letters, as a fraction of the font size."""


def draw_text(
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
    """Draw text, with no character interpreted as markup or mathematics.

    Args:
        figure: the figure to draw on.
        text: one or more lines.
        left: inches from the figure's left edge.
        top: inches from the figure's upper edge to the top of the capitals.
        size: font size in points.
        bold: whether to use bold letters.
        colour: of the letters.
        align: which side of the text is at ``left``: ``"left"``, ``"center"`` or ``"right"``.
    """
    width, height = figure.get_size_inches()
    for number, line in enumerate(text.split("\n")):
        baseline = top + CAPITAL_HEIGHT * size / 72 + number * text_height("", size)
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
    """Return the height of all lines of a text, in inches.

    >>> text_height("one line", 72.0)
    1.2
    """
    return 1.2 * size / 72 * (text.count("\n") + 1)


@lru_cache(maxsize=10_000)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """Return the width of one line in inches, with a margin for rounding to whole dots."""
    with ignore_missing_glyphs():
        width, _, _ = text_to_path.get_text_width_height_descent(text, _font(size, bold), False)
    return 1.04 * width / 72


def shorten(text: str, width: float, size: float, bold: bool = False) -> str:
    """Return a text, its middle replaced by an ellipsis if it is wider than so many inches.

    >>> shorten("group1", 0.8, 6.5), shorten("denseblock4.denselayer16", 0.8, 6.5)
    ('group1', 'denseb…layer16')
    """
    text = escape_control_characters(text)
    if text_width(text, size, bold) <= width:
        return text
    count = _largest_fitting(
        len(text) - 1, lambda count: text_width(_two_ends(text, count), size, bold) <= width
    )
    return _two_ends(text, count)


def wrap(text: str, width: float, size: float, bold: bool = False, lines: int = 2) -> str:
    """Break a text into at most so many lines, after spaces or punctuation where possible.

    The last line is shortened if the rest does not fit into it.

    >>> wrap("a small network", 0.6, 8.0).splitlines()
    ['a small', 'network']
    """
    rest = escape_control_characters(text)
    broken: list[str] = []
    while len(broken) < lines - 1 and text_width(rest, size, bold) > width:
        end = _line_end(rest, width, size, bold)
        broken.append(rest[:end].strip())
        rest = rest[end:].strip()
    return "\n".join([*broken, shorten(rest, width, size, bold)])


def _line_end(text: str, width: float, size: float, bold: bool) -> int:
    """Return the length of the first line of a text that is too wide."""
    most = max(
        1, _largest_fitting(len(text), lambda count: text_width(text[:count], size, bold) <= width)
    )
    breaks = [end for end in range(1 + most // 3, most + 1) if text[end - 1] in " -_/@:"]
    return breaks[-1] if breaks else most


def _two_ends(text: str, count: int) -> str:
    """Return so many characters of a text, half of them from its end.

    >>> _two_ends("abcdef", 3), _two_ends("abcdef", 0)
    ('a…ef', '…')
    """
    tail = (count + 1) // 2
    return f"{text[: count - tail]}…{text[len(text) - tail :]}"


def _largest_fitting(limit: int, fits: Callable[[int], bool]) -> int:
    """Return the largest count up to a limit that fits, if all smaller ones do."""
    return max(0, bisect_left(range(limit + 1), True, key=lambda count: not fits(count)) - 1)


@contextmanager
def ignore_missing_glyphs() -> Iterator[None]:
    """Silence the warnings for characters that no font has; they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield


def _font(size: float, bold: bool) -> FontProperties:
    """Return matplotlib's own font with fallbacks for other scripts."""
    return FontProperties(
        family=["DejaVu Sans", *_installed_fallbacks()],
        size=size,
        weight="bold" if bold else "normal",
    )


@cache
def _installed_fallbacks() -> tuple[str, ...]:
    """Return the fallback fonts that this machine has."""
    installed = {font.name for font in fontManager.ttflist}
    return tuple(name for name in FALLBACK_FONTS if name in installed)
