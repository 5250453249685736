"""An extension of griffe: docstrings as the documentation site shows them."""

import re
from typing import Any

import griffe

__all__ = ["Docstrings"]

EXAMPLE = re.compile(r"^Example(?: \(.*\))?::?$", re.MULTILINE)
"""The heading of examples, which griffe knows in the plural alone."""

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([^`]+)`")
"""A name with its kind, as Sphinx has it."""


class Docstrings(griffe.Extension):
    """Shows examples as code, and names as they are."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite an object's docstring."""
        if obj.docstring is not None:
            text = EXAMPLE.sub("Examples:", obj.docstring.value)
            obj.docstring.value = ROLE.sub(r"`\1`", text)
