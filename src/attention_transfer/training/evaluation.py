"""Predictions of a network for images."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from attention_transfer.data import Images, batches
from attention_transfer.environment import AUTOCAST
from attention_transfer.errors import DivergedError, InputError
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import call_network, evaluating
from attention_transfer.transfer import class_logits, preprocess

__all__ = ["BATCH_SIZE", "predict"]

BATCH_SIZE = 256
"""Images of a forward pass without gradients."""


def predict(
    network: nn.Module,
    images: Images,
    preprocessing: Preprocessing | None,
    *,
    classes: int | None = None,
    batch_size: int = BATCH_SIZE,
    precision: str = "fp32",
    device: torch.device | None = None,
    workers: int = 0,
    between: Callable[[], None] = lambda: None,
    finite: bool = True,
) -> Tensor:
    """Return a network's logits (N, K) of images, computed in eval mode.

    Args:
        network: gives logits (N, K).
        images: the N images.
        preprocessing: applied to the images, which come in [0, 1].
        classes: the number of classes K that the data set has; None accepts any.
        batch_size: images per forward pass.
        precision: "fp32", "bf16" or "fp16" for the network; the logits are always float32.
        device: where the network is; by default the CPU.
        workers: processes that decode images ahead.
        between: called after each batch; it may raise.
        finite: whether all logits must be finite.

    Raises:
        InputError: there are no images, or the network has another number of outputs.
        DivergedError: the logits are not finite.
    """
    if len(images) == 0:
        raise InputError("the split has no images; expected at least one to evaluate on")
    device = device or torch.device("cpu")
    dtype = AUTOCAST.get(precision)
    parts = []
    with (
        evaluating(network),
        torch.no_grad(),
        torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
    ):
        order = np.arange(len(images))
        for batch in batches(images, order, batch_size, workers=workers, device=device):
            pixels = preprocess(network, batch.images, preprocessing)
            parts.append(class_logits(call_network(network, pixels)).float().cpu())
            outputs = parts[-1].shape[1]
            if classes not in (None, outputs):
                raise InputError(
                    f"the network has {outputs} outputs, the data set {classes} classes; evaluate "
                    "it on data with the classes it was trained on"
                )
            between()
    logits = torch.cat(parts)
    if finite and not bool(logits.isfinite().all()):
        raise DivergedError(
            "the network's logits are not finite: its training diverged, or its weights are "
            "damaged; train it again with a lower --lr"
        )
    return logits
