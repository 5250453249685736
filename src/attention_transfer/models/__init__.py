"""The networks: the paper's wide ResNets and NINs, and how users name them."""

from attention_transfer.models.network_in_network import NetworkInNetwork
from attention_transfer.models.registry import (
    LoadedModel,
    ModelCard,
    build,
    load,
    load_run,
    load_weights,
)
from attention_transfer.models.wide_resnet import WideResNet

__all__ = [
    "LoadedModel",
    "ModelCard",
    "NetworkInNetwork",
    "WideResNet",
    "build",
    "load",
    "load_run",
    "load_weights",
]
