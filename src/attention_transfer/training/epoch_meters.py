"""Sums over the images of an epoch, and the means that a run's metrics hold."""

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from attention_transfer.functional import measures
from attention_transfer.transfer import TransferOutput

__all__ = ["AGREEMENT_EVERY", "EpochMeters"]

AGREEMENT_EVERY = 8
"""Steps between two looks at how well the attention maps agree; they cost 1 % of a step."""


@dataclass
class EpochMeters:
    """Sums over this process's images, and the last step's figures. Tensors stay where they are,
    and none is changed in place: who keeps one keeps its value.
    """

    images: int = 0
    wrong: Tensor | float = 0.0
    terms: dict[str, Tensor] = field(default_factory=dict)
    compared: int = 0
    agreement: dict[str, Tensor] = field(default_factory=dict)
    seconds_waiting: float = 0.0
    last_terms: dict[str, Tensor] = field(default_factory=dict)
    """Of the last step."""
    last_agreement: dict[str, Tensor] = field(default_factory=dict)
    """Of the last step at which it was measured."""

    def add(self, out: TransferOutput, labels: Tensor, step: int) -> None:
        """Counts one step's share of this process."""
        count = len(labels)
        self.images += count
        true = labels if labels.dim() == 1 else labels.argmax(dim=1)
        assert out.logits is not None  # a whole run's student classifies
        self.wrong = self.wrong + (out.logits.detach().argmax(dim=1) != true).sum()
        self.last_terms = out.terms
        for name, value in out.terms.items():
            _add(self.terms, name, value * count)
        if step % AGREEMENT_EVERY == 0:
            self.compared += count
            self.last_agreement = {
                pair: measures.cosine(student, teacher).mean()
                for pairs in out.maps.values()
                for pair, (student, teacher) in pairs.items()
            }
            for pair, value in self.last_agreement.items():
                _add(self.agreement, pair, value * count)

    def row(self, accelerator: Accelerator, seconds: float) -> dict[str, Any]:
        """The epoch's means over the images of all processes, as metrics.jsonl has them."""
        sums = [self.images, self.compared, self.wrong]
        sums += [*self.terms.values(), *self.agreement.values()]
        device = accelerator.device
        here = torch.stack([torch.as_tensor(value, device=device).float() for value in sums])
        images, compared, wrong, *means = accelerator.reduce(here, "sum").tolist()
        terms = zip(self.terms, means, strict=False)
        agreement = zip(self.agreement, means[len(self.terms) :], strict=True)
        return {
            "terms": {name: total / images for name, total in terms},
            "train_error": 100 * wrong / images,
            "attention_agreement": {pair: total / compared for pair, total in agreement},
            "images_per_second": images / seconds,
            "seconds": seconds,
            "seconds_waiting_for_data": self.seconds_waiting,
        }


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
