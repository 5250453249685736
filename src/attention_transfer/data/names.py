"""What DATA names: the function that loads it."""

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from attention_transfer.data.columns import Columns
from attention_transfer.data.images import DataSet
from attention_transfer.errors import InputError, nearest

__all__ = ["Load", "loader"]

Load = Callable[[tuple[int, int], int], DataSet]
"""From height and width in pixels and a data seed to the data."""

_KNOWN = ["cluttered-digits", "cifar10", "cifar100", "folder:DIR", "imagenet:DIR", "hf:NAME"]


def loader(
    data: Any, download: bool, columns: Columns, label_offset: int | None
) -> tuple[Load, Path]:
    """Return the function that loads DATA, and the folder that its name holds, if any.

    Modules are imported here, because torchvision's data sets and Hugging Face's library take long.

    Raises:
        InputError: an unknown name, or columns or an offset for data without columns.
    """
    chosen = {} if columns == Columns() else {"columns": columns}
    reading: dict[str, Any] = chosen | (
        {} if label_offset is None else {"label_offset": label_offset}
    )
    if not isinstance(data, str):
        from attention_transfer.data.datasets import as_data_set

        return partial(as_data_set, data, "data", **reading), Path()
    name, _, rest = data.partition(":")
    if name == "csv" and rest:
        from attention_transfer.data.tables import table_data

        file = _user_path(rest)
        return partial(table_data, file, **reading), file.parent
    if name == "hf" and rest:
        from attention_transfer.data.hugging_face import hugging_face_data

        where = str(_user_path(rest)) if rest.startswith("~") else rest
        return partial(hugging_face_data, where, **reading), Path(where)
    if rest and _is_users_package(name, rest):
        from attention_transfer.data.datasets import factory_data

        return partial(factory_data, data, **reading), Path()
    load = _of_folder(data, name, rest, download)
    if load is None:
        raise InputError(f"unknown data {data!r}; {_hint(data)}")
    if reading:
        raise InputError(
            f"{data} has no columns and no numbers as labels; leave out {' and '.join(reading)}"
        )
    return load


def _of_folder(data: str, name: str, rest: str, download: bool) -> tuple[Load, Path] | None:
    """Return what loads data in folders or in the package; None: the name is of neither."""
    if data == "cluttered-digits":
        from attention_transfer.data.cluttered_digits import cluttered_digits

        return lambda size, data_seed: cluttered_digits(data_seed), Path()
    if name in ("cifar10", "cifar100"):
        from attention_transfer.data.cifar import CifarName, cifar

        archive = _user_path(rest or "data")
        cifar_name = cast("CifarName", name)
        return lambda size, data_seed: cifar(cifar_name, archive, download), archive
    if name in ("folder", "imagenet") and rest:
        from attention_transfer.data.folders import check_imagenet_layout, folder_data

        folder = _user_path(rest)
        if name == "imagenet":
            check_imagenet_layout(folder)
        return partial(folder_data, folder), folder
    return None


def _user_path(text: str) -> Path:
    """Return a path in which ~ is the user's home folder.

    Raises:
        InputError: there is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(
            f"there is no home folder for {text.partition('/')[0]!r} of {text!r}; write the whole "
            "path"
        ) from None


def _is_users_package(name: str, rest: str) -> bool:
    """Return whether package.module of a factory may be imported: no module of Python itself.

    A single word must be a module that is there; of a name with dots, the import says what is not.
    """
    root = name.partition(".")[0]
    if not name.replace(".", "_").isidentifier() or root in sys.stdlib_module_names:
        return False
    if root != name:
        return True
    if not rest.partition("(")[0].strip().isidentifier():
        return False
    if name in sys.modules:
        return True
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def _hint(data: str) -> str:
    """Return what a user may mean by the name: a folder or file that is there, or a known name."""
    for path in (data, data.partition(":")[2]):
        place = _user_path(path) if path.startswith("~") else Path(path)
        suffix = place.suffix.lower()
        if path and place.is_dir():
            return f"did you mean folder:{path}?"
        if path and place.is_file() and suffix in (".csv", ".tsv", ".parquet"):
            return f"did you mean {'hf' if suffix == '.parquet' else 'csv'}:{path}?"
    named = {known.partition(":")[0]: known for known in (*_KNOWN, "csv:FILE")}
    if data.rstrip(":") in named:
        return f"did you mean {named[data.rstrip(':')]}?"
    return nearest(data, [*_KNOWN, "csv:FILE", "package.module:factory"])
