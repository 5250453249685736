"""Preprocessing of a network's images, as one value from training to export."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from attention_transfer.errors import InputError

if TYPE_CHECKING:
    from attention_transfer.config import Interpolation

__all__ = ["EIGHT_BITS", "LUMINANCE", "PixelRange", "Preprocessing"]

LUMINANCE = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in a grey value (ITU-R BT.601), as of Pillow's mode L."""


class PixelRange(NamedTuple):
    """The pixel values that become 0 and 1; values outside become the nearer of the two.

    Example:
        >>> str(PixelRange(-1000.0, 3000.0)), PixelRange(0, 0.5).span
        ('-1000:3000', 0.5)
    """

    low: float
    high: float

    @property
    def span(self) -> float:
        """The difference between the two values."""
        return self.high - self.low

    def __str__(self) -> str:
        return ":".join(f"{value:.15g}" for value in self)


EIGHT_BITS = PixelRange(0, 255)


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
    channels: int | None = None
    """Of the network's input. Colour images become grey for 1, grey ones get three equal channels
    for 3; None: the channels of the images.
    """
    pixel_range: PixelRange | None = None
    """The pixel values that the images' 0 and 1 stand for; None: those of 8 bits, 0 and 255."""

    def for_channels(self, channels: int) -> "Preprocessing":
        """Return the preprocessing for a network of another number of channels.

        Mean and standard deviation of one channel are those of a grey image, by LUMINANCE; of
        other numbers, the averages over the channels.

        Example:
            >>> Preprocessing((1.0, 0.0, 0.0), (1.0, 1.0, 1.0)).for_channels(1).mean
            (0.299,)
        """
        shares = (
            LUMINANCE
            if len(self.mean) == 3 and channels == 1
            else (1 / len(self.mean),) * len(self.mean)
        )
        mean, std = (
            tuple(values)
            if len(values) == channels
            else (sum(share * value for share, value in zip(shares, values, strict=True)),)
            * channels
            for values in (self.mean, self.std)
        )
        return self._replace(mean=mean, std=std, channels=channels)

    def on_scale(self, pixel_range: PixelRange | None) -> "Preprocessing":
        """Return the preprocessing for images whose 0 and 1 stand for other pixel values.

        The network gets the same numbers for the same pixel values. Without a range on either side
        it is the same preprocessing.

        Example:
            >>> trained = Preprocessing((0.5,), (0.25,), pixel_range=PixelRange(0, 100))
            >>> trained.on_scale(PixelRange(0, 200)).mean  # 50 again
            (0.25,)
        """
        own = self.pixel_range
        if own is None or pixel_range is None or own == pixel_range:
            return self
        scale, shift = pixel_range.span / own.span, (pixel_range.low - own.low) / own.span
        return self._replace(
            mean=tuple((value - shift) / scale for value in self.mean),
            std=tuple(value / scale for value in self.std),
            pixel_range=pixel_range,
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images (N, C, *size) at the network's size, normalized by channel.

        Raises:
            InputError: the images are not of a floating-point dtype, or cannot be brought to the
                network's channels; there is not one mean and standard deviation for each channel,
                or one for all.
            ValueError: images of several or of one spatial axis are to be resized.
        """
        if not images.is_floating_point():
            raise InputError(
                f"the images to normalize are {images.dtype}, expected floating-point numbers; "
                "give images.float() / 255"
            )
        images = _with_channels(images, self.channels)
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


def _with_channels(images: Tensor, channels: int | None) -> Tensor:
    """Convert images (N, C, *S) from colour to grey, or from grey to three equal channels."""
    if channels is None or images.shape[1] == channels:
        return images
    if images.shape[1] == 1 and channels == 3:
        return images.expand(-1, 3, *images.shape[2:])
    if images.shape[1] == 3 and channels == 1:
        red, green, blue = (images[:, channel : channel + 1] for channel in range(3))
        # Exactly the grey value where the three are equal.
        return green + LUMINANCE[0] * (red - green) + LUMINANCE[2] * (blue - green)
    raise InputError(
        f"the network takes {channels} channels, the images {tuple(images.shape)} have "
        f"{images.shape[1]}; give images of as many, or another network"
    )
