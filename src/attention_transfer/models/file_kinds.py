"""What a file is by its bytes: programs, cut files, and what is no file of weights at all."""

import json
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

__all__ = [
    "EXPORTED_ENTRY",
    "SCRIPT_ENTRY",
    "conversion",
    "by_torch",
    "exported_conversion",
    "fault_of",
    "is_legacy",
    "is_safetensors",
    "program_kind",
]

SCRIPT_ENTRY, EXPORTED_ENTRY = "constants.pkl", "models/model.json"
"""Entries that programs of TorchScript and of torch.export have, below the archive's folder."""

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How torch.save began files before its version 1.6."""

LARGEST_HEADER = 100_000_000
"""Bytes of the largest header that safetensors reads."""

AGAIN = "copy or download it again"

UNPACK = "unpack it, and give the file of weights in it"

UNKNOWN = (
    "content.state_dict() if hasattr(content, 'state_dict') else content.get('state_dict', content)"
)
"""Python of the weights in a content that is not known."""

STARTS = {
    b"version https://git-lfs": "a Git LFS pointer in place of the file; get it with: git lfs pull",
    b"\x1f\x8b": f"compressed by gzip; {UNPACK}",
    b"BZh": f"compressed by bzip2; {UNPACK}",
    b"\xfd7zXZ": f"compressed by xz; {UNPACK}",
    b"\x28\xb5\x2f\xfd": f"compressed by zstd; {UNPACK}",
    b"7z\xbc\xaf": f"a 7-Zip archive; {UNPACK}",
    b"\x89HDF": "an HDF5 file, as Keras writes; convert it to a state dict of PyTorch",
    b"GGUF": "a GGUF file; give the safetensors or PyTorch file it was made of",
    b"\x93NUMPY": "one NumPy array; expected a state dict, of safetensors or torch.save",
    b"<": "a web page or an error message in place of the file; download it by its direct link",
    b"{": "text (JSON), perhaps an error message in place of the file; give the file of weights",
}
"""How files begin that are often taken for weights, and what each is."""


def program_kind(path: Path) -> Literal["TorchScript", "torch.export"] | None:
    """Return what wrote a program; None: the file is none."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    if EXPORTED_ENTRY in names:
        return "torch.export"
    return "TorchScript" if SCRIPT_ENTRY in names else None


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins as safetensors do: with the length of a JSON header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and 0 < int.from_bytes(start[:8], "little") <= LARGEST_HEADER


def is_legacy(path: Path) -> bool:
    """Return whether a file begins as those of torch.save before torch 1.6."""
    with path.open("rb") as file:
        return file.read(len(LEGACY_START)) == LEGACY_START


def is_tar(path: Path) -> bool:
    """Return whether a file is a tar archive, as those of torch before 0.1.10 are."""
    with path.open("rb") as file:
        return file.read(512)[257:262] == b"ustar" and tarfile.is_tarfile(path)


def by_torch(path: Path) -> bool:
    """Return whether torch.save may have written a file, and no other pickle."""
    return zipfile.is_zipfile(path) or is_legacy(path) or is_tar(path)


def fault_of(path: Path) -> str | None:
    """Return why a file holds no weights, as its bytes show, and what to do; None: it may."""
    size = path.stat().st_size
    if not size:
        return f"is empty; {AGAIN}"
    if is_safetensors(path):
        return _safetensors_fault(path, size)
    with path.open("rb") as file:
        start = file.read(512)
    if is_tar(path):
        with tarfile.open(path, "r:") as archive:
            names = archive.getnames()
        return None if "pickle" in names else f"is a tar archive ({_shown(names)}); {UNPACK}"
    if zipfile.is_zipfile(path):
        return _archive_fault(path)
    if start.startswith(b"PK\x03\x04"):
        return f"is cut: it begins as a file of torch.save does, and its end is missing; {AGAIN}"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for known, what in STARTS.items():
        if text.startswith(known):
            return f"is {what}"
    if start[:1] != pickle.PROTO:
        return (
            f"is damaged, or no file of weights: it begins with {start[:16]!r}; expected a file "
            "of safetensors or torch.save"
        )
    return None


def _safetensors_fault(path: Path, size: int) -> str | None:
    """Return how a safetensors file's size differs from what its header tells."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
    if len(header) < length:
        return f"is cut: it has {size:,} bytes, and its header alone {length + 8:,}; {AGAIN}"
    try:
        entries = [value for name, value in json.loads(header).items() if name != "__metadata__"]
        expected = 8 + length + max((int(entry["data_offsets"][1]) for entry in entries), default=0)
    except (ValueError, TypeError, KeyError, LookupError, AttributeError, RecursionError):
        return f"is damaged: its header is none of safetensors; {AGAIN}"
    if size == expected:
        return None
    what = "is cut" if size < expected else "is damaged"
    return f"{what}: it has {size:,} bytes, and by its header {expected:,}; {AGAIN}"


def _archive_fault(path: Path) -> str | None:
    """Return what a zip file is that torch did not write."""
    with zipfile.ZipFile(path) as archive:
        entries = [name for name in archive.namelist() if not name.endswith("/")]
    inner = {name.partition("/")[2] for name in entries}
    if inner & {"data.pkl", EXPORTED_ENTRY}:
        return None
    if entries and all(name.endswith(".npy") for name in entries):
        arrays = "{name: torch.as_tensor(array) for name, array in numpy.load(FILE).items()}"
        code = f"import numpy, torch; torch.save({arrays}, NAME)"
        return f"is an archive of NumPy arrays; convert it: {_named(code, path)}"
    return f"is a zip archive ({_shown(entries)}), which torch.save did not write; {UNPACK}"


def _shown(names: list[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def conversion(path: Path, weights: str = UNKNOWN) -> str:
    """Return a line of Python that saves the weights of a file that only its own code can read.

    Args:
        path: of the file.
        weights: Python that makes a dictionary of them from the variable ``content``.
    """
    if by_torch(path):
        code = "import torch; content = torch.load(FILE, map_location='cpu', weights_only=False); "
    else:
        code = (
            "import pathlib, pickle, torch; "
            "content = pickle.loads(pathlib.Path(FILE).read_bytes()); "
        )
    tensors = "{name: torch.as_tensor(value) for name, value in weights.items()}"
    return _named(f"{code}weights = {weights}; torch.save({tensors}, NAME)", path)


def exported_conversion(path: Path) -> str:
    """Return a line of Python that saves the weights of a program of torch.export."""
    return _named("import torch; torch.save(dict(torch.export.load(FILE).state_dict), NAME)", path)


def _named(code: str, path: Path) -> str:
    """Put the names of a file and of its conversion into code."""
    converted = str(path.with_suffix(".weights.pth"))
    return code.replace("FILE", repr(str(path))).replace("NAME", repr(converted))
