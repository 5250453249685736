"""The usual loop: attention transfer as the authors' formula has it, written out in PyTorch."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FeatureExtractor", "attention", "authors_loss"]


class FeatureExtractor(nn.Module):
    """A network that also returns what some of its modules put out, by hooks that stay.

    Example:
        >>> network = FeatureExtractor(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), ["0"])
        >>> logits, (features,) = network(torch.zeros(2, 3, 8, 8))
        >>> features.shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, network: nn.Module, points: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._seen: dict[str, Tensor] = {}
        self._points = list(points)
        for point in points:
            network.get_submodule(point).register_forward_hook(self._keep(point))

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits, and the features at the points in their order."""
        logits = self.network(images)
        features = [self._seen[point] for point in self._points]
        self._seen.clear()
        return logits, features

    def _keep(self, point: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, given: object, output: Tensor) -> None:
            self._seen[point] = output

        return hook


def attention(features: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H W): the mean square over channels, each image's of length 1.

    >>> attention(torch.tensor([[[[3.0, 4.0]], [[3.0, 4.0]]]])).round(decimals=4)
    tensor([[0.4903, 0.8716]])
    """
    squares = features.square().mean(dim=1)
    return functional.normalize(squares.flatten(1))


def authors_loss(
    logits: Tensor,
    labels: Tensor,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    beta: float,
) -> Tensor:
    """Cross-entropy plus beta times the mean squared differences of attention, summed over pairs.

    >>> features = [torch.rand(2, 4, 3, 3)]
    >>> authors_loss(torch.zeros(2, 2), torch.tensor([0, 1]), features, features, beta=1000.0)
    tensor(0.6931)
    """
    loss = functional.cross_entropy(logits, labels)
    for ours, theirs in zip(student, teacher, strict=True):
        loss = loss + beta * (attention(ours) - attention(theirs)).square().mean()
    return loss
