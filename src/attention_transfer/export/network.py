"""The network that graphs are exported of."""

import copy

import torch
from torch import Tensor, nn

from attention_transfer.preprocessing import Preprocessing
from attention_transfer.transfer.forward import find_logits

__all__ = ["ExportedNetwork", "exported_network"]


class ExportedNetwork(nn.Module):
    """A trained network whose output is its logits (N, K).

    Args:
        network: in eval mode.
        preprocessing: applied inside, to uint8 pixels (N, H, W, C); None: the network takes
            normalized images (N, C, H, W).
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing | None) -> None:
        super().__init__()
        self.network, self.preprocessing = network, preprocessing

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, K)."""
        if self.preprocessing is not None:
            images = self.preprocessing(images.permute(0, 3, 1, 2).float() / 255)
        logits = find_logits(self.network(images))
        assert logits is not None, "a run's network returns logits"
        return logits


def exported_network(network: nn.Module, preprocessing: Preprocessing | None) -> ExportedNetwork:
    """Return a copy of a trained network for graphs: on the CPU, in eval mode and in float32."""
    copied = copy.deepcopy(network).cpu().float().to(memory_format=torch.contiguous_format)
    return ExportedNetwork(copied, preprocessing).eval().requires_grad_(False)
