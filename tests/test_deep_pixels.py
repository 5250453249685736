"""Images of more than 8 bits: one range for a set, from its files to the network's input."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.data import AugmentedView, as_input, batches, from_datasets, load_data
from attention_transfer.errors import InputError
from attention_transfer.preprocessing import PixelRange, Preprocessing

SIZE = 64
RAMP = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE)
"""Every value of 12 bits once."""
TRAIN = "train --model wrn-10-1 --epochs 1 --batch-size 8 --lr 0.01 --workers 0 --precision fp32"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_set(root: str, images: Callable[[int], NDArray[Any]], suffix: str = "png") -> None:
    """Write ten images in each of two classes."""
    for label in range(2):
        folder = Path(root, "ab"[label])
        folder.mkdir(parents=True)
        for number in range(10):
            Image.fromarray(images(number)).save(folder / f"{number}.{suffix}")


def ramp_and_dark(number: int) -> NDArray[Any]:
    """Full ramps, and ramps that end at 255."""
    return RAMP if number % 2 == 0 else RAMP // 16


def hounsfield(number: int) -> NDArray[Any]:
    return RAMP.astype(np.int32) - 1000 if number % 2 == 0 else np.full_like(RAMP, 0, np.int32)


def whole_images(data: at.data.DataSet) -> torch.Tensor:
    """The training images, uncropped: the centre crop is 7/8 of the sides."""
    resized = data.resized((56, 56), "bilinear")
    return as_input(resized.train.pixels(np.arange(len(resized.train))))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_folder_has_one_range_and_keeps_every_level(suffix: str) -> None:
    write_set("deep", ramp_and_dark, suffix)
    data = load_data("folder:deep")
    assert data.pixel_range == PixelRange(0, 4095)
    assert any("0 to 4095" in notice for notice in data.notices)
    images = whole_images(data)
    centre = RAMP[4:60, 4:60]
    expected = {tuple(np.unique(part)) for part in (centre, centre // 16)}
    for image in images:
        levels = np.rint(4095 * image[0].double().numpy())
        assert np.allclose(levels, 4095 * image[0].double().numpy(), atol=1e-3)
        assert tuple(np.unique(levels).astype(int)) in expected
    assert {len(image[0].unique()) for image in images} == {56 * 56, len(np.unique(centre // 16))}


@pytest.mark.parametrize("workers", [0, 1])
def test_augmented_views_have_more_levels_than_8_bits(workers: int) -> None:
    write_set("deep", lambda number: RAMP)
    data = load_data("folder:deep", image_size=(SIZE, SIZE))
    order = np.arange(8)
    (batch,) = batches(data.train, order, 8, view=AugmentedView(0, 3), workers=workers)
    assert all(len(image.unique()) > 1000 for image in batch.images)
    mixed = at.data.WithAugmentation(data.train, 2, 5, 0.5, mixup=0.4)
    views = as_input(mixed.pixels(order, AugmentedView(0, 3)))
    assert np.median([len(image.unique()) for image in views]) > 1000
    assert 0 <= float(views.min()) <= float(views.max()) <= 1


def test_a_transform_gets_and_returns_exact_pixels() -> None:
    write_set("deep", lambda number: RAMP)
    data = load_data("folder:deep", image_size=(SIZE, SIZE))
    flipped = data.with_transform(lambda image: image.flip(-1)).train
    image = as_input(flipped.pixels(np.zeros(1, dtype=np.int64), AugmentedView(0, 0)))[0, 0]
    assert np.array_equal(np.rint(image.double().numpy() * 4095), RAMP[:, ::-1])


def test_negative_values_and_a_given_range() -> None:
    write_set("scans", hounsfield, "tif")
    assert load_data("folder:scans").pixel_range == PixelRange(-1000, 3095)
    data = load_data("folder:scans", pixel_range=(-500, 500))
    assert any("-1000 to 3095" in notice for notice in data.notices)
    levels = whole_images(data)[:, 0]
    assert float(levels.min()) == 0
    assert {float(image.max()) for image in levels} == {0.5, 1.0}  # 0 is half-way


def test_images_of_8_bits_stay_what_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    write_set("plain", lambda number: pixels)
    data = load_data("folder:plain", image_size=(SIZE, SIZE))
    assert (data.pixel_range, data.train.dtype) == (None, torch.uint8)
    plain = data.train.pixels(np.arange(1))
    for label in "ab":
        Image.fromarray(RAMP).save(f"plain/{label}/deep.png")
    mixed = load_data("folder:plain", image_size=(SIZE, SIZE))
    index = [mixed.train.name(one).endswith("deep.png") for one in range(len(mixed.train))]
    same = as_input(mixed.train.pixels(np.flatnonzero(np.logical_not(index))[:1]))
    assert torch.equal(same, as_input(plain))
    assert any("images have 8 bits" in notice for notice in mixed.notices)
    with pytest.raises(InputError, match=r"0:100 is for images of more than 8 bits.*leave it out"):
        load_data("cluttered-digits", pixel_range=(0, 100))


def test_values_of_8_bits_in_larger_types_are_those_of_8_bits() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    for number, larger in enumerate((pixels.astype(np.uint16) * 257, pixels.astype(np.int32))):
        write_set(f"larger{number}", lambda _, larger=larger: larger, "tif")
        data = load_data(f"folder:larger{number}", image_size=(56, 56))
        assert data.train.dtype == torch.uint8
        assert np.array_equal(data.train.pixels(np.arange(1))[0, ..., 0], pixels[4:60, 4:60])


def tiff(array: NDArray[Any]) -> bytes:
    """A TIFF file of an array (H, W, C) of any type."""
    height, width, bands = array.shape
    bits, kind = 8 * array.itemsize, {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    content = array.astype(array.dtype.newbyteorder("<")).tobytes()
    start = 8 + 2 * (bands + bands)
    numbers = {
        256: (width,),
        257: (height,),
        258: (bits,) * bands,
        259: (1,),
        262: (2 if bands == 3 else 1,),
        273: (start,),
        277: (bands,),
        278: (height,),
        279: (len(content),),
        339: (kind,) * bands,
    }
    entries, arrays = b"", b""
    for tag, values in numbers.items():
        short = tag in (258, 339)
        packed = struct.pack(f"<{len(values)}{'H' if short else 'I'}", *values)
        if len(packed) > 4:
            arrays, packed = arrays + packed, struct.pack("<I", 8 + len(arrays))
        entries += struct.pack("<HHI", tag, 3 if short else 4, len(values)) + packed.ljust(4, b"\0")
    body = arrays.ljust(start - 8, b"\0") + content
    head = b"II*\0" + struct.pack("<I", 8 + len(body))
    return head + body + struct.pack("<H", len(numbers)) + entries + b"\0" * 4


def png(array: NDArray[np.uint16]) -> bytes:
    """A PNG file of an array (H, W, C) of 16 bits."""
    height, width, bands = array.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


COLOURS = np.stack([RAMP, RAMP // 2, RAMP[::-1]], axis=2)


@pytest.mark.parametrize("file", ["tiff", "png", "png with opacity"])
def test_colours_of_16_bits_keep_every_level(file: str) -> None:
    opaque = np.full((SIZE, SIZE, 1), 65535, np.uint16)
    content = {
        "tiff": lambda: tiff(COLOURS),
        "png": lambda: png(COLOURS),
        "png with opacity": lambda: png(np.concatenate([COLOURS, opaque], axis=2)),
    }[file]()
    for label in "ab":
        for number in range(10):
            path = Path("colours", label, f"{number}.{file[:4].strip()}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    data = load_data("folder:colours")
    assert data.pixel_range == PixelRange(0, 4095)
    image = np.rint(4095 * whole_images(data)[0].double().numpy()).transpose(1, 2, 0)
    assert np.array_equal(image, COLOURS[4:60, 4:60])


@pytest.mark.parametrize(
    ("array", "described"),
    [
        (np.zeros((9, 9, 3), np.float32), "3 bands of 32-bit floating-point numbers"),
        (np.zeros((9, 9, 5), np.uint8), "5 bands of 8-bit integers"),
        (np.zeros((9, 9, 1), np.float64), "1 band of 64-bit floating-point numbers"),
    ],
)
def test_other_tiff_files_are_described(array: NDArray[Any], described: str) -> None:
    write_set("plain", lambda number: RAMP.astype(np.uint8))
    Path("plain/a/odd.tif").write_bytes(tiff(array))
    (notice,) = load_data("folder:plain").notices
    assert described in notice
    assert "package.module:factory" in notice
    with pytest.raises(InputError, match=described):
        at.show(at.models.build("wrn-10-1", 2), "plain/a/odd.tif")


def test_float_files_have_their_own_range() -> None:
    write_set("heights", lambda number: RAMP.astype(np.float32) / 10 - number, "tif")
    data = load_data("folder:heights")
    assert data.pixel_range is not None
    assert (data.pixel_range.low, data.pixel_range.high) == pytest.approx((-9, 409.5))


def test_the_range_goes_from_training_to_evaluation_and_maps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_set("deep", ramp_and_dark)
    assert main(f"{TRAIN} --data folder:deep --image-size 32 --out run".split()) == 0
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert printed.index("pixel range 0 to 4095") < printed.index("epoch 1/1")
    assert json.loads(Path("run/model.json").read_text())["pixel_range"] == [0, 4095]
    # The same network judges images of another range by the run's.
    write_set("dark", lambda number: RAMP // 16 * (number + 1) // 10)
    judge = ["evaluate", "run", "--data", "folder:dark", "--workers", "0", "--json"]
    results = []
    for flags in ([], ["--pixel-range", "0:4095"], ["--pixel-range", "0:255"]):
        assert main([*judge, *flags]) == 0
        results.append(json.loads(capsys.readouterr().out)["loss"])
    assert results[0] == results[1] != results[2]
    maps = "maps run --images dark/a/9.png --points top --out"
    assert main([*maps.split(), "maps"]) == 0
    assert main([*maps.split(), "given", "--pixel-range", "0:4095"]) == 0
    assert main([*maps.split(), "other", "--pixel-range", "-100:300"]) == 0
    own, given, other = (
        np.load(f"{folder}/maps.npz")["probabilities"] for folder in ("maps", "given", "other")
    )
    assert np.array_equal(own, given)
    assert not np.array_equal(own, other)


def test_a_negative_range_is_no_flag(capsys: pytest.CaptureFixture[str]) -> None:
    write_set("scans", hounsfield, "tif")
    command = f"{TRAIN} --data folder:scans --image-size 32 --out run --pixel-range -1000:3000"
    assert main(command.split()) == 0
    assert json.loads(Path("run/model.json").read_text())["pixel_range"] == [-1000, 3000]
    for wrong in ("3000:-1000", "5", "a:b", "0:nan", "1:2:3"):
        capsys.readouterr()
        command = f"{TRAIN} --data folder:scans --out other --pixel-range {wrong}"
        assert main(command.split()) == 2
        assert "LOW:HIGH" in capsys.readouterr().err
    assert not Path("other").exists()


def test_a_resumed_run_keeps_its_range_and_notices_another() -> None:
    write_set("deep", ramp_and_dark)
    start = f"{TRAIN} --data folder:deep --image-size 32 --checkpoint-steps 1 --out"
    assert main([*start.split(), "whole"]) == 0
    shutil.copytree("whole", "broken")
    for name in ("record.json", "model.safetensors", "model.json"):
        Path("broken", name).unlink()
    assert main(["resume", "broken"]) == 0
    weights = [Path(run, "model.safetensors").read_bytes() for run in ("whole", "broken")]
    assert weights[0] == weights[1]
    Path("broken/record.json").unlink()
    again = [*start.split(), "broken", "--resume-or-start"]
    assert main([*again, "--pixel-range", "0:5000"]) == 2
    assert main(again) == 0


def test_hugging_face_data_have_one_range(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    write_set("deep", ramp_and_dark)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {
        "image": [
            {"bytes": path.read_bytes(), "path": None}
            for path in sorted(Path("deep").rglob("*.png"))
        ],
        "label": [0] * 10 + [1] * 10,
    }
    loaded = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: loaded)
    data = load_data("hf:some/deep")
    assert data.pixel_range == PixelRange(0, 4095)
    assert {len(image[0].unique()) for image in whole_images(data)} == {
        56 * 56,
        len(np.unique(RAMP[4:60, 4:60] // 16)),
    }


def test_arrays_of_deep_integers_and_floats() -> None:
    for array in (RAMP, RAMP.astype(np.int64), np.stack([RAMP] * 3)):
        data = from_datasets([(array, number % 2) for number in range(20)], size=(56, 56))
        assert data.pixel_range == PixelRange(0, 4095)
        levels = 4095 * as_input(data.train.pixels(np.arange(1)))[0, 0].double().numpy()
        assert np.array_equal(np.rint(levels), RAMP[4:60, 4:60])
    floats = [(torch.from_numpy(RAMP / np.float32(4095))[None], number % 2) for number in range(20)]
    data = from_datasets(floats, size=(56, 56))
    assert len(as_input(data.train.pixels(np.arange(1)))[0, 0].unique()) == 56 * 56
    scans = [(RAMP.astype(np.float32) - 1000, number % 2) for number in range(20)]
    with pytest.raises(InputError, match=r"values go from -1000 to .*--pixel-range LOW:HIGH"):
        from_datasets(scans)
    data = from_datasets(scans, size=(56, 56), pixel_range=(-1000, 3095))
    levels = 4095 * as_input(data.train.pixels(np.arange(1)))[0, 0].double().numpy()
    assert np.array_equal(np.rint(levels), RAMP[4:60, 4:60])


def test_deep_images_in_memory() -> None:
    pixels = torch.from_numpy(np.stack([np.stack([RAMP] * 3, axis=2)] * 6))
    part = at.data.ImageSet(pixels, torch.arange(6) % 2, augmentation=at.data.Augmentation(pad=2))
    data = at.data.DataSet("memory", part, part, part, ("a", "b"), (0.5,) * 3, (0.2,) * 3)
    scaled = load_data(data)
    image = as_input(scaled.train.pixels(np.arange(1), AugmentedView(0, 0)))
    assert scaled.pixel_range == PixelRange(0, 4095)
    assert image.dtype == torch.float32
    assert len(image[0, 0].unique()) > 3000


def test_weights_of_another_range_get_the_same_numbers() -> None:
    values = torch.linspace(0, 200, 12).view(1, 1, 3, 4).expand(-1, 3, -1, -1)
    trained = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.1, 0.3), pixel_range=PixelRange(-100, 300))
    other = PixelRange(50, 250)
    there = trained((values - trained.pixel_range.low) / trained.pixel_range.span)
    here = trained.on_scale(other)((values - other.low) / other.span)
    torch.testing.assert_close(here, there)
    assert trained.on_scale(None) is trained


def test_shown_images_of_16_bits_have_one_scale() -> None:
    network = at.models.build("wrn-10-1", 2)
    for images in (
        RAMP,
        np.stack([RAMP] * 3, axis=2),
        torch.from_numpy(np.stack([RAMP] * 3)),
        [RAMP.astype(np.int32) - 1000, RAMP],
    ):
        at.show(network, images, points="top")
    with pytest.raises(InputError, match="these have 8"):
        at.show(network, RAMP.astype(np.uint8), points="top", pixel_range=(0, 4095))
    with pytest.raises(InputError, match=r"uint16.*images.float\(\) / 65535"):
        at.attention_maps(network, torch.from_numpy(np.stack([RAMP] * 3))[None], points=["group3"])


def test_colours_of_16_bits_are_bounded_by_their_header() -> None:
    content = bytearray(png(COLOURS))
    header = b"IHDR" + struct.pack(">II", 7000, 7000) + bytes(content[24:29])
    content[12:33] = header + struct.pack(">I", zlib.crc32(header))
    write_set("plain", lambda number: RAMP.astype(np.uint8))
    Path("plain/a/large.png").write_bytes(content)
    (notice,) = load_data("folder:plain").notices
    assert "would take 784 MB" in notice
