"""Attention maps of any networks on any images, as pictures: ``maps`` and ``at.show``."""

from attention_transfer.viewing.command import MapsResult, write_maps
from attention_transfer.viewing.show import show

__all__ = ["MapsResult", "show", "write_maps"]
