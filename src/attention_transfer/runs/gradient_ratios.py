"""Warnings about terms whose gradients are stronger than all others together."""

from collections.abc import Iterator, Sequence

from attention_transfer.runs.record import EpochMetrics

__all__ = ["overpowering_terms"]

LARGEST_RATIO = 2.0
"""Of a term's gradient at a point over that of everything else there, without a warning."""


def overpowering_terms(rows: Sequence[EpochMetrics]) -> Iterator[str]:
    """Yield a line for each term whose constant weight was too large, and for how long.

    Args:
        rows: the figures of a run's epochs.
    """
    largest: dict[tuple[str, str], float] = {}
    epochs: dict[tuple[str, str], int] = {}
    for row in rows:
        for term, pairs in row.gradient_ratios.items():
            for pair, ratio in pairs.items():
                if term not in row.betas and ratio > LARGEST_RATIO:
                    largest[term, pair] = max(ratio, largest.get((term, pair), 0.0))
                    epochs[term, pair] = epochs.get((term, pair), 0) + 1
    for (term, pair), ratio in largest.items():
        count = epochs[term, pair]
        where = "in the student's weights" if pair == "weights" else f"at {pair}"
        yield (
            f"{term} {where}: its gradient was up to {ratio:.1f} times that of everything else "
            f"the student learns from, after {count} of {len(rows)} epochs; give it a smaller "
            'weight, or "auto"'
        )
