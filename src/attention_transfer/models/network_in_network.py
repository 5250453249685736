"""Network in network (Lin et al., ICLR 2014): blocks of one spatial and two 1x1 convolutions."""

import math

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError

__all__ = ["NetworkInNetwork"]

_WIDTHS = {
    # Output channels of each block's three convolutions; None stands for the classes.
    "wide": ((192, 160, 96), (192, 192, 192), (192, 192, None)),
    "thin": ((96, 80, 48), (96, 96, 96), (96, 96, None)),
}
_KERNELS = (5, 5, 3)


class NetworkInNetwork(nn.Module):
    """Network in network for small images, with pooling by 2 after the first and second block.

    The third block's last convolution computes one map per class, whose means are the logits. The
    attention points are the ends of the blocks, before pooling.

    Args:
        size: ``"wide"``, the widths of Lin et al. for CIFAR (1M parameters), or ``"thin"``, half
            of them (0.2M).
        classes: number of classes.
        batch_norm: add batch norm after every convolution but the last; without it convolutions
            have biases, and filters are initialised to sum to 0.

    Raises:
        InputError: an unknown size, or fewer than one class.

    Example:
        >>> network = NetworkInNetwork("wide", classes=10, batch_norm=False)
        >>> sum(parameter.numel() for parameter in network.parameters())
        966986
    """

    attention_points = ("block1", "block2", "block3")

    def __init__(self, size: str, classes: int = 10, *, batch_norm: bool = True) -> None:
        super().__init__()
        if size not in _WIDTHS:
            raise InputError(f'size must be "thin" or "wide", got {size!r}')
        if classes < 1:
            raise InputError(f"classes must be at least 1, got {classes}")
        channels = 3
        blocks = []
        for widths, kernel in zip(_WIDTHS[size], _KERNELS, strict=True):
            layers: list[nn.Module] = []
            for position, width in enumerate(widths):
                spatial = kernel if position == 0 else 1
                layers += _convolution(channels, width, classes, spatial, batch_norm)
                channels = width or classes
            blocks.append(nn.Sequential(*layers))
        self.block1, self.block2, self.block3 = blocks
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        self.pool2 = nn.AvgPool2d(3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, classes) from images (N, 3, H, W)."""
        features = self.pool2(self.block2(self.pool1(self.block1(images))))
        return self.block3(features).mean(dim=(2, 3))  # type: ignore[no-any-return]


def _convolution(
    in_channels: int, width: int | None, classes: int, kernel: int, batch_norm: bool
) -> list[nn.Module]:
    """Return one convolution with its batch norm and ReLU; the last (no width) has neither."""
    last = width is None
    convolution = nn.Conv2d(
        in_channels,
        width or classes,
        kernel,
        padding=kernel // 2,
        bias=last or not batch_norm,
    )
    nn.init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    if not batch_norm:
        _centre_filters(convolution.weight)
    if last:
        return [convolution]
    norm = [nn.BatchNorm2d(width)] if batch_norm and width else []
    return [convolution, *norm, nn.ReLU(inplace=True)]


@torch.no_grad()
def _centre_filters(weight: Tensor) -> None:
    """Make every filter sum to 0, and keep the variance of its output.

    ReLU's features have a positive mean, which He's filters pass on: without batch norm the
    features of different images become more similar with depth, and training stays at chance. A
    filter that sums to 0 passes on only the variance of a ReLU of a standard normal,
    1/2 - 1/(2 pi), in place of its mean square, 1/2 (Brock et al., ICLR 2021, on networks without
    normalization).
    """
    weight -= weight.mean(dim=(1, 2, 3), keepdim=True)
    weight *= 1 / math.sqrt(1 - 1 / math.pi)
