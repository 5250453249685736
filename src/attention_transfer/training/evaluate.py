"""Evaluating a MODEL on DATA, each as users write it."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attention_transfer.config import EvaluateConfig, height_and_width
from attention_transfer.data import DataSet, as_input, load_data, resolve_workers
from attention_transfer.environment import resolve_precision
from attention_transfer.errors import InputError
from attention_transfer.models import LoadedModel, default_input_size, load, load_run
from attention_transfer.network_inputs import preprocessing_for, try_out
from attention_transfer.runs.folder import Run
from attention_transfer.training.evaluation import Evaluation, compute_metrics, predict

__all__ = ["evaluate_model"]


def evaluate_model(config: EvaluateConfig) -> tuple[LoadedModel, DataSet, Evaluation]:
    """What ``attention-transfer evaluate`` does. A run's own data, seed and split are the default.

    Raises:
        InputError: an unknown model or data set, or the two do not fit.
    """
    precision = resolve_precision(config.precision)
    name, validation, data_seed = config.data, config.validation, config.data_seed
    folder = Path(config.model)
    if os.path.isdir(folder):
        card = load_run(folder).card
        assert card is not None
        name = name or card.data
        if (folder / "config.yaml").is_file():
            asked = Run(folder).config
            validation = asked.validation if validation is None else validation
            data_seed = asked.data_seed if data_seed is None else data_seed
    if name is None:
        raise InputError(f"{config.model} does not say what it was trained on; give --data DATA")
    data = load_data(
        name,
        validation=0.1 if validation is None else validation,
        data_seed=data_seed or 0,
        download=config.download,
        image_size=None if config.image_size is None else height_and_width(config.image_size),
        default_size=default_input_size(config.model)[1:],
    )
    model = load(config.model, len(data.class_names), trained=True)
    if model.card is not None and model.card.class_names != data.class_names:
        raise InputError(
            f"{config.model} was trained to tell {_few(model.card.class_names)} apart, {data.name} "
            f"has {_few(data.class_names)}; evaluate it on data of its own classes"
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


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
