"""A cache's contents: the fields of a row of teacher targets, and their provenance."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attention_transfer.data import Images
from attention_transfer.environment import package_versions
from attention_transfer.errors import InputError
from attention_transfer.functional import maps
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.transfer import Reduction, TargetField, Targets, TargetSpec

__all__ = ["Contents", "contents_of", "difference", "weights_fingerprint"]

VERSIONS = ("attention-transfer", "torch", "torchvision", "pillow")
"""Packages on which views or answers depend, beside those that networks come from."""

SHARD_BYTES = 2**25

LOGITS_SHOWN = 10
"""How many logits of the example are kept."""

ROUNDING = 1e-2
"""Share of the largest number by which two machines may differ."""

MOST_SHOWN = 80
"""Characters shown of a difference."""

INTEGERS = ("|b1", "|u1", "|i1", "<i2", "<i4", "<i8")
"""Numpy types of fields that are not floating-point."""

MOST_FIELDS, MOST_SHARDS = 1000, 1_000_000
"""The largest numbers of fields and of shards (32 TB) in a cache."""

LARGEST_FIELD = 2**17
"""Bytes of one field of one view; more is refused, with the size."""


@dataclass(frozen=True)
class Contents:
    """The targets of every sample's first views, and what decided their numbers.

    A target of a sample's view is a row: attention maps and other scale-free fields as unit vectors
    in float16, other reductions and logits in float32, integers as they are, and J in float16
    relative to its largest magnitude, which is kept beside it.
    """

    provenance: Mapping[str, str]
    """What decides the numbers, by name; all of it must be equal for a run to use them."""
    spec: TargetSpec
    """Which targets a row holds."""
    shapes: Mapping[TargetField, tuple[int, ...]]
    """The shape of each field, for one sample."""
    logit_shape: tuple[int, ...]
    """(classes,), or (classes, ...) of logits for every position; () without logits."""
    input_size: tuple[int, int, int]
    samples: int
    views: int
    example: Mapping[str, Sequence[float]]
    """The teacher's answer to the first sample: mean and maximum of each field, and the first
    logits. Another network answers otherwise, even one with the same weights.
    """
    integers: Mapping[TargetField, str] = field(default_factory=dict)
    """The numpy type of each field of integers or booleans."""

    @cached_property
    def row(self) -> np.dtype[np.void]:
        """The numpy type of one target."""
        fields: list[tuple[Any, ...]] = [
            (str(target), self._type(target), self.shapes[target]) for target in self.spec.fields
        ]
        if self.spec.logits:
            fields.append(("logits", "<f4", self.logit_shape))
        if self.spec.gradient:
            fields += [("gradient", "<f2", self.input_size), ("gradient scale", "<f4")]
        return np.dtype(fields)

    @property
    def samples_a_shard(self) -> int:
        """Rows in a shard of about 32 MB; the last shard of a view may have fewer."""
        return max(1, min(self.samples, SHARD_BYTES // self.row.itemsize))

    @property
    def shards(self) -> list[tuple[int, int]]:
        """Every shard, as (view, first sample)."""
        starts = range(0, self.samples, self.samples_a_shard)
        return [(view, start) for view in range(self.views) for start in starts]

    @property
    def shard_count(self) -> int:
        """The number of shards."""
        return self.views * -(-self.samples // self.samples_a_shard)

    @property
    def holds(self) -> tuple[object, ...]:
        """The fields and views that are kept, apart from their provenance."""
        return self.shapes, self.spec.logits, self.spec.gradient, self.views

    @property
    def bytes(self) -> int:
        """The size of all rows: views x samples x bytes of a row."""
        return self.views * self.samples * self.row.itemsize

    def rows_in(self, shard: tuple[int, int]) -> int:
        """Return the number of samples in a shard."""
        return min(self.samples_a_shard, self.samples - shard[1])

    def check_size(self) -> None:
        """Raise an InputError if a field is too large to keep, with its size."""
        for target in self.spec.fields:
            size = self.row[str(target)].itemsize
            if target.reduction is None or size > LARGEST_FIELD:
                total = size * self.views * self.samples
                raise InputError(
                    f"{target} takes {size:,} bytes for each view, {total / 1e9:.2g} GB for "
                    f"{self.views} views of {self.samples} images; a cache keeps at most "
                    f"{LARGEST_FIELD:,} bytes for each view, and only reductions of features: "
                    "leave out the cache or the term, or have the term declare a smaller "
                    "teacher_reduction"
                )

    def check_counts(self) -> None:
        """Raise an InputError if there are more fields or shards than any cache has."""
        if len(self.shapes) > MOST_FIELDS or self.shard_count > MOST_SHARDS:
            raise InputError(
                f"a cache of {len(self.shapes):,} fields in {float(self.shard_count):.3g} files "
                f"is too large; expected at most {MOST_FIELDS:,} fields and {MOST_SHARDS:,} files: "
                "give fewer views"
            )

    def pack(self, targets: Targets) -> NDArray[np.void]:
        """Return a batch of targets as rows."""
        rows = np.empty(self._batch_size(targets), self.row)
        for target in self.spec.fields:
            value = targets.read(target)
            if target.reduction is not None and target.reduction.scale_free:
                value = maps.normalize(value.reshape(len(value), -1))
            if target not in self.integers:
                value = value.float()
            rows[str(target)] = value.view(len(rows), *self.shapes[target]).cpu().numpy()
        if self.spec.logits:
            assert targets.logits is not None
            rows["logits"] = targets.logits.float().cpu().numpy()
        if self.spec.gradient:
            assert targets.gradient is not None
            gradient = targets.gradient.float().cpu()
            scale = gradient.abs().amax(dim=(1, 2, 3))
            scale = torch.where(scale > 0, scale, 1)
            rows["gradient"] = (gradient / scale.view(-1, 1, 1, 1)).numpy()
            rows["gradient scale"] = scale.numpy()
        return rows

    def unpack(self, rows: NDArray[np.void]) -> Targets:
        """Return rows as a batch of targets: integers as they were, all others in float32."""
        fields = {
            target: _tensor(rows[str(target)], self.integers.get(target, "<f4"))
            for target in self.spec.fields
        }
        logits = _tensor(rows["logits"]) if self.spec.logits else None
        gradient = None
        if self.spec.gradient:
            scale = _tensor(rows["gradient scale"]).view(-1, 1, 1, 1)
            gradient = _tensor(rows["gradient"]).mul_(scale)
        return Targets(fields, logits, gradient)

    def missing_targets(self, spec: TargetSpec) -> Iterator[str]:
        """Yield what a run needs that is not here, by name."""
        for target in spec.fields:
            if target not in self.spec.fields:
                yield str(target)
        if spec.logits and not self.spec.logits:
            yield "logits"
        if spec.gradient and not self.spec.gradient:
            yield "the gradient at the input (--gradient)"

    def as_json(self) -> dict[str, Any]:
        """Return plain values that :meth:`from_json` reads."""
        return {
            "provenance": dict(self.provenance),
            "fields": [
                {
                    "point": target.point,
                    "reduction": target.reduction.name,
                    "scale_free": target.reduction.scale_free,
                    "shape": list(shape),
                    **({"integers": self.integers[target]} if target in self.integers else {}),
                }
                for target, shape in self.shapes.items()
                if target.reduction is not None
            ],
            "logits": list(self.logit_shape) if self.spec.logits else None,
            "gradient": self.spec.gradient,
            "input_size": list(self.input_size),
            "samples": self.samples,
            "views": self.views,
            "example": {name: list(numbers) for name, numbers in self.example.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Contents":
        """Return the contents that were written to a file.

        Raises:
            KeyError, TypeError, ValueError: they are damaged.
        """
        shapes, integers = {}, {}
        for one in values["fields"]:
            reduction = Reduction(str(one["reduction"]), _unknown, bool(one["scale_free"]))
            target = TargetField(str(one["point"]), reduction)
            shapes[target] = tuple(map(int, one["shape"]))
            if "integers" in one:
                integers[target] = INTEGERS[INTEGERS.index(one["integers"])]
        channels, height, width = map(int, values["input_size"])
        samples, views = int(values["samples"]), int(values["views"])
        logits = values["logits"]
        if min(samples, views) < 1:
            raise ValueError("there is nothing in it")
        contents = cls(
            {str(name): str(value) for name, value in values["provenance"].items()},
            TargetSpec(tuple(shapes), logits is not None, bool(values["gradient"])),
            shapes,
            () if logits is None else tuple(map(int, logits)),
            (channels, height, width),
            samples,
            views,
            {name: list(map(float, numbers)) for name, numbers in values["example"].items()},
            integers,
        )
        contents.check_counts()
        return contents

    def _type(self, target: TargetField) -> str:
        """Return the numpy type of a field's numbers."""
        scale_free = target.reduction is not None and target.reduction.scale_free
        return self.integers.get(target, "<f2" if scale_free else "<f4")

    def _batch_size(self, targets: Targets) -> int:
        first = next(iter(targets.fields.values()), targets.logits)
        first = targets.gradient if first is None else first
        assert first is not None
        return len(first)


def _unknown(features: Tensor) -> Tensor:
    """Stand for a reduction that is known by name only, which no one calls."""
    raise NotImplementedError


def contents_of(
    images: Images,
    teachers: Sequence[tuple[nn.Module, Preprocessing | None]],
    answer: Targets,
    spec: TargetSpec,
    *,
    data_seed: int,
    views: int,
    precision: str,
) -> Contents:
    """Return what a cache of a teacher's answers to the views of images will hold.

    Args:
        images: the training images.
        teachers: networks with their preprocessing.
        answer: the teacher's answer to one image.
        spec: the targets to keep.
        data_seed: of the augmented views.
        views: of each sample.
        precision: in which the teacher computes.
    """
    provenance = {
        "images": images.fingerprint,
        "views": images.provenance,
        "data seed": str(data_seed),
        "precision": precision,
        **{f"version of {name}": str(of) for name, of in package_versions(VERSIONS).items()},
    }
    for number, (network, preprocessing) in enumerate(teachers):
        name = "teacher" if len(teachers) == 1 else f"teacher {number}"
        provenance[f"weights of the {name}"] = weights_fingerprint([network])
        provenance[f"preprocessing of the {name}"] = _text(preprocessing)
        package = type(network).__module__.partition(".")[0].replace("_", "-")
        with suppress(PackageNotFoundError):
            provenance[f"version of {package}"] = version(package)
    example: dict[str, list[float]] = {}
    for target in spec.fields:
        value = answer.read(target)[:1].float().reshape(1, -1)
        if target.reduction is not None and target.reduction.scale_free:
            value = maps.normalize(value)
        example[str(target)] = [float(value.mean()), float(value.max())]
    logit_shape: tuple[int, ...] = ()
    if spec.logits and answer.logits is not None:
        logit_shape = tuple(answer.logits.shape[1:])
        example["logits"] = answer.logits[0].flatten()[:LOGITS_SHOWN].tolist()
    return Contents(
        provenance,
        spec,
        {target: tuple(answer.read(target).shape[1:]) for target in spec.fields},
        logit_shape,
        (images.channels, *images.size),
        len(images),
        views,
        example,
        _integers(answer, spec),
    )


def _integers(answer: Targets, spec: TargetSpec) -> dict[TargetField, str]:
    """Return the numpy type of each field of integers or booleans."""
    types = {target: answer.read(target).cpu().numpy().dtype.str for target in spec.fields}
    return {target: type_ for target, type_ in types.items() if type_ in INTEGERS}


def difference(one: Contents, other: Contents) -> str | None:
    """Return the first difference in two caches' provenance; None if a run may use either."""
    for name in sorted(one.provenance.keys() | other.provenance.keys()):
        first, second = one.provenance.get(name, "none"), other.provenance.get(name, "none")
        if first != second:
            return f"{name}: {_around_difference(first, second)}"
    if one.samples != other.samples:
        return f"samples: {one.samples}, here {other.samples}"
    if one.input_size != other.input_size:
        return f"size of the images: {one.input_size}, here {other.input_size}"
    for name in sorted(one.example.keys() & other.example.keys()):
        if not _alike(one.example[name], other.example[name]):
            return f"the teacher's answer, {name}: " + ", here ".join(
                " ".join(f"{number:.4g}" for number in numbers[:4])
                for numbers in (one.example[name], other.example[name])
            )
    return None


def weights_fingerprint(networks: Sequence[nn.Module]) -> str:
    """Return a hash of every name and number in some networks' states."""
    digest = hashlib.sha256()
    for network in networks:
        state = network.state_dict()
        for name in sorted(name for name, value in state.items() if isinstance(value, Tensor)):
            value = state[name].detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _around_difference(first: str, second: str) -> str:
    """Return two texts from where they begin to differ."""
    same = takewhile(lambda both: both[0] == both[1], zip(first, second, strict=False))
    start = max(0, sum(1 for _ in same) - MOST_SHOWN // 4)
    return ", here ".join(
        "..." * (start > 0)
        + text[start : start + MOST_SHOWN]
        + "..." * (len(text) > start + MOST_SHOWN)
        for text in (first, second)
    )


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two machines may compute such numbers with the same network."""
    if len(one) != len(other):
        return False
    largest = max(map(abs, (*one, *other)), default=0.0)
    return np.allclose(one, other, rtol=0, atol=ROUNDING * largest, equal_nan=True)


def _text(preprocessing: Preprocessing | None) -> str:
    if preprocessing is None:
        return "none"
    numbers = [[f"{value:.6g}" for value in part] for part in preprocessing[:2]]
    channels = "" if preprocessing.channels is None else f" {preprocessing.channels} channels"
    return f"{numbers} {preprocessing.size} {preprocessing.interpolation}{channels}".replace(
        "'", ""
    )


def _tensor(values: NDArray[Any], dtype: str = "<f4") -> Tensor:
    """Return a field of some rows, as a copy."""
    return torch.from_numpy(values.astype(dtype))
