"""A training step in a process where torch, numpy and their own dependencies alone are installed.

Run by test_architecture.py. Exits with an error that names the package, if another is needed.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

INSTALLED = {"attention_transfer", "torch", "torchgen", "functorch", "numpy"}
NEEDED_BY_TORCH = {
    "filelock",
    "fsspec",
    "jinja2",
    "markupsafe",
    "mpmath",
    "networkx",
    "nvidia",
    "setuptools",
    "sympy",
    "triton",
    "typing_extensions",
}
KNOWN = INSTALLED | NEEDED_BY_TORCH | sys.stdlib_module_names


class OnlyTorch:
    """Finds the known packages, and reports every other one as not installed."""

    @staticmethod
    def find_spec(name: str, *arguments: Any) -> ModuleSpec | None:
        package = name.partition(".")[0]
        known = package in KNOWN or package.startswith("_sysconfigdata_")  # of the standard library
        return PathFinder.find_spec(name, *arguments) if known else None


sys.meta_path[:] = [OnlyTorch if finder is PathFinder else finder for finder in sys.meta_path]

import torch  # noqa: E402
from torch import nn  # noqa: E402

import attention_transfer as at  # noqa: E402


def network(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 3),
    )


images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
terms = [
    *at.distillation_terms(alpha=0.9, temperature=4.0),
    at.ActivationAttention(beta=1000.0),
    at.FullActivation(beta=1.0),
    at.GradientAttention(beta=1.0),
    at.FlipSymmetry(beta=1.0),
    at.InputGradientNorm(beta=1.0),
    at.DIST(),
    at.LogitStandardization(),
    at.DKD(),
    at.ClassAttention(),
]
transfer = at.Transfer(network(4), network(8), terms, example_input=images)
optimizer = torch.optim.SGD(transfer.parameters(), lr=0.1)
out = transfer(images, labels)
out.loss.backward()
optimizer.step()
assert out.loss.isfinite()
assert len(out.terms) == len(terms)
