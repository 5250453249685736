"""Who meets whom: by stage, by depth, by hand."""

import itertools

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import attention_transfer as at
from attention_transfer.errors import InputError
from attention_transfer.taps import AttentionPoint, Layout
from attention_transfer.transfer.pairing import Pairing, PairingSide, match_stages, resolve_pairs


def network(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False)


def automatic(student: nn.Module, teacher: nn.Module, size: int = 224) -> Pairing:
    return resolve_pairs(
        "auto", PairingSide(student, (3, size, size)), PairingSide(teacher, (3, 224, 224))
    )


def test_stages_of_the_same_stride_meet() -> None:
    pairing = automatic(network("mobilenetv3_small_100"), network("resnet34"))
    assert list(map(str, pairing.pairs)) == [
        "blocks.0:layer1",
        "blocks.1:layer2",
        "blocks.3:layer3",
        "blocks.5:layer4",
    ]
    assert pairing.unpaired_student_points == pairing.unpaired_teacher_points == ()


def test_what_finds_no_partner_is_told() -> None:
    pairing = automatic(network("efficientnet_b0"), network("resnet34"))
    assert [pair.teacher for pair in pairing.pairs] == ["layer1", "layer2", "layer3", "layer4"]
    assert pairing.unpaired_student_points == ("blocks.0",)


def test_a_small_images_network_meets_a_large_ones_last_stages() -> None:
    pairing = automatic(at.models.build("wrn-16-1", classes=10), network("resnet34"), size=32)
    assert list(map(str, pairing.pairs)) == ["group1:layer2", "group2:layer3", "group3:layer4"]
    assert pairing.unpaired_teacher_points == ("layer1",)


@pytest.mark.parametrize("turned", [False, True])
def test_a_vision_transformer_meets_a_convolutional_network_by_depth(turned: bool) -> None:
    names = [[f"blocks.{i}" for i in (2, 5, 8, 11)], [f"layer{i}" for i in (1, 2, 3, 4)]]
    both = [network("vit_tiny_patch16_224"), network("resnet18")]
    if turned:
        both.reverse()
        names.reverse()
    assert automatic(*both).pairs == list(zip(*names, strict=True))


def point(name: str, stage: int, depth: float) -> AttentionPoint:
    stride = float(2**stage)
    return AttentionPoint(name, "", Layout("NCHW", (8, 8)), 4, (stride, stride), depth)


depths = st.lists(st.floats(0, 1), min_size=1, max_size=5).map(sorted)


@given(depths, depths)
def test_by_depth_the_total_difference_is_least(ours: list[float], theirs: list[float]) -> None:
    sides = [
        [point(f"{side}{index}", 4, depth) for index, depth in enumerate(depths)]
        for side, depths in (("s", ours), ("t", theirs))
    ]
    pairing = match_stages(*sides)
    short, long = sorted((ours, theirs), key=len)
    expected = min(
        sum(abs(a - b) for a, b in zip(short, chosen, strict=True))
        for chosen in itertools.combinations(long, len(short))
    )
    depth = {found.name: found.depth for side in sides for found in side}
    total = sum(abs(depth[student] - depth[teacher]) for student, teacher in pairing.pairs)
    assert total == pytest.approx(expected)
    assert [pair.student for pair in pairing.pairs] == sorted(
        pair.student for pair in pairing.pairs
    )
    assert len(pairing.pairs) + len(pairing.unpaired_student_points) == len(ours)
    assert len(pairing.pairs) + len(pairing.unpaired_teacher_points) == len(theirs)


def test_patterns_are_spelt_out_in_the_order_of_execution() -> None:
    ours = PairingSide(network("mobilenetv3_small_100"), (3, 224, 224))
    theirs = PairingSide(network("resnet34"), (3, 224, 224))
    assert ours.matching("blocks.?")[:2] == ["blocks.0", "blocks.1"]
    assert theirs.matching("layer?") == ["layer1", "layer2", "layer3", "layer4"]
    found = resolve_pairs("layer?:layer?", theirs, theirs)
    assert [pair.student for pair in found.pairs] == ["layer1", "layer2", "layer3", "layer4"]
    with pytest.raises(InputError, match=r"6 student points \(.*\) and 4 teacher points"):
        resolve_pairs("blocks.?:layer?", ours, theirs)
    with pytest.raises(InputError, match=r"no point .* matches 'leyer\?'; did you mean layer"):
        resolve_pairs("blocks.0:leyer?", ours, theirs)
    with pytest.raises(InputError, match="give example_input"):
        resolve_pairs("layer?:layer?", PairingSide(theirs.network), theirs)
