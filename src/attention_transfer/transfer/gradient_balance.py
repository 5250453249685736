"""Weights of terms from gradient norms: ``beta="auto"``.

For layer pair j of J, let N_j be the norm of the gradient that arrives at the student's point from
everything but the terms that compare layers there (from labels, distillation, later pairs), and A_j
the norm of the gradient of the pair's own loss, both at the point's features of the whole batch.
Then

    beta_j = min(largest beta, N_j / (sqrt(J) * A_j))

from running means of both. Where the two gradients are orthogonal, no pair adds more than 1/J of
the square of what arrives, so the gradient below J of them grows by at most
(1 + 1/J)^(J/2) < sqrt(e), for any number of pairs and any length of training.

A term over input gradients has no layer: N and A are then norms of the gradient in the student's
weights, of everything but such terms and of the term's own loss, and J counts these terms.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["WEIGHTS", "GradientBalance", "Measurement", "balanced_beta", "is_measured"]

WEIGHTS = "weights"
"""In place of a layer pair, of a term whose gradient is measured in the student's weights."""

LOSS_SCALE = 2.0**12
"""Of a loss whose gradient in the weights is measured, which float16 would lose unscaled. A power
of two changes no digit in other types.
"""

DECAY = 0.9
"""Share of a running mean that is left after one step."""

LEAST_LEFT = 0.75
"""Share of a running mean that is left after a measurement, however long ago the last one was: one
batch alone is noise.
"""

STEPS_AT_FIRST = 8
"""The first steps, which are all measured."""

MOST_STEPS_BETWEEN = 64
"""Steps between two measurements in a long run."""


def balanced_beta(
    task_norm: Tensor, term_norm: Tensor, pairs: int, largest: Tensor | float
) -> Tensor:
    """Return beta = min(largest, N / (sqrt(J) * A)) for each pair.

    Args:
        task_norm: N, the norm of the gradient from everything else; NaN where it is unknown.
        term_norm: A, the norm of the gradient of the pair's own loss without a weight.
        pairs: J.
        largest: the bound.

    Returns:
        beta, of the norms' shape: 0 where a norm is unknown or N is 0.

    Example:
        >>> balanced_beta(torch.tensor([3.0, 3.0]), torch.tensor([0.5, 1e-9]), 4, 1000.0)
        tensor([   3., 1000.])
    """
    beta = torch.minimum(
        task_norm / (math.sqrt(pairs) * term_norm), torch.as_tensor(largest, dtype=torch.float32)
    )
    return torch.where((task_norm > 0) & ~term_norm.isnan(), beta, 0.0)


def is_measured(step: int) -> bool:
    """Return whether gradients are measured in a step, counted from 0.

    In all of the first steps, then at every second, fourth, ... one, and at last every 64th: a run
    of any length is measured from its beginning on and pays for about one step in a hundred.

    >>> [step for step in range(100) if is_measured(step)][8:]
    [8, 10, 12, 14, 16, 18, 20, 22, 24, 28, 32, 36, 40, 44, 48, 52, 56, 64, 72, 80, 88, 96]
    """
    return step % _gap(step) == 0


def _gap(step: int) -> int:
    """Return the steps between measurements around a step: a power of two."""
    return min(MOST_STEPS_BETWEEN, 1 << ((1 + step // STEPS_AT_FIRST).bit_length() - 1))


def _steps_since(step: int) -> int:
    """Return the steps since the measurement before one."""
    before = step - 1
    while before > 0 and not is_measured(before):
        before -= 1
    return step - before


class GradientBalance(nn.Module):
    """The running means of N_j and A_j, and beta_j from them.

    Each training pass begins with :meth:`begin`; after its backward pass, :meth:`end_step` takes
    what was measured into the means.

    Args:
        pairs: (term, pair, student point) of each layer pair; (term, ``WEIGHTS``, None) of a term
            over input gradients.
        largest: the largest beta of each of them; None where its beta is constant, so that it is
            measured only.
    """

    task_norms: Tensor
    term_norms: Tensor
    steps: Tensor
    betas: Tensor
    """Of all pairs, until the means change; 0 where they are constant."""

    def __init__(
        self, pairs: Sequence[tuple[str, str, str | None]], largest: Sequence[float | None]
    ) -> None:
        super().__init__()
        self._pairs = [(term, pair) for term, pair, _ in pairs]
        self._places = {
            term: [place for place, (other, _) in enumerate(self._pairs) if other == term]
            for term, _ in self._pairs
        }
        """The places of each term's pairs, side by side, in the order of the pairs."""
        self._points = [point for _, _, point in pairs]
        self._auto = {
            term for (term, _), beta in zip(self._pairs, largest, strict=True) if beta is not None
        }
        self._at_weights = [term for term, pair in self._pairs if pair == WEIGHTS]
        bounds = [0.0 if beta is None else beta for beta in largest]
        unknown = torch.full((len(pairs),), math.nan)
        self.register_buffer("largest", torch.tensor(bounds), persistent=False)
        self.register_buffer("task_norms", unknown)
        self.register_buffer("term_norms", unknown.clone())
        self.register_buffer("betas", torch.zeros(len(pairs)), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        """Saved as two numbers for each pair, under its name: another Transfer may have others."""
        self._step: int | None = 0
        """The same as ``steps``, which a GPU need not be asked for; None: to be read."""
        self._sums: _Sums | None = None
        """Of the step that is being measured."""
        self._begun = False
        self.steps_by_hand = False
        """Whether :meth:`end_step` is called after each step; else each forward pass is one."""

    def has_pairs(self, term: str) -> bool:
        """Return whether the layer pairs of a term are measured."""
        return term in self._places and not self.is_at_weights(term)

    def is_at_weights(self, term: str) -> bool:
        """Return whether the gradient of a term is measured in the student's weights."""
        return term in self._at_weights

    def finds_beta(self, term: str) -> bool:
        """Return whether the weights of a term's layer pairs are found here."""
        return term in self._auto

    def beta(self, term: str) -> Tensor:
        """Return the weights of a term's pairs, in order, from the steps before this one."""
        places = self._places[term]
        return self.betas[places[0] : places[-1] + 1]

    def _set_betas(self) -> None:
        """Follow the means; earlier betas stay as they are, as graphs may hold them."""
        largest = self.get_buffer("largest")
        betas = torch.zeros_like(self.betas)
        for term in self._auto:
            kind, places = self.is_at_weights(term), self._places[term]
            count = sum(
                self.is_at_weights(other) == kind for other, _ in self._pairs if other in self._auto
            )
            betas[places] = balanced_beta(
                self.task_norms[places], self.term_norms[places], count, largest[places]
            )
        self.betas = betas

    def ratios(self, weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Return beta_j * A_j / N_j: the gradient that a term sends to each point, or to the
        weights, over that of everything else there.

        Args:
            weights: of the terms now: their constant beta, or the factor of those found here, with
                their schedules.

        Returns:
            Term -> layer pair -> ratio, of the pairs that have been measured.
        """
        found: dict[str, dict[str, float]] = {}
        ratios = self.term_norms / self.task_norms
        for term, places in self._places.items():
            betas = self.beta(term).tolist() if term in self._auto else [1.0] * len(places)
            for place, beta, ratio in zip(places, betas, ratios[places].tolist(), strict=True):
                if math.isfinite(ratio):
                    found.setdefault(term, {})[self._pairs[place][1]] = weights[term] * beta * ratio
        return found

    def begin(self, images: int) -> "Measurement | None":
        """Begin a training pass of so many images, and return what measures it if it is time to."""
        # A pass without a backward pass, such as a look at the loss, is no measured step.
        unseen = self._sums is not None and not self._sums.images
        if self._begun and not self.steps_by_hand and not unseen:
            self.end_step()
        self._begun = True
        if self._step is None:
            self._step = int(self.steps)
        if not is_measured(self._step):
            return None
        if self._sums is None:
            self._sums = _Sums()
        return Measurement(images, self._sums, self._at_weights)

    def end_step(self, total: Callable[[Tensor], Tensor] | None = None) -> None:
        """Take what was measured in a step into the means, and count the step.

        Args:
            total: sums a tensor over the processes that train together; all of them call this.
        """
        step = self._step = int(self.steps) if self._step is None else self._step
        sums, self._sums = self._sums, None
        if is_measured(step) and sums is not None and sums.images:
            self._take(sums, total or (lambda tensor: tensor), _steps_since(step))
        self.steps += 1
        self._step += 1

    def _take(self, sums: "_Sums", total: Callable[[Tensor], Tensor], steps: int) -> None:
        """Take the sums over all images into the means, after so many steps."""
        squares = self.task_norms.new_tensor(
            [
                *(sums.task.get(point or "", math.nan) for point in self._points),
                *(sums.term.get(pair, math.nan) for pair in self._pairs),
                sums.images,
            ]
        )
        squares = total(squares)
        norms, images = squares[:-1].sqrt(), squares[-1]
        task, term = norms.chunk(2)
        if self._at_weights:  # one vector for all images, not one for each
            task_at_weights = torch.linalg.vector_norm(total(sums.weights[None]))
        for name in self._at_weights:
            (place,) = self._places[name]
            task[place] = task_at_weights
            term[place] = torch.linalg.vector_norm(total(sums.weights[name]))
        task, term = task / images, term / images
        known = task.isfinite() & term.isfinite()
        left = max(DECAY**steps, LEAST_LEFT)
        for mean, value in ((self.task_norms, task), (self.term_norms, term)):
            moved = torch.where(mean.isnan(), value, left * mean + (1 - left) * value)
            mean.copy_(torch.where(known, moved, mean))
        self._set_betas()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move as any module, but stay in float32."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor).device)

        return super()._apply(move, recurse)  # type: ignore[no-untyped-call]

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[f"{prefix}steps"] = self.steps
        norms = torch.stack([self.task_norms, self.term_norms], dim=1)
        for name, values in zip(self._names(prefix), norms, strict=True):
            destination[name] = values.clone()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *_arguments: Any
    ) -> None:
        """Load the means of pairs that are there; the others begin anew."""
        self.steps.copy_(state_dict.get(f"{prefix}steps", self.steps))
        for place, name in enumerate(self._names(prefix)):
            unknown = torch.full((2,), math.nan)
            self.task_norms[place], self.term_norms[place] = state_dict.get(name, unknown)
        self._step = self._sums = None
        self._set_betas()

    def _names(self, prefix: str) -> list[str]:
        return [prefix + f"{term}/{pair}".replace(".", "/") for term, pair in self._pairs]


@dataclass
class _Sums:
    """Sums over the images of a step: of squared norms, times the square of the images."""

    images: int = 0
    task: dict[str, Tensor] = field(default_factory=dict)
    """By the student's point."""
    term: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    """By term and pair."""
    weights: dict[str | None, Tensor] = field(default_factory=dict)
    """The gradients in the student's weights themselves, times the images: by term over input
    gradients; None: of everything else.
    """


class Measurement:
    """The gradients in one forward pass and its backward pass.

    Args:
        images: in the pass.
        sums: to add to.
        at_weights: the terms whose gradient is measured in the student's weights.
    """

    def __init__(self, images: int, sums: _Sums, at_weights: Sequence[str]) -> None:
        self._images, self._sums = images, sums
        self.at_weights = at_weights
        self._handles: dict[str, tuple[RemovableHandle, RemovableHandle]] = {}
        self._term: dict[tuple[str, str], Tensor] = {}
        self._weights: dict[str | None, Tensor] = {}
        self._attention: dict[str, Tensor] = {}
        """The gradient of the attention at a point, until all others have arrived there."""
        self._scale: Tensor | None = None
        """Of the loss in the backward pass; None before it."""

    def watch_point(self, point: str, output: Tensor, features: Tensor) -> None:
        """Measure in the backward pass what arrives at a point.

        Args:
            point: of the student.
            output: of its module, which the rest of the network goes on with.
            features: the same values, which the terms alone go on with.
        """
        for handle in self._handles.pop(point, ()):  # of a sequence: its last module came first
            handle.remove()
        self._handles[point] = (
            features.register_hook(lambda gradient: self._keep_attention(point, gradient)),  # type: ignore[no-untyped-call]
            output.register_hook(lambda gradient: self._measure_task(point, gradient)),  # type: ignore[no-untyped-call]
        )

    def measure_pair(self, term: str, pair: str, loss: Tensor, features: Tensor) -> None:
        """Measure now the gradient of a pair's loss at the features that it was computed from."""
        if not (loss.requires_grad and features.requires_grad):
            return
        (gradient,) = torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)
        if gradient is not None:
            self._term[term, pair] = self._square(gradient)

    def measure_in_weights(
        self, term: str | None, loss: Tensor, parameters: Sequence[nn.Parameter]
    ) -> None:
        """Measure now the gradient of a loss in the student's weights.

        Args:
            term: over input gradients; None: the loss is the sum of all others.
            loss: a mean over the images.
            parameters: those of the student that learn.
        """
        gradients: Sequence[Tensor | None] = [None] * len(parameters)
        if loss.requires_grad:
            gradients = torch.autograd.grad(
                loss * LOSS_SCALE, parameters, retain_graph=True, allow_unused=True
            )
        of_weights = [
            torch.zeros_like(weights) if gradient is None else gradient.detach()
            for weights, gradient in zip(parameters, gradients, strict=True)
        ]
        flat = torch.cat(
            [loss.new_zeros(0), *(gradient.flatten().to(loss) for gradient in of_weights)]
        )
        self._weights[term] = flat * (self._images / LOSS_SCALE)

    def watch_loss(self, loss: Tensor) -> None:
        """Begin when the backward pass of the whole loss begins."""
        if loss.requires_grad:
            loss.register_hook(self._begin)  # type: ignore[no-untyped-call]

    def _begin(self, gradient: Tensor) -> None:
        self._scale = gradient.detach()
        self._sums.images += self._images
        for pair, square in self._term.items():
            self._sums.term[pair] = self._sums.term.get(pair, 0) + square
        for term, vector in self._weights.items():
            self._sums.weights[term] = self._sums.weights.get(term, 0) + vector

    def _keep_attention(self, point: str, gradient: Tensor) -> None:
        if self._scale is not None:
            self._attention[point] = gradient

    def _measure_task(self, point: str, gradient: Tensor) -> None:
        if self._scale is None:  # another backward pass, such as that of the loss to the input
            return
        attention = self._attention.pop(point, None)
        task = gradient if attention is None else gradient - attention
        square = self._square(task) / self._scale.square()
        self._sums.task[point] = self._sums.task.get(point, 0) + square

    def _square(self, gradient: Tensor) -> Tensor:
        """Return the square of a gradient's norm, as of the sum over images and not their mean."""
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        norm = torch.linalg.vector_norm(gradient.detach(), dtype=dtype)
        square: Tensor = (norm * self._images).square()
        return square
