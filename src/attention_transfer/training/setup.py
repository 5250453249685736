"""From a configuration to data, networks and the objective. Nothing is written."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attention_transfer.config import RunConfig
from attention_transfer.data import DataSet, as_input
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
    decoded_for,
    images_of,
    preprocessing_for,
    try_out,
)
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.training.cached_targets import CachedTargets, cached_targets
from attention_transfer.training.fine_tuning import freeze
from attention_transfer.training.memory.recomputation import Recomputation, plan_recomputation
from attention_transfer.training.monitoring.tracking import check_installed
from attention_transfer.transfer import (
    ActivationAttention,
    CrossEntropy,
    FlipSymmetry,
    FullActivation,
    GradientAttention,
    InputGradientNorm,
    Term,
    Transfer,
    class_logits,
    compiler_fault,
    distillation_terms,
)

__all__ = ["RunSetup", "count_flops", "set_up_run", "terms_of"]


@dataclass(frozen=True)
class RunSetup:
    """A run that could begin: everything has been checked."""

    config: RunConfig
    data: DataSet
    student: LoadedModel
    teachers: list[LoadedModel]
    transfer: Transfer
    precision: str
    compiled: bool
    """Whether passes are compiled: asked for, and there is a compiler."""
    frozen: list[nn.Module]
    """Modules of the student that keep their weights and stay in eval mode."""
    heads: list[nn.Module]
    """Layers of the student that give its logits, where they learn faster than the rest."""
    recomputation: Recomputation
    """Parts of the student whose insides are not kept for the backward pass."""
    targets: CachedTargets | None
    """The teacher's, where they come from a cache."""
    notices: list[str] = field(default_factory=list)
    """What a user should know before the run."""

    @property
    def normalization(self) -> Preprocessing:
        """Of the student's input."""
        return preprocessing_for(self.student, self.data)

    @property
    def card(self) -> ModelCard:
        """How to build and feed the student once it is trained."""
        return ModelCard(
            name=self.student.name,
            class_names=self.data.class_names,
            input_size=self.data.input_size,
            mean=tuple(self.normalization.mean),
            std=tuple(self.normalization.std),
            data=self.config.data,
            interpolation=self.normalization.interpolation,
        )


def set_up_run(config: RunConfig, data: DataSet | None = None) -> RunSetup:
    """Loads and checks everything a run needs.

    Args:
        config: of the run.
        data: the configuration's data, if they are loaded already.

    Raises:
        InputError: whatever would not fit.
    """
    precision = resolve_precision(config.precision)
    check_installed(config)
    terms = terms_of(config)
    _check_settings(config, terms)
    if data is None:
        own_size = default_input_size(config.student)[1:]
        data = images_of(config, own_size, masks=config.masks)
    student, teachers = _load_networks(config, data)
    data = augmented(decoded_for(data, student, teachers), config)
    example = as_input(data.train.pixels(np.arange(1)))
    for teacher in teachers:
        try_out(teacher, data, example)
    _check_student(student, data, example, config.batch_size)
    heads = []
    if config.backbone_lr != 1:
        heads = list(logit_layers(student.network, data.input_size).values())
    frozen = [] if config.freeze is None else freeze(student.network, config.freeze)
    recomputation = Recomputation({}, share=1.0)
    if config.grad_checkpoint:
        given = preprocessing_for(student, data)(example)
        recomputation = plan_recomputation(student.network, given)
    if config.channels_last:
        for loaded in [student, *teachers]:
            loaded.network.to(memory_format=torch.channels_last)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        transfer = Transfer(
            student.network,
            [teacher.network for teacher in teachers] or None,
            terms,
            example_input=example,
            student_normalization=preprocessing_for(student, data),
            teacher_normalization=[preprocessing_for(teacher, data) for teacher in teachers],
        )
    targets = cached_targets(config, data, teachers, transfer, precision)
    if targets is None:
        transfer.optimize_teacher_for_inference(example, AUTOCAST.get(precision))
    else:
        config = config.replace(cache_views=targets.views)  # for when the run is resumed
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
        list(_notices(config, precision, transfer)),
    )


def _check_settings(config: RunConfig, terms: list[Term]) -> None:
    """Raises an InputError for settings that do not go with each other."""
    if config.grad_checkpoint and any(term.needs_input_gradient for term in terms):
        raise InputError(
            "gradient terms differentiate the backward pass, which keeps all that it computes "
            "again, so grad_checkpoint would save nothing; leave one of them out, or lower memory "
            "with --accumulate"
        )
    if config.cache_views and config.cache is None:
        raise InputError("cache_views is of a cache, and none is asked for; give --cache as well")
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


def _load_networks(config: RunConfig, data: DataSet) -> tuple[LoadedModel, list[LoadedModel]]:
    """The student and its teachers."""
    classes = len(data.class_names)
    settings: dict[str, Any] = {"seed": config.seed, "image_size": data.input_size[1:]}
    names = split_models(config.teacher) if config.teacher is not None else []
    teachers = [load(name, classes, trained=True, **settings) for name in names]
    return load(config.student, classes, trained=False, **settings), teachers


def _check_student(student: LoadedModel, data: DataSet, images: Tensor, batch_size: int) -> None:
    """Whether it can be trained on the data and written down.

    Raises:
        InputError: it cannot.
    """
    logits = class_logits(try_out(student, data, images))
    classes = len(data.class_names)
    if logits.shape[1] != classes:
        raise InputError(
            f"{student.name} tells {logits.shape[1]} classes apart and the data have {classes}; "
            "let its factory take num_classes"
        )
    for name, value in student.network.state_dict().items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{student.name} keeps {name}, a {type(value).__name__}, which a safetensors file "
                "cannot hold; make it a buffer, or leave it out of the state"
            )
    if batch_size > 1:
        return
    try:
        with torch.no_grad():
            copy.deepcopy(student.network).train()(preprocessing_for(student, data)(images))
    except ValueError as error:
        raise InputError(
            f"{student.name} cannot be trained on one image at a time ({error}); give a "
            "--batch-size of at least 2"
        ) from error


def _notices(config: RunConfig, precision: str, transfer: Transfer) -> Iterator[str]:
    """What is other, or slower here, than one might expect."""
    if precision == "bf16" and not fast_bf16():
        yield (
            "bf16 is computed without hardware for it here, which takes several times as long as "
            "fp32; --precision auto would take fp32"
        )
    if config.compile and compiler_fault() is not None:
        yield f"nothing is compiled: no compiler works here ({compiler_fault()})"
    if config.cache is not None and not transfer.target_spec:
        yield "no term needs the teacher, so no cache is read or made"


def terms_of(config: RunConfig) -> list[Term]:
    """The terms a configuration asks for.

    Raises:
        InputError: a distillation without anything to transfer.
    """
    terms: list[Term] = []
    if config.teacher is not None and "activation" in config.attention:
        terms.append(
            ActivationAttention(
                beta=config.beta,
                map=config.map,
                power=config.power,
                form=config.form,
                pairs=config.pairs,
                schedule=config.beta_schedule,
            )
        )
    if config.full_activation_beta is not None:
        terms.append(FullActivation(config.full_activation_beta, config.pairs))
    terms += _gradient_terms(config)
    if config.kd_alpha is not None:
        return [*distillation_terms(config.kd_alpha, config.temperature), *terms]
    if not terms and config.teacher is not None:
        raise InputError(
            "nothing to transfer: attention is none and neither kd_alpha nor full_activation_beta is "
            "given; give one of them (or a gradient term), or use 'attention-transfer train'"
        )
    return [CrossEntropy(), *terms]


def _gradient_terms(config: RunConfig) -> Iterator[Term]:
    form = config.gradient_form
    if "gradient" in config.attention and config.gradient_beta is None:
        raise InputError(
            "attention gradient needs its weight, got no gradient_beta; give --gradient-beta, "
            "such as 0.01"
        )
    if config.gradient_beta is not None:
        yield GradientAttention(
            config.gradient_beta, form, config.gradient_normalize, config.gradient_map
        )
    if config.flip_symmetry_beta is not None:
        classes = config.flip_classes
        chosen = None if classes is None else tuple(map(int, classes.split(",")))
        yield FlipSymmetry(config.flip_symmetry_beta, form, config.flip_axis, chosen)
    if config.input_gradient_norm_beta is not None:
        yield InputGradientNorm(config.input_gradient_norm_beta, form)


def count_flops(network: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Floating-point operations of one image's forward pass (a multiply-add counts as two)."""
    image = torch.zeros(1, *input_size, device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        training = network.training
        network.eval()(image)
        network.train(training)
    return int(counter.get_total_flops())
