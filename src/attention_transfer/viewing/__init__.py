"""Seeing where networks look: from networks and images to pictures."""

from attention_transfer.viewing.command import Looked, look
from attention_transfer.viewing.showing import show

__all__ = ["Looked", "look", "show"]
