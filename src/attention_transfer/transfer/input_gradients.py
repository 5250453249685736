"""The student's gradients at the input: where its loss is sensitive to the image (section 3.2).

J = d(sum over the batch of the cross-entropy) / d(images), of the main input given to the
:class:`attention_transfer.Transfer`, before either network's own preprocessing.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_is_leaf, tree_map_only

from attention_transfer.double_backward import DoubleBackward
from attention_transfer.errors import InputError
from attention_transfer.functional.losses import summed_cross_entropy
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import (
    Inputs,
    Taps,
    as_floats,
    main_input,
    map_inputs,
    own_precision,
    unwrapped,
    with_main_input,
)
from attention_transfer.transfer.cloned_state import call_with_cloned_state
from attention_transfer.transfer.forward import (
    FindLogits,
    ForwardResult,
    class_logits,
    find_logits,
    preprocess,
    tapped_forward,
)

__all__ = ["InputGradients", "check_images"]


def check_images(images: Tensor) -> None:
    """Raise an InputError for images at which no gradient can be taken."""
    if not images.is_floating_point():
        raise InputError(
            f"gradient attention differentiates the loss at the images, got {images.dtype}; "
            f"give floating-point images, such as {as_floats(images.dtype)}"
        )
    if torch.is_inference_mode_enabled() or images.is_inference():
        raise InputError(
            "gradient attention needs autograd, which torch.inference_mode() switches off; "
            "use torch.no_grad() instead"
        )


class InputGradients:
    """The student's gradients at the input, for one batch.

    The ordinary forward pass comes first (:meth:`forward`); each gradient is computed when a term
    reads it, once, whichever terms share it.

    Args:
        network: the student, in its current mode.
        preprocessing: the student's own, or None.
        inputs: of the network; the gradient is taken at the main one, (N, C, *S).
        labels: of :func:`attention_transfer.functional.losses.summed_cross_entropy`.
        logits: finds the logits (N, classes) in the network's output.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing | None,
        inputs: Inputs,
        labels: Tensor | None,
        logits: FindLogits = find_logits,
    ) -> None:
        images = main_input(inputs)
        check_images(images)
        self.network, self.preprocessing, self.labels = network, preprocessing, labels
        self.find_logits = logits
        self.differentiable = torch.is_grad_enabled()
        # Images that are part of a larger graph stay part of it.
        self.images = images if images.requires_grad else images.detach().requires_grad_()
        self.inputs = with_main_input(inputs, self.images)
        device = images.device.type
        self._autocast = torch.autocast(
            device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        )
        self._random_state = _random_state(images.device)
        self._double = DoubleBackward()
        self._logits: Tensor | None = None

    def forward(self, taps: Taps) -> ForwardResult:
        """Run the ordinary forward pass and return its result."""
        with torch.enable_grad(), self._double:
            result = tapped_forward(self.network, taps, self.inputs, self.preprocessing)
        self._logits = class_logits(result.output, self.find_logits)
        self._random = not torch.equal(self._random_state[0], _random_state(self.images.device)[0])
        if self.differentiable:
            return result
        features = {point: feature.detach() for point, feature in result.features.items()}
        return ForwardResult(_detached(result.output), features)

    @cached_property
    def input_gradient(self) -> Tensor:
        """J, in the shape of the images."""
        assert self._logits is not None
        return self._gradient(self._double, self._logits, self.labels, self.images)

    @cached_property
    def deviations(self) -> Tensor | None:
        """The standard deviations (C, 1, 1) by which the student normalizes the images; None: it
        gets them as they are.
        """
        if self.preprocessing is None:
            return None
        channels = self.images.shape[1]
        values = torch.tensor(self.preprocessing.for_channels(channels).std)
        return values.to(self.images).view(-1, *(1,) * (self.images.dim() - 2))

    def flipped(self, axis: int, chosen: Tensor | None = None) -> Tensor:
        """Return J of the flipped images, flipped back.

        The pass has its own batch statistics and moves no running ones; dropout draws the same
        masks as in the ordinary pass.

        Args:
            axis: of the images (N, C, H, W) to flip.
            chosen: (N,) booleans: the images to flip. The others still take part in batch
                statistics where there are any, and are left out where not.

        Returns:
            J of the chosen images.
        """
        whole = chosen is None or self._double.batch_statistics or self._random
        images, labels, inputs = self.images, self.labels, self.inputs
        assert labels is not None
        if images.dim() != 4:
            raise InputError(f"a flip needs images (N, C, H, W), got {tuple(images.shape)}")
        if not whole:
            inputs, labels = map_inputs(lambda value: value[chosen], inputs), labels[chosen]
            images = main_input(inputs)
            if not len(images):
                return images.detach()
        flipped = images.detach().flip(axis).requires_grad_()
        inputs = with_main_input(inputs, flipped)
        double = DoubleBackward()
        with torch.enable_grad(), self._autocast, _replayed(self._random_state, images.device):
            own_inputs = preprocess(self.network, inputs, self.preprocessing)
            with double, own_precision(self.network, own_inputs):
                output = call_with_cloned_state(
                    unwrapped(self.network), own_inputs, parameters=False
                )
        logits = class_logits(output, self.find_logits)
        gradient = self._gradient(double, logits, labels, flipped).flip(axis)
        return gradient[chosen] if whole and chosen is not None else gradient

    def _gradient(
        self, double: DoubleBackward, logits: Tensor, labels: Tensor | None, images: Tensor
    ) -> Tensor:
        with torch.enable_grad():
            try:
                loss = summed_cross_entropy(logits, labels)
            except ValueError as error:
                raise InputError(f"gradient attention: {error}") from None
            return double.gradient(loss, images, create_graph=self.differentiable)


def _detached(output: object) -> object:
    """Return an output without its graph; of an object, a copy with its attributes so."""
    if isinstance(output, Tensor) or not tree_is_leaf(output) or not hasattr(output, "__dict__"):
        return tree_map_only(Tensor, Tensor.detach, output)
    copied = copy.copy(output)
    vars(copied).update(tree_map_only(Tensor, Tensor.detach, dict(vars(output))))
    return copied


def _random_state(device: torch.device) -> list[Tensor]:
    """Return the states of the generators that a network on a device draws from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.insert(0, torch.cuda.get_rng_state(device))
    return states


@contextmanager
def _replayed(states: list[Tensor], device: torch.device) -> Iterator[None]:
    """Draw random numbers from a state inside the block; restore the generators after it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(states[-1])
        if device.type == "cuda":
            torch.cuda.set_rng_state(states[0], device)
        yield
