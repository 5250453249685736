"""Preprocessing of a network's images, as one value from training to export."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from attention_transfer.errors import InputError

if TYPE_CHECKING:
    from attention_transfer.config import Interpolation

__all__ = ["Preprocessing"]


class Preprocessing(NamedTuple):
    """The input size and the normalization that a network's weights expect.

    Called on images (N, C, H, W), it resizes them to ``size`` and brings each channel to mean 0
    and standard deviation 1.

    Example:
        >>> Preprocessing((0.5,), (0.25,))(torch.tensor([[[[1.0]]]]))
        tensor([[[[2.]]]])
        >>> Preprocessing((0.0,), (1.0,), size=(7, 7))(torch.ones(2, 1, 32, 32)).shape
        torch.Size([2, 1, 7, 7])
    """

    mean: Sequence[float]
    """By channel, on the scale of the images (0 to 1 as a rule)."""
    std: Sequence[float]
    """By channel, above 0."""
    size: tuple[int, int] | None = None
    """Height and width in pixels; None: images keep their size."""
    interpolation: "Interpolation" = "bilinear"

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images (N, C, *size) at the network's size, normalized by channel.

        Raises:
            InputError: the images are not of a floating-point dtype; there is not one mean and
                standard deviation for each channel, or one for all.
            ValueError: images of several or of one spatial axis are to be resized.
        """
        if not images.is_floating_point():
            raise InputError(
                f"the images to normalize are {images.dtype}, expected floating-point numbers; "
                "give images.float() / 255"
            )
        counts = {len(self.mean), len(self.std)}
        if len(counts) > 1 or not counts <= {1, images.shape[1]}:
            raise InputError(
                f"the normalization has {len(self.mean)} means and {len(self.std)} standard "
                f"deviations, the images {tuple(images.shape)} have {images.shape[1]} channels; "
                "give one of each for each channel"
            )
        if self.size is not None and self.size != tuple(images.shape[2:]):
            if images.dim() != 4:
                raise ValueError(
                    f"only images (N, C, H, W) can be resized to {self.size}, got "
                    f"{tuple(images.shape)}; leave size out"
                )
            images = functional.interpolate(
                images, self.size, mode=self.interpolation, antialias=True
            )
        mean, std = (
            torch.as_tensor(values, dtype=images.dtype, device=images.device).view(
                -1, *(1,) * (images.dim() - 2)
            )
            for values in (self.mean, self.std)
        )
        return (images - mean) / std
