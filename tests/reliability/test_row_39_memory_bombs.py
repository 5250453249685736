"""Rows 12, 20 and 39: files whose few bytes would become gigabytes or minutes are refused."""

import io
import json
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from PIL.TiffImagePlugin import (
    ROWSPERSTRIP,
    STRIPBYTECOUNTS,
    STRIPOFFSETS,
    TILEBYTECOUNTS,
    TILELENGTH,
    TILEOFFSETS,
    TILEWIDTH,
    ImageFileDirectory_v2,
)

import attention_transfer as at
from attention_transfer.cli import main
from attention_transfer.data import load_data
from attention_transfer.data.decoding import MOST_BYTES, CorruptImageError, decode, image_size
from attention_transfer.errors import InputError
from attention_transfer.experiments.demo import packaged_teacher

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


def test_a_tile_larger_than_its_image_counts(tmp_path: Path) -> None:
    """A TIFF of 64x64 pixels whose only tile has 20,000 a side."""
    path = tmp_path / "tiles.tiff"
    Image.new("RGB", (64, 64)).save(path, compression="tiff_adobe_deflate")
    decode(path, (8, 8))
    directory = ImageFileDirectory_v2()
    with Image.open(path) as image:
        tags = dict(image.tag_v2)
    del tags[STRIPOFFSETS], tags[STRIPBYTECOUNTS], tags[ROWSPERSTRIP]
    tags |= {TILEWIDTH: 20_000, TILELENGTH: 20_000, TILEOFFSETS: 8, TILEBYTECOUNTS: 20}
    for tag, value in tags.items():
        directory[tag] = value
    with path.open("wb") as file:
        file.write(b"II*\0\x08\0\0\0")
        directory.save(file)
    with pytest.raises(CorruptImageError, match=r"its 64x64 pixels .* MB to decode, expected"):
        decode(path, (8, 8))


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


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A copy of the packaged teacher's run, with attention maps."""
    folder = tmp_path / "run"
    shutil.copytree(packaged_teacher(), folder)
    for path in [folder, *folder.iterdir()]:
        path.chmod(0o755)
    record = json.loads((folder / "record.json").read_text())
    record["attention"] = {"map": "sum", "power": 2.0, "points": ["group3"], "probes": 2}
    record["attention"]["epochs"] = [0]
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "attention").mkdir()
    return folder


def zeros(path: Path, gigabytes: float) -> None:
    """Write an archive of zeros, whose arrays would need the memory that they say."""
    count = int(gigabytes * 2**30)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (count,)}
    )
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w", force_zip64=True) as file,
    ):
        file.write(header.getvalue())
        block = bytes(2**20)
        for _ in range(count // len(block)):
            file.write(block)


@pytest.mark.parametrize("name", ["attention/probes.npz", "attention/epoch-0000.npz"])
def test_an_archive_that_unpacks_to_gigabytes_is_refused_by_the_report(
    name: str, finished: Path
) -> None:
    np.savez_compressed(finished / "attention/probes.npz", images=np.zeros(3))
    zeros(finished / name, 2)
    assert (finished / name).stat().st_size < 2_500_000
    error, grown = report_in_a_process(finished)
    assert f"{finished / name} is damaged (with it the arrays are larger than 1.1 GB" in error
    assert f"remove {finished / 'attention'} to do without it" in error
    assert grown < 100_000_000


def test_many_archives_have_one_budget(finished: Path) -> None:
    np.savez_compressed(finished / "attention/probes.npz", images=np.zeros(3))
    zeros(finished / "attention/epoch-0000.npz", 0.4)
    for number in range(1, 4):
        shutil.copy(
            finished / "attention/epoch-0000.npz", finished / f"attention/epoch-000{number}.npz"
        )
    error, grown = report_in_a_process(finished)
    assert "attention/epoch-0002.npz is damaged (with it the arrays are larger" in error
    assert grown < 100_000_000


def test_an_array_that_is_larger_than_its_file_says_is_refused(finished: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (2**46,)}
    )
    with zipfile.ZipFile(finished / "attention/probes.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(80))
    shutil.copy(finished / "attention/probes.npz", finished / "attention/epoch-0000.npz")
    error, grown = report_in_a_process(finished)
    assert "epoch-0000.npz is damaged (" in error
    assert grown < 100_000_000


@pytest.mark.parametrize("byte", [80, 120, -30])
def test_a_flipped_bit_in_an_archive_is_one_line(byte: int, finished: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    path = finished / "attention/epoch-0000.npz"
    for name in ("probes.npz", "epoch-0000.npz"):
        np.savez_compressed(finished / "attention" / name, images=images)
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"epoch-0000\.npz is damaged"):
        _ = at.Run(finished).attention


def report_in_a_process(folder: Path) -> tuple[str, int]:
    """Return the one line with which ``report`` refuses a folder, and the memory it took."""
    code = (
        "import resource, sys; from attention_transfer.cli import main\n"
        "import attention_transfer.report.page\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert main(['report', sys.argv[1]]) == 2\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr, int(done.stdout)


MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "views": lambda values: values.update(views=10**12),
    "samples": lambda values: values.update(samples=10**18),
    "infinity": lambda values: values.update(samples=1e999),
    "many numbers": lambda values: values.update(samples=10**4000),
    "a huge field": lambda values: values["fields"][0].update(shape=[10**9, 10**9]),
    "a field of no size": lambda values: values["fields"][0].update(shape=[-1]),
    "many fields": lambda values: values.update(
        fields=[{**values["fields"][0], "point": f"{number}"} for number in range(5000)]
    ),
    "a huge image": lambda values: values.update(input_size=[3, 10**9, 10**9], gradient=True),
    "large": lambda values: values.update(provenance={"images": "x" * 2_000_000}),
    "no object": lambda values: values.update(fields=3),
}


@pytest.mark.parametrize("kind", [*MANIFESTS, "nested", "a hundred megabytes"])
@pytest.mark.parametrize("action", ["info", "verify"])
def test_a_hostile_description_of_a_cache_is_refused_at_once(
    kind: str, action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values: dict[str, Any] = {
        "schema_version": 2,
        "provenance": {},
        "fields": [
            {"point": "a", "reduction": "attention map, sum 2", "scale_free": True, "shape": [4, 4]}
        ],
        "logits": [3],
        "gradient": False,
        "input_size": [3, 16, 16],
        "samples": 10,
        "views": 2,
        "example": {},
    }
    (tmp_path / "cache").mkdir()
    path = tmp_path / "cache" / "cache.json"
    path.write_text(json.dumps(values))
    assert main(["cache", "info", str(path.parent)]) == 0
    capsys.readouterr()
    if kind in MANIFESTS:
        MANIFESTS[kind](values)
        path.write_text(json.dumps(values))
    else:
        path.write_text("[" * 500_000 if kind == "nested" else " " * 100_000_000)
    began = time.perf_counter()
    assert main(["cache", action, str(path.parent)]) == 2
    assert time.perf_counter() - began < 5
    error = capsys.readouterr().err
    assert error.startswith(f"attention-transfer: the cache in {path.parent} cannot be ")
    assert "build it again" in error
    assert len(error) < 1000


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("record.json", "report run"),
        ("metrics.jsonl", "report run"),
        ("model.json", "evaluate run"),
        ("model.json", "report run"),
        ("config.yaml", "resume run"),
        ("config.yaml", "report run"),
    ],
)
@pytest.mark.parametrize("content", ["large", "nested", "binary"])
def test_the_files_of_a_run_have_bounds(
    name: str, command: str, content: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished / name
    if content == "large":
        with path.open("wb") as file:
            file.truncate(100_000_000)
    else:
        path.write_bytes(b"[" * 90_000 if content == "nested" else bytes(range(256)) * 8)
    if command == "resume run":
        (finished / "record.json").unlink()
    began = time.perf_counter()
    assert main(command.replace("run", str(finished), 1).split()) == 2
    assert time.perf_counter() - began < 5
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("setting", ["data", "out", "masks", "cache", "teacher", "terms"])
def test_a_null_byte_is_refused_at_once(setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    values = {"student": "wrn-10-1", "teacher": "wrn-10-1@random", setting: "folder:a\0b"}
    Path("run/config.yaml").write_text(yaml.safe_dump(values))
    began = time.perf_counter()
    for arguments in (["resume", "run"], ["distill", "--config", "run/config.yaml"]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "null byte" in error or "--trust" in error
    for arguments in (["evaluate", "a\0b"], ["report", "a\0b"], ["train", "--model", "a\0b"]):
        assert main(arguments) == 2
        assert "an argument has a null byte" in capsys.readouterr().err
    assert time.perf_counter() - began < 5
    with pytest.raises(InputError, match="null byte"):
        at.train("wrn-10-1", data="folder:a\0b")


def test_a_name_of_a_hundred_thousand_letters_is_refused_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["points", "timm:resnet"])  # imports the zoo
    capsys.readouterr()
    began = time.perf_counter()
    assert main(["points", f"timm:{'resnet' * 15_000}"]) == 2
    assert time.perf_counter() - began < 5
