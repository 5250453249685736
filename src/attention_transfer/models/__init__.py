"""Networks: the paper's wide ResNets and NINs, those of model zoos, and loading by name."""

from attention_transfer.model_names import run_folder, split_models, split_name
from attention_transfer.models.card import ModelCard, class_probabilities
from attention_transfer.models.channels import input_channels
from attention_transfer.models.heads import logit_layers
from attention_transfer.models.network_in_network import NetworkInNetwork
from attention_transfer.models.registry import (
    LoadedModel,
    ModelStructure,
    build,
    default_input_size,
    load,
    load_run,
    load_weights,
    model_structure,
    read_card,
)
from attention_transfer.models.wide_resnet import WideResNet
from attention_transfer.models.zoo import imagenet_classes, in_float32, timm_preprocessing

__all__ = [
    "LoadedModel",
    "ModelCard",
    "ModelStructure",
    "NetworkInNetwork",
    "WideResNet",
    "class_probabilities",
    "build",
    "default_input_size",
    "imagenet_classes",
    "in_float32",
    "input_channels",
    "load",
    "load_run",
    "load_weights",
    "logit_layers",
    "model_structure",
    "read_card",
    "run_folder",
    "split_models",
    "split_name",
    "timm_preprocessing",
]
