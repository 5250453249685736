"""How right a network is, and how well it knows it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from attention_transfer.data import Images, batches
from attention_transfer.errors import InputError, TrainingError
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import evaluating
from attention_transfer.transfer import class_logits

__all__ = ["Evaluation", "calibration_error", "confusion_matrix", "compute_metrics", "predict"]


@dataclass(frozen=True)
class Evaluation:
    """Figures of a network on images; errors are in percent."""

    images: int
    error: float
    """Share of images whose most probable class is wrong."""
    top5_error: float | None
    """Share whose class is not among the five most probable; None with fewer than six classes."""
    loss: float
    """Mean cross-entropy, in nats."""
    calibration_error: float
    """Expected calibration error over 15 bins of confidence, in percent."""
    confusion: list[list[int]]
    """Images by true class (rows) and predicted class (columns)."""


def predict(
    network: nn.Module,
    images: Images,
    normalization: Preprocessing | None,
    *,
    classes: int | None = None,
    batch_size: int = 256,
    precision: str = "fp32",
    device: torch.device | None = None,
    workers: int = 0,
) -> Tensor:
    """A network's logits (N, classes) of images, in eval mode.

    Args:
        network: gives logits (N, classes).
        images: with their labels.
        normalization: of the network's input; images come in [0, 1].
        classes: how many the data have; None: as many as the network tells apart.
        batch_size: images at a time.
        precision: fp32, bf16 or fp16 for the network; the figures are always in float32.
        device: where the network is.
        workers: processes that decode ahead.

    Raises:
        InputError: there are no images, or the network gives no logits of these classes.
        TrainingError: the logits are not finite.
    """
    if len(images) == 0:
        raise InputError("there are no images to evaluate on")
    device = device or torch.device("cpu")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    logits = []
    with (
        evaluating(network),
        torch.no_grad(),
        torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
    ):
        order = np.arange(len(images))
        for batch in batches(images, order, batch_size, workers=workers, device=device):
            given = normalization(batch.images) if normalization else batch.images
            logits.append(class_logits(network(given)).float().cpu())
            told_apart = logits[-1].shape[1]
            if classes not in (None, told_apart):
                raise InputError(
                    f"the network tells {told_apart} classes apart and the data have {classes}; "
                    "evaluate it on data of its own classes"
                )
    found = torch.cat(logits)
    if not bool(found.isfinite().all()):
        raise TrainingError(
            "the network puts out values that are not finite: its training diverged, or its "
            "weights are damaged; train it again with a lower --lr"
        )
    return found


def compute_metrics(logits: Tensor, labels: Tensor) -> Evaluation:
    """The figures of logits (N, classes) against labels (N,).

    Raises:
        InputError: a label has no logit.

    Example:
        >>> compute_metrics(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])).error
        50.0
    """
    classes = logits.shape[1]
    if int(labels.max()) >= classes:
        raise InputError(
            f"the network tells {classes} classes apart, the data have {int(labels.max()) + 1}; "
            "evaluate it on data with the classes it was trained on"
        )
    predictions = logits.argmax(dim=1)
    confidences = logits.softmax(dim=1).amax(dim=1)
    right = predictions == labels
    top5 = None
    if classes > 5:
        hits = (logits.topk(5, dim=1).indices == labels[:, None]).any(dim=1)
        top5 = 100 - 100 * hits.double().mean().item()
    return Evaluation(
        images=len(labels),
        error=100 - 100 * right.double().mean().item(),
        top5_error=top5,
        loss=functional.cross_entropy(logits, labels).item(),
        calibration_error=100 * calibration_error(confidences.numpy(), right.numpy()),
        confusion=confusion_matrix(labels.numpy(), predictions.numpy(), classes).tolist(),
    )


def calibration_error(
    confidences: NDArray[np.floating], right: NDArray[np.bool_], bins: int = 15
) -> float:
    """The expected calibration error (Guo et al., ICML 2017): over equal bins of confidence, the
    mean gap between confidence and accuracy, weighted by how many images fall into the bin.

    >>> round(calibration_error(np.array([0.9, 0.9]), np.array([True, False])), 3)
    0.4
    """
    chosen = np.minimum((confidences * bins).astype(int), bins - 1)
    gaps = np.bincount(chosen, weights=confidences - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidences))


def confusion_matrix(
    labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Counts by true class (rows) and predicted class (columns).

    >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    counts = np.bincount(labels * classes + predictions, minlength=classes**2)
    return counts.reshape(classes, classes)
