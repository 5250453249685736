"""The measures of :mod:`attention_transfer.functional.measures` over a data set, as torchmetrics.

Each metric is the mean of one measure over images. Like any torchmetrics metric it is updated
batch by batch, summed over processes, reset, put into a ``MetricCollection`` or logged by
Lightning. It needs the extra ``metrics``: ``pip install 'attention-transfer[metrics]'``.

    >>> metric = at.metrics.AttentionCosineSimilarity()
    >>> for student, teacher in [((3.0, 4.0), (4.0, 3.0)), ((1.0, 0.0), (1.0, 0.0))]:
    ...     metric.update(torch.tensor([[student]]), torch.tensor([[teacher]]))
    >>> metric.compute()
    tensor(0.9800)
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from attention_transfer.functional import measures

try:
    from torchmetrics import Metric
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"attention_transfer.metrics needs the package {error.name}, which is not installed; "
        "run: pip install 'attention-transfer[metrics]'",
        name=error.name,
    ) from None

__all__ = [
    "AttentionCosineSimilarity",
    "AttentionEntropy",
    "AttentionRankCorrelation",
    "EnergyPointingGame",
    "PointingGame",
]


class _MeanOverImages(Metric):
    """The mean of a measure over all images since the last reset.

    Before the first image it is NaN, with a warning of torchmetrics.
    """

    # A MetricCollection merges metrics whose states have equal names and values, so every metric
    # names its sum differently.
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
        """Return the mean over images, a scalar."""
        total: Tensor = getattr(self, self.total_name)
        return total / self.images

    def _add(self, values: Tensor) -> None:
        total: Tensor = getattr(self, self.total_name)
        setattr(self, self.total_name, total + values.sum().to(total.dtype))
        self.images = self.images + len(values)


class AttentionCosineSimilarity(_MeanOverImages):
    """Mean :func:`~attention_transfer.functional.measures.cosine` of student and teacher maps.

    >>> metric = AttentionCosineSimilarity()
    >>> metric(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0]]]))
    tensor(0.9600)
    """

    total_name = "total_cosine"
    is_differentiable = True
    higher_is_better = True

    def update(self, student_maps: Tensor, teacher_maps: Tensor) -> None:
        """Add a batch's maps of the student (N, H, W) and the teacher (N, H', W')."""
        self._add(measures.cosine(student_maps, teacher_maps))


class AttentionRankCorrelation(_MeanOverImages):
    """Mean :func:`~attention_transfer.functional.measures.rank_correlation` of both networks' maps.

    >>> metric = AttentionRankCorrelation()
    >>> metric(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[9.0, 4.0, 1.0]]]))
    tensor(-1.0000)
    """

    total_name = "total_rank_correlation"
    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = -1.0

    def update(self, student_maps: Tensor, teacher_maps: Tensor) -> None:
        """Add a batch's maps of the student (N, H, W) and the teacher (N, H', W')."""
        self._add(measures.rank_correlation(student_maps, teacher_maps))


class AttentionEntropy(_MeanOverImages):
    """Mean :func:`~attention_transfer.functional.measures.entropy`: 1 is even, 0 a peak.

    >>> metric = AttentionEntropy()
    >>> metric(torch.tensor([[[1.0, 1.0, 0.0, 0.0]]]))
    tensor(0.5000)
    """

    total_name = "total_entropy"
    is_differentiable = True

    def update(self, maps: Tensor) -> None:
        """Add a batch's maps, (N, H, W)."""
        self._add(measures.entropy(maps))


class EnergyPointingGame(_MeanOverImages):
    """Mean :func:`~attention_transfer.functional.measures.energy_pointing_game`: the share of
    attention that lies on the object.

    >>> metric = EnergyPointingGame()
    >>> metric(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
    tensor(0.7500)
    """

    total_name = "total_energy"
    is_differentiable = True
    higher_is_better = True

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Add a batch's maps (N, H, W) and object masks (N, H', W')."""
        self._add(measures.energy_pointing_game(maps, masks))


class PointingGame(_MeanOverImages):
    """Mean :func:`~attention_transfer.functional.measures.pointing_game`, the share of hits.

    >>> metric = PointingGame()
    >>> metric(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
    tensor(1.)
    """

    total_name = "total_hits"
    is_differentiable = False
    higher_is_better = True

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Add a batch's maps (N, H, W) and object masks (N, H', W')."""
        self._add(measures.pointing_game(maps, masks))
