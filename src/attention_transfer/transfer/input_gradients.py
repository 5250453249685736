"""Gradients at the input: where the loss is sensitive to the image (paper, section 3.2).

J = d(sum over the batch of the cross-entropy) / d(images), of the images given to the
:class:`attention_transfer.Transfer`, before either network's own normalisation.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from attention_transfer.double_backward import DoubleBackward
from attention_transfer.errors import InputError
from attention_transfer.functional.losses import summed_cross_entropy
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.taps import Taps, unwrapped
from attention_transfer.transfer.cloned_state import call_with_cloned_state
from attention_transfer.transfer.teacher import ForwardResult, tapped_forward

__all__ = ["InputGradients", "check_images"]


def check_images(images: Tensor) -> None:
    """Raises an InputError for images at which no gradient can be taken."""
    if not images.is_floating_point():
        raise InputError(
            f"gradient attention differentiates the loss at the images, got {images.dtype}; "
            "give floating-point images, such as images.float() / 255"
        )
    if torch.is_inference_mode_enabled() or images.is_inference():
        raise InputError(
            "gradient attention needs autograd, which torch.inference_mode() switches off; "
            "use torch.no_grad() instead"
        )


class InputGradients:
    """The student's gradients at the input, for one batch.

    The straight pass comes first (:meth:`observe`); each gradient is computed when a term asks
    for it, once, whichever terms share it.

    Args:
        network: the student, in the mode it is to be judged in.
        normalization: the student's own, or None.
        images: (N, C, H, W).
        labels: of :func:`attention_transfer.functional.losses.summed_cross_entropy`.
    """

    def __init__(
        self,
        network: nn.Module,
        normalization: Preprocessing | None,
        images: Tensor,
        labels: Tensor | None,
    ) -> None:
        check_images(images)
        self.network, self.normalization, self.labels = network, normalization, labels
        self.differentiable = torch.is_grad_enabled()
        # Images that are part of a larger graph stay part of it.
        self.images = images if images.requires_grad else images.detach().requires_grad_()
        device = images.device.type
        self._autocast = torch.autocast(
            device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        )
        self._random_state = _random_state(images.device)
        self._double = DoubleBackward()
        self._logits: Tensor | None = None

    def observe(self, taps: Taps) -> ForwardResult:
        """The straight pass."""
        with torch.enable_grad(), self._double:
            seen = tapped_forward(self.network, taps, self.images, self.normalization)
        self._logits = seen.logits
        self._random = not torch.equal(self._random_state[0], _random_state(self.images.device)[0])
        if self.differentiable:
            return seen
        features = {point: feature.detach() for point, feature in seen.features.items()}
        return ForwardResult(seen.logits.detach(), features)

    @cached_property
    def input_gradient(self) -> Tensor:
        """J, (N, C, H, W)."""
        assert self._logits is not None
        return self._gradient(self._double, self._logits, self.labels, self.images)

    def flipped(self, axis: int, chosen: Tensor | None = None) -> Tensor:
        """J of the flipped images, flipped back.

        The pass has its own batch statistics and moves no running ones; dropout draws the same
        masks as in the straight pass.

        Args:
            axis: of (N, C, H, W) to flip.
            chosen: (N,) booleans: the images wanted. The others still take part in batch
                statistics where there are any, and are left out where not.

        Returns:
            J of the chosen images.
        """
        whole = chosen is None or self._double.batch_statistics or self._random
        images, labels = self.images, self.labels
        assert labels is not None
        if images.dim() != 4:
            raise InputError(f"a flip needs images (N, C, H, W), got {tuple(images.shape)}")
        if not whole:
            images, labels = images[chosen], labels[chosen]
            if not len(images):
                return images.detach()
        images = images.detach().flip(axis).requires_grad_()
        double = DoubleBackward()
        with torch.enable_grad(), self._autocast, _replayed(self._random_state, images.device):
            given = images if self.normalization is None else self.normalization(images)
            with double:
                logits = call_with_cloned_state(unwrapped(self.network), (given,), parameters=False)
        gradient = self._gradient(double, logits, labels, images).flip(axis)
        return gradient[chosen] if whole and chosen is not None else gradient

    def _gradient(
        self, double: DoubleBackward, logits: Tensor, labels: Tensor | None, images: Tensor
    ) -> Tensor:
        with torch.enable_grad():
            loss = summed_cross_entropy(logits, labels)
            return double.gradient(loss, images, create_graph=self.differentiable)


def _random_state(device: torch.device) -> list[Tensor]:
    """The states of the generators that a network on a device draws from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.insert(0, torch.cuda.get_rng_state(device))
    return states


@contextmanager
def _replayed(states: list[Tensor], device: torch.device) -> Iterator[None]:
    """Random numbers as from a state; the generators go on afterwards as if never touched."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(states[-1])
        if device.type == "cuda":
            torch.cuda.set_rng_state(states[0], device)
        yield
