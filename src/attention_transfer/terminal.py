"""What a terminal is shown: names as they are, whatever characters are in them."""

from rich.console import Console
from rich.text import Text

__all__ = ["print_line", "escape_control_characters"]


def escape_control_characters(text: str) -> str:
    r"""The text with escapes in place of characters that a terminal obeys instead of showing.

    Example:
        >>> print(escape_control_characters("caf\xe9 \x1b[31mred\n"))
        café \x1b[31mred\n
    """
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


def print_line(where: Console, text: str) -> None:
    """One line, as it is: no markup, no emoji codes, no control codes, not broken.

    Example:
        >>> print_line(Console(), "[b]:x:")
        [b]:x:
    """
    where.print(Text(escape_control_characters(text)), soft_wrap=True)
