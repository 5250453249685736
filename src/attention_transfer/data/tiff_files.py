"""TIFF files whose values or bands PIL does not read as they are stored."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

__all__ = ["as_stored", "describe_tiff", "has_undeclared_band", "unsigned_values"]

_ALPHA = (1, 2, 999)
"""Values of the tag ExtraSamples that declare opacity: premultiplied, straight, Corel's."""

_COLOURS = 2
"""The value of the tag PhotometricInterpretation for red, green and blue."""

_SIGNED = 2
"""The value of the tag SampleFormat for signed integers."""


def as_stored(image: Image.Image) -> str | None:
    """Set how PIL will decode an opened TIFF file, where it would not do so as the file says.

    - Signed integers of 8 bits become integers of mode I, which PIL takes for unsigned ones.
    - Compressed values of more than 8 bits, of the other byte order: libtiff has swapped them.
    - A fourth band beside red, green and blue is kept, also where the file does not say its use.

    Returns:
        What the file holds, if PIL would leave bands out; else None.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    tags = image.tag_v2
    bits, kind = tags.get(TiffImagePlugin.BITSPERSAMPLE), tags.get(TiffImagePlugin.SAMPLEFORMAT)
    if image.mode == "L" and (bits, kind) == ((8,), (_SIGNED,)):
        _set_mode(image, "I", {"L": "I;8S"})
    elif image.mode == "RGB" and has_undeclared_band(image):
        _set_mode(image, "RGBA", {"RGBX": "RGBA", "RGB": "RGBA"})
    swapped = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
    image.tile = [
        _with_raw_mode(tile, swapped) if tile[0] == "libtiff" else tile for tile in image.tile
    ]
    if tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) > len(image.getbands()):
        return _described(tags)
    return None


def _set_mode(image: TiffImagePlugin.TiffImageFile, mode: str, raw_modes: dict[str, str]) -> None:
    image._mode = mode  # what PIL's file readers set when they open a file
    image.tile = [_with_raw_mode(tile, raw_modes) for tile in image.tile]


def _with_raw_mode(tile: Any, raw_modes: dict[str, str]) -> Any:
    """Return a part of a file with another layout of its bytes, up to a suffix such as ;16L."""
    first, *others = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    name, separator, suffix = first.partition(";")
    changed = raw_modes.get(first) or f"{raw_modes.get(name, name)}{separator}{suffix}"
    return tile._replace(args=(changed, *others) if isinstance(tile.args, tuple) else changed)


def has_undeclared_band(image: Image.Image) -> bool:
    """Return whether a TIFF file has four bands, red, green, blue and one that is not opacity.

    Opacity is declared by the tag ExtraSamples.
    """
    tags = getattr(image, "tag_v2", None)
    if tags is None or image.mode not in ("RGB", "RGBA"):
        return False
    extra = tags.get(TiffImagePlugin.EXTRASAMPLES, ())
    return (
        tags.get(TiffImagePlugin.SAMPLESPERPIXEL) == 4
        and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _COLOURS
        and not set(extra if isinstance(extra, tuple) else (extra,)) & set(_ALPHA)
    )


def unsigned_values(image: Image.Image, decoded: Image.Image) -> Image.Image:
    """Return the decoded pixels of an opened image with values of 2**31 or more, if it has such.

    PIL reads unsigned integers of 32 bits as signed ones. Their values become float32.
    """
    tags = getattr(image, "tag_v2", {})
    if image.mode != "I" or tags.get(TiffImagePlugin.BITSPERSAMPLE) != (32,):
        return decoded
    if tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,)) != (1,):
        return decoded
    values = np.asarray(decoded)
    if values.min() >= 0:
        return decoded
    return Image.fromarray(values.view(np.uint32).astype(np.float32))


def describe_tiff(source: bytes | Path) -> str | None:
    """Describe the pixels of a TIFF file that PIL does not read; None: it is no TIFF file."""
    try:
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
            start = file.read(8)
            if start[:4] not in (b"II*\0", b"MM\0*"):
                return None
            tags = TiffImagePlugin.ImageFileDirectory_v2(start)
            file.seek(tags.next)
            tags.load(file)
    except Exception:
        return None
    return _described(tags)


def _described(tags: Any) -> str:
    kind = {2: "signed integers", 3: "floating-point numbers"}.get(
        _first(tags.get(TiffImagePlugin.SAMPLEFORMAT, 1)), "integers"
    )
    bits = _first(tags.get(TiffImagePlugin.BITSPERSAMPLE, 1))
    bands = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    return f"a TIFF file of {bands} {'band' if bands == 1 else 'bands'} of {bits}-bit {kind}"


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value
