"""Figures from arrays: attention maps, sprites and their colour scales. No torch."""
