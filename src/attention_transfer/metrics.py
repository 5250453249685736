"""Numbers for attention over a data set: the means of :mod:`attention_transfer.functional.measures` over
images, as `torchmetrics` has them.

They are updated batch by batch, summed over processes, reset, put into a ``MetricCollection`` or
logged by Lightning like any other metric. Importing this module imports torchmetrics, which takes
seconds; nothing else here does.

    >>> metric = at.metrics.AttentionCosineSimilarity()
    >>> for student, teacher in [((3.0, 4.0), (4.0, 3.0)), ((1.0, 0.0), (1.0, 0.0))]:
    ...     metric.update(torch.tensor([[student]]), torch.tensor([[teacher]]))
    >>> metric.compute()
    tensor(0.9800)
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from attention_transfer.functional import measures

__all__ = [
    "AttentionCosineSimilarity",
    "AttentionEntropy",
    "AttentionRankCorrelation",
    "EnergyPointingGame",
    "PointingGame",
]


class _MeanOverImages(Metric):
    """The mean of a figure per image, over all images seen since the last reset; NaN, with
    torchmetrics' warning, before the first.
    """

    # A collection takes metrics whose states have the same names and values for one and the same.
    total_name: ClassVar[str]
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    images: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state(self.total_name, torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """The mean over images, a scalar."""
        total: Tensor = getattr(self, self.total_name)
        return total / self.images

    def _add(self, figures: Tensor) -> None:
        total: Tensor = getattr(self, self.total_name)
        setattr(self, self.total_name, total + figures.sum().to(total.dtype))
        self.images = self.images + len(figures)


class AttentionCosineSimilarity(_MeanOverImages):
    """Mean :func:`~attention_transfer.functional.measures.cosine` of student's and teacher's maps.

    >>> metric = AttentionCosineSimilarity()
    >>> metric(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0]]]))
    tensor(0.9600)
    """

    total_name = "total_cosine"
    is_differentiable = True
    higher_is_better = True

    def update(self, student_maps: Tensor, teacher_maps: Tensor) -> None:
        """Adds the images of a batch: (N, H, W) and (N, H', W')."""
        self._add(measures.cosine(student_maps, teacher_maps))


class AttentionRankCorrelation(_MeanOverImages):
    """Mean :func:`~attention_transfer.functional.measures.rank_correlation` of student's and teacher's maps.

    >>> metric = AttentionRankCorrelation()
    >>> metric(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[9.0, 4.0, 1.0]]]))
    tensor(-1.0000)
    """

    total_name = "total_rank_correlation"
    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = -1.0

    def update(self, student_maps: Tensor, teacher_maps: Tensor) -> None:
        """Adds the images of a batch: (N, H, W) and (N, H', W')."""
        self._add(measures.rank_correlation(student_maps, teacher_maps))


class AttentionEntropy(_MeanOverImages):
    """Mean :func:`~attention_transfer.functional.measures.entropy` of maps: 1 is even, 0 on one place.

    >>> metric = AttentionEntropy()
    >>> metric(torch.tensor([[[1.0, 1.0, 0.0, 0.0]]]))
    tensor(0.5000)
    """

    total_name = "total_entropy"
    is_differentiable = True

    def update(self, maps: Tensor) -> None:
        """Adds the images of a batch: (N, H, W)."""
        self._add(measures.entropy(maps))


class EnergyPointingGame(_MeanOverImages):
    """Mean :func:`~attention_transfer.functional.measures.energy_pointing_game`: the attention on the object.

    >>> metric = EnergyPointingGame()
    >>> metric(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
    tensor(0.7500)
    """

    total_name = "total_inside"
    is_differentiable = True
    higher_is_better = True

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Adds the images of a batch: (N, H, W) and (N, H', W')."""
        self._add(measures.energy_pointing_game(maps, masks))


class PointingGame(_MeanOverImages):
    """The share of images whose map is highest on the object: mean
    :func:`~attention_transfer.functional.measures.pointing_game`.

    >>> metric = PointingGame()
    >>> metric(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
    tensor(1.)
    """

    total_name = "total_hits"
    is_differentiable = False
    higher_is_better = True

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Adds the images of a batch: (N, H, W) and (N, H', W')."""
        self._add(measures.pointing_game(maps, masks))
