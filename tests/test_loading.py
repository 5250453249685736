"""Loading of batches: passes without a gap, loader workers where they help, other devices."""

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from attention_transfer.data import (
    AugmentedView,
    DataSet,
    EpochPass,
    Images,
    ImageSet,
    WithAugmentation,
    batch_bounds,
    batches,
    epoch_order,
    resolve_workers,
    stream,
)
from attention_transfer.data.files import FileImages
from attention_transfer.data.folders import folder_data
from test_folders import fill


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_its_passes_one_after_the_other(tmp_path: Path, workers: int) -> None:
    images = WithAugmentation(folder_data(fill(tmp_path), (16, 16)).train, 3, cutmix=0.2)
    passes = [
        EpochPass(epoch_order(len(images), 0, epoch), AugmentedView(0, epoch)) for epoch in range(3)
    ]
    passes.append(EpochPass(np.arange(5), None))
    expected = [
        batch
        for one in passes
        for batch in batches(images, one.order, 7, view=one.view, process=1, processes=2)
    ]
    found = list(stream(images, iter(passes), 7, process=1, processes=2, workers=workers))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert np.array_equal(one.indices, other.indices)
        assert one.total == other.total


class Recorder(FileImages):
    """File images that leave a file for each process that decodes and for each view."""

    def pixels(self, indices: np.ndarray, view: AugmentedView | None = None) -> torch.Tensor:
        number = view.number if view else None
        (self.root.parent / f"process {os.getpid()}").touch()
        (self.root.parent / f"view {number}").touch()
        return super().pixels(indices, view)


def test_the_same_worker_decodes_the_next_pass_while_the_last_is_judged(tmp_path: Path) -> None:
    whole = folder_data(fill(tmp_path / "images"), (16, 16)).train
    images = Recorder(whole.labels, whole.crop_resize, whole.root, whole.paths)
    order = np.arange(len(images))
    source = stream(
        images, (EpochPass(order, AugmentedView(0, n)) for n in range(3)), 12, workers=1
    )
    for _ in batch_bounds(len(order), 12):
        next(source)
    deadline = time.monotonic() + 30
    while not (tmp_path / "view 1").exists():  # not requested yet
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(list(source)) == 4
    assert len(list(tmp_path.glob("process *"))) == 1


def test_a_stream_that_is_closed_lets_its_workers_go(tmp_path: Path) -> None:
    images = folder_data(fill(tmp_path), (16, 16)).train
    order = np.arange(len(images))
    source = stream(images, (EpochPass(order, AugmentedView(0, n)) for n in range(9)), 4, workers=2)
    next(source)
    assert len(multiprocessing.active_children()) == 2
    source.close()
    assert not multiprocessing.active_children()


def test_batches_are_where_they_were_asked_for(data: DataSet) -> None:
    (batch,) = batches(data.train, np.arange(9), 9, device=torch.device("meta"))
    assert batch.images.device.type == batch.labels.device.type == "meta"
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics processor")
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_reach_a_graphics_processor(tmp_path: Path, workers: int) -> None:
    images = folder_data(fill(tmp_path), (16, 16)).train
    order = np.arange(len(images))
    here = batches(images, order, 8)
    there = batches(images, order, 8, workers=workers, device=torch.device("cuda"))
    for one, other in zip(here, there, strict=True):
        assert torch.allclose(one.images, other.images.cpu())
        assert torch.equal(one.labels, other.labels.cpu())


def test_workers_load_images_that_take_time(tmp_path: Path) -> None:
    files = folder_data(fill(tmp_path), (16, 16)).train
    memory = ImageSet(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.zeros(4).long())
    expected: list[tuple[Images, int]] = [
        (files, 3),
        (memory, 0),
        (memory.with_transform(lambda image: image), 3),
        (WithAugmentation(files, 3, random_erasing=0.5), 3),
        (WithAugmentation(memory, 3, random_erasing=0.5), 3),
        (WithAugmentation(memory, 3, randaugment=9), 3),
        (WithAugmentation(memory, 3, mixup=0.2), 3),
    ]
    for images, workers in expected:
        assert resolve_workers(3, images) == workers
    assert 1 <= resolve_workers(None, files) <= 8


def test_workers_make_batches_of_images_in_memory(data: DataSet) -> None:
    images = WithAugmentation(data.train, 3, randaugment=9, cutmix=0.5)
    order = np.arange(len(images))
    alone, helped = (
        list(batches(images, order, 20, view=AugmentedView(0, 1), workers=workers))
        for workers in (0, 1)
    )
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
