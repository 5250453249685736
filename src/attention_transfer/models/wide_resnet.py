"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016), as the paper trains them on CIFAR."""

from torch import Tensor, nn

from attention_transfer.errors import InputError

__all__ = ["WideResNet"]

MOST_WEIGHTS = 2_000_000_000
"""Weights of the largest network, 8 GB; a name with a digit too many would fill the memory."""


class WideResNet(nn.Module):
    """WRN-d-k: a stem of 16 channels, then three groups of (d - 4) / 6 pre-activation blocks.

    The groups have 16k, 32k and 64k channels; the second and third halve height and width. The
    attention points are the ends of the groups: the residual sum, before the next batch norm.

    Args:
        depth: d = 6n + 4 with n >= 1.
        width: k >= 1.
        classes: number of classes.
        batch_norm: use batch norm; without it, convolutions have biases, and each block starts as
            the identity (its last convolution is zero), so that activations keep their scale with
            depth.

    Raises:
        InputError: the depth is not 6n + 4, the width or the number of classes is below 1, or the
            network would be too large.

    Example:
        >>> network = WideResNet(depth=16, width=1, classes=10)
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> sum(parameter.numel() for parameter in network.parameters())
        175066
    """

    attention_points = ("group1", "group2", "group3")

    def __init__(
        self, depth: int, width: int, classes: int = 10, *, batch_norm: bool = True
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise InputError(
                f"a wide ResNet's depth must be 6n+4 (10, 16, 22, 28, 34, 40, ...), got {depth}"
            )
        if width < 1 or classes < 1:
            raise InputError(
                f"width and classes must be at least 1, got width {width} and {classes} classes"
            )
        blocks = (depth - 4) // 6
        channels = [16, 16 * width, 32 * width, 64 * width]
        weights = 18 * blocks * sum(c * c for c in channels[1:]) + channels[3] * classes
        if weights > MOST_WEIGHTS:
            raise InputError(
                f"a wide ResNet of depth {depth} and width {width} with {classes} classes has "
                f"about {weights:.2g} weights, expected at most {MOST_WEIGHTS:.2g}; give a smaller "
                "one"
            )
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=not batch_norm)
        self.group1, self.group2, self.group3 = (
            nn.Sequential(
                *(
                    PreActivationBlock(
                        channels[group] if block == 0 else channels[group + 1],
                        channels[group + 1],
                        stride=2 if block == 0 and group > 0 else 1,
                        batch_norm=batch_norm,
                    )
                    for block in range(blocks)
                )
            )
            for group in range(3)
        )
        self.norm = _norm(channels[3], batch_norm)
        self.classifier = nn.Linear(channels[3], classes)
        self._initialise(batch_norm)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, classes) from images (N, 3, H, W)."""
        features = self.group3(self.group2(self.group1(self.stem(images))))
        return self.classifier(self.norm(features).relu().mean(dim=(2, 3)))  # type: ignore[no-any-return]

    def _initialise(self, batch_norm: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, PreActivationBlock) and not batch_norm:
                nn.init.zeros_(module.conv2.weight)
        nn.init.zeros_(self.classifier.bias)


class PreActivationBlock(nn.Module):
    """Norm, ReLU, 3x3, norm, ReLU, 3x3, plus the input (through 1x1 where the shape changes)."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, batch_norm: bool
    ) -> None:
        super().__init__()
        bias = not batch_norm
        self.norm1 = _norm(in_channels, batch_norm)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)
        self.norm2 = _norm(out_channels, batch_norm)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.shortcut = (
            None
            if stride == 1 and in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, in, H, W) to (N, out, H / stride, W / stride)."""
        active = self.norm1(features).relu()
        residual = self.conv2(self.norm2(self.conv1(active)).relu())
        return residual + (features if self.shortcut is None else self.shortcut(active))  # type: ignore[no-any-return]


def _norm(channels: int, batch_norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
