"""Rows 12 and 39: images whose few bytes would become gigabytes are refused by their header."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attention_transfer.data import load_data
from attention_transfer.data.decoding import MOST_BYTES, decode, image_size

SIDE = 9990

MEASURE = """
import resource, sys
from pathlib import Path
from attention_transfer.data.decoding import CorruptImageError, decode, image_size
decode(Path("warm.png"), (8, 8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for look in (image_size, lambda path: decode(path, (8, 8)).shape):
    try:
        print(look(Path(sys.argv[1])))
    except CorruptImageError as error:
        print("refused:", error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def png(side: int, colour: int, bits: int, channels: int) -> bytes:
    """A black PNG, compressed row by row: an encoder would need the memory that it shall cost."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    row = bytes(1 + side * channels * bits // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def measured(content: bytes, folder: Path) -> tuple[list[str], int]:
    """Return what a process says of an image's size and of its pixels, and the memory it took."""
    (folder / "image").write_bytes(content)
    Image.new("RGB", (8, 8)).save(folder / "warm.png")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, "image"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    *said, grown = done.stdout.splitlines()
    return said, int(grown)


BOMBS: dict[str, Callable[[], bytes]] = {
    "16 bits": lambda: png(SIDE, 0, 16, 1),
    "grey with transparency": lambda: png(SIDE, 4, 8, 2),
    "colour with transparency": lambda: png(SIDE, 6, 8, 4),
    "16-bit colour with transparency": lambda: png(SIDE, 6, 16, 4),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_below_the_limit_of_pixels_is_refused_by_its_header(
    kind: str, tmp_path: Path
) -> None:
    content = BOMBS[kind]()
    assert len(content) < 1_500_000
    said, grown = measured(content, tmp_path)
    assert all(f"refused: its {SIDE}x{SIDE} pixels" in line for line in said)
    assert "MB to decode, expected at most 537 MB; make it smaller" in said[0]
    assert grown < 20_000_000


LARGE: dict[str, Callable[[], bytes]] = {
    "16 bits": lambda: png(4000, 0, 16, 1),
    "grey with transparency": lambda: png(4000, 4, 8, 2),
    "colour with transparency": lambda: png(4000, 6, 8, 4),
    "palette": lambda: saved(Image.new("P", (4000, 4000)), "PNG", transparency=0),
    "CMYK": lambda: saved(Image.new("CMYK", (4000, 4000)), "TIFF", compression="tiff_lzw"),
    "32 bits": lambda: saved(Image.new("I", (4000, 4000)), "TIFF", compression="tiff_lzw"),
    "floats": lambda: saved(Image.new("F", (4000, 4000)), "TIFF", compression="tiff_lzw"),
    "progressive": lambda: saved(
        Image.new("RGB", (4000, 4000)), "JPEG", progressive=True, subsampling=0
    ),
    "webp": lambda: saved(Image.new("RGB", (4000, 4000)), "WEBP"),
    "animated": lambda: saved(
        Image.new("P", (4000, 4000)), "GIF", save_all=True, append_images=[Image.new("P", (9, 9))]
    ),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_image_takes_no_more_than_its_budget(kind: str, tmp_path: Path) -> None:
    said, grown = measured(LARGE[kind](), tmp_path)
    assert said == ["(4000, 4000)", "(8, 8, 3)"]
    assert grown < 22 * 4000 * 4000 < MOST_BYTES


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_many_rows_are_scaled_as_one(mode: str) -> None:
    """Deep images are scaled some rows at a time; the brightest of all rows decides the scale."""
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    values = np.random.default_rng(0).integers(0, 256, (2500, 1000)).astype(dtype)
    values[-1, -1] = 60_000 if mode != "F" else 200.0
    content = saved(Image.fromarray(values), "TIFF")
    scale = 255 / 65535 if mode != "F" else 1.0
    expected = np.rint(values.astype(np.float64) * scale).clip(0, 255).astype(np.uint8)
    assert np.array_equal(decode(content, (2500, 1000))[..., 1], expected)
    assert image_size(content) == (2500, 1000)


def test_every_16_bit_value_is_scaled_to_the_nearest() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = decode(saved(Image.fromarray(values), "PNG"), (256, 256))[..., 0]
    assert np.array_equal(found, (values.astype(np.int64) + 128) // 257)


def test_a_bomb_among_the_images_of_a_set_is_named_and_skipped(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (16, 16)).save(tmp_path / "photos" / label / f"{number}.png")
    (tmp_path / "photos/cat/bomb.png").write_bytes(png(SIDE, 0, 16, 1))
    data = load_data(f"folder:{tmp_path / 'photos'}", image_size=(16, 16))
    (notice,) = [line for line in data.notices if "bomb" in line]
    assert "skipped corrupt image" in notice
    assert "would take 699 MB to decode" in notice
    assert len(data.train) + len(data.validation) + len(data.test) == 24
