"""Probes: attention maps of a few fixed images, saved and measured during a run.

``attention/probes.npz`` holds the probe images, which are validation images;
``attention/epoch-NNNN.npz`` the student's maps of them after that many epochs;
``attention/teacher.npz`` the teacher's maps, which do not change; and ``attention/examples.npz``
test images with the final maps of both networks.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from attention_transfer.data import Images, as_input
from attention_transfer.drawing.rgb import to_rgb
from attention_transfer.errors import InputError
from attention_transfer.files import write_arrays
from attention_transfer.functional import measures
from attention_transfer.functional.maps import MapKind, activation_map, mean_map
from attention_transfer.network_inputs import preprocessing_for
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.runs.record import AttentionRecord
from attention_transfer.taps import Taps, evaluating
from attention_transfer.training.setup import RunSetup
from attention_transfer.transfer import Pair, class_logits
from attention_transfer.transfer.forward import input_size, tapped_forward
from attention_transfer.transfer.pairing import PairingSide, resolve_pairs

__all__ = ["ProbeMaps", "Probes", "probed_epochs"]

DEFAULT_INTERVALS = 12
"""Intervals into which the probed epochs divide a run, by default."""

LARGEST_SIDE = 128
"""Largest side in pixels of a saved image; networks get the image in full."""

MOST_EXAMPLES, MOST_EXAMPLE_BYTES = 200, 4_000_000
"""Limits on the test images that are saved at the end: their number, and their pixels in bytes."""

BATCH_SIZE = 32


def probed_epochs(epochs: int, every: int | None) -> set[int]:
    """Return the numbers of epochs after which maps are saved; 0 is before training.

    Args:
        epochs: of the run.
        every: epochs between two of them; None divides the run into twelve.

    Example:
        >>> sorted(probed_epochs(5, every=2)), len(probed_epochs(200, every=None))
        ([0, 2, 4, 5], 13)
    """
    if every is not None:
        return {*range(0, epochs, every), epochs}
    return {round(number * epochs / DEFAULT_INTERVALS) for number in range(DEFAULT_INTERVALS + 1)}


class ProbeMaps(NamedTuple):
    """Attention maps and logits of one network, or the means of several teachers."""

    maps: list[Tensor]
    """(N, H, W) for each point."""
    logits: Tensor | None
    """(N, K), if the network gives logits."""

    def arrays(self, network: str) -> dict[str, NDArray[Any]]:
        """Return the arrays to save, under names that begin with the network's."""
        arrays = {f"{network}/{number}": maps.numpy() for number, maps in enumerate(self.maps)}
        if self.logits is not None:
            arrays[f"{network}/logits"] = self.logits.numpy()
        return arrays


class _TappedNetwork(NamedTuple):
    """A network, its preprocessing, and the points at which its features are read."""

    network: nn.Module
    preprocessing: Preprocessing
    points: list[str]

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], object]:
        """Return the features by point, and the network's output, of images (N, C, H, W)."""
        device = next(self.network.parameters()).device
        taps = Taps(self.network, list(dict.fromkeys(self.points)))
        with evaluating(self.network), torch.no_grad():
            result = tapped_forward(self.network, taps, images.to(device), self.preprocessing)
        return result.features, result.output


_NetworkPoint = tuple[int, str]
"""The index of a network, and one of its points."""


class Probes:
    """The probe images of a run, and the attention maps that both networks have of them.

    The layer pairs are those of the first term that has some; without such a term, those that
    ``pairs="auto"`` finds; and without a teacher, the student's recommended points alone.

    Args:
        setup: of the run.
        folder: ``attention/`` of the run.
    """

    def __init__(self, setup: RunSetup, folder: Path) -> None:
        self.setup, self.folder = setup, folder
        self.map: MapKind = setup.config.map
        self.power = setup.config.power
        self.count = min(setup.config.probes, len(setup.data.validation))
        self.pairs = _layer_pairs(setup) if setup.config.teacher is not None else []
        self.student_points = [pair.student for pair in self.pairs] or _recommended_points(setup)

    @property
    def names(self) -> list[str]:
        """The names of the layer pairs, or of the points of a student alone."""
        return [str(pair) for pair in self.pairs] or self.student_points

    def begin(self) -> None:
        """Save the probe images and the teacher's maps of them."""
        self.folder.mkdir(exist_ok=True)
        images = self._image_arrays(self.setup.data.validation, self._indices)
        write_arrays(self.folder / "probes.npz", images)
        if self.pairs:
            write_arrays(self.folder / "teacher.npz", self._teacher_probes.arrays("teacher"))

    def save_epoch(self, epoch: int) -> dict[str, dict[str, float]]:
        """Save the student's maps after a number of epochs, and measure them.

        Returns:
            For each layer pair, or point of a student alone, the means of the measures.
        """
        student = self._student_maps(self._pixels)
        write_arrays(self.folder / f"epoch-{epoch:04d}.npz", student.arrays("student"))
        teacher_maps = self._teacher_probes.maps if self.pairs else [None] * len(student.maps)
        return {
            name: _measure(maps, target, self._masks)
            for name, maps, target in zip(self.names, student.maps, teacher_maps, strict=True)
        }

    def end(self) -> None:
        """Save test images with the final maps of both networks."""
        data = self.setup.data
        test = data.test if self.setup.config.test else data.validation
        image_bytes = max(1, int(np.prod(_saved_size(test.size)))) * 3
        count = min(MOST_EXAMPLES, len(test), max(1, MOST_EXAMPLE_BYTES // image_bytes))
        indices = _evenly_spaced(len(test), count)
        pixels = _pixels(test, indices)
        arrays = self._image_arrays(test, indices)
        arrays |= self._student_maps(pixels).arrays("student")
        if self.pairs:
            arrays |= self._teacher_maps(pixels).arrays("teacher")
        write_arrays(self.folder / "examples.npz", arrays)

    def record(self, trained: int) -> AttentionRecord:
        """Return what ``record.json`` says about the maps saved in so many epochs."""
        config = self.setup.config
        probed = probed_epochs(config.epochs, config.probe_every)
        return AttentionRecord(
            map=self.map,
            power=self.power,
            points=self.names,
            probes=self.count,
            epochs=sorted({*(epoch for epoch in probed if epoch < trained), trained}),
        )

    @cached_property
    def _indices(self) -> NDArray[np.int64]:
        return _evenly_spaced(len(self.setup.data.validation), self.count)

    @cached_property
    def _pixels(self) -> Tensor:
        return _pixels(self.setup.data.validation, self._indices)

    @cached_property
    def _masks(self) -> Tensor | None:
        return self.setup.data.validation.masks(self._indices)

    @cached_property
    def _teacher_probes(self) -> ProbeMaps:
        return self._teacher_maps(self._pixels)

    def _student_maps(self, pixels: Tensor) -> ProbeMaps:
        setup = self.setup
        student = _TappedNetwork(setup.student.network, setup.preprocessing, self.student_points)
        return _probe_maps([student], [[(0, point)] for point in student.points], pixels, self._map)

    def _teacher_maps(self, pixels: Tensor) -> ProbeMaps:
        """Return the maps of each pair's teacher points, several of which are averaged."""
        setup = self.setup
        numbered = len(setup.teachers) > 1
        points = [
            [_network_point(point, numbered) for point in pair.teacher_points]
            for pair in self.pairs
        ]
        teachers = [
            _TappedNetwork(
                teacher.network,
                preprocessing_for(teacher, setup.data),
                [name for joined in points for owner, name in joined if owner == number],
            )
            for number, teacher in enumerate(setup.teachers)
        ]
        return _probe_maps(teachers, points, pixels, self._map)

    def _map(self, features: Tensor) -> Tensor:
        return activation_map(features, self.map, self.power).cpu()

    def _image_arrays(self, images: Images, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the arrays to save of some images: small pixels, labels, names and masks."""
        size, colours = _saved_size(images.size), to_rgb(images.pixels(indices).numpy())
        arrays = {
            "images": np.stack([_resized(image, size) for image in colours]),
            "labels": images.labels[torch.from_numpy(indices)].numpy(),
            "names": np.array([images.name(int(index)) for index in indices]),
            "indices": indices,
            "class_names": np.array(self.setup.data.class_names),
            "points": np.array(self.names),
        }
        masks = images.masks(indices)
        if masks is not None:
            arrays["masks"] = np.stack(
                [_resized(mask, size) > 127 for mask in 255 * masks.byte().numpy()]
            )
        return arrays


def _network_point(point: str, numbered: bool) -> _NetworkPoint:
    """Split a teacher point such as "1.layer3" of several teachers into its network and name."""
    number, _, name = point.partition(".")
    return (int(number), name) if numbered else (0, point)


def _probe_maps(
    networks: Sequence[_TappedNetwork],
    points: Sequence[Sequence[_NetworkPoint]],
    pixels: Tensor,
    attention_map: Callable[[Tensor], Tensor],
) -> ProbeMaps:
    """Return the maps of images, for each entry of ``points`` the mean over its network points.

    Args:
        networks: run on the images.
        points: for each map the points to average.
        pixels: images (N, C, H, W).
        attention_map: from features (N, C, h, w) to maps (N, h, w) on the CPU.
    """
    maps: list[list[Tensor]] = [[] for _ in points]
    logits: list[Tensor] = []
    for images in torch.split(pixels, BATCH_SIZE):
        results = [network.forward(images) for network in networks]
        for batch_maps, joined in zip(maps, points, strict=True):
            features = [results[number][0][point] for number, point in joined]
            batch_maps.append(mean_map([attention_map(tensor) for tensor in features]))
        logits += _mean_logits([output for _, output in results])
    complete = sum(map(len, logits)) == len(pixels)
    return ProbeMaps([torch.cat(parts) for parts in maps], torch.cat(logits) if complete else None)


def _mean_logits(outputs: list[object]) -> list[Tensor]:
    """Return the mean logits in a list; an empty one if the networks have no common classes."""
    try:
        return [torch.stack([class_logits(output).float().cpu() for output in outputs]).mean(dim=0)]
    except (InputError, RuntimeError):
        return []


def _measure(student: Tensor, teacher: Tensor | None, masks: Tensor | None) -> dict[str, float]:
    """Return the means over the probe images of the measures of one pair's maps (N, H, W)."""
    values = {"student_entropy": measures.entropy(student)}
    if teacher is not None:
        values["teacher_entropy"] = measures.entropy(teacher)
        values["cosine"] = measures.cosine(student, teacher)
        values["rank_correlation"] = measures.rank_correlation(student, teacher)
    masked = None if masks is None else masks.flatten(1).any(dim=1)
    if masks is not None and masked is not None and masked.any():
        values["inside"] = measures.energy_pointing_game(student[masked], masks[masked])
        values["pointing"] = measures.pointing_game(student[masked], masks[masked])
    return {name: float(per_image.mean()) for name, per_image in values.items()}


def _layer_pairs(setup: RunSetup) -> list[Pair]:
    """Return the layer pairs of the first term that has some, or else the automatic ones."""
    for pairing in setup.transfer.pairings.values():
        return pairing.pairs
    example = _pixels(setup.data.validation, np.zeros(1, dtype=np.int64))
    sides = [
        PairingSide(model.network, input_size(example, preprocessing_for(model, setup.data)))
        for model in (setup.student, *setup.teachers)
    ]
    try:
        return resolve_pairs("auto", *sides).pairs
    except InputError:
        return []  # no points of the two networks match: the student's own are followed


def _recommended_points(setup: RunSetup) -> list[str]:
    """Return the student's recommended points; none if its attention cannot be read."""
    example = _pixels(setup.data.validation, np.zeros(1, dtype=np.int64))
    side = PairingSide(setup.student.network, input_size(example, setup.preprocessing))
    try:
        return list(side.recommended)
    except InputError:
        return []


def _evenly_spaced(images: int, count: int) -> NDArray[np.int64]:
    """Return indices of so many images, at equal distances, the first and the last among them."""
    return np.linspace(0, images - 1, count).round().astype(np.int64)


def _pixels(images: Images, indices: NDArray[np.int64]) -> Tensor:
    return as_input(images.pixels(indices))


def _saved_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width in proportion, with no side longer than LARGEST_SIDE."""
    scale = min(1.0, LARGEST_SIDE / max(size))
    height, width = (max(1, round(scale * side)) for side in size)
    return height, width


def _resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if image.shape[:2] == size:
        return image
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(resized)
