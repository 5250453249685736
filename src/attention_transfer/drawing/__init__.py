"""Draw arrays: attention maps, sprites, contact sheets and their scales. Imports no torch."""
