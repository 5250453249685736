"""A step's batch in parts: less memory, and the same gradient of terms that are batch means."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from attention_transfer.transfer import TransferOutput
from attention_transfer.transfer.terms.base import PairedMaps

__all__ = ["merge_outputs", "micro_batches"]


def micro_batches(count: int, parts: int) -> list[slice]:
    """Where each part of a batch starts and ends.

    Sizes differ by one at most, and no part has a single image, which batch norm may refuse: a
    small batch, such as an epoch's last, has fewer parts.

    Args:
        count: images in the batch.
        parts: how many parts it is to have.

    Example:
        >>> [(part.start, part.stop) for part in micro_batches(10, parts=3)]
        [(0, 3), (3, 6), (6, 10)]
        >>> len(micro_batches(5, parts=3)), len(micro_batches(1, parts=3))
        (2, 1)
    """
    parts = max(1, min(parts, count // 2))
    bounds = [count * number // parts for number in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(bounds)]


def merge_outputs(outputs: Sequence[TransferOutput]) -> TransferOutput:
    """What the parts of a batch gave, as one output of the batch, detached.

    The loss and each term are the parts' means, weighted by their images; logits and maps follow
    one another.

    Args:
        outputs: of the parts, in order.

    Example:
        >>> transfer = at.Transfer(nn.Flatten(), terms=[at.CrossEntropy()])
        >>> images, labels = torch.eye(5).view(5, 5, 1, 1), torch.zeros(5, dtype=torch.long)
        >>> parts = [transfer(images[part], labels[part]) for part in micro_batches(5, 2)]
        >>> merge_outputs(parts).loss.allclose(transfer(images, labels).loss)
        True
    """
    if len(outputs) == 1:
        return outputs[0]
    images = [len(_logits(out)) for out in outputs]
    theirs = [out.teacher_logits for out in outputs if out.teacher_logits is not None]
    return TransferOutput(
        loss=_mean([out.loss for out in outputs], images),
        terms=_means([out.terms for out in outputs], images),
        raw_terms=_means([out.raw_terms for out in outputs], images),
        output=None,
        logits=torch.cat([_logits(out).detach() for out in outputs]),
        maps={
            term: {pair: _together([out.maps[term][pair] for out in outputs]) for pair in pairs}
            for term, pairs in outputs[0].maps.items()
        },
        teacher_logits=torch.cat(theirs) if theirs else None,
    )


def _logits(out: TransferOutput) -> Tensor:
    """Return the logits (N, classes), which every student of a whole run has."""
    assert out.logits is not None
    return out.logits


def _mean(values: Sequence[Tensor], images: Sequence[int]) -> Tensor:
    """Of parts, by their images."""
    weights = values[0].new_tensor(images) / sum(images)
    return (torch.stack([value.detach() for value in values]) * weights).sum()


def _means(terms: Sequence[dict[str, Tensor]], images: Sequence[int]) -> dict[str, Tensor]:
    return {name: _mean([values[name] for values in terms], images) for name in terms[0]}


def _together(maps: Sequence[PairedMaps]) -> PairedMaps:
    return PairedMaps(
        torch.cat([both.student for both in maps]), torch.cat([both.teacher for both in maps])
    )
