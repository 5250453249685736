"""Named arrays in ``.npz`` files: raw attention maps, images, predictions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["write_arrays"]


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
    """Write a compressed ``.npz`` file, which is complete or absent.

    Args:
        path: the file; an existing one is replaced.
        arrays: by their names in the file.

    Returns:
        The file's path.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    partial.replace(path)
    return path
