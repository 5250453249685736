"""Predictions of a network for images, and the evaluation of a MODEL on DATA."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from attention_transfer.config import EvaluateConfig, height_and_width
from attention_transfer.data import (
    DataSet,
    Images,
    as_input,
    batches,
    load_data,
    resolve_workers,
)
from attention_transfer.environment import AUTOCAST, resolve_precision
from attention_transfer.errors import InputError, TrainingError
from attention_transfer.models import LoadedModel, default_input_size, load, load_run
from attention_transfer.network_inputs import preprocessing_for, try_out
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.runs import Run
from attention_transfer.taps import evaluating
from attention_transfer.training.classification_metrics import Evaluation, compute_metrics
from attention_transfer.transfer import class_logits

__all__ = ["evaluate_model", "predict"]


def predict(
    network: nn.Module,
    images: Images,
    preprocessing: Preprocessing | None,
    *,
    classes: int | None = None,
    batch_size: int = 256,
    precision: str = "fp32",
    device: torch.device | None = None,
    workers: int = 0,
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

    Raises:
        InputError: there are no images, or the network has another number of outputs.
        TrainingError: the logits are not finite.
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
            pixels = preprocessing(batch.images) if preprocessing else batch.images
            parts.append(class_logits(network(pixels)).float().cpu())
            outputs = parts[-1].shape[1]
            if classes not in (None, outputs):
                raise InputError(
                    f"the network has {outputs} outputs, the data set {classes} classes; evaluate "
                    "it on data with the classes it was trained on"
                )
    logits = torch.cat(parts)
    if not bool(logits.isfinite().all()):
        raise TrainingError(
            "the network's logits are not finite: its training diverged, or its weights are "
            "damaged; train it again with a lower --lr"
        )
    return logits


def evaluate_model(config: EvaluateConfig) -> tuple[LoadedModel, DataSet, Evaluation]:
    """Evaluate a MODEL on DATA, as ``attention-transfer evaluate`` does.

    For a run's folder, data set, data seed and share of validation images default to the run's.

    Raises:
        InputError: the model or the data set is unknown, or the two do not fit.
    """
    precision = resolve_precision(config.precision)
    data = _load_data(config)
    model = load(config.model, len(data.class_names), trained=True)
    if model.card is not None and model.card.class_names != data.class_names:
        raise InputError(
            f"{config.model} was trained on the classes {_abridged(model.card.class_names)}, "
            f"{data.name} has {_abridged(data.class_names)}; evaluate it on data with its classes"
        )
    images = data.validation if config.split == "validation" else data.test
    if model.preprocessing is not None:
        images = images.resized(images.size, model.preprocessing.interpolation)
    try_out(model, data, as_input(images.pixels(np.arange(1))))
    logits = predict(
        model.network,
        images,
        preprocessing_for(model, data),
        classes=len(data.class_names),
        batch_size=config.batch_size,
        precision=precision,
        workers=resolve_workers(config.workers, data.test),
    )
    return model, data, compute_metrics(logits, images.labels)


def _load_data(config: EvaluateConfig) -> DataSet:
    """Load the data set to evaluate on; what the user left open is as in the model's run."""
    name, validation, data_seed = config.data, config.validation, config.data_seed
    folder = Path(config.model)
    if os.path.isdir(folder):
        card = load_run(folder).card
        assert card is not None
        name = name or card.data
        if (folder / "config.yaml").is_file():
            trained = Run(folder).config
            validation = trained.validation if validation is None else validation
            data_seed = trained.data_seed if data_seed is None else data_seed
    if name is None:
        raise InputError(f"{config.model} does not say what it was trained on; give --data DATA")
    return load_data(
        name,
        validation=0.1 if validation is None else validation,
        data_seed=data_seed or 0,
        download=config.download,
        image_size=None if config.image_size is None else height_and_width(config.image_size),
        default_size=default_input_size(config.model)[1:],
    )


def _abridged(names: Sequence[str]) -> str:
    """Return the first three names and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
