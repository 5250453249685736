"""The data set of plain digits that a study uses."""

import torch

from attention_transfer.data.cluttered_digits import sources, training_digits
from attention_transfer.experiments.plain_digits import plain_digits


def test_splits_are_balanced_and_share_no_digit() -> None:
    data = plain_digits()
    pixels, labels, _ = sources()
    known = {digit.tobytes(): index for index, digit in enumerate(pixels)}
    for_training = training_digits(labels)
    found: dict[str, list[int]] = {}
    for name, count in (("train", 50), ("validation", 100), ("test", 100)):
        split = getattr(data, name)
        assert torch.bincount(split.labels).tolist() == [count] * 10
        assert split.images.shape == (10 * count, 32, 32, 3)
        inner = split.images[:, 2:30, 2:30, 0].contiguous().numpy()
        found[name] = [known[digit.tobytes()] for digit in inner]
        assert labels[found[name]].tolist() == split.labels.tolist()
    every = [index for indices in found.values() for index in indices]
    assert len(set(every)) == len(every)
    assert for_training[found["train"] + found["validation"]].all()
    assert not for_training[found["test"]].any()
