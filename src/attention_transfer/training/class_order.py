"""The order of a classifier's outputs, where it is another than that of the data's classes."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import networkx
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attention_transfer.data.classes import natural_order
from attention_transfer.training.agreement import agreement_of_shares

__all__ = ["AS_NUMBERS", "AS_TEXT", "ClassOrder", "find_class_order", "match_outputs"]

AS_NUMBERS, AS_TEXT = "sorted as numbers", "sorted as text"
"""Reasons of an order, which --class-order natural and --class-order string give."""

Indices = NDArray[np.int64]

SIGNIFICANT = 2.8
"""Standard deviations by which one order must be better than the other: a chance of 1 in 400."""

UNLIKELY = 1 / 400
"""Probability of missing all images of a class, below which the classifier does not know it."""


class ClassOrder(NamedTuple):
    """Which output of a classifier stands for each class."""

    outputs: list[int]
    """For each class of the data, the index of the output."""
    error: float
    """In percent, with the outputs in the data's order."""
    moved: list[int]
    """The classes that images show to have another output."""
    reason: str
    """What the order is, such as "sorted as numbers"; empty if no name is known for it."""


def find_class_order(
    predicted: Tensor, labels: Tensor, class_names: Sequence[str]
) -> ClassOrder | None:
    """Return the order of a classifier's outputs; None if it is the data's, or unknown.

    Orders that are common mistakes are tried, and the one with the most right answers. For that,
    outputs are matched to classes on one half of the images and judged on the other, so that the
    chance hits of a weak classifier make no order. With the order, the classifier has to be far
    better than chance and know every class: the answers of an untrained network are few outputs,
    but depend on the images, so that a matching makes them right for some of the classes.

    Args:
        predicted: (N,) the most probable output for each image; negative ones are wrong.
        labels: (N,) its class.
        class_names: of the data.

    Example:
        >>> labels = torch.arange(30) % 3
        >>> find_class_order((labels + 1) % 3, labels, ["a", "b", "c"]).outputs
        [1, 2, 0]
    """
    answers, truth = predicted.numpy(), labels.numpy()
    classes = len(class_names)
    orders = [
        (order, order[truth] == answers, reason) for reason, order in _common_orders(class_names)
    ]
    matched = match_outputs(answers, truth, classes)
    orders.append((matched, _right_when_held_out(answers, truth, classes), ""))
    order, right, reason = max(orders, key=lambda one: int(one[1].sum()))
    usual = answers == truth
    won, lost = int((right & ~usual).sum()), int((usual & ~right).sum())
    if won - lost <= SIGNIFICANT * np.sqrt(won + lost):
        return None
    votes = np.zeros((classes, 2), dtype=np.int64)
    np.add.at(votes, truth, np.stack([order[truth] == answers, usual], axis=1))
    images = np.bincount(truth, minlength=classes)
    answered = np.bincount(answers[answers >= 0], minlength=classes)
    by_chance = float(answered[order] @ images) / len(truth) ** 2
    ordered = agreement_of_shares(float(right.mean()), by_chance, len(truth))
    missed = (ordered.error / 100) ** images[votes[:, 0] == 0]  # the probability of missing all
    if ordered.weak or not ordered.beyond_chance or (missed < UNLIKELY).any():
        return None
    moved = np.flatnonzero((order != np.arange(classes)) & (votes[:, 0] > votes[:, 1]))
    return ClassOrder(order.tolist(), ordered.error, moved.tolist(), reason)


def match_outputs(predicted: Indices, labels: Indices, classes: int) -> Indices:
    """Return for each class the output that is matched to it, for the most right answers.

    A maximum-weight matching of the bipartite graph of classes and outputs (Galil, ACM Computing
    Surveys 1986). Of equal matchings it is the one that keeps more classes at their own output, and
    classes without images keep their output if it is free.

    >>> match_outputs(np.array([1, 1, 0]), np.array([0, 0, 1]), 3).tolist()
    [1, 0, 2]
    """
    graph = networkx.Graph()
    cells = np.stack([labels, predicted], axis=1)[predicted >= 0]
    for (label, output), count in zip(*np.unique(cells, axis=0, return_counts=True), strict=True):
        graph.add_edge(
            ("class", int(label)),
            ("output", int(output)),
            weight=2 * int(count) + int(label == output),
        )
    order = np.full(classes, -1, dtype=np.int64)
    for pair in networkx.max_weight_matching(graph):
        both = dict(pair)
        order[both["class"]] = both["output"]
    own = np.setdiff1d(np.flatnonzero(order < 0), order)
    order[own] = own
    order[order < 0] = np.setdiff1d(np.arange(classes), order)
    return order


def _right_when_held_out(predicted: Indices, labels: Indices, classes: int) -> NDArray[np.bool_]:
    """Return which answers are right by the matching on the half of the images without them."""
    half = np.empty(len(labels), dtype=np.int64)
    half[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % 2  # each class in both
    right = np.empty(len(labels), dtype=np.bool_)
    for own, other in ((half == 0, half == 1), (half == 1, half == 0)):
        order = match_outputs(predicted[other], labels[other], classes)
        right[own] = order[labels[own]] == predicted[own]
    return right


def _common_orders(class_names: Sequence[str]) -> Iterator[tuple[str, Indices]]:
    """Yield orders that networks are often trained with, other than that of the names."""
    classes = len(class_names)
    own = np.arange(classes)
    for reason, names in (
        (AS_NUMBERS, natural_order(class_names)),
        (AS_TEXT, sorted(class_names)),
    ):
        outputs = {name: index for index, name in enumerate(names)}
        order = np.array([outputs[name] for name in class_names])
        if not np.array_equal(order, own):
            yield reason, order
    if classes > 1:
        yield "one further", (own + 1) % classes
        yield "one back", (own - 1) % classes
