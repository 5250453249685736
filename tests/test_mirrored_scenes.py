"""The data sets of scenes that are shown both ways, which a study uses."""

import torch

from attention_transfer.data.cluttered_digits import cluttered_digits
from attention_transfer.experiments.mirrored_scenes import few_mirrored_scenes, mirrored_scenes


def test_each_scene_is_followed_by_its_mirror_image_in_the_same_split() -> None:
    data, scenes = mirrored_scenes(), cluttered_digits()
    known = {image.numpy().tobytes() for image in (*scenes.train.images, *scenes.test.images)}
    straight_images = []
    for name, count in (("train", 7200), ("validation", 800), ("test", 2000)):
        split = getattr(data, name)
        straight, mirrored = split.images[::2], split.images[1::2]
        assert len(split) == count
        assert torch.equal(straight.flip(2), mirrored)
        assert torch.equal(split.labels[::2], split.labels[1::2])
        straight_images += [image.numpy().tobytes() for image in straight]
    assert set(straight_images) == known
    assert len(straight_images) == len(known) == 5000


def test_boxes_are_mirrored_with_their_scenes() -> None:
    test = mirrored_scenes().test
    masks = test.masks(torch.arange(20).numpy())
    assert masks is not None
    assert torch.equal(masks[::2].flip(2), masks[1::2])
    assert not torch.equal(masks[::2], masks[1::2])


def test_a_few_scenes_are_of_all_classes_in_equal_parts() -> None:
    few, every = few_mirrored_scenes(), mirrored_scenes()
    assert torch.bincount(few.train.labels).tolist() == [50] * 10
    assert torch.equal(few.train.images[::2].flip(2), few.train.images[1::2])
    assert few.test.fingerprint == every.test.fingerprint
    assert few.validation.fingerprint == every.validation.fingerprint
