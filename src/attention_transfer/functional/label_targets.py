"""Labels as a loss of logits takes them: class indices, or probabilities."""

import torch
from torch import Tensor

from attention_transfer.functional.maps import to_float32

__all__ = ["class_indices", "cross_entropy_targets"]


def cross_entropy_targets(
    logits: Tensor, labels: Tensor | None, ignore_index: int = -100
) -> Tensor:
    """Return labels as torch's cross-entropy takes them: int64 indices, or probabilities.

    Raises:
        ValueError: they are neither.
    """
    indices, shape = (logits.shape[0], *logits.shape[2:]), tuple(logits.shape)
    expected = (
        f"cross-entropy takes labels of class indices {indices} or of probabilities {shape} for "
        f"logits {shape}"
    )
    return _checked(expected, logits, labels, ignore_index)


def _checked(
    expected: str, logits: Tensor, labels: Tensor | None, ignore_index: int = -100
) -> Tensor:
    indices, shape = (logits.shape[0], *logits.shape[2:]), tuple(logits.shape)
    if not isinstance(labels, Tensor):
        got = "None" if labels is None else f"a {type(labels).__name__}"
        raise ValueError(
            f"{expected}, got {got}; call transfer(images, labels) with labels as a tensor"
        )
    got = f"{labels.dtype} of shape {tuple(labels.shape)}"
    if tuple(labels.shape) == indices:
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"{expected}, got {got}; indices are integers: give labels.long()")
        labels = labels.long()
        # Elsewhere than on a CPU, looking at them would make the CPU wait for the device.
        if labels.device.type == "cpu":
            wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= shape[1]))]
            if len(wrong):
                first, classes = int(wrong[0]), shape[1]
                hint = "; if they count from 1, give labels - 1" if first == classes else ""
                raise ValueError(
                    f"{expected}, got the index {first}, expected 0 to {classes - 1}, or "
                    f"{ignore_index} for a label that does not count{hint}"
                )
        return labels
    if tuple(labels.shape) != shape:
        raise ValueError(f"{expected}, got {got}; give labels of the logits' batch and positions")
    if not labels.is_floating_point() or labels.device.type == "cpu":
        _check_probabilities(labels, f"{expected}, got {got}", ignore_index)
    if ignore_index != -100:
        raise ValueError(
            f"ignore_index {ignore_index} needs labels of class indices, got probabilities; give "
            "indices, or leave ignore_index out"
        )
    return labels


def _check_probabilities(labels: Tensor, got: str, ignore_index: int) -> None:
    """Raise a ValueError unless labels (N, K, ...) are probabilities."""
    values = to_float32(labels) if labels.is_floating_point() else labels
    if labels.is_floating_point() and not bool((values >= 0).all()):
        raise ValueError(f"{got} with negative values or nan; give probabilities from 0 to 1")
    sums = values.sum(dim=1)
    tolerance = 1e-3 if labels.itemsize >= 4 else 1e-2
    wrong = (sums - 1).abs() > tolerance
    if not labels.is_floating_point() or bool(wrong.any()):
        first = f" (the first such row to {float(sums[wrong][0]):g})" if wrong.any() else ""
        raise ValueError(
            f"{got} that do not sum to 1{first}; give labels.argmax(dim=1) of one-hot labels, or "
            "use BinaryCrossEntropy for images of several classes each, or of none; class indices "
            f"of {ignore_index} do not count"
        )


def class_indices(loss: str, logits: Tensor, labels: Tensor | None) -> Tensor:
    """Return labels as class indices, of int64; -100 does not count.

    Args:
        loss: that needs them, for errors.
        logits: (N, K, ...).
        labels: (N, ...).

    Raises:
        ValueError: they are none, or probabilities.

    Example:
        >>> class_indices("dkd", torch.zeros(2, 4), torch.tensor([3, 0], dtype=torch.uint8))
        tensor([3, 0])
    """
    indices, shape = (len(logits), *logits.shape[2:]), tuple(logits.shape)
    expected = f"{loss} takes labels of class indices {indices} for logits {shape}"
    if isinstance(labels, Tensor) and labels.shape == logits.shape and labels.is_floating_point():
        raise ValueError(
            f"{expected}, got {labels.dtype} of shape {tuple(labels.shape)}: probabilities, as of "
            "MixUp and CutMix, have no one class; give labels.argmax(dim=1), or leave this loss out"
        )
    return _checked(expected, logits, labels)
