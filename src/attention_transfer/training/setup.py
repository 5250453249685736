"""Set up a run: from a configuration to data, networks and the objective. Nothing is written."""

import copy
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attention_transfer.class_alignment import aligned
from attention_transfer.config import RunConfig
from attention_transfer.config.presets import described
from attention_transfer.data import AugmentedView, DataSet, as_input, batch_bounds, batches
from attention_transfer.data.label_values import is_multi_label
from attention_transfer.environment import AUTOCAST, fast_bf16, resolve_precision
from attention_transfer.errors import InputError
from attention_transfer.models import (
    LoadedModel,
    ModelCard,
    default_input_size,
    load,
    logit_layers,
    split_models,
)
from attention_transfer.network_inputs import (
    augmented,
    channels_matched,
    decoded_for,
    images_of,
    network_input_size,
    preprocessing_for,
    try_out,
)
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import (
    as_teacher,
    counting_flops,
    evaluating,
    main_input,
    own_dtype,
    structure_copy,
    to_channels_last,
    unwrapped,
)
from attention_transfer.training.cached_targets import CachedTargets, cached_targets
from attention_transfer.training.configured_terms import configured_terms, for_several_classes
from attention_transfer.training.fine_tuning import freeze
from attention_transfer.training.memory.recomputation import Recomputation, plan_recomputation
from attention_transfer.training.monitoring.tracking import check_installed
from attention_transfer.training.objects import NO_OBJECTS, RunObjects, loaded_object
from attention_transfer.training.optimization import resolve_optimization
from attention_transfer.training.optimizers import check_optimizer
from attention_transfer.transfer import (
    ClassAttention,
    CrossEntropy,
    Term,
    Transfer,
    class_logits,
    compiler_fault,
    preprocess,
    try_terms,
)
from attention_transfer.waiting import waiting_for

__all__ = ["RunSetup", "count_flops", "set_up_run"]

TRIED = 8
"""Images that terms of the user's own are tried on."""


@dataclass(frozen=True)
class RunSetup:
    """A run that is ready to begin: everything has been checked."""

    config: RunConfig
    data: DataSet
    student: LoadedModel
    teachers: list[LoadedModel]
    transfer: Transfer
    precision: str
    compiled: bool
    """Whether forward passes are compiled: configured, and there is a compiler."""
    frozen: list[nn.Module]
    """Modules of the student that keep their weights and stay in eval mode."""
    heads: list[nn.Module]
    """The student's last layers, where they have a learning rate of their own."""
    recomputation: Recomputation
    """Parts of the student whose activations are recomputed in the backward pass."""
    targets: CachedTargets | None
    """The cache of teacher targets, if the run has one."""
    notices: list[str] = field(default_factory=list)
    """Lines that a user should read before the run."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of the student's input."""
        return preprocessing_for(self.student, self.data)

    @property
    def multi_label(self) -> bool:
        """Whether images are of several classes each."""
        return is_multi_label(self.data.train.labels)

    @property
    def card(self) -> ModelCard:
        """The model card: how to build the trained student, and the preprocessing it expects."""
        return ModelCard(
            name=self.student.name,
            class_names=self.data.class_names,
            input_size=network_input_size(self.student, self.data),
            mean=tuple(self.preprocessing.mean),
            std=tuple(self.preprocessing.std),
            data=self.config.data,
            interpolation=self.preprocessing.interpolation,
            crop_share=self.data.centre_share,
            probabilities="sigmoid" if self.multi_label else "softmax",
            pixel_range=self.preprocessing.pixel_range,
        )


def set_up_run(config: RunConfig, objects: RunObjects = NO_OBJECTS) -> RunSetup:
    """Load and check everything a run needs.

    Args:
        config: of the run.
        objects: what was given as Python objects, which the configuration cannot name.

    Raises:
        InputError: settings, networks or data that do not fit each other.
    """
    precision = resolve_precision(config.precision)
    check_installed(config)
    check_optimizer(config)
    terms = configured_terms(config, objects.terms)
    _check_settings(config, terms)
    data, student, teachers, terms = _load(config, objects, terms)
    tried = np.arange(min(TRIED, config.batch_size, len(data.train)) if config.terms else 1)
    example = as_input(data.train.pixels(tried))
    for teacher in teachers:
        try_out(teacher, data, example)
    _check_student(student, data, example)
    _check_smallest_batch(student, data, example, config)
    config, optimization_notices = resolve_optimization(
        config, student.network, _begins_trained(config, student)
    )
    heads = []
    if config.backbone_lr != 1:
        heads = list(logit_layers(student.network, network_input_size(student, data)).values())
    frozen = [] if config.freeze is None else freeze(student.network, config.freeze)
    recomputation = _plan_recomputation(config, data, student, example)
    if config.channels_last:
        for loaded in [student, *teachers]:
            to_channels_last(loaded.network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        transfer = _make_transfer(data, student, teachers, terms, example)
        if config.terms:
            view = AugmentedView(config.data_seed, 0)
            batch = next(batches(data.train, tried, len(tried), view=view))
            try_terms(transfer, batch.images, batch.labels)
    with waiting_for("looking up the cache of teacher targets"):
        targets = cached_targets(config, data, teachers, transfer, precision)
    if targets is None:
        transfer.optimize_teacher_for_inference(example, AUTOCAST.get(precision))
    else:
        config = config.replace(cache_views=targets.views)  # for when the run is resumed
    if data.pixel_range is not None:
        config = config.replace(pixel_range=str(data.pixel_range))  # as above
    compiled = config.compile and compiler_fault() is None
    if compiled:
        transfer.compile_passes()
    return RunSetup(
        config,
        data,
        student,
        teachers,
        transfer,
        precision,
        compiled,
        frozen,
        heads,
        recomputation,
        targets,
        [*optimization_notices, *_notices(config, precision, transfer, data)],
    )


def _load(
    config: RunConfig, objects: RunObjects, terms: list[Term]
) -> tuple[DataSet, LoadedModel, list[LoadedModel], list[Term]]:
    """Return data, student, teachers and terms, each as the others need them."""
    size = (224, 224) if objects.student is not None else default_input_size(config.student)[1:]
    data = images_of(config, size, masks=config.masks, data=objects.data)
    if is_multi_label(data.train.labels):
        terms = for_several_classes(terms, data.name)
    student, teachers = _load_networks(config, data, objects)
    data = _aligned(config, data, student, teachers, terms)
    data, (student, *teachers) = channels_matched(data, [student, *teachers])
    return augmented(decoded_for(data, student, teachers), config), student, teachers, terms


def _plan_recomputation(
    config: RunConfig, data: DataSet, student: LoadedModel, images: Tensor
) -> Recomputation:
    """Return the parts of the student to recompute in the backward pass, if the run asks for it."""
    if not config.grad_checkpoint:
        return Recomputation({}, share=1.0)
    inputs = preprocess(student.network, images, preprocessing_for(student, data))
    return plan_recomputation(student.network, main_input(inputs))


def _make_transfer(
    data: DataSet,
    student: LoadedModel,
    teachers: list[LoadedModel],
    terms: list[Term],
    images: Tensor,
) -> Transfer:
    with waiting_for("finding the networks' attention points"):
        return Transfer(
            student.network,
            [teacher.network for teacher in teachers] or None,
            terms,
            example_input=images,
            student_normalization=preprocessing_for(student, data),
            teacher_normalization=[preprocessing_for(teacher, data) for teacher in teachers],
        )


def _check_settings(config: RunConfig, terms: list[Term]) -> None:
    """Raise an InputError for settings that contradict each other."""
    if config.grad_checkpoint and any(term.needs_input_gradient for term in terms):
        raise InputError(
            "gradient terms differentiate the backward pass, which keeps all that it recomputes, "
            "so grad_checkpoint would save nothing; leave one of them out, or lower memory with "
            "--accumulate"
        )
    if not any(term.weight for term in terms):
        raise InputError(
            f"all weights are 0 ({', '.join(term.name for term in terms)}), so nothing would be "
            "trained on; give at least one term a weight above 0"
        )
    smoothed = any(
        isinstance(term, CrossEntropy) and term.label_smoothing and term.weight for term in terms
    )
    if config.label_smoothing and not smoothed:
        raise InputError(
            "label_smoothing is for the run's own cross-entropy of the labels, which has weight 0 "
            "or is replaced by a term of yours; leave it out, or give it to your term"
        )
    if config.cache_views and config.cache is None:
        raise InputError("cache_views needs a cache, got none; give --cache as well")
    if config.backbone_lr == 0 and any(term.pairs is not None for term in terms):
        raise InputError(
            "with backbone_lr 0 the student's features stay as they are, so nothing could be "
            "transferred to them; give a rate above 0, or --attention none"
        )
    mixed = config.mixup > 0 or config.cutmix > 0
    if mixed and config.flip_classes is not None:
        raise InputError(
            "flip_classes chooses images by class, and mixed images have several; leave out mixup "
            "and cutmix, or flip_classes"
        )


def _load_networks(
    config: RunConfig, data: DataSet, objects: RunObjects
) -> tuple[LoadedModel, list[LoadedModel]]:
    """Return the student and its teachers, of names or of objects."""
    classes = len(data.class_names)
    settings: dict[str, Any] = {"seed": config.seed, "image_size": data.input_size[1:]}
    names = split_models(config.teacher) if config.teacher is not None else []
    modules = objects.teachers or (None,) * len(names)
    teachers = [
        load(name, classes, trained=True, **settings)
        if module is None
        else loaded_object(as_teacher(module), name)
        for name, module in zip(names, modules, strict=True)
    ]
    if objects.student is not None:
        return loaded_object(objects.student, config.student), teachers
    return load(config.student, classes, trained=False, **settings), teachers


def _begins_trained(config: RunConfig, student: LoadedModel) -> bool:
    """Return whether a student that has a name begins with trained weights."""
    weights = config.student.partition("@")[2]
    return student.card is not None or weights not in ("", "random")


def _aligned(
    config: RunConfig,
    data: DataSet,
    student: LoadedModel,
    teachers: list[LoadedModel],
    terms: list[Term],
) -> DataSet:
    """Return the data set with its classes in the order of the networks that know them."""
    names = [] if config.teacher is None else split_models(config.teacher)
    known = list(zip(names, teachers, strict=True))
    logits = any(
        term.needs_teacher_logits or term.needs_input_gradient or isinstance(term, ClassAttention)
        for term in terms
    )
    return aligned(data, [*known, (config.student, student)], names if logits else ())


def _check_student(student: LoadedModel, data: DataSet, images: Tensor) -> None:
    """Check that the student can be trained on the data and saved.

    Raises:
        InputError: it has other classes, or state that cannot be saved.
    """
    logits = class_logits(try_out(student, data, images))
    classes = len(data.class_names)
    if logits.shape[1] != classes:
        raise InputError(
            f"{student.name} has {logits.shape[1]} outputs, the data set {classes} classes; let "
            "its factory take num_classes, or give a network with as many"
        )
    for name, value in student.network.state_dict().items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{student.name} keeps {name}, a {type(value).__name__}, which a safetensors file "
                "cannot hold; make it a buffer, or leave it out of the state"
            )


def _check_smallest_batch(
    student: LoadedModel, data: DataSet, images: Tensor, config: RunConfig
) -> None:
    """Check that the student can be trained on a process's share of the smallest batch.

    Raises:
        InputError: the share is empty; or a single image, which batch norm refuses.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    processes = torch.distributed.get_world_size() if distributed else 1
    bounds = batch_bounds(len(data.train), config.batch_size, processes)
    smallest = min(end - start for start, end in bounds)
    if smallest < processes:
        raise InputError(
            f"a batch has {smallest} images and {processes} processes share it, expected at least "
            "one for each; start fewer processes, or give more images or a larger --batch-size"
        )
    synchronized = config.sync_batch_norm and processes > 1
    if smallest // processes > 1 or synchronized:
        return
    try:
        with torch.no_grad():
            network = copy.deepcopy(student.network).train()
            network(preprocess(network, images[:1], preprocessing_for(student, data)))
    except ValueError as error:
        raise InputError(
            f"{student.name} cannot be trained on one image at a time ({error}); give at least 2 "
            "images in each process: more training images, or a --batch-size of at least "
            f"{2 * processes}"
        ) from error


def _notices(config: RunConfig, precision: str, transfer: Transfer, data: DataSet) -> Iterator[str]:
    """Yield what differs from what was configured, or is slow on this machine."""
    if config.preset is not None:
        yield described(config.preset, dict(config))
    if precision == "bf16" and data.pixel_range is not None:
        yield (
            "bf16 rounds what a network gets to 8 significant bits, and these images have more; "
            "--precision fp32 keeps them"
        )
    if precision == "bf16" and not fast_bf16():
        yield (
            "this machine has no hardware for bf16, so a step takes several times as long as in "
            "fp32; --precision auto would choose fp32"
        )
    if config.compile and compiler_fault() is not None:
        yield f"nothing is compiled: no compiler works here ({compiler_fault()})"
    for name, term in transfer.named_terms.items():
        # With kd_alpha 1 the labels' weight is 0, as it is meant to be.
        if term.weight == 0 and not isinstance(term, CrossEntropy):
            yield (
                f"the term {name} has weight 0: it is computed and recorded, and has no effect on "
                "the training; leave it out to save its time"
            )
    if config.cache is not None and not transfer.target_spec:
        yield "no term needs the teacher, so no cache is read or built"


def count_flops(network: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Return the operations of one image's forward pass (a multiply-add counts as two)."""
    inner = unwrapped(network)
    with suppress(Exception):  # whatever a module raises that cannot be copied: it runs itself
        inner = structure_copy(inner)  # frozen, as the counter needs it
    device = next(network.parameters(), torch.empty(0)).device
    image = torch.zeros(1, *input_size, dtype=own_dtype(inner), device=device)
    with counting_flops() as counter, torch.no_grad(), evaluating(inner):
        inner(image)
    return int(counter.get_total_flops())
