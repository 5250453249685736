"""Graphs of a network in files: written, read again, and run."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attention_transfer.errors import InputError, first_line

__all__ = [
    "Forward",
    "check_packages",
    "in_pytorch",
    "onnx_forward",
    "pt2_forward",
    "write_int8",
    "write_onnx",
    "write_pt2",
]

Forward = Callable[[Tensor], Tensor]
"""A network, as a function from its input to logits (N, K)."""

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What the formats onnx and int8 need beside torch."""


def check_packages(formats: tuple[str, ...]) -> None:
    """Raise an InputError if a package that one of the formats needs is not installed."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing and not {"onnx", "int8"}.isdisjoint(formats):
        raise InputError(
            f"onnx and int8 need {' and '.join(missing)}, not installed here; run: pip install "
            "'attention-transfer[onnx]', or choose other --formats, such as pt2"
        )


def write_onnx(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network as ONNX, for batches of any size.

    Args:
        network: in eval mode.
        example: of its input, (N, ...), at least two samples.
        path: the file, which holds the weights too.

    Raises:
        InputError: the network cannot be traced.
    """
    batch = torch.export.Dim("batch")
    with _exporting("onnx"), _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=False)


def write_pt2(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network as a program of torch.export, for batches of any size.

    Raises:
        InputError: the network cannot be traced.
    """
    batch = torch.export.Dim("batch")
    with _exporting("pt2"), _quiet():
        program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)


def in_pytorch(network: nn.Module) -> Forward:
    """Return a network as it is, run without gradients."""

    def forward(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = network(images)
        return logits

    return forward


def pt2_forward(path: Path) -> Forward:
    """Return the network in a file of :func:`write_pt2`, read again."""
    return in_pytorch(torch.export.load(path).module())


def onnx_forward(path: Path) -> Forward:
    """Return the network in an ONNX file, run by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def forward(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {name: images.numpy()})
        return torch.from_numpy(logits)

    return forward


def write_int8(onnx: Path, path: Path, batches: Iterator[Tensor]) -> None:
    """Quantize an ONNX file after training, to 8-bit weights and activations.

    Weights have a scale for each channel. They use 7 bits of the 8, so that sums of products do not
    overflow on processors without VNNI.

    Args:
        onnx: the file to quantize.
        path: the file to write.
        batches: network inputs from which the ranges of activations are taken.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(batches, None)
            return None if batch is None else {"images": batch.numpy()}

    prepared = onnx.with_name(f"{onnx.stem}.prepared.onnx")
    with _quiet():
        quant_pre_process(onnx, prepared)
        quantization.quantize_static(
            prepared,
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    prepared.unlink()


@contextmanager
def _exporting(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise InputError(
            f"the network cannot be exported as {name} ({type(error).__name__}: "
            f"{first_line(error)}); leave {name} out of --formats"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop the warnings and log lines of exporters, which say nothing to a user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
