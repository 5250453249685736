"""A network's forward pass: its inputs, its output, the logits in it, and its tapped features."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attention_transfer.errors import InputError, first_line
from attention_transfer.functional.losses import summed_cross_entropy
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import (
    Inputs,
    Taps,
    call_network,
    evaluating,
    in_dtype,
    input_tensors,
    is_program,
    main_input,
    map_inputs,
    own_dtype,
    structure_copy,
    unwrapped,
    with_main_input,
)

__all__ = [
    "FindLogits",
    "ForwardResult",
    "check_result_learns",
    "check_student_learns",
    "check_trainable",
    "class_logits",
    "describe_output",
    "find_logits",
    "input_gradient",
    "input_size",
    "logits_in",
    "preprocess",
    "tapped_forward",
]

FindLogits = Callable[[object], Tensor | None]
"""A function from a network's output to the logits in it, or None."""


@dataclass(frozen=True)
class ForwardResult:
    """The result of one forward pass."""

    output: object
    """The network's output, as it is."""
    features: dict[str, Tensor]
    """Feature maps (N, C, *S) by attention point."""


def find_logits(output: object) -> Tensor | None:
    """Return the logits in a network's output: (N, classes), or (N, classes, ...) by position.

    They are the output itself if it is a tensor; or its attribute ``.logits``, as of Hugging Face's
    models; or its item ``"logits"`` or ``"out"``, as of torchvision's segmentation models.

    Example:
        >>> find_logits({"out": torch.zeros(2, 21, 8, 8), "aux": None}).shape
        torch.Size([2, 21, 8, 8])
        >>> find_logits([torch.zeros(2, 3)]) is None
        True
    """
    candidates: list[object] = [output, getattr(output, "logits", None)]
    if isinstance(output, Mapping):
        candidates += [output.get("logits"), output.get("out")]
    return next(
        (logits for logits in candidates if isinstance(logits, Tensor) and logits.dim() >= 2), None
    )


def logits_in(output: object, find: FindLogits = find_logits) -> Tensor | None:
    """Return the logits that a function finds in a network's output, or None.

    Raises:
        InputError: the function fails, or returns something else than a row or a map of logits
            for each sample.
    """
    try:
        logits = find(output)
    except InputError:
        raise
    except Exception as error:  # it is the user's
        raise InputError(
            f"the function logits= failed on {describe_output(output)}: {type(error).__name__}: "
            f"{first_line(error)}; it must return the logits, or None where there are none"
        ) from error
    if logits is not None and not isinstance(logits, Tensor):
        raise InputError(
            f"the function logits= returned a {type(logits).__name__}, expected a tensor "
            "(N, classes) or (N, classes, ...), or None"
        )
    if logits is not None and (
        logits.dim() < 2 or (isinstance(output, Tensor) and len(logits) != len(output))
    ):
        raise InputError(
            f"the function logits= returned {tuple(logits.shape)} of {describe_output(output)}, "
            "expected (N, classes) or (N, classes, ...) of the same N samples; it is called with "
            "the outputs of both networks, so write one that returns logits as they are, such as "
            "lambda output: output if isinstance(output, torch.Tensor) else output[0]"
        )
    return logits


def describe_output(output: object) -> str:
    """Describe a network's output for an error message.

    >>> describe_output({"aux": 1})
    "a dict with 'aux'"
    """
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {', '.join(map(repr, output))}"
    return f"a {type(output).__name__}"


def class_logits(output: object, find: FindLogits = find_logits) -> Tensor:
    """Return the logits (N, classes) in a network's output, one row for each image.

    Args:
        output: of the network.
        find: finds the logits in it.

    Raises:
        InputError: there are none.
    """
    logits = logits_in(output, find)
    if logits is not None and logits.dim() == 2:
        return logits
    raise InputError(
        f"the network returns {describe_output(output)}, expected logits (N, classes); wrap it in "
        "a module whose forward returns them"
    )


def preprocess(network: nn.Module, inputs: Inputs, preprocessing: Preprocessing | None) -> Inputs:
    """Return the inputs as a network takes them: the main one preprocessed, in its own dtype.

    Raises:
        InputError: the main input is to be preprocessed and holds integers.
    """
    dtype = own_dtype(network)
    if preprocessing is None:
        return in_dtype(inputs, dtype)
    images = main_input(inputs)
    if dtype is not None and dtype.itemsize > images.dtype.itemsize:
        inputs = in_dtype(inputs, dtype)  # first, so as not to lose digits
        images = main_input(inputs)
    return in_dtype(with_main_input(inputs, preprocessing(images)), dtype)


def input_size(inputs: Inputs, preprocessing: Preprocessing | None) -> tuple[int, ...]:
    """Return channels and spatial axes of a network's main input, after preprocessing."""
    channels, *size = main_input(inputs).shape[1:]
    if preprocessing is None:
        return channels, *size
    return preprocessing.channels or channels, *(preprocessing.size or size)


def tapped_forward(
    network: nn.Module, taps: Taps, inputs: Inputs, preprocessing: Preprocessing | None
) -> ForwardResult:
    """Run a network on preprocessed inputs and capture its tapped features.

    Raises:
        InputError: there are no samples; the network does not take such inputs, or overwrites them
            in place.
    """
    if main_input(inputs).shape[:1] == (0,):
        raise InputError("the batch is empty, expected at least one sample; leave it out")
    before = _versions(inputs)
    own_inputs = preprocess(network, inputs, preprocessing)
    with taps as outputs:
        output = call_network(network, own_inputs)
    if _versions(inputs) != before:
        raise InputError(
            f"{type(unwrapped(network)).__name__} overwrote its inputs in place, which the other "
            "network sees too; write x = (x - mean) / std instead of x.sub_(mean).div_(std)"
        )
    return ForwardResult(output, taps.feature_maps(outputs, own_inputs))


def _versions(inputs: Inputs) -> list[int]:
    """Return how often each tensor has been changed in place; in inference mode none is counted."""
    return [0 if one.is_inference() else one._version for one in input_tensors(inputs)]


def check_student_learns(
    network: nn.Module,
    taps: Taps,
    example: Inputs,
    preprocessing: Preprocessing | None,
    logits: FindLogits,
) -> None:
    """Try on an example whether gradients reach the student, as :func:`check_result_learns`."""
    copied = unwrapped(network)
    with suppress(Exception):  # whatever a module raises that cannot be copied: it runs itself
        if not is_program(copied):
            copied = structure_copy(copied, frozen=False)
    one = map_inputs(lambda value: value[:1], example)
    with evaluating(copied), torch.enable_grad():
        result = tapped_forward(copied, Taps(copied, taps.points), one, preprocessing)
    check_result_learns(copied, result, logits_in(result.output, logits))


def check_trainable(network: nn.Module) -> None:
    """Raise an InputError if all of a student's parameters are frozen."""
    if {parameter.requires_grad for parameter in network.parameters()} == {False}:
        raise InputError(
            "no parameter of the student requires a gradient, so it could not learn; "
            "student.requires_grad_() lets it"
        )


def check_result_learns(network: nn.Module, result: ForwardResult, logits: Tensor | None) -> bool:
    """Return True if gradients reach the student from its points and, where it has any, its logits.

    Args:
        network: the student.
        result: of a forward pass with gradients.
        logits: found in the result.

    Raises:
        InputError: a point or the logits depend on no parameter that is trained.
    """
    frozen = not all(parameter.requires_grad for parameter in network.parameters())
    fixed = [name for name, feature in result.features.items() if not feature.requires_grad]
    if fixed and frozen:
        raise InputError(
            f"the student's point {fixed[0]!r} is in a part that is frozen, so its attention "
            "cannot change; choose later points (pairs='auto-2'), or freeze less"
        )
    if logits is not None and not logits.requires_grad:
        fixed.append("logits")
    if fixed:
        raise InputError(
            f"the student's {fixed[0]!r} depends on no parameter that is trained, so it could not "
            "learn; compute it from the student's parameters, without torch.no_grad or detach"
        )
    return True


def input_gradient(logits: Tensor, labels: Tensor | None, images: Tensor) -> Tensor:
    """Return J, as a constant: the summed cross-entropy's gradient at the images.

    Raises:
        InputError: the loss does not depend on the images.
    """
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        try:
            loss = summed_cross_entropy(logits, labels)
        except ValueError as error:
            raise InputError(f"gradient attention: {error}") from None
        try:
            return torch.autograd.grad(loss, images)[0]
        except RuntimeError as error:
            reason = first_line(error)
            raise InputError(
                f"the loss does not depend on the images, so it has no gradient there ({reason}); "
                "let gradients through the network"
            ) from error
