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
from attention_transfer.models.file_kinds import (
    EXPORTED_ENTRY,
    SCRIPT_ENTRY,
    by_torch,
    conversion,
    exported_conversion,
    fault_of,
    is_safetensors,
    is_tar,
)

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

MOST_LEVELS = 5
"""Dictionaries within each other in which state dicts are looked for."""

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
        key: of one of several state dicts in it, also nested ("ema.state_dict"); of the dictionary
            that holds one ("ema"); or of names that begin so ("student"), also in one of several
            state dicts ("state_dict.student").

    Raises:
        InputError: the file is missing or damaged; it holds no weights, none of that key, or what
            can only be read by running code.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(
            f"no weights at {path}, which {what}; expected a .safetensors or .pth file"
        )
    try:
        check_weights(path)
        fault = fault_of(path)
        safetensors = is_safetensors(path)
    except OSError as error:
        raise InputError(f"cannot read the weights {path}: {error.strerror}") from None
    if fault is not None:
        raise InputError(f"{path} {fault}")
    if not safetensors and path.suffix == ".safetensors":
        raise InputError(
            f"{path} is not a safetensors file, but pickled; pickled weights are not loaded under "
            "this name, because they can run code: save them with safetensors.torch.save_file, or "
            "with torch.save under another name (.pth)"
        )
    content = _read_safetensors(path) if safetensors else _read_pickle(path)
    stored = _chosen(content, path, key)
    _check_values(stored.tensors, path)
    return stored


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is damaged, though it begins as safetensors do ({first_line(error)}); copy or "
            "download it again"
        ) from None


def _check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise an InputError for tensors that a network cannot take, by the first of them."""
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise InputError(
                f"{path} holds no values: {name} is on the meta device; save the network again "
                "after its weights are loaded"
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else "sparse"
            method = "dequantize" if tensor.is_quantized else "to_dense"
            raise InputError(
                f"{path} holds {kind} tensors ({name}), which no network here takes; save "
                f"value.{method}() for each of them"
            )


def _read_pickle(path: Path) -> object:
    """Read a file of torch as tensors, plain values and inert stand-ins."""
    if not by_torch(path):
        raise InputError(
            f"{path} is a pickle that torch.save did not write, and cannot be read without running "
            f"code; if you trust it, convert it: {conversion(path)}"
        )
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return _load(file, _named_globals(file, LEGACY_PICKLES))
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive)
    except _NoPlainDataError as error:
        raise InputError(f"{path} holds no weights that can be read: {error}") from None
    except Exception as error:  # a damaged or hostile pickle can raise anything
        refused = isinstance(error, pickle.UnpicklingError)
        if not refused and not is_tar(path):
            raise InputError(
                f"{path} is cut or damaged, though it begins as a file of torch.save does "
                f"({_reason(error)}); copy or download it again"
            ) from None
        raise InputError(
            f"{path} cannot be read as tensors without running code ({_reason(error)}); if it is "
            f"whole and you trust it, convert it: {conversion(path)}"
        ) from None


def _reason(error: Exception) -> str:
    """Return what torch says about a pickle, without the advice around it."""
    paragraphs = str(error).split("\n\n")
    cause = paragraphs[1] if len(paragraphs) > 1 else paragraphs[0]
    _, _, reason = cause.rpartition("WeightsUnpickler error: ")
    return first_line(ValueError(reason.strip() or type(error).__name__))[:200]


def _read_archive(path: Path, archive: zipfile.ZipFile) -> object:
    entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
    if any(entry.compress_type and "code/" not in entry.filename for entry in entries.values()):
        raise _NoPlainDataError("it is compressed, as no file of torch.save is")
    if sum(entry.compress_size for entry in entries.values()) > path.stat().st_size:
        raise _NoPlainDataError("its parts overlap")
    if EXPORTED_ENTRY in entries:
        raise _NoPlainDataError(
            f"it is a program of torch.export; convert it: {exported_conversion(path)}"
        )
    if entries["data.pkl"].file_size > LARGEST_PICKLE:
        raise _NoPlainDataError(f"its pickle has more than {LARGEST_PICKLE:,} bytes")
    with archive.open(entries["data.pkl"]) as file:
        names = _named_globals(file, 1)
    if SCRIPT_ENTRY not in entries:
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
    inert: list[Any] = [(type("_Named", (_Inert,), {"source": name}), name) for name in names]
    with warnings.catch_warnings(), torch.serialization.safe_globals(inert):
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

    source: str = ""
    """The class or function."""
    state: object = None

    @property
    def is_network(self) -> bool:
        """Whether it stands for a torch module."""
        return isinstance(self.state, dict) and "_modules" in self.state

    @property
    def is_array(self) -> bool:
        """Whether it stands for a NumPy array."""
        return self.source.startswith("numpy") and self.source.endswith("._reconstruct")

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
            f"trust it, convert it: {conversion(path, 'content.state_dict()')}"
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
    if not states:
        raise InputError(f"{path} holds {_without_tensors(content, path)}")
    if not inner:
        return StoredWeights(states[""], [])
    name = min(inner, key=lambda name: _preference(name, inner[name]))
    notice = f"read {name} of {path}"
    if len(inner) > 1:
        others = ", ".join(other for other in inner if other != name)
        notice += f", which also holds {others}; choose with NAME@{path}#KEY"
    return StoredWeights(inner[name], [notice])


def _without_tensors(content: object, path: Path) -> str:
    """Return what a file holds in place of state dicts, and what to do."""
    networks, arrays = [], []
    for name, value in _entries(content):
        if value.is_network:
            networks.append(name)
        elif value.is_array:
            arrays.append(name[:-1])
    if networks:
        network = min(networks, key=lambda name: _rank(name[0]))
        weights = f"{_python(network)}.state_dict()"
        return (
            f"a whole pickled network ({'.'.join(network)}), which can only be read by running "
            f"code; if you trust it, convert it: {conversion(path, weights)}"
        )
    if arrays:
        weights = _python(min(arrays, key=lambda name: _rank(*name[:1])))
        return (
            f"NumPy arrays and no tensors; if you trust it, convert it: {conversion(path, weights)}"
        )
    kinds = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content)
    return f"no weights ({str(kinds)[:200]}); expected a state dict"


def _entries(content: object, *name: str) -> Iterator[tuple[tuple[str, ...], "_Inert"]]:
    """Yield the stand-ins in the dictionaries of a file, by their keys."""
    for key, value in content.items() if isinstance(content, Mapping) and len(name) < 3 else ():
        if isinstance(value, _Inert) and isinstance(key, str):
            yield (*name, key), value
        elif isinstance(key, str):
            yield from _entries(value, *name, key)


def _python(keys: tuple[str, ...]) -> str:
    return "content" + "".join(f"[{key!r}]" for key in keys)


def _rank(first: str = "") -> int:
    """Return the place of a key among the names of state dicts, the one to take first."""
    return PREFERRED.index(first) if first in PREFERRED else len(PREFERRED)


def _preference(name: str, state: dict[str, Tensor]) -> tuple[int, int]:
    """Return a key to sort state dicts by: known names first, then the largest."""
    first, *_ = name.split(".")
    return _rank(first), -sum(tensor.numel() for tensor in state.values())


def _of_key(states: dict[str, dict[str, Tensor]], key: str, path: Path) -> dict[str, Tensor]:
    """Return the state dict of a key: its own, the only one within it, or names that begin so."""
    if key and key in states:
        return states[key]
    start = f"{key}."
    within = [name for name in states if name.startswith(start)]
    if len(within) == 1:
        return states[within[0]]
    if within:
        raise InputError(f"{path} holds several weights in {key!r}: {', '.join(within)}; give one")
    for name, state in sorted(states.items(), key=lambda one: not start.startswith(f"{one[0]}.")):
        prefix = start.removeprefix(f"{name}.")
        own = {one.removeprefix(prefix): state[one] for one in state if one.startswith(prefix)}
        if own and key:
            return own
    known = [name for name in states if name]
    known += {name.partition(".")[0] for state in states.values() for name in state}
    raise InputError(f"{path} holds no weights {key!r}; {nearest(key, dict.fromkeys(known))}")


def _state_dicts(content: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the dictionaries of tensors in a file by their keys, joined with dots."""
    if not isinstance(content, Mapping) or depth > MOST_LEVELS:
        return
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    numbers_alone = all(tensor.dim() == 0 for tensor in tensors.values())  # such as a decay
    if not numbers_alone and all(isinstance(key, str) for key in tensors):
        yield name, tensors
    for key, value in content.items():
        if isinstance(key, str) and key not in ("optimizer", "optimizer_state_dict"):
            yield from _state_dicts(value, f"{name}.{key}" if name else key, depth + 1)
