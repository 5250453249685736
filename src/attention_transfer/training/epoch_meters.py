"""Sums over the images of an epoch, and the means that a run's metrics hold."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from attention_transfer.functional import measures
from attention_transfer.transfer import TransferOutput

__all__ = ["AGREEMENT_EVERY", "EpochMeters"]

AGREEMENT_EVERY = 8
"""Steps between two measurements of attention agreement; at this rate they cost 1 % of a step."""


@dataclass
class EpochMeters:
    """Sums over this process's images, and the figures of its last step.

    Tensors stay on their device, so that a step does not wait for it, and none is changed in
    place, so that the live view can keep one.
    """

    images: int = 0
    wrong: Tensor | float = 0.0
    """Training images whose most probable class is wrong."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Term name -> sum over images of its weighted value."""
    agreement_images: int = 0
    """Images on which attention agreement was measured."""
    agreement: dict[str, Tensor] = field(default_factory=dict)
    """Layer pair -> sum over images of the cosine similarity of both attention maps."""
    betas: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Term -> layer pair -> sum over images of the weight that gradient norms gave it."""
    seconds: float = 0.0
    """Duration of the steps."""
    seconds_waiting: float = 0.0
    """Time spent waiting for data."""
    last_terms: dict[str, Tensor] = field(default_factory=dict)
    """The terms of the last step."""
    last_agreement: dict[str, Tensor] = field(default_factory=dict)
    """The attention agreement when it was last measured."""

    def add(
        self, out: TransferOutput, labels: Tensor, step: int, multi_label: bool = False
    ) -> None:
        """Add one step's output for this process's share of the batch.

        Args:
            out: of the step; its terms and maps may have any names, and there may be no maps.
            labels: classes (N,), or class probabilities (N, K).
            step: of the epoch, from 0.
            multi_label: whether images are of several classes each, so that an image counts as
                wrong by the share of its classes that are.
        """
        count = len(labels)
        self.images += count
        assert out.logits is not None  # a whole run's student classifies
        logits = out.logits.detach()
        if multi_label:
            wrong = ((logits > 0) != (labels > 0.5)).float().mean(dim=1)
        else:
            wrong = logits.argmax(dim=1) != (labels if labels.dim() == 1 else labels.argmax(dim=1))
        self.wrong = self.wrong + wrong.sum()
        self.last_terms = out.terms
        for name, value in out.terms.items():
            _add(self.terms, name, value * count)
        for name, betas in out.betas.items():
            for pair, beta in betas.items():
                _add(self.betas.setdefault(name, {}), pair, beta * count)
        if step % AGREEMENT_EVERY == 0:
            self.agreement_images += count
            self.last_agreement = {
                pair: measures.cosine(student, teacher).mean()
                for pairs in out.maps.values()
                for pair, (student, teacher) in pairs.items()
            }
            for pair, value in self.last_agreement.items():
                _add(self.agreement, pair, value * count)

    def means(self, accelerator: Accelerator) -> dict[str, Any]:
        """Return the epoch's means over the images of all processes, by their names in
        ``EpochMetrics``.

        Args:
            accelerator: adds up the sums of all processes.
        """
        sums = [self.images, self.agreement_images, self.wrong]
        betas = [beta for pairs in self.betas.values() for beta in pairs.values()]
        sums += [*betas, *self.terms.values(), *self.agreement.values()]
        device = accelerator.device
        local = torch.stack([torch.as_tensor(value, device=device).float() for value in sums])
        images, agreement_images, wrong, *totals = accelerator.reduce(local, "sum").tolist()
        betas_now, totals = totals[: len(betas)], totals[len(betas) :]
        each_beta = iter(betas_now)
        terms = zip(self.terms, totals, strict=False)
        agreement = zip(self.agreement, totals[len(self.terms) :], strict=True)
        return {
            "terms": {name: total / images for name, total in terms},
            "betas": {
                name: {pair: next(each_beta) / images for pair in pairs}
                for name, pairs in self.betas.items()
            },
            "train_error": 100 * wrong / images,
            "attention_agreement": {pair: total / agreement_images for pair, total in agreement},
            "images_per_second": images / self.seconds,
            "seconds": self.seconds,
            "seconds_waiting_for_data": self.seconds_waiting,
        }

    def state(self) -> dict[str, Any]:
        """Return the sums, for a checkpoint: plain values, and tensors on the CPU."""
        return {
            "images": self.images,
            "wrong": torch.as_tensor(self.wrong).cpu(),
            "terms": {name: value.cpu() for name, value in self.terms.items()},
            "betas": {
                name: {pair: value.cpu() for pair, value in pairs.items()}
                for name, pairs in self.betas.items()
            },
            "agreement_images": self.agreement_images,
            "agreement": {pair: value.cpu() for pair, value in self.agreement.items()},
            "seconds": self.seconds,
            "seconds_waiting": self.seconds_waiting,
        }

    @classmethod
    def restored(cls, states: Sequence[dict[str, Any]], device: torch.device) -> "EpochMeters":
        """Return the sums of one process's state, or together of several processes'."""
        total = cls()
        for state in states:
            total.images += state["images"]
            total.agreement_images += state["agreement_images"]
            total.wrong = total.wrong + state["wrong"].to(device)
            for sums, added in ((total.terms, "terms"), (total.agreement, "agreement")):
                for name, value in state[added].items():
                    _add(sums, name, value.to(device))
            for name, pairs in state["betas"].items():
                for pair, value in pairs.items():
                    _add(total.betas.setdefault(name, {}), pair, value.to(device))
            total.seconds = max(total.seconds, state["seconds"])
            total.seconds_waiting = max(total.seconds_waiting, state["seconds_waiting"])
        return total

    def without_images(self) -> "EpochMeters":
        """Return sums of no images, with the same names and durations: processes add up theirs,
        and one whose images another has counted takes part.
        """
        return EpochMeters(
            terms={name: torch.zeros_like(value) for name, value in self.terms.items()},
            agreement={pair: torch.zeros_like(value) for pair, value in self.agreement.items()},
            betas={
                name: {pair: torch.zeros_like(value) for pair, value in pairs.items()}
                for name, pairs in self.betas.items()
            },
            seconds=self.seconds,
            seconds_waiting=self.seconds_waiting,
        )


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
