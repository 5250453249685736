"""Reading files of weights: safetensors, and what ``torch.save`` and ``torch.jit.save`` write.

No code of a file is run: ``torch.load(weights_only=True)`` makes tensors and plain values alone,
and :class:`_Inert` stands for everything else that a file names, such as ``argparse.Namespace``.
"""

import io
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from attention_transfer.errors import InputError, first_line, nearest
from attention_transfer.models.card import check_weights

__all__ = ["StoredWeights", "read_weights"]

PREFERRED = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "student",
    "teacher",
)
"""Names of state dicts, the one to take first: as timm does, the averaged weights."""

LARGEST_PICKLE = 64_000_000
"""Bytes of the largest pickle, which holds the names of tensors but not their values."""

MOST_GLOBALS = 1_000
"""Different classes and functions that a file may name."""

LEGACY_PICKLES = 4
"""Pickles before the values in the files of torch before 1.6."""


class StoredWeights(NamedTuple):
    """The tensors of a file, by name, and what a user should know of how they were read."""

    tensors: dict[str, Tensor]
    notices: list[str]
    program: bool = False
    """Whether the file is a TorchScript program."""


class _NoPlainDataError(Exception):
    """A file holds something else than tensors and plain values."""


def read_weights(path: Path, key: str | None = None) -> StoredWeights:
    """Read the weights in a file.

    Args:
        path: a safetensors file, or one of ``torch.save`` or ``torch.jit.save``.
        key: of one of several state dicts in it, also nested ("ema.state_dict"), or of names that
            begin so ("student").

    Raises:
        InputError: the file is missing or damaged; it holds no weights, none of that key, or what
            can only be read by running code.
    """
    if not path.is_file():
        raise InputError(f"no weights at {path}; expected a .safetensors, .pth or .ckpt file")
    try:
        _check_beginning(path)
        check_weights(path)
        safetensors = path.suffix == ".safetensors" or _is_safetensors(path)
    except OSError as error:
        raise InputError(f"cannot read the weights {path}: {error.strerror}") from None
    content = _read_safetensors(path) if safetensors else _read_pickle(path)
    stored = _chosen(content, path, key)
    without = [name for name, tensor in stored.tensors.items() if tensor.is_meta]
    if without:
        raise InputError(
            f"{path} holds {len(without)} tensors without values ({without[0]}, ...), of torch's "
            "meta device; save the network after its weights are loaded"
        )
    return stored


def _check_beginning(path: Path) -> None:
    """Raise an InputError for what people often have in place of the file itself."""
    with path.open("rb") as file:
        start = file.read(512).lstrip()
    cause = None
    if not start:
        cause = "is empty"
    elif start.startswith(b"version https://git-lfs"):
        cause = "is a pointer of Git LFS, and not the file itself: run 'git lfs pull' where it is"
    elif start.startswith(b"<"):
        cause = "is a web page, as a download leaves it that needs a login or a confirmation"
    elif start.startswith(b"PK") and not zipfile.is_zipfile(path):
        cause = "is cut off: its end is missing"
    if cause is not None:
        raise InputError(f"{path} {cause}; copy or download the weights again")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        advice = (
            "copy or download it again"
            if _is_safetensors(path)
            else "give a file of torch.save another name (.pth)"
        )
        raise InputError(
            f"{path} is not a whole safetensors file ({first_line(error)}); {advice}"
        ) from None


def _is_safetensors(path: Path) -> bool:
    """Return whether a file begins as safetensors do: with the length of a JSON header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and 0 < int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_pickle(path: Path) -> object:
    """Read a file of torch as tensors, plain values and inert stand-ins."""
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return _load(file, _named_globals(file, LEGACY_PICKLES))
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive)
    except _NoPlainDataError as error:
        raise InputError(f"{path} holds no weights that can be read: {error}") from None
    except Exception as error:  # a damaged or hostile pickle can raise anything
        pickled = isinstance(error, pickle.UnpicklingError) or _is_pickle(path)
        raise InputError(
            f"{path} cannot be read as tensors without running code ({_reason(error)}); if it is "
            f"whole and you trust it, convert it: {_conversion(path)}"
            if pickled
            else f"{path} is damaged, or no file of weights ({_reason(error)}); expected one of "
            "safetensors or torch.save"
        ) from None


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == pickle.PROTO


def _reason(error: Exception) -> str:
    """Return what torch says about a pickle, without the advice around it."""
    paragraphs = str(error).split("\n\n")
    cause = paragraphs[1] if len(paragraphs) > 1 else paragraphs[0]
    _, _, reason = cause.rpartition("WeightsUnpickler error: ")
    return first_line(ValueError(reason.strip() or type(error).__name__))[:200]


def _conversion(path: Path) -> str:
    """Return the lines of Python that save the weights in a pickle."""
    return (
        "import torch; "
        f"content = torch.load({str(path)!r}, map_location='cpu', weights_only=False); "
        "torch.save(content.state_dict() if hasattr(content, 'state_dict') else "
        f"content.get('state_dict', content), {_converted_name(path)!r})"
    )


def _converted_name(path: Path) -> str:
    return str(path.with_suffix(".weights.pth"))


def _read_archive(path: Path, archive: zipfile.ZipFile) -> object:
    entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
    if any(entry.compress_type and "code/" not in entry.filename for entry in entries.values()):
        raise _NoPlainDataError("it is compressed, as no file of torch.save is")
    if sum(entry.compress_size for entry in entries.values()) > path.stat().st_size:
        raise _NoPlainDataError("its parts overlap")
    if "models/model.json" in entries:
        raise _NoPlainDataError(
            "it is a program of torch.export, which only code can read; if you trust it, convert "
            f"it: import torch; torch.save(dict(torch.export.load({str(path)!r}).state_dict), "
            f"{_converted_name(path)!r})"
        )
    if "data.pkl" not in entries:
        raise _NoPlainDataError("it is a zip file, and torch.save did not write it")
    if entries["data.pkl"].file_size > LARGEST_PICKLE:
        raise _NoPlainDataError(f"its pickle has more than {LARGEST_PICKLE:,} bytes")
    with archive.open(entries["data.pkl"]) as file:
        names = _named_globals(file, 1)
    if "constants.pkl" not in entries:
        return _load(path, names)
    # TorchScript: its state without its program.
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as stripped:
        for name, entry in entries.items():
            if name.startswith("data") or name in ("version", "byteorder"):
                stripped.writestr(f"archive/{name}", archive.read(entry))
    packed.seek(0)
    return _Program(_script_state(_load(packed, names)))


def _load(file: Path | IO[bytes], names: set[str]) -> object:
    if not isinstance(file, Path):
        file.seek(0)
    with warnings.catch_warnings(), torch.serialization.safe_globals([(_Inert, n) for n in names]):
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


def _named_globals(file: IO[bytes], pickles: int) -> set[str]:
    """Return the classes and functions that pickles at the beginning of a file name."""
    names: set[str] = set()
    for _ in range(pickles):
        for operation, argument, _ in pickletools.genops(file):
            if operation.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
                names.add(f"{module}.{name}")
            if len(names) > MOST_GLOBALS or file.tell() > LARGEST_PICKLE:
                raise _NoPlainDataError("it names more than weights need")
    return names


class _Inert:
    """A stand-in, without code, for every class and function that a file names."""

    state: object = None

    def __new__(cls, *_: object, **__: object) -> "_Inert":
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Program(dict[str, Tensor]):
    """The tensors of a TorchScript program, by name."""


def _script_state(module: object, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a TorchScript module and of the modules in it, by name."""
    if depth > 100:
        raise _NoPlainDataError("it is nested too deeply")
    state = module.state if isinstance(module, _Inert) else None
    for name, value in state.items() if isinstance(state, dict) else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _script_state(value, f"{prefix}{name}.", depth + 1)


def _chosen(content: object, path: Path, key: str | None) -> StoredWeights:
    """Return the state dict of a file that the key, or else the default, means."""
    if isinstance(content, _Inert):
        raise InputError(
            f"{path} holds a whole pickled network, which can only be read by running code; if you "
            f"trust it, convert it: {_conversion(path)}"
        )
    if isinstance(content, _Program):
        notice = f"read the tensors of {path}, a TorchScript program, and did not run its code"
        return StoredWeights(
            content if key is None else _of_key({"": content}, key, path), [notice], True
        )
    states = dict(_state_dicts(content))
    inner = {name: state for name, state in states.items() if name}
    if key is not None:
        return StoredWeights(_of_key(states, key, path), [])
    if not states and _of_numpy(content):
        raise InputError(
            f"{path} holds NumPy arrays in place of tensors, which only code can read; if you "
            f"trust it, convert it: import torch; content = torch.load({str(path)!r}, "
            "weights_only=False); torch.save({name: torch.as_tensor(value) for name, value in "
            f"content.get('state_dict', content).items()}}, {_converted_name(path)!r})"
        )
    if not states:
        kinds = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content)
        raise InputError(f"{path} holds no weights ({str(kinds)[:200]}); expected a state dict")
    if not inner:
        return StoredWeights(states[""], [])
    name = min(inner, key=lambda name: _preference(name, inner[name]))
    notice = f"read {name} of {path}"
    if len(inner) > 1:
        others = ", ".join(other for other in inner if other != name)
        notice += f", which also holds {others}; choose with NAME@{path}#KEY"
    return StoredWeights(inner[name], [notice])


def _of_numpy(content: object) -> bool:
    """Return whether a file holds NumPy arrays by name."""
    if isinstance(content, _Inert):  # what ndarray pickles: version, shape, dtype, order, bytes
        state = content.state
        return isinstance(state, tuple) and len(state) == 5 and isinstance(state[4], bytes)
    return isinstance(content, Mapping) and any(map(_of_numpy, content.values()))


def _preference(name: str, state: dict[str, Tensor]) -> tuple[int, int]:
    """Return a key to sort state dicts by: known names first, then the largest."""
    first, *_ = name.split(".")
    known = PREFERRED.index(first) if first in PREFERRED else len(PREFERRED)
    return known, -sum(tensor.numel() for tensor in state.values())


def _of_key(states: dict[str, dict[str, Tensor]], key: str, path: Path) -> dict[str, Tensor]:
    if key in states and key:
        return states[key]
    start = f"{key}."
    inner = [name for name in states if name.startswith(start)]
    if len(inner) > 1:
        raise InputError(f"{path} holds several weights in {key!r}: choose one, {', '.join(inner)}")
    if inner:
        return states[inner[0]]
    for state in states.values():
        own = {name.removeprefix(start): state[name] for name in state if name.startswith(start)}
        if own and key:
            return own
    known = [name for name in states if name]
    known += {name.partition(".")[0] for state in states.values() for name in state}
    raise InputError(f"{path} holds no weights {key!r}; {nearest(key, dict.fromkeys(known))}")


def _state_dicts(content: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the dictionaries of tensors in a file by their keys, joined with dots."""
    if not isinstance(content, Mapping) or depth > 2:
        return
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    numbers_alone = all(tensor.dim() == 0 for tensor in tensors.values())  # such as a decay
    if not numbers_alone and all(isinstance(key, str) for key in tensors):
        yield name, tensors
    for key, value in content.items():
        if isinstance(key, str) and key not in ("optimizer", "optimizer_state_dict"):
            yield from _state_dicts(value, f"{name}.{key}" if name else key, depth + 1)
