"""The trained teacher that comes with the package."""

from importlib.resources import files
from pathlib import Path

__all__ = ["PACKAGED_DATA", "packaged_teacher"]

PACKAGED_DATA = "cluttered-digits"
"""The data set that the packaged teacher was trained on."""


def packaged_teacher() -> Path:
    """Return the run folder of the teacher that comes with the package."""
    return Path(str(files("attention_transfer.experiments") / "demo_teacher"))
