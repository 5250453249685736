"""Errors, loss, calibration and confusion matrix of a classifier's logits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from attention_transfer.errors import InputError
from attention_transfer.runs.confusion import Confusion

__all__ = [
    "Evaluation",
    "calibration_error",
    "compute_metrics",
    "validation_figures",
]


@dataclass(frozen=True)
class Evaluation:
    """Figures of a network on images; errors are in percent."""

    images: int
    error: float
    """Share of images whose most probable class is wrong; of images of several classes each, share
    of wrong decisions (probability above 1/2: is of the class) over images and classes.
    """
    top5_error: float | None
    """Share of images whose class is not among the five most probable; None with fewer than six
    classes.
    """
    loss: float
    """Mean cross-entropy, in nats; binary where images are of several classes each."""
    calibration_error: float
    """Expected calibration error over 15 bins of confidence, in percent."""
    confusion: Confusion | None
    """Images by true and predicted class; None where images are of several classes each."""


def compute_metrics(logits: Tensor, labels: Tensor) -> Evaluation:
    """Compute the figures of logits (N, K) with labels (N,), or (N, K) of several classes each.

    Raises:
        InputError: a label has no logit.

    Example:
        >>> compute_metrics(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])).error
        50.0
    """
    classes = logits.shape[1]
    if labels.dim() == 2:
        return _multi_label_metrics(logits, labels)
    if int(labels.max()) >= classes:
        raise InputError(
            f"the network has {classes} outputs, the data set at least {int(labels.max()) + 1} "
            "classes; evaluate it on data with the classes it was trained on"
        )
    predictions = logits.argmax(dim=1)
    confidences = logits.softmax(dim=1).amax(dim=1)
    correct = predictions == labels
    top5_error = None
    if classes > 5:
        hits = (logits.topk(5, dim=1).indices == labels[:, None]).any(dim=1)
        top5_error = 100 - 100 * hits.double().mean().item()
    return Evaluation(
        images=len(labels),
        error=100 - 100 * correct.double().mean().item(),
        top5_error=top5_error,
        loss=functional.cross_entropy(logits, labels).item(),
        calibration_error=100 * calibration_error(confidences.numpy(), correct.numpy()),
        confusion=Confusion.of(labels.numpy(), predictions.numpy(), classes),
    )


def _multi_label_metrics(logits: Tensor, labels: Tensor) -> Evaluation:
    """Compute the figures of logits (N, K) with labels (N, K), 1 where an image is of a class."""
    if logits.shape != labels.shape:
        raise InputError(
            f"the network has {logits.shape[1]} outputs, the data set {labels.shape[1]} classes; "
            "evaluate it on data with the classes it was trained on"
        )
    positive = logits.sigmoid()
    correct = (logits > 0) == (labels > 0.5)
    confidences = positive.maximum(1 - positive)
    return Evaluation(
        images=len(labels),
        error=100 - 100 * correct.double().mean().item(),
        top5_error=None,
        loss=functional.binary_cross_entropy_with_logits(logits, labels).item(),
        calibration_error=100
        * calibration_error(confidences.flatten().numpy(), correct.flatten().numpy()),
        confusion=None,
    )


def calibration_error(
    confidences: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = 15
) -> float:
    """Compute the expected calibration error (Guo et al., ICML 2017).

    Over equal bins of confidence, it is the mean gap between confidence and accuracy, weighted by
    the number of images in the bin.

    >>> round(calibration_error(np.array([0.9, 0.9]), np.array([True, False])), 3)
    0.4
    """
    indices = np.minimum((confidences * bins).astype(int), bins - 1)
    gaps = np.bincount(indices, weights=confidences - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidences))


def validation_figures(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the error and the loss of a validation, by their names in a line of figures."""
    validation = compute_metrics(logits, labels)
    return {"validation_error": validation.error, "validation_loss": validation.loss}
