"""What a run was begun with: a checkpoint holds it, and a run that is resumed must equal it."""

from collections.abc import Sequence

from torch import nn

from attention_transfer.cache import weights_fingerprint
from attention_transfer.config import RunConfig
from attention_transfer.data import DataSet
from attention_transfer.environment import package_versions
from attention_transfer.models import LoadedModel
from attention_transfer.runs.differences import settings_of

__all__ = ["identity_of"]

PACKAGES = ("attention-transfer", "torch", "torchvision", "timm", "numpy", "pillow")
"""Packages on which a run's figures depend."""


def identity_of(
    config: RunConfig,
    data: DataSet,
    teachers: Sequence[LoadedModel],
    precision: str,
    device: str,
) -> dict[str, str]:
    """Return what decides a run's figures, by name.

    Args:
        config: the whole configuration.
        data: the data set, whose images are known by :attr:`Images.identity`.
        teachers: with the weights that the run learns from.
        precision: that the run computes in.
        device: the type of its device, such as ``"cpu"``.
    """
    networks: list[nn.Module] = [teacher.network for teacher in teachers]
    return {
        **settings_of(config),
        "training images": data.train.identity,
        "validation images": data.validation.identity,
        "test images": data.test.identity,
        "classes": ", ".join(data.class_names),
        **({"teacher weights": weights_fingerprint(networks)} if networks else {}),
        "computed precision": precision,
        "device": device,
        **{
            f"version of {package}": str(version)
            for package, version in package_versions(PACKAGES).items()
        },
    }
