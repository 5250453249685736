"""Printing text to a terminal as it is, whatever characters it contains."""

from rich.console import Console
from rich.text import Text

__all__ = ["escape_control_characters", "print_line"]


def escape_control_characters(text: str) -> str:
    r"""Return the text with escapes for characters that a terminal would obey instead of show.

    Example:
        >>> print(escape_control_characters("caf\xe9 \x1b[31mred\n"))
        café \x1b[31mred\n
    """
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


def print_line(console: Console, text: str, style: str = "", *, wrap: bool = False) -> None:
    """Print one line unchanged: no markup, emoji codes, control characters or wrapping.

    Args:
        console: to print to.
        text: of the line.
        style: of rich, such as "bold yellow", where the console shows styles.
        wrap: break the line between words on a terminal that is narrower. A command must not be
            broken so, as it could not be copied any more.

    Example:
        >>> print_line(Console(), "[b]:x:")
        [b]:x:
    """
    broken = wrap and console.is_terminal
    console.print(Text(escape_control_characters(text), style), soft_wrap=not broken)
