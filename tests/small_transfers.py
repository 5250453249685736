"""A pair of small networks, their images, and the Transfers and terms that tests build of them."""

from typing import Any

import torch
from torch import Tensor

import attention_transfer as at
from attention_transfer.models import WideResNet

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


def wide_resnet(width: int = 1) -> WideResNet:
    torch.manual_seed(width)
    return WideResNet(10, width, classes=3)


def transfer_of(*terms: Any, **settings: Any) -> at.Transfer:
    return at.Transfer(wide_resnet(1), wide_resnet(2), terms, **settings)


class Penalty(at.Term):
    name = "penalty"
    needs_logits = True

    def forward(self, inputs: at.TermInputs) -> Tensor:
        return inputs.logits.square().mean()
