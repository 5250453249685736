"""The teacher, frozen, and each network's own input normalisation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError
from attention_transfer.functional.losses import summed_cross_entropy
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import Taps, unwrapped
from attention_transfer.transfer.compiled_forward import CompiledPass
from attention_transfer.transfer.inference_optimization import inference_copy, lower_weights
from attention_transfer.transfer.targets import TargetField, Targets, TargetSpec

if TYPE_CHECKING:
    pass

__all__ = [
    "FrozenTeacher",
    "ForwardResult",
    "as_logits",
    "input_gradient",
    "input_size",
    "tapped_forward",
]


def input_size(images: Tensor, normalization: Preprocessing | None) -> tuple[int, int, int]:
    """Channels, height and width of what a network gets for images (N, C, H, W)."""
    channels, *size = images.shape[1:]
    height, width = (normalization and normalization.size) or size
    return channels, height, width


class ForwardResult(NamedTuple):
    """What one pass of one network shows: its output, and the features at its tapped points."""

    output: object
    features: dict[str, Tensor]

    @property
    def logits(self) -> Tensor:
        """The output, (N, classes).

        Raises:
            InputError: it is something else.
        """
        return as_logits(self.output)


def as_logits(output: object) -> Tensor:
    """A network's output, if it is (N, classes).

    Raises:
        InputError: it is something else.
    """
    if isinstance(output, Tensor) and output.dim() == 2:
        return output
    got = (
        f"a tensor {tuple(output.shape)}"
        if isinstance(output, Tensor)
        else f"a {type(output).__name__}"
    )
    raise InputError(
        f"the network puts out {got}, expected logits (N, classes); wrap it in a module whose "
        "forward returns them"
    )


def tapped_forward(
    network: nn.Module, taps: Taps, images: Tensor, normalization: Preprocessing | None
) -> ForwardResult:
    """One pass of a tapped network on images that are normalised for it first."""
    version = 0 if images.is_inference() else images._version
    given = images if normalization is None else normalization(images)
    with taps as outputs:
        output = network(given)
    if not images.is_inference() and images._version != version:
        raise InputError(
            f"{type(unwrapped(network)).__name__} overwrote the images in place, which the other "
            "network sees too; write x = (x - mean) / std instead of x.sub_(mean).div_(std)"
        )
    return ForwardResult(output, taps.feature_maps(outputs, given))


def input_gradient(logits: Tensor, labels: Tensor | None, images: Tensor) -> Tensor:
    """J, a constant: the summed cross-entropy's gradient at the images the logits are of.

    Raises:
        InputError: the loss does not depend on the images.
    """
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        loss = summed_cross_entropy(logits, labels)
        try:
            return torch.autograd.grad(loss, images)[0]
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"the loss does not depend on the images, so it has no gradient there ({reason}); "
                "let gradients through the network"
            ) from error


class FrozenTeacher:
    """A network that only answers: eval mode and no gradients, whatever is called on it.

    Its parameters are frozen (``requires_grad_(False)``), and every call puts it into eval mode
    first, so a stray ``.train()`` cannot move its batch statistics.

    Args:
        network: the teacher.
        points: names of the modules to read.
        normalization: the teacher's own input normalisation, of images as the student gets them.

    Example:
        >>> teacher = FrozenTeacher(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), ["0"])
        >>> _ = teacher.network.train()
        >>> teacher(torch.zeros(2, 3, 8, 8)).features["0"].shape
        torch.Size([2, 4, 8, 8])
        >>> teacher.network.training
        False
    """

    def __init__(
        self,
        network: nn.Module,
        points: Sequence[str] = (),
        normalization: Preprocessing | None = None,
    ) -> None:
        self.network = network.requires_grad_(False).eval()
        self.normalization = normalization
        self._taps = Taps(network, points)
        self._compiled: dict[TargetSpec, CompiledPass] | None = None

    def optimize_for_inference(self, example: Tensor, dtype: torch.dtype | None = None) -> None:
        """Answers from an inference copy from now on; the network itself stays as it is.

        Args:
            example: images (N, C, H, W) to compare both on.
            dtype: to keep the weights in; they then run under autocast of that dtype alone.
        """
        given = example if self.normalization is None else self.normalization(example)
        network, compiled = self.network, self._compiled is not None
        self.remove_compiled_passes()
        self.network = inference_copy(network, self._taps.points, given)
        self._taps = Taps(self.network, self._taps.points)
        if dtype is not None and self.network is not network:
            lower_weights(self.network, dtype)
        with torch.no_grad(), torch.autocast(example.device.type, dtype, enabled=dtype is not None):
            self.observe(example)  # which tells how each point is read
        if compiled:
            self.compile_passes()

    def compile_passes(self) -> None:
        """Compiles passes without gradients from now on, each when it is first run."""
        self._compiled = {}

    def remove_compiled_passes(self) -> None:
        """Takes them off the network, with their hooks."""
        for compiled in (self._compiled or {}).values():
            compiled.remove()
        self._compiled = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ForwardResult:
        """Logits and features for images (N, C, H, W)."""
        return self.observe(images)

    def observe(self, images: Tensor) -> ForwardResult:
        """The same, differentiable in the images."""
        self.network.eval()
        return tapped_forward(self.network, self._taps, images, self.normalization)

    def targets(self, images: Tensor, labels: Tensor | None, wanted: TargetSpec) -> Targets:
        """What is wanted of it, and no more: maps are taken as soon as their features are there,
        which are dropped at once, and a pass ends with the last layer that somebody asked for.

        Args:
            images: (N, C, H, W).
            labels: of :func:`attention_transfer.functional.losses.summed_cross_entropy`, for the gradient.
            wanted: what; its points are among this teacher's.
        """
        self.learn(images)
        if wanted.gradient:
            images = images.detach().requires_grad_()
            with torch.enable_grad():
                readings, output = self.read(images, wanted)
            gradient = input_gradient(as_logits(output), labels, images)
            return Targets(readings, as_logits(output).detach(), gradient)
        whole = any(reading.map is None for reading in wanted.readings)
        with torch.no_grad() if whole else torch.inference_mode():
            readings, output = self.read(images, wanted)
        if not whole:  # out of inference mode, for graphs that keep them
            readings = {reading: value.clone() for reading, value in readings.items()}
            output = output.clone() if isinstance(output, Tensor) else output
        return Targets(readings, output if isinstance(output, Tensor) else None)

    @torch.no_grad()
    def learn(self, images: Tensor) -> None:
        """Finds out how to read each point, by one pass on images of a size that is new."""
        if not self._taps.knows(input_size(images, self.normalization)):
            self.observe(images)

    def read(self, images: Tensor, wanted: TargetSpec) -> tuple[dict[TargetField, Tensor], object]:
        """The readings, detached, and the output, or None of a pass that ended before it."""
        self.network.eval()
        given = images if self.normalization is None else self.normalization(images)
        readings: dict[TargetField, Tensor] = {}
        output: object = None

        def read(point: str, features: Tensor) -> None:
            features = features.detach()
            for reading in wanted.readings:
                if reading.point == point and reading.map is None:
                    copied = self._taps.overwritten(point)
                    readings[reading] = features.clone() if copied else features
                elif reading.point == point:
                    readings[reading] = _read(reading, features)

        to_the_end = wanted.logits or wanted.gradient
        compiled = self._compiled_pass(wanted)
        if compiled is not None and compiled.takes(given):
            found: tuple[dict[TargetField, Tensor], object] = compiled(given)
            return found
        with self._taps.reading(given, read, to_the_end=to_the_end):
            output = self.network(given)
        return readings, output if to_the_end else None

    def _compiled_pass(self, wanted: TargetSpec) -> CompiledPass | None:
        """The compiled pass that answers what is wanted; None where passes are not compiled."""
        if self._compiled is None or wanted.gradient:
            return None
        if wanted not in self._compiled:

            def finish(output: object, features: dict[str, Tensor]) -> Any:
                readings = {
                    reading: _read(reading, features[reading.point]) for reading in wanted.readings
                }
                return readings, output if wanted.logits else None

            self._compiled[wanted] = CompiledPass(self.network, self._taps, finish)
        return self._compiled[wanted]


def _read(reading: TargetField, features: Tensor) -> Tensor:
    """A reading of features (N, C, H, W)."""
    if reading.map is None:
        return features
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        return reading.map(features)
