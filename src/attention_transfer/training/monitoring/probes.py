"""Where student and teacher look on a few fixed images: kept as raw maps, and measured.

``attention/probes.npz`` holds validation images, ``attention/epoch-NNNN.npz`` the student's maps of
them after that many epochs, ``attention/teacher.npz`` the teacher's, which stay; and
``attention/examples.npz`` test images with the maps of both at the end.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from attention_transfer.data import Images, as_input
from attention_transfer.errors import InputError
from attention_transfer.functional import measures
from attention_transfer.functional.maps import MapKind, activation_map, mean_map
from attention_transfer.models import LoadedModel
from attention_transfer.network_inputs import preprocessing_for
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import Taps, evaluating
from attention_transfer.training.setup import RunSetup
from attention_transfer.transfer import Pair, class_logits
from attention_transfer.transfer.forward import input_size, tapped_forward
from attention_transfer.transfer.pairing import PairingSide, resolve_pairs

__all__ = ["ProbeMaps", "Probes", "probed_epochs"]

LOOKS = 12
"""At the probes in one run, by default."""

LARGEST_SIDE = 128
"""Pixels of an image as it is kept; networks see it in full."""

MOST_EXAMPLES, MOST_BYTES = 200, 4_000_000
"""Test images that are kept at the end: so many, and in so much memory."""

BATCH = 32


def probed_epochs(epochs: int, every: int | None) -> set[int]:
    """After how many epochs the probes are looked at: before the first, and after the last.

    >>> sorted(probed_epochs(5, every=2)), len(probed_epochs(200, every=None))
    ([0, 2, 4, 5], 13)
    """
    if every is not None:
        return {*range(0, epochs, every), epochs}
    return {round(look * epochs / LOOKS) for look in range(LOOKS + 1)}


class ProbeMaps(NamedTuple):
    """One network's attention on some images."""

    maps: list[Tensor]
    """(N, H, W) for each of its points."""
    logits: Tensor | None
    """(N, classes), if the network gives some."""

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """What is kept of it, under names that begin with the network's."""
        kept = {f"{name}/{number}": maps.numpy() for number, maps in enumerate(self.maps)}
        if self.logits is not None:
            kept[f"{name}/logits"] = self.logits.numpy()
        return kept


class _Viewer(NamedTuple):
    """A network that is looked at, and where."""

    network: nn.Module
    normalization: Preprocessing
    points: list[str]

    def features(self, images: Tensor) -> tuple[dict[str, Tensor], object]:
        """At the points; and what the network puts out."""
        device = next(self.network.parameters()).device
        taps = Taps(self.network, list(dict.fromkeys(self.points)))
        with evaluating(self.network), torch.no_grad():
            seen = tapped_forward(self.network, taps, images.to(device), self.normalization)
        return seen.features, seen.output


class Probes:
    """The images that a run's attention is followed on.

    Args:
        prepared: the run. Points are those of its attention term; without one, those that would
            be paired by themselves; and the student's own where there is no teacher.
        folder: ``attention/`` of the run.
    """

    def __init__(self, prepared: RunSetup, folder: Path) -> None:
        self.prepared, self.folder = prepared, folder
        config = prepared.config
        distilled = config.teacher is not None
        self.kind: MapKind = config.map
        self.power = config.power
        self.count = min(config.probes, len(prepared.data.validation))
        self.pairs = _pairs(prepared) if distilled else []
        self.points = [pair.student for pair in self.pairs] or _own_points(prepared)

    @property
    def names(self) -> list[str]:
        """Of the pairs, or of the student's points alone."""
        return [str(pair) for pair in self.pairs] or self.points

    def begin(self) -> None:
        """Keeps the images, and the teacher's attention on them."""
        self.folder.mkdir(exist_ok=True)
        validation = self.prepared.data.validation
        _save(self.folder / "probes.npz", self._images(validation, self._chosen))
        if self.pairs:
            _save(self.folder / "teacher.npz", self._of_teacher.arrays("teacher"))

    def look(self, epoch: int) -> dict[str, dict[str, float]]:
        """Keeps the student's maps after a number of epochs; measures of each pair."""
        student = self._student(self._pixels)
        _save(self.folder / f"epoch-{epoch:04d}.npz", student.arrays("student"))
        teacher = self._of_teacher.maps if self.pairs else [None] * len(self.points)
        return {
            name: _measured(maps, target, self._masks)
            for name, maps, target in zip(self.names, student.maps, teacher, strict=True)
        }

    def end(self) -> None:
        """Keeps test images, with the attention of both networks on them."""
        test = self.prepared.data.test
        size = max(1, int(np.prod(_kept_size(test.size)))) * 3
        count = min(MOST_EXAMPLES, len(test), max(1, MOST_BYTES // size))
        chosen = _spread(len(test), count)
        pixels = _pixels(test, chosen)
        arrays = self._images(test, chosen) | self._student(pixels).arrays("student")
        if self.pairs:
            arrays |= self._teacher(pixels).arrays("teacher")
        _save(self.folder / "examples.npz", arrays)

    def summary(self) -> dict[str, Any]:
        """What record.json says of it."""
        return {
            "map": self.kind,
            "power": self.power,
            "points": self.names,
            "probes": self.count,
            "epochs": sorted(probed_epochs(self.prepared.config.epochs, self._every)),
        }

    @property
    def _every(self) -> int | None:
        return self.prepared.config.probe_every

    @cached_property
    def _chosen(self) -> NDArray[np.int64]:
        return _spread(len(self.prepared.data.validation), self.count)

    @cached_property
    def _pixels(self) -> Tensor:
        return _pixels(self.prepared.data.validation, self._chosen)

    @cached_property
    def _masks(self) -> Tensor | None:
        return self.prepared.data.validation.masks(self._chosen)

    @cached_property
    def _of_teacher(self) -> ProbeMaps:
        return self._teacher(self._pixels)

    def _student(self, pixels: Tensor) -> ProbeMaps:
        prepared = self.prepared
        viewer = _Viewer(prepared.student.network, prepared.normalization, self.points)
        return _looked([viewer], [[(0, point)] for point in self.points], pixels, self._map)

    def _teacher(self, pixels: Tensor) -> ProbeMaps:
        several = len(self.prepared.teachers) > 1
        places = [[_place(point, several) for point in pair.teacher_points] for pair in self.pairs]
        viewers = [
            _Viewer(teacher.network, self._own(teacher), _of_network(number, places))
            for number, teacher in enumerate(self.prepared.teachers)
        ]
        return _looked(viewers, places, pixels, self._map)

    def _own(self, model: LoadedModel) -> Preprocessing:
        return preprocessing_for(model, self.prepared.data)

    def _map(self, features: Tensor) -> Tensor:
        return activation_map(features, self.kind, self.power).cpu()

    def _images(self, images: Images, chosen: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The images as they are kept, and what is known of them."""
        size = _kept_size(images.size)
        pixels = images.pixels(chosen).numpy()
        kept = {
            "images": np.stack([_scaled(image, size) for image in pixels]),
            "labels": images.labels[torch.from_numpy(chosen)].numpy(),
            "names": np.array([images.name(int(index)) for index in chosen]),
            "indices": chosen,
            "class_names": np.array(self.prepared.data.class_names),
            "points": np.array(self.names),
        }
        masks = images.masks(chosen)
        if masks is not None:
            kept["masks"] = np.stack(
                [_scaled(mask, size) > 127 for mask in 255 * masks.byte().numpy()]
            )
        return kept


_Place = tuple[int, str]
"""The number of a network, and a point of it."""


def _place(point: str, several: bool) -> _Place:
    number, _, name = point.partition(".")
    return (int(number), name) if several else (0, point)


def _of_network(number: int, places: Iterable[Sequence[_Place]]) -> list[str]:
    return [point for joined in places for owner, point in joined if owner == number]


def _looked(
    viewers: list[_Viewer], places: list[list[_Place]], pixels: Tensor, attention: Any
) -> ProbeMaps:
    """Each place's maps, where several are joined their mean; and the mean of the logits."""
    maps: list[list[Tensor]] = [[] for _ in places]
    logits: list[Tensor] = []
    for images in torch.split(pixels, BATCH):
        seen = [viewer.features(images) for viewer in viewers]
        for found, joined in zip(maps, places, strict=True):
            found.append(mean_map([attention(seen[number][0][point]) for number, point in joined]))
        logits += _mean_logits([output for _, output in seen])
    whole = sum(map(len, logits)) == len(pixels)
    return ProbeMaps([torch.cat(parts) for parts in maps], torch.cat(logits) if whole else None)


def _mean_logits(outputs: list[object]) -> list[Tensor]:
    """One tensor; or none, if the networks give no logits of the same classes."""
    try:
        return [torch.stack([class_logits(output).float().cpu() for output in outputs]).mean(dim=0)]
    except (InputError, RuntimeError):
        return []


def _measured(student: Tensor, teacher: Tensor | None, masks: Tensor | None) -> dict[str, float]:
    """Means over the probes of what one pair's maps are like."""
    found = {"student_entropy": measures.entropy(student)}
    if teacher is not None:
        found["teacher_entropy"] = measures.entropy(teacher)
        found["cosine"] = measures.cosine(student, teacher)
        found["rank_correlation"] = measures.rank_correlation(student, teacher)
    known = None if masks is None else masks.flatten(1).any(dim=1)
    if masks is not None and known is not None and known.any():
        found["inside"] = measures.energy_pointing_game(student[known], masks[known])
        found["pointing"] = measures.pointing_game(student[known], masks[known])
    return {name: float(values.mean()) for name, values in found.items()}


def _pairs(prepared: RunSetup) -> list[Pair]:
    """Those of the first term that compares layers, or those that would be found."""
    for pairing in prepared.transfer.pairings.values():
        return pairing.pairs
    example = _pixels(prepared.data.validation, np.zeros(1, dtype=np.int64))
    models = [prepared.student, *prepared.teachers]
    sides = [
        PairingSide(model.network, input_size(example, preprocessing_for(model, prepared.data)))
        for model in models
    ]
    try:
        return resolve_pairs("auto", *sides).pairs
    except InputError:
        return []  # no two places of the networks match: the student's own are followed


def _own_points(prepared: RunSetup) -> list[str]:
    """The student's recommended ones; none, if it has no place that can be read."""
    example = _pixels(prepared.data.validation, np.zeros(1, dtype=np.int64))
    side = PairingSide(prepared.student.network, input_size(example, prepared.normalization))
    try:
        return list(side.recommended)
    except InputError:
        return []


def _spread(count: int, chosen: int) -> NDArray[np.int64]:
    """Indices at equal distances."""
    return np.linspace(0, count - 1, chosen).round().astype(np.int64)


def _pixels(images: Images, chosen: NDArray[np.int64]) -> Tensor:
    return as_input(images.pixels(chosen))


def _kept_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width, no side longer than LARGEST_SIDE."""
    scale = min(1.0, LARGEST_SIDE / max(size))
    height, width = (max(1, round(scale * side)) for side in size)
    return height, width


def _scaled(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if image.shape[:2] == size:
        return image
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(resized)


def _save(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    partial.rename(path)
