"""The columns of a table or dictionary that hold images, labels and splits."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self

from attention_transfer.errors import InputError, nearest

__all__ = ["Columns"]

_USUAL = {
    "image": (
        *("image", "img", "pixel_values", "file_name", "filename", "file", "path", "filepath"),
        *("file_path", "image_path", "image_file", "image_name", "image_id", "img_path"),
        *("jpg", "jpeg", "png", "webp"),
    ),
    "label": (
        *("label", "labels", "fine_label", "target", "targets", "class", "class_name", "category"),
        *("tag", "tags", "species", "breed", "cls"),
    ),
    "split": ("split", "set", "subset", "partition"),
}
"""The usual names of each column, the likeliest first."""


class Columns(NamedTuple):
    """The names of columns; None: a usual name."""

    image: str | None = None
    label: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, columns: str | Mapping[str, str] | None) -> Self:
        """Return the columns that text such as ``image=jpg,label=cls`` names.

        Raises:
            InputError: it is no such text.

        >>> Columns.parse("image=jpg, label=cls")
        Columns(image='jpg', label='cls', split=None)
        """
        if not columns:
            return cls()
        example = "expected such as image=file,label=class,split=set"
        pairs = columns
        if isinstance(columns, str):
            parts = [part.partition("=") for part in columns.split(",")]
            if not all(name.strip() and value.strip() for name, _, value in parts):
                raise InputError(f"cannot read the columns {columns!r}; {example}")
            pairs = {name.strip(): value.strip() for name, _, value in parts}
        unknown = [name for name in pairs if name not in cls._fields]
        if unknown or not isinstance(pairs, Mapping):
            raise InputError(f"columns names {unknown[0]!r}; {example}")
        return cls(**pairs)

    def find(self, what: str, role: str, names: Iterable[str]) -> str | None:
        """Return the name of the image's, label's or split's column; None if there is none.

        Raises:
            InputError: there is no column of that name.
        """
        names = list(names)
        wanted = getattr(self, role)
        if wanted is not None:
            if wanted not in names:
                raise InputError(
                    f"{what} has no column {wanted!r} for the {role}; {nearest(wanted, names)}"
                )
            return str(wanted)
        plain = {re.sub(r"[\W_]", "", name.lower()): name for name in reversed(names)}
        usual = (plain.get(re.sub("_", "", name)) for name in _USUAL[role])
        return next((name for name in usual if name is not None), None)

    def require(self, what: str, role: str, names: Iterable[str]) -> str:
        """Return the name of a column as :meth:`find` does.

        Raises:
            InputError: there is none.
        """
        names = list(names)
        found = self.find(what, role, names)
        if found is None:
            raise InputError(
                f"{what} has the columns {', '.join(names)}, none of a usual name for the {role}; "
                f"name it: --columns {role}=NAME (image=, label= and split=, separated by commas)"
            )
        return found
