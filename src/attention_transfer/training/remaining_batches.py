"""The batches of the steps that a run has yet to take."""

from collections.abc import Generator

import torch

from attention_transfer.data import (
    AugmentedView,
    Batch,
    EpochPass,
    epoch_order,
    resolve_workers,
    stream,
)
from attention_transfer.training.processes import Processes
from attention_transfer.training.setup import RunSetup

__all__ = ["remaining_batches"]


def remaining_batches(
    setup: RunSetup, epoch: int, step: int, processes: Processes, device: torch.device
) -> Generator[Batch]:
    """Yield a process's shares of the batches; those of the next epoch load during validation.

    Args:
        setup: of the run.
        epoch: the whole epochs that are done.
        step: the steps of the next epoch that are done.
        processes: that train together.
        device: of this process.
    """
    config, images = setup.config, setup.data.train
    first_batches = {epoch: step}
    return stream(
        images,
        (
            EpochPass(
                epoch_order(len(images), config.seed, number),
                _view(setup, number),
                first_batches.get(number, 0),
            )
            for number in range(epoch, config.epochs)
        ),
        config.batch_size,
        process=processes.index,
        processes=processes.count,
        workers=resolve_workers(config.workers, images),
        device=device,
    )


def _view(setup: RunSetup, epoch: int) -> AugmentedView:
    """Return an epoch's augmented view; with a cache, epochs cycle through its views."""
    targets = setup.targets
    return AugmentedView(
        setup.config.data_seed, epoch if targets is None else epoch % targets.views
    )
