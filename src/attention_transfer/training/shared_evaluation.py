"""Predictions that the processes of a run compute together, each for its share of the images."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from attention_transfer.data import DataSet, Images, resolve_workers
from attention_transfer.errors import InputError
from attention_transfer.models import LoadedModel
from attention_transfer.network_inputs import preprocessing_for
from attention_transfer.preprocessing import Preprocessing
from attention_transfer.training.classification_metrics import compute_metrics
from attention_transfer.training.evaluation import BATCH_SIZE, predict
from attention_transfer.training.processes import Processes

__all__ = ["SharedEvaluation"]


class SharedEvaluation:
    """Computes the logits of whole sets of images, in shares that differ by one image at most.

    Args:
        processes: that compute together.
        precision: "fp32", "bf16" or "fp16".
        device: of this process.
        workers: processes that decode ahead; None: by the cores.
        between: called equally often in all processes, between batches; it may raise.
    """

    def __init__(
        self,
        processes: Processes,
        precision: str,
        device: torch.device,
        workers: int | None,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self.processes, self.precision, self.device = processes, precision, device
        self.workers, self.between = workers, between

    def logits(
        self,
        network: nn.Module,
        images: Images,
        preprocessing: Preprocessing | None,
        classes: int | None,
        batch_size: int = BATCH_SIZE,
        finite: bool = True,
    ) -> Tensor | None:
        """Return the logits (N, K) of all images in the main process, None in the others.

        Every image is evaluated once, with the main process's running statistics. A share is the
        same set of images for the same number of processes.

        Raises:
            InputError, TrainingError: as of :func:`predict`.
        """
        self.processes.share_buffers(network)
        shares = np.array_split(np.arange(len(images)), self.processes.count)
        share = shares[self.processes.index]
        part = images
        if self.processes.count > 1:  # a process without images judges one, and drops it
            part = images.subset(share if len(share) else np.zeros(1, dtype=np.int64))
        calls = 0

        def between() -> None:
            nonlocal calls
            calls += 1
            self.between()

        logits = predict(
            network,
            part,
            preprocessing,
            classes=classes,
            batch_size=batch_size,
            precision=self.precision,
            device=self.device,
            workers=resolve_workers(self.workers, part),
            between=between,
            finite=finite,
        )
        while calls < -(-len(shares[0]) // batch_size):
            between()
        parts = self.processes.gather(logits[: len(share)])
        return torch.cat(parts) if parts else None

    def teacher_logits(
        self,
        teacher: LoadedModel,
        data: DataSet,
        images: Images,
        preprocessing: Preprocessing | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        finite: bool = True,
    ) -> Tensor | None:
        """Return a teacher's logits of images at its own size, as :meth:`logits` does.

        Args:
            teacher: the network.
            data: the data set of the images.
            images: to evaluate it on.
            preprocessing: of its input; None: that which its weights expect.
            batch_size: images of a forward pass.
            finite: whether all logits must be finite.

        Raises:
            InputError: it has other classes than the data.
            TrainingError: logits are not finite.
        """
        preprocessing = preprocessing or preprocessing_for(teacher, data)
        images = images.resized(preprocessing.size or images.size, preprocessing.interpolation)
        classes = len(data.class_names)
        return self.logits(teacher.network, images, preprocessing, classes, batch_size, finite)

    def teachers_error(self, teachers: Sequence[LoadedModel], data: DataSet) -> float | None:
        """Return the test error of teachers' mean logits, in percent, in the main process.

        None in the others, without a teacher, or if one has other classes than the data.
        """
        logits = []
        for teacher in teachers:
            try:
                part = self.teacher_logits(teacher, data, data.test)
            except InputError:
                return None
            if part is not None:
                logits.append(part)
        if not logits:
            return None
        return compute_metrics(torch.stack(logits).mean(0), data.test.labels).error
