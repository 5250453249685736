"""The evaluation of a MODEL on DATA."""

from dataclasses import replace

import numpy as np
import torch

from attention_transfer.class_alignment import aligned, class_names_of
from attention_transfer.config import EvaluateConfig, Precision, height_and_width, low_and_high
from attention_transfer.data import DataSet, Images, as_input, load_data
from attention_transfer.data.classes import abridged, normal_form
from attention_transfer.environment import make_accelerator, resolve_precision
from attention_transfer.errors import InputError
from attention_transfer.models import (
    LoadedModel,
    default_input_size,
    load,
    model_structure,
    read_card,
    run_folder,
)
from attention_transfer.network_inputs import channels_matched, preprocessing_for, try_out
from attention_transfer.runs import Run
from attention_transfer.training.classification_metrics import Evaluation, compute_metrics
from attention_transfer.training.processes import Processes
from attention_transfer.training.shared_evaluation import SharedEvaluation
from attention_transfer.trust import check_names

__all__ = ["evaluate_model", "load_with_data"]


def evaluate_model(config: EvaluateConfig) -> tuple[LoadedModel, DataSet, Evaluation] | None:
    """Evaluate a MODEL on DATA, as ``attention-transfer evaluate`` does.

    For a run's folder, data set, data seed and share of validation images default to the run's.
    Several processes, as of torchrun, share the images; all but the main one return None.

    Raises:
        InputError: the model or the data set is unknown, or the two do not fit.
    """
    accelerator = make_accelerator()
    with Processes(accelerator, advice="start the evaluation again").watched() as processes:
        return _evaluate(config, processes, accelerator.device)


def _evaluate(
    config: EvaluateConfig, processes: Processes, device: torch.device
) -> tuple[LoadedModel, DataSet, Evaluation] | None:
    precision = resolve_precision(config.precision or _precision_of_run(config.model))
    model, data, images = load_with_data(config)
    processes.wait()
    logits = SharedEvaluation(processes, precision, device, config.workers).logits(
        model.network.to(device),
        images,
        preprocessing_for(model, data),
        len(data.class_names),
        config.batch_size,
    )
    return None if logits is None else (model, data, compute_metrics(logits, images.labels))


def _precision_of_run(model: str) -> Precision:
    """Return the precision that a run was trained and evaluated in; fp32 of other MODELs."""
    folder = run_folder(model)
    run = None if folder is None else Run.of_weights(folder)
    if run is None or not run.is_finished:
        return "fp32"
    if run.record.precision == "fp16" and torch.cuda.is_available():
        return "fp16"
    return "bf16" if run.record.precision == "bf16" else "fp32"


def load_with_data(config: EvaluateConfig) -> tuple[LoadedModel, DataSet, Images]:
    """Load a MODEL with DATA of its classes, and the images of the split to evaluate it on.

    Raises:
        InputError: the model or the data set is unknown, or the two do not fit.
    """
    data = _load_data(config)
    model = load(config.model, len(data.class_names), trained=True)
    data = aligned(data, [(config.model, model)])
    known = class_names_of(config.model, model)
    if known is not None and list(map(normal_form, known)) != list(
        map(normal_form, data.class_names)
    ):
        raise InputError(
            f"{config.model} was trained on the classes {abridged(known)}, "
            f"{data.name} has {abridged(data.class_names)}; evaluate it on data with its classes"
        )
    if config.pixel_range is not None and model.preprocessing is not None:
        # The user's range takes the place of that in training.
        model = replace(model, preprocessing=model.preprocessing._replace(pixel_range=None))
    data, (model,) = channels_matched(data, [model])
    images = data.validation if config.split == "validation" else data.test
    if model.preprocessing is not None:
        images = images.resized(images.size, model.preprocessing.interpolation)
    try_out(model, data, as_input(images.pixels(np.arange(1))))
    return model, data, images


def _load_data(config: EvaluateConfig) -> DataSet:
    """Load the data set to evaluate on; what the user left open is as in the model's run."""
    name, validation, data_seed = config.data, config.validation, config.data_seed
    labels = {name: getattr(config, name) for name in ("columns", "label_offset", "class_order")}
    folder, trained_range = run_folder(config.model), None
    if folder is not None:
        card = read_card(folder)
        trained_range = card.pixel_range
        if name is None:
            check_names(folder / "model.json", data=card.data)
            name = card.data
        run = Run.of_weights(folder)
        if (run.folder / "config.yaml").is_file():
            trained = run.config
            if name == trained.data:
                labels = {
                    setting: getattr(trained, setting) if value is None else value
                    for setting, value in labels.items()
                }
            validation = trained.validation if validation is None else validation
            data_seed = trained.data_seed if data_seed is None else data_seed
    if name is None:
        model_structure(config.model)  # raises if there is no such network
        raise InputError(f"{config.model} does not say what it was trained on; give --data DATA")
    return load_data(
        name,
        validation=0.1 if validation is None else validation,
        data_seed=data_seed or 0,
        download=config.download,
        image_size=None if config.image_size is None else height_and_width(config.image_size),
        default_size=default_input_size(config.model)[1:],
        pixel_range=None if config.pixel_range is None else low_and_high(config.pixel_range),
        default_pixel_range=trained_range,
        **labels,
    )
