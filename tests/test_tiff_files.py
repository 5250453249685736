"""TIFF files: every value and every band is read as the file has it, or the file is refused."""

import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.data import load_data
from attention_transfer.data.decoding import CorruptImageError, open_image, opened_bands
from attention_transfer.data.deep_images import bands_of_array
from attention_transfer.errors import InputError
from attention_transfer.models import LoadedModel
from attention_transfer.network_inputs import channels_matched
from attention_transfer.preprocessing import PixelRange

SIZE = 32
VALUES = np.arange(SIZE * SIZE).reshape(SIZE, SIZE, 1)
COLOURS = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tiff(
    array: NDArray[Any],
    order: str = "<",
    *,
    compressed: bool = False,
    extra: Sequence[int] = (),
) -> bytes:
    """A TIFF file of an array (H, W, C), of colours and extra bands where C is more than 2."""
    height, width, bands = array.shape
    content = array.astype(array.dtype.newbyteorder(order)).tobytes()
    content = zlib.compress(content) if compressed else content
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    tags: dict[int, Sequence[int]] = {
        256: (width,),
        257: (height,),
        258: (8 * array.itemsize,) * bands,
        259: (8 if compressed else 1,),
        262: (2 if bands > 2 else 1,),
        273: (8,),
        277: (bands,),
        278: (height,),
        279: (len(content),),
        338: extra,
        339: (kind,) * bands,
    }
    tags = {tag: values for tag, values in tags.items() if values}
    content += b"\0" * (len(content) % 2)
    arrays, start = b"", 8 + len(content)
    entries = struct.pack(f"{order}H", len(tags))
    for tag, values in tags.items():
        form = "I" if tag in (273, 279) else "H"
        packed = struct.pack(f"{order}{len(values)}{form}", *values)
        if len(packed) > 4:
            place = start + 2 + 12 * len(tags) + 4 + len(arrays)
            arrays, packed = arrays + packed, struct.pack(f"{order}I", place)
        entry = struct.pack(f"{order}HHI", tag, 4 if form == "I" else 3, len(values))
        entries += entry + packed.ljust(4, b"\0")
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, start)
    return head + content + entries + b"\0" * 4 + arrays


def write_set(root: str, content: bytes) -> None:
    for label in "ab":
        for number in range(10):
            path = Path(root, label, f"{number}.tif")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "array",
    [
        (VALUES % 256 - 128).astype(np.int8),
        (VALUES * 60 - 30000).astype(np.int16),
        (VALUES * 4_000_000 - 2**31).astype(np.int32),
        VALUES.astype(np.uint16),
        VALUES.astype(np.uint32),
        (VALUES * 2**22).astype(np.uint32),
        (VALUES / 7 - 3).astype(np.float32),
    ],
    ids=lambda array: f"{array.dtype} from {array.min()}",
)
def test_every_value_is_read(array: NDArray[Any], order: str, compressed: bool) -> None:
    content = tiff(array, order, compressed=compressed)
    if array.dtype == np.uint32 and order == ">":  # PIL does not read them
        with (
            pytest.raises(CorruptImageError, match="1 band of 32-bit integers"),
            open_image(content),
        ):
            pass
        return
    with open_image(content) as image:
        (band,) = opened_bands(image)
        assert np.array_equal(np.asarray(band), array[..., 0])
    (expected,) = bands_of_array(array[..., 0])
    assert band.mode[0] == expected.mode[0]


def test_signed_bytes_have_one_scale() -> None:
    write_set("signed", tiff((VALUES % 256 - 128).astype(np.int8)))
    data = load_data("folder:signed", image_size=(28, 28))
    assert data.pixel_range == PixelRange(-128, 127)
    pixels = data.train.pixels(np.arange(1))[0, ..., 0].double().numpy()
    expected = (VALUES % 256)[2:30, 2:30, 0]
    assert np.array_equal(np.rint(255 * pixels), expected)
    assert any("values -128 to 127 in all splits" in notice for notice in data.notices)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("extra", [(), (0,)])
def test_a_fourth_band_that_is_not_opacity_is_a_channel(
    dtype: type, compressed: bool, extra: Sequence[int], capsys: pytest.CaptureFixture[str]
) -> None:
    array = COLOURS.astype(dtype) * (1 if dtype == np.uint8 else 200)
    write_set("four", tiff(array, compressed=compressed, extra=extra))
    data = load_data("folder:four", image_size=(28, 28))
    assert data.channels == 4
    four, _ = channels_matched(data, [LoadedModel("four", nn.Conv2d(4, 2, 1))])
    pixels = four.train.pixels(np.arange(1))[0].numpy()
    scale = 1 if dtype == np.uint8 else 65535
    assert np.array_equal(np.rint(pixels * float(scale)), array[2:30, 2:30])
    command = ["train", "--model", "wrn-10-1", "--image-size", "16", "--data", "folder:four"]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "takes 3 channels, the images of four have 4" in line
    assert not Path("runs").exists()
    with pytest.raises(InputError, match="4 bands, of which none is declared as opacity"):
        at.show(at.models.build("wrn-10-1", 2), "four/a/0.tif")


def test_a_fourth_band_that_is_opacity_is_put_on_white() -> None:
    array = COLOURS.copy()
    array[..., 3] = np.where(VALUES[..., 0] % 2, 255, 0)
    write_set("alpha", tiff(array, extra=(2,)))
    data = load_data("folder:alpha", image_size=(28, 28))
    assert data.channels == 3
    expected = np.where(array[..., 3:] == 255, array[..., :3], 255)[2:30, 2:30]
    assert np.array_equal(data.train.pixels(np.arange(1))[0], expected)


def test_files_of_three_and_of_four_bands_together_are_named() -> None:
    write_set("mixed", tiff(COLOURS[..., :3]))
    Path("mixed/a/9.tif").write_bytes(tiff(COLOURS))
    (notice,) = load_data("folder:mixed", image_size=(28, 28)).notices
    assert "skipped corrupt image mixed/a/9.tif: it has 4 bands, of which none" in notice
    write_set("mixed", tiff(COLOURS))
    Path("mixed/a/9.tif").write_bytes(tiff(COLOURS[..., :3]))
    (notice,) = load_data("folder:mixed", image_size=(28, 28)).notices
    assert re.search(r"mixed/a/9.tif: it has 3 channels, expected 4, as the others", notice)


def test_bands_that_would_be_left_out_are_refused() -> None:
    five = np.concatenate([COLOURS, COLOURS[..., :1]], axis=2)
    write_set("plain", tiff(COLOURS[..., :3]))
    Path("plain/a/9.tif").write_bytes(tiff(five, extra=(0, 0)))
    (notice,) = load_data("folder:plain", image_size=(28, 28)).notices
    assert "9.tif: it is a TIFF file of 5 bands of 8-bit integers, expected 1 band, or 3" in notice
