"""Numbers of the documents that look measured and are settings, assumptions or formulas."""

__all__ = ["SETTINGS"]

INTERVAL = "95 % interval"

SETTINGS: dict[str, tuple[str, ...]] = {
    "README.md": ("| | optimizer | learning rate", INTERVAL, "about 0.1 to 16"),
    "docs/extending.md": ("0.299 R + 0.587 G + 0.114 B",),
    "docs/methods.md": ("from 0.7 to 600", "| preset | loss"),
    "docs/reproducing.md": ("| | the paper | the authors' code", "a peak of 0.8"),
    "docs/results.md": (
        INTERVAL,
        "peak of 0.4",
        "10 % of the training scenes",
        "0.4 has the lowest mean error",
        "Alpha is 0.9",
        "peak of 0.05",
        "weight decay of 0.001",
        # Bounds in the tests that the sentence names.
        "within 3 %",
        "within 10 % of its norm",
    ),
    "docs/scaling.md": (
        "15 seconds",
        # Assumptions of a calculation, and what follows from them.
        "11.7 million",
        "gradients are 46.8 MB",
        "200 GB/s",
        "12.5 GB/s",
        "| | 8 GPUs, one machine",
    ),
    "docs/studies.md": (INTERVAL,),
}
"""Phrases by document, wherever its lines break; of a table, the beginning of its head."""
