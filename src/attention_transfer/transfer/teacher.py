"""The teacher, frozen, and each network's own input normalisation."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attention_transfer.taps import Taps

__all__ = ["FrozenTeacher", "Normalization", "Seen", "observe"]


class Normalization(NamedTuple):
    """Channel means and standard deviations, on the scale of the images (0 to 1 as a rule).

    Example:
        >>> Normalization((0.5,), (0.25,))(torch.tensor([[[[1.0]]]]))
        tensor([[[[2.]]]])
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) minus the mean, over the standard deviation, channel by channel."""
        mean, std = (
            torch.tensor(values, dtype=images.dtype, device=images.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (images - mean) / std


class Seen(NamedTuple):
    """What one pass of one network shows: logits, and the features at its tapped points."""

    logits: Tensor
    features: dict[str, Tensor]


def observe(
    network: nn.Module, taps: Taps, images: Tensor, normalization: Normalization | None
) -> Seen:
    """One pass of a tapped network on images that are normalised for it first."""
    with taps as features:
        logits = network(images if normalization is None else normalization(images))
    return Seen(logits, features)


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
        normalization: Normalization | None = None,
    ) -> None:
        self.network = network.requires_grad_(False).eval()
        self.normalization = normalization
        self._taps = Taps(network, points)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Seen:
        """Logits and features for images (N, C, H, W)."""
        self.network.eval()
        return observe(self.network, self._taps, images, self.normalization)
