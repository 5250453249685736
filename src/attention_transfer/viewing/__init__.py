"""Seeing where networks look: from networks and images to pictures."""

from attention_transfer.viewing.command import MapsResult, look
from attention_transfer.viewing.show import show

__all__ = ["MapsResult", "look", "show"]
