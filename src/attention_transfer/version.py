"""The version of this package: its one home, from which the build reads it too."""

__all__ = ["__version__"]

__version__ = "0.2.0"
