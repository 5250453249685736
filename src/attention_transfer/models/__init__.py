"""The networks: the paper's wide ResNets and NINs, and how users name them."""

from attention_transfer.models.card import ModelCard
from attention_transfer.models.heads import logit_layers
from attention_transfer.models.network_in_network import NetworkInNetwork
from attention_transfer.models.registry import (
    LoadedModel,
    Outline,
    build,
    load,
    load_run,
    load_weights,
    outline,
    own_input_size,
    several,
)
from attention_transfer.models.wide_resnet import WideResNet
from attention_transfer.models.zoo import imagenet_classes, own_preprocessing

__all__ = [
    "LoadedModel",
    "ModelCard",
    "NetworkInNetwork",
    "Outline",
    "WideResNet",
    "build",
    "imagenet_classes",
    "load",
    "load_run",
    "load_weights",
    "logit_layers",
    "outline",
    "own_preprocessing",
    "own_input_size",
    "several",
]
