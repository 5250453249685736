"""From a configuration to a whole document."""

from collections.abc import Callable
from importlib import import_module

from attention_transfer.benchmark.document import OF_PAIRS, Document, Machine, Measured, worst
from attention_transfer.benchmark.timing import Say
from attention_transfer.config import BenchmarkConfig
from attention_transfer.environment import (
    describe_machine,
    package_versions,
    resolve_precision,
)

__all__ = ["measure"]

MODULES = {
    "step": "steps",
    "run": "runs",
    "peers": "peers",
    "gradient": "gradient",
    "data": "data_wait",
    "import": "importing",
    "fused": "fused",
}
"""What is measured -> the module whose ``measure`` does it, imported when it is asked for."""


def measure(config: BenchmarkConfig, say: Say = lambda line: None) -> Document:
    """Measures what a configuration asks for.

    Args:
        config: complete and checked.
        say: told how far it is, line by line; silent by default.

    Raises:
        InputError: a network or data set that is not known, or a package that is missing.
    """
    home = import_module(f"attention_transfer.benchmark.{MODULES[config.what]}")
    work: Callable[[BenchmarkConfig, Say], Measured] = home.measure
    found = work(config, say)
    machine = {**describe_machine(), "gpus": tuple(describe_machine()["gpus"])}  # type: ignore[arg-type]
    return Document.model_validate(
        {
            "benchmark": config.what,
            "settings": config,
            "precision": resolve_precision(config.precision),
            "machine": Machine.model_validate(machine),
            "versions": package_versions(),
            "ratios": worst(config.what, found.cases),
            "pairs" if config.what in OF_PAIRS else "cases": found.cases,
            "notes": found.notes,
        }
    )
