"""Attention distillation between vision transformers, against the networks' own softmax."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor, nn
from torch.autograd import gradcheck
from torchvision.models import VisionTransformer

import attention_transfer as at
from attention_transfer.data import DataSet
from attention_transfer.errors import InputError
from attention_transfer.functional import losses
from conftest import SMALL

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def of_timm(width: int, heads: int, seed: int = 0, **settings: Any) -> nn.Module:
    torch.manual_seed(seed)
    network: nn.Module = timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=width, depth=3, num_heads=heads, num_classes=3,
        **settings,
    )  # fmt: skip
    return network


def of_torchvision(width: int, heads: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return VisionTransformer(16, 8, 2, heads, width, 2 * width, num_classes=3)


def own_attention(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Return what each layer itself multiplies its values with, without the fused kernel."""
    seen: list[Tensor] = []
    handles = []
    for module in network.modules():
        if isinstance(module, nn.MultiheadAttention):

            def weights(one: nn.MultiheadAttention, given: Any, _: object) -> None:
                seen.append(
                    nn.functional.multi_head_attention_forward(
                        *(given[0].transpose(0, 1),) * 3, one.embed_dim, one.num_heads,
                        one.in_proj_weight, one.in_proj_bias, None, None, False, 0.0,
                        one.out_proj.weight, one.out_proj.bias, training=False,
                        need_weights=True, average_attn_weights=False,
                    )[1]
                )  # fmt: skip

            handles.append(module.register_forward_hook(weights))
        elif hasattr(module, "attn_drop"):
            module.fused_attn = False
            handles.append(
                module.attn_drop.register_forward_hook(lambda _m, _i, out: seen.append(out))
            )
    with torch.no_grad():
        network.eval()(images)
    for handle in handles:
        handle.remove()
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True
    return seen


def divergence(student: Tensor, teacher: Tensor) -> float:
    """Return the mean over images, heads and rows of the KL divergence of attention."""
    both = (one.double().numpy().reshape(-1, one.shape[-1]) for one in (teacher, student))
    return float(np.mean([rel_entr(*rows).sum() for rows in zip(*both, strict=True)]))


def test_the_loss_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    student, scores = (torch.randn(2, 3, 4, 4, generator=generator).double() for _ in range(2))
    teacher = scores.softmax(dim=-1)
    value = losses.attention_distillation(student, teacher)
    assert value.item() == pytest.approx(divergence(student.softmax(-1), teacher), rel=1e-12)
    assert losses.attention_distillation(scores, teacher).item() == pytest.approx(0, abs=1e-12)
    student.requires_grad_()
    assert gradcheck(lambda values: losses.attention_distillation(values, teacher), student)


@pytest.mark.parametrize("size", [1e4, 0.0])
def test_extreme_scores_of_half_precision_stay_finite(size: float) -> None:
    queries = (size * torch.ones(1, 1, 3, 4)).half().requires_grad_()
    keys = torch.tensor([[1.0] * 4, [-1.0] * 4, [0.0] * 4]).half().view(1, 1, 3, 4)
    value = losses.attention_distillation(
        losses.token_relations(queries, keys), torch.eye(3).half().view(1, 1, 3, 3)
    )
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert queries.grad is not None
    assert queries.grad.isfinite().all()


@pytest.mark.parametrize(
    "networks",
    [
        (of_timm(12, 3), of_timm(24, 3, 1)),
        (of_timm(12, 3, qk_norm=True), of_timm(24, 3, 1, qk_norm=True, class_token=False,
                                               reg_tokens=1, global_pool="avg")),
        (of_torchvision(12, 3), of_torchvision(24, 3, 1)),
        (of_timm(12, 3, qkv_bias=False), of_torchvision(24, 3, 1)),
    ],
    ids=["timm", "timm with norms and registers", "torchvision", "both"],
)  # fmt: skip
def test_rows_are_the_networks_own_softmax(networks: tuple[nn.Module, nn.Module]) -> None:
    student, teacher = networks
    expected = divergence(*(own_attention(network, IMAGES)[-1] for network in networks))
    term = at.AttentionDistillation(weight=3.0)
    transfer = at.Transfer(student, teacher, [term], example_input=IMAGES)
    transfer.eval()
    out = transfer(IMAGES)
    assert expected > 1e-6
    assert out.terms["attention_distillation"].item() == pytest.approx(3 * expected, rel=1e-3)
    out.loss.backward()
    known = transfer(IMAGES, targets=transfer.targets(IMAGES))
    assert known.loss.item() == out.loss.item()
    assert not list(term.parameters()), "the layers are the student's, not the term's"


def test_the_last_layers_are_paired_and_others_by_name() -> None:
    student, teacher = of_timm(12, 3), of_timm(24, 3, 1)
    ours, theirs = (own_attention(network, IMAGES) for network in (student, teacher))
    for pairs, indices in (
        ("auto-2", [(1, 1), (2, 2)]),
        ("blocks.0.attn:blocks.2.attn", [(0, 2)]),
        (
            [("blocks.0.attn", "blocks.1.attn"), ("blocks.2.attn", "blocks.1.attn")],
            [(0, 1), (2, 1)],
        ),
    ):
        term = at.AttentionDistillation(pairs=pairs)  # type: ignore[arg-type]
        transfer = at.Transfer(student, teacher, [term], example_input=IMAGES)
        value = transfer.eval()(IMAGES).loss.item()
        expected = sum(divergence(ours[one], theirs[other]) for one, other in indices)
        assert value == pytest.approx(expected, rel=1e-3)


def relations(network: Any, images: Tensor, heads: int) -> list[np.ndarray]:
    """Return the rows of Q Q^T, K K^T and V V^T in relation heads, by loops."""
    seen: list[Tensor] = []
    layer = network.blocks[-1].attn.qkv
    handle = layer.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        network.eval()(images)
    handle.remove()
    rows = []
    for vectors in np.split(seen[0].double().numpy(), 3, axis=-1):
        width = vectors.shape[-1] // heads
        for head in range(heads):
            part = vectors[:, :, head * width : (head + 1) * width]
            rows.append(softmax(part @ part.transpose(0, 2, 1) / np.sqrt(width), axis=-1))
    return rows


@pytest.mark.parametrize("heads", [None, 6])
def test_where_heads_differ_relations_are_compared(heads: int | None) -> None:
    student, teacher = of_timm(12, 3), of_timm(24, 4, 1)
    both = [relations(network, IMAGES, heads or 3) for network in (student, teacher)]
    expected = np.mean(
        [rel_entr(theirs, ours).sum(axis=-1).mean() for ours, theirs in zip(*both, strict=True)]
    )
    term = at.AttentionDistillation(heads=heads)
    transfer = at.Transfer(student, teacher, [term], example_input=IMAGES)
    assert transfer.eval()(IMAGES).loss.item() == pytest.approx(float(expected), rel=1e-3)
    assert "relations in" in str(next(iter(transfer.target_spec.fields)))


def test_bfloat16_networks_and_autocast_compute_in_float32() -> None:
    student, teacher = of_timm(12, 3, qk_norm=True), of_timm(24, 3, 1, qk_norm=True)
    term = at.AttentionDistillation()
    transfer = at.Transfer(student, teacher, [term], example_input=IMAGES).bfloat16()
    out = transfer(IMAGES)
    assert out.raw_terms["attention_distillation"].dtype == torch.float32
    assert out.loss.isfinite()
    out.loss.backward()


@pytest.mark.parametrize(
    ("networks", "term", "match"),
    [
        ((12, 3, 24, 4), {"compare": "attention"}, "3 heads of .* give compare=\"relations\""),
        ((12, 3, 24, 4), {"heads": 5}, "5 relation heads do not divide the width"),
        ((12, 3, 24, 3), {"pairs": "auto-9"}, "expected auto-1 to auto-3"),
        ((12, 3, 24, 3), {"pairs": "block.2.attn:blocks.2.attn"}, "did you mean blocks.2.attn"),
        ((12, 3, 24, 3), {"pairs": "blocks.2.attn"}, "expected student.layer:teacher.layer"),
        ((12, 3, 24, 3), {"heads": 0}, "heads must be"),
        ((12, 3, 24, 3), {"compare": "rows"}, "unknown compare 'rows'"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(
    networks: tuple[int, ...], term: dict[str, Any], match: str
) -> None:
    student, teacher = of_timm(*networks[:2]), of_timm(*networks[2:])
    with pytest.raises(InputError, match=match):
        at.Transfer(student, teacher, [at.AttentionDistillation(**term)], example_input=IMAGES)


def test_networks_that_do_not_fit_are_refused() -> None:
    vit, wide = of_timm(12, 3), at.models.build("wrn-10-1", 3)
    with pytest.raises(InputError, match="WideResNet has no self-attention layer"):
        at.Transfer(vit, wide, [at.AttentionDistillation()], example_input=IMAGES)
    swin = timm.create_model("swin_tiny_patch4_window7_224")
    with pytest.raises(InputError, match="SwinTransformer has no self-attention layer"):
        at.Transfer(swin, vit, [at.AttentionDistillation()])
    finer = timm.models.VisionTransformer(16, 4, embed_dim=12, depth=1, num_heads=3)
    with pytest.raises(InputError, match="5 tokens of the student and 17 of the teacher"):
        at.Transfer(vit, finer, [at.AttentionDistillation()], example_input=IMAGES)
    term = at.AttentionDistillation()
    at.Transfer(vit, of_timm(24, 3, 1), [term])
    with pytest.raises(InputError, match="another Transfer's student already"):
        at.Transfer(of_timm(12, 3), of_timm(24, 3, 1), [term])


def test_a_whole_run_from_a_cache_and_what_no_cache_holds(data: DataSet) -> None:
    settings: dict[str, Any] = {**SMALL, "data": data, "attention": "none", "batch_size": 16}
    settings["terms"] = "attention_distillation(weight=100.0)"
    figures = []
    for cache in (None, "cache"):
        networks = {"teacher": of_timm(24, 3, 1), "student": of_timm(12, 3)}
        run = at.distill(**networks, **settings, cache=cache, out=f"runs/{cache}")
        figures.append([row.terms["attention_distillation"] for row in run.metrics])
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)
    fine = [timm.models.VisionTransformer(16, 2, embed_dim=16, depth=1, num_heads=8, num_classes=3)
            for _ in range(2)]  # fmt: skip
    with pytest.raises(InputError, match="takes 135,200 bytes for each view"):
        at.distill(teacher=fine[0], student=fine[1], **settings, cache="fine", out="refused")
    assert not Path("fine").exists()
