"""Run the benchmark that a configuration names."""

from collections.abc import Callable
from importlib import import_module

from attention_transfer.benchmark.document import Document, Measured
from attention_transfer.benchmark.timing import Progress
from attention_transfer.config import BenchmarkConfig

__all__ = ["measure"]

MODULES = {
    "step": "steps",
    "run": "runs",
    "gradient": "gradient",
    "data": "data_wait",
    "import": "importing",
    "fused": "fused",
}
"""Benchmark -> the module with its ``measure`` function, imported only when it runs."""


def measure(config: BenchmarkConfig, progress: Progress = lambda line: None) -> Document:
    """Run a benchmark, and return its complete document.

    Args:
        config: the benchmark and its settings.
        progress: receives a line for each stage; silent by default.

    Raises:
        InputError: a network or data set is unknown, or a package is missing.
    """
    module = import_module(f"attention_transfer.benchmark.{MODULES[config.what]}")
    run: Callable[[BenchmarkConfig, Progress], Measured] = module.measure
    return Document.create(config, run(config, progress))
