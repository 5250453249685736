"""Decoding of every kind of image file, and of corrupt ones."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from attention_transfer.data.decoding import Box, CorruptImageError, decode, image_size

Pixels = NDArray[np.uint8]
HEIGHT, WIDTH = 12, 20


def picture() -> Pixels:
    """Smooth in each colour, and different in each corner."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([rows * 20, columns * 12, (rows + columns) * 8], axis=2).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def grey(values: Pixels) -> Pixels:
    return np.repeat(values[:, :, None], 3, axis=2)


def transparent() -> tuple[bytes, Pixels]:
    alpha = np.zeros((HEIGHT, WIDTH, 1), dtype=np.uint8)
    alpha[:, :10] = 255
    shown = np.where(alpha > 0, picture(), np.uint8(255))
    rgba = np.concatenate([picture(), alpha], axis=2)
    return encoded(Image.fromarray(rgba), "PNG"), shown


def palette(see_through: bool) -> tuple[bytes, Pixels]:
    indices = (np.arange(HEIGHT * WIDTH) % 3).reshape(HEIGHT, WIDTH).astype(np.uint8)
    colours = np.array([[250, 10, 20], [30, 240, 40], [50, 60, 230]], dtype=np.uint8)
    image = Image.new("P", (WIDTH, HEIGHT))
    image.putdata(indices.ravel().tolist())
    image.putpalette(colours.ravel().tolist())
    shown = colours[indices]
    if see_through:
        shown[indices == 1] = 255
        return encoded(image, "PNG", transparency=1), shown
    return encoded(image, "GIF"), shown


def sixteen_bits() -> tuple[bytes, Pixels]:
    values = (np.arange(HEIGHT * WIDTH) * 257).reshape(HEIGHT, WIDTH).astype(np.uint16)
    return encoded(Image.fromarray(values), "PNG"), grey((values // 257).astype(np.uint8))


def dark_sixteen_bits() -> tuple[bytes, Pixels]:
    values = np.full((HEIGHT, WIDTH), 200, dtype=np.uint16)
    return encoded(Image.fromarray(values), "PNG"), grey(np.ones((HEIGHT, WIDTH), dtype=np.uint8))


def floats() -> tuple[bytes, Pixels]:
    values = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    return encoded(Image.fromarray(values), "TIFF"), grey(np.rint(values * 255).astype(np.uint8))


def turned(orientation: int) -> tuple[bytes, Pixels]:
    """A picture stored so that the EXIF orientation brings it upright."""
    back = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(back(picture()))
    return encoded(Image.fromarray(stored), "PNG", exif=exif), picture()


def animated() -> tuple[bytes, Pixels]:
    first, second = picture(), 255 - picture()
    image = Image.fromarray(first)
    content = encoded(
        image, "WEBP", save_all=True, append_images=[Image.fromarray(second)], lossless=True
    )
    return content, first


def plain(kind: str, mode: str = "RGB") -> tuple[bytes, Pixels]:
    image = Image.fromarray(picture()).convert(mode)
    return encoded(image, kind), np.asarray(image.convert("RGB"))


LOSSLESS: dict[str, Callable[[], tuple[bytes, Pixels]]] = {
    "png": lambda: plain("PNG"),
    "bmp": lambda: plain("BMP"),
    "tiff": lambda: plain("TIFF"),
    "ppm": lambda: plain("PPM"),
    "grey": lambda: plain("PNG", "L"),
    "black and white": lambda: plain("PNG", "1"),
    "cmyk": lambda: plain("TIFF", "CMYK"),
    "transparent": transparent,
    "palette": lambda: palette(False),
    "palette with a transparent colour": lambda: palette(True),
    "16 bits": sixteen_bits,
    "16 bits, dark": dark_sixteen_bits,
    "floats": floats,
    "animated": animated,
    **{f"turned {value}": (lambda value=value: turned(value)) for value in range(1, 9)},  # type: ignore[misc]
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_images_decode_to_their_pixels(kind: str) -> None:
    content, expected = LOSSLESS[kind]()
    assert image_size(content) == (HEIGHT, WIDTH)
    assert np.array_equal(decode(content, (HEIGHT, WIDTH)), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_decode_close_to_their_pixels(mode: str) -> None:
    image = Image.fromarray(picture()).convert(mode)
    found = decode(encoded(image, "JPEG", quality=95, subsampling=0), (HEIGHT, WIDTH))
    difference = found.astype(int) - np.asarray(image.convert("RGB"))
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_part_of_a_large_jpeg_is_where_it_is(orientation: int) -> None:
    """Decoded at an eighth, cut and scaled, against the same of the whole picture."""
    rows, columns = np.mgrid[0:800, 0:1200]
    whole = np.stack([rows * 255 // 800, columns * 255 // 1200, rows * 0 + 90], axis=2)
    stored = whole.astype(np.uint8) if orientation == 1 else np.rot90(whole.astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), "JPEG", exif=exif)
    assert image_size(content) == (800, 1200)
    found = decode(content, (20, 30), Box(300, 200, 900, 600)).astype(int)
    expected = whole[200:600, 300:900].reshape(20, 20, 30, 20, 3).mean((1, 3))
    assert np.abs(found - expected).max() < 6


def png_with(data: bytes) -> bytes:
    """A PNG of one grey pixel a row whose image data are these."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
BROKEN = {
    "nothing": b"",
    "zero bytes": bytes(1000),
    "text": b"this is no image\n" * 10,
    "truncated jpeg": encoded(Image.fromarray(NOISE), "JPEG")[:1500],
    "truncated png": encoded(Image.fromarray(NOISE), "PNG")[:1500],
    "flipped png": flipped(encoded(Image.fromarray(NOISE), "PNG"), 900),
    "empty image data": png_with(b""),
    "image data that are no zlib": png_with(b"garbage"),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_corrupt_files_are_refused(fault: str) -> None:
    with pytest.raises(CorruptImageError):
        decode(BROKEN[fault], (8, 8))


BOMB = """
import io, resource, sys
from attention_transfer.data.decoding import CorruptImageError, image_size, decode
content = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for look in (image_size, lambda content: decode(content, (8, 8))):
    try:
        look(content)
    except CorruptImageError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    content = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(content) < 100_000
    done = subprocess.run(
        [sys.executable, "-c", BOMB], input=content, capture_output=True, check=True, timeout=60
    )
    *refusals, grown = done.stdout.decode().splitlines()
    assert len(refusals) == 2
    assert all("pixels" in refusal for refusal in refusals)
    assert int(grown) < 20_000  # kilobytes; the image has 50 MB, or 1.2 GB in colour
