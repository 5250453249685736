"""Micro-batches: a step's batch in several forward passes, for less memory."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from attention_transfer.transfer import TransferOutput
from attention_transfer.transfer.terms.inputs import PairedMaps

__all__ = ["merge_outputs", "micro_batches"]


def micro_batches(images: int, count: int) -> list[slice]:
    """Divide a batch into micro-batches whose sizes differ by at most one image.

    None has a single image, which batch norm may refuse: a small batch, such as an epoch's last,
    has fewer micro-batches.

    Args:
        images: images in the batch.
        count: number of micro-batches.

    Returns:
        The bounds of each micro-batch.

    Example:
        >>> [(part.start, part.stop) for part in micro_batches(10, count=3)]
        [(0, 3), (3, 6), (6, 10)]
        >>> len(micro_batches(5, count=3)), len(micro_batches(1, count=3))
        (2, 1)
    """
    count = max(1, min(count, images // 2))
    bounds = [images * number // count for number in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(bounds)]


def merge_outputs(outputs: Sequence[TransferOutput]) -> TransferOutput:
    """Merge the outputs of micro-batches into the output of their batch, detached.

    The loss and each term are means over images; logits and maps are concatenated.

    Args:
        outputs: of the micro-batches, in order.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(5, 5))
        >>> transfer = at.Transfer(network, terms=[at.CrossEntropy()])
        >>> images, labels = torch.eye(5).view(5, 5, 1, 1), torch.zeros(5, dtype=torch.long)
        >>> parts = [transfer(images[part], labels[part]) for part in micro_batches(5, 2)]
        >>> merge_outputs(parts).loss.allclose(transfer(images, labels).loss)
        True
    """
    if len(outputs) == 1:
        return outputs[0]
    logits = [out.logits for out in outputs if out.logits is not None]
    sizes = [len(part) for part in logits]
    teacher_logits = [out.teacher_logits for out in outputs if out.teacher_logits is not None]
    return TransferOutput(
        loss=_mean([out.loss for out in outputs], sizes),
        terms=_means([out.terms for out in outputs], sizes),
        raw_terms=_means([out.raw_terms for out in outputs], sizes),
        output=None,
        logits=torch.cat([part.detach() for part in logits]),
        maps={
            term: {pair: _concatenated([out.maps[term][pair] for out in outputs]) for pair in pairs}
            for term, pairs in outputs[0].maps.items()
        },
        teacher_logits=torch.cat(teacher_logits) if teacher_logits else None,
        betas=outputs[0].betas,  # found before the step
    )


def _mean(values: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Return the mean of the micro-batches' values, weighted by their images."""
    weights = values[0].new_tensor(sizes) / sum(sizes)
    return (torch.stack([value.detach() for value in values]) * weights).sum()


def _means(terms: Sequence[dict[str, Tensor]], sizes: Sequence[int]) -> dict[str, Tensor]:
    return {name: _mean([values[name] for values in terms], sizes) for name in terms[0]}


def _concatenated(maps: Sequence[PairedMaps]) -> PairedMaps:
    return PairedMaps(
        torch.cat([pair.student for pair in maps]), torch.cat([pair.teacher for pair in maps])
    )
