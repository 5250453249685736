"""What a cache holds, and what it was made of."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attention_transfer.data import Images
from attention_transfer.functional import maps
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.transfer import MapFunction, TargetField, Targets, TargetSpec

__all__ = ["Contents", "contents_of", "difference", "weights_fingerprint"]

VERSIONS = ("attention-transfer", "torch", "torchvision", "pillow")
"""Packages on which views or answers depend, beside those that networks come from."""

SHARD_BYTES = 2**25

LOGITS_SHOWN = 10
"""Of the example."""

ROUNDING = 1e-2
"""Of the largest number, by which machines may differ."""

MOST_SHOWN = 80
"""Characters of what differs."""


@dataclass(frozen=True)
class Contents:
    """The targets of every sample's first views, and what they were made of.

    A target of a sample's view is a row: normalised maps in float16, logits in float32, and J in
    float16 relative to its largest magnitude, which is kept beside it.
    """

    provenance: Mapping[str, str]
    """What decides the numbers, by name; all of it must be equal for a run to use them."""
    wanted: TargetSpec
    shapes: Mapping[TargetField, tuple[int, int]]
    """Height and width of each map."""
    classes: int
    input_size: tuple[int, int, int]
    samples: int
    views: int
    example: Mapping[str, Sequence[float]]
    """Of the teacher's answer to the first sample: mean and maximum of each map, and the first
    logits. Another network answers otherwise, even one with the same weights.
    """

    @property
    def row(self) -> np.dtype[np.void]:
        """One target."""
        fields: list[tuple[Any, ...]] = [
            (str(reading), "<f2", self.shapes[reading]) for reading in self.wanted.readings
        ]
        if self.wanted.logits:
            fields.append(("logits", "<f4", (self.classes,)))
        if self.wanted.gradient:
            fields += [("gradient", "<f2", self.input_size), ("gradient scale", "<f4")]
        return np.dtype(fields)

    @property
    def samples_a_shard(self) -> int:
        """Rows in a shard of about 32 MB; the last one of a view may have fewer."""
        return max(1, min(self.samples, SHARD_BYTES // self.row.itemsize))

    @property
    def shards(self) -> list[tuple[int, int]]:
        """(view, first sample) of every shard."""
        starts = range(0, self.samples, self.samples_a_shard)
        return [(view, start) for view in range(self.views) for start in starts]

    @property
    def shard_count(self) -> int:
        """How many shards there are."""
        return self.views * -(-self.samples // self.samples_a_shard)

    @property
    def holds(self) -> tuple[object, ...]:
        """What is kept, apart from what it was made of."""
        return self.shapes, self.wanted.logits, self.wanted.gradient, self.views

    @property
    def bytes(self) -> int:
        """Of all rows: views x samples x bytes of a row."""
        return self.views * self.samples * self.row.itemsize

    def rows_in(self, shard: tuple[int, int]) -> int:
        """How many samples a shard has."""
        return min(self.samples_a_shard, self.samples - shard[1])

    def pack(self, targets: Targets) -> NDArray[np.void]:
        """A batch of targets as rows."""
        rows = np.empty(self._batch_of(targets), self.row)
        for reading in self.wanted.readings:
            unit = maps.normalize(targets.read(reading))
            rows[str(reading)] = unit.view(len(rows), *self.shapes[reading]).cpu().numpy()
        if self.wanted.logits:
            assert targets.logits is not None
            rows["logits"] = targets.logits.float().cpu().numpy()
        if self.wanted.gradient:
            assert targets.gradient is not None
            gradient = targets.gradient.float().cpu()
            scale = gradient.abs().amax(dim=(1, 2, 3))
            scale = torch.where(scale > 0, scale, 1)
            rows["gradient"] = (gradient / scale.view(-1, 1, 1, 1)).numpy()
            rows["gradient scale"] = scale.numpy()
        return rows

    def unpack(self, rows: NDArray[np.void]) -> Targets:
        """Rows as a batch of targets, in float32."""
        readings = {reading: _tensor(rows[str(reading)]) for reading in self.wanted.readings}
        logits = _tensor(rows["logits"]) if self.wanted.logits else None
        gradient = None
        if self.wanted.gradient:
            scale = _tensor(rows["gradient scale"]).view(-1, 1, 1, 1)
            gradient = _tensor(rows["gradient"]).mul_(scale)
        return Targets(readings, logits, gradient)

    def lacks(self, wanted: TargetSpec) -> Iterator[str]:
        """What a run wants that is not here, by name."""
        for reading in wanted.readings:
            if reading not in self.wanted.readings:
                yield f"the map of {reading}"
        if wanted.logits and not self.wanted.logits:
            yield "logits"
        if wanted.gradient and not self.wanted.gradient:
            yield "the gradient at the input (--gradient)"

    def as_json(self) -> dict[str, Any]:
        """Plain values that :meth:`from_json` reads."""
        return {
            "provenance": dict(self.provenance),
            "maps": [
                {"point": point, "kind": map_.kind, "power": map_.power, "size": size}
                for (point, map_), size in self.shapes.items()
                if map_ is not None
            ],
            "logits": self.wanted.logits,
            "gradient": self.wanted.gradient,
            "classes": self.classes,
            "input_size": list(self.input_size),
            "samples": self.samples,
            "views": self.views,
            "example": {name: list(numbers) for name, numbers in self.example.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Contents":
        """The contents that were written down.

        Raises:
            KeyError, TypeError, ValueError: they are damaged.
        """
        shapes = {}
        for one in values["maps"]:
            height, width = one["size"]
            map_function = MapFunction(one["kind"], float(one["power"]))
            shapes[TargetField(str(one["point"]), map_function)] = (int(height), int(width))
        channels, height, width = map(int, values["input_size"])
        counts = [int(values[name]) for name in ("classes", "samples", "views")]
        if min(counts[1:]) < 1:
            raise ValueError("there is nothing in it")
        return cls(
            {str(name): str(value) for name, value in values["provenance"].items()},
            TargetSpec(tuple(shapes), bool(values["logits"]), bool(values["gradient"])),
            shapes,
            counts[0],
            (channels, height, width),
            counts[1],
            counts[2],
            {name: list(map(float, numbers)) for name, numbers in values["example"].items()},
        )

    def _batch_of(self, targets: Targets) -> int:
        first = next(iter(targets.readings.values()), targets.logits)
        assert first is not None
        return len(first)


def contents_of(
    images: Images,
    teachers: Sequence[tuple[nn.Module, Preprocessing | None]],
    answer: Targets,
    wanted: TargetSpec,
    *,
    data_seed: int,
    views: int,
    precision: str,
) -> Contents:
    """What a cache of a teacher's answers to the views of images will hold.

    Args:
        images: whose views they are of.
        teachers: networks with their normalisations.
        answer: the teacher's to one image.
        wanted: what is to be kept.
        data_seed: of the views.
        views: of each sample.
        precision: in which the teacher computes.
    """
    provenance = {
        "images": images.fingerprint,
        "views": images.provenance,
        "data seed": str(data_seed),
        "precision": precision,
        **{f"version of {package}": version(package) for package in VERSIONS},
    }
    for number, (network, normalization) in enumerate(teachers):
        name = "teacher" if len(teachers) == 1 else f"teacher {number}"
        provenance[f"weights of the {name}"] = weights_fingerprint([network])
        provenance[f"normalisation of the {name}"] = _text(normalization)
        package = type(network).__module__.partition(".")[0].replace("_", "-")
        with suppress(PackageNotFoundError):
            provenance[f"version of {package}"] = version(package)
    example: dict[str, list[float]] = {}
    for reading in wanted.readings:
        unit = maps.normalize(answer.read(reading)[:1])
        example[str(reading)] = [float(unit.mean()), float(unit.max())]
    classes = 0
    if wanted.logits and answer.logits is not None:
        classes = answer.logits.shape[1]
        example["logits"] = answer.logits[0, :LOGITS_SHOWN].tolist()
    return Contents(
        provenance,
        wanted,
        {reading: _size(answer.read(reading)) for reading in wanted.readings},
        classes,
        (3, *images.size),
        len(images),
        views,
        example,
    )


def difference(one: Contents, other: Contents) -> str | None:
    """The first thing by which two caches' makings differ; None if a run may use either."""
    for name in sorted(one.provenance.keys() | other.provenance.keys()):
        first, second = one.provenance.get(name, "none"), other.provenance.get(name, "none")
        if first != second:
            return f"{name}: {_around_difference(first, second)}"
    if one.samples != other.samples:
        return f"samples: {one.samples}, here {other.samples}"
    for name in sorted(one.example.keys() & other.example.keys()):
        if not _alike(one.example[name], other.example[name]):
            return f"what the teacher answers, {name}: " + ", here ".join(
                " ".join(f"{number:.4g}" for number in numbers[:4])
                for numbers in (one.example[name], other.example[name])
            )
    return None


def weights_fingerprint(networks: Sequence[nn.Module]) -> str:
    """A hash of every name and number in some networks' states."""
    digest = hashlib.sha256()
    for network in networks:
        state = network.state_dict()
        for name in sorted(name for name, value in state.items() if isinstance(value, Tensor)):
            value = state[name].detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _around_difference(first: str, second: str) -> str:
    """Two texts where they begin to differ."""
    same = takewhile(lambda both: both[0] == both[1], zip(first, second, strict=False))
    start = max(0, sum(1 for _ in same) - MOST_SHOWN // 4)
    return ", here ".join(
        "..." * (start > 0)
        + text[start : start + MOST_SHOWN]
        + "..." * (len(text) > start + MOST_SHOWN)
        for text in (first, second)
    )


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two machines may find such numbers for the same network."""
    if len(one) != len(other):
        return False
    largest = max(map(abs, (*one, *other)), default=0.0)
    return np.allclose(one, other, rtol=0, atol=ROUNDING * largest, equal_nan=True)


def _size(map_: Tensor) -> tuple[int, int]:
    height, width = map_.shape[-2:]
    return height, width


def _text(normalization: Preprocessing | None) -> str:
    if normalization is None:
        return "none"
    numbers = [[f"{value:.6g}" for value in part] for part in normalization[:2]]
    return f"{numbers} {normalization.size} {normalization.interpolation}".replace("'", "")


def _tensor(values: NDArray[Any]) -> Tensor:
    """A field of some rows in float32, apart from them."""
    return torch.from_numpy(values.astype(np.float32))
