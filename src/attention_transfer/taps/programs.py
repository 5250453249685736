"""Programs of TorchScript and ``torch.export``: networks whose modules cannot be read."""

from typing import Any

import torch
from torch import nn

from attention_transfer.errors import InputError, first_line
from attention_transfer.taps.modules import unwrapped

__all__ = [
    "FixedProgram",
    "as_teacher",
    "is_program",
    "module_hint",
    "refuse_program",
    "refuse_untrainable",
]


def is_program(network: object) -> bool:
    """Return whether a network is a program of TorchScript or of ``torch.export``.

    >>> is_program(FixedProgram(nn.Linear(2, 2))), is_program(nn.Linear(2, 2))
    (True, False)
    """
    return isinstance(network, torch.jit.ScriptModule | FixedProgram) or _is_exported(network)


def module_hint(network: object) -> str:
    """Return what to give in place of an ``ExportedProgram``, which is no module."""
    if type(network).__name__ != "ExportedProgram":
        return ""
    return (
        "; its .module() is one, as a teacher of distillation; for attention give the network that "
        "it was exported from"
    )


def refuse_untrainable(student: nn.Module) -> None:
    """Raise an InputError if a student is a program that cannot be trained."""
    program = student.program if isinstance(student, FixedProgram) else unwrapped(student)
    if _is_exported(program) or not hasattr(program, "training"):
        refuse_program(program, "its mode is fixed, so it cannot be trained")


def refuse_program(network: nn.Module, what: str = "attention cannot be read in it") -> None:
    """Raise an InputError if a network is a program: only its logits can be used."""
    if module_hint(network):
        raise InputError(f"got an ExportedProgram{module_hint(network)}")
    if not is_program(network):
        return
    program = network.program if isinstance(network, FixedProgram) else network
    kind = "of torch.export" if _is_exported(program) else "of TorchScript"
    raise InputError(
        f"{type(program).__name__} is a program {kind}, and {what}: as a teacher it serves "
        "distillation alone (--attention none --kd-alpha 0.9, or the terms "
        "at.distillation_terms(alpha=0.9)); otherwise give the torch.nn.Module that it was made "
        "from, with the program's state_dict() as weights"
    )


def as_teacher(network: nn.Module) -> nn.Module:
    """Return a network that can be frozen and put into eval mode, also of a program."""
    if isinstance(network, FixedProgram) or not is_program(network):
        return network
    return FixedProgram(network)


class FixedProgram(nn.Module):
    """A program as a module that takes ``eval()`` and ``requires_grad_()``.

    Args:
        program: of TorchScript, or of ``torch.export``, which keeps the mode it was exported in.

    Raises:
        InputError: in a forward pass, if the program was exported for other shapes.
    """

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def train(self, mode: bool = True) -> "FixedProgram":
        """Set the mode of a TorchScript program that has one."""
        self.training = mode
        if not _is_exported(self.program) and hasattr(self.program, "training"):
            self.program.train(mode)
        return self

    def forward(self, *inputs: Any, **named_inputs: Any) -> Any:
        """Return the program's output."""
        try:
            return self.program(*inputs, **named_inputs)
        except (AssertionError, RuntimeError) as error:
            raise InputError(
                f"the program does not take these inputs ({first_line(error)}); export it with a "
                "dynamic batch, as torch.export.export(network, (images,), "
                'dynamic_shapes=({0: torch.export.Dim("batch")},)) does, and for their size'
            ) from error


def _is_exported(network: object) -> bool:
    """Return whether a network is a graph whose mode ``torch.export`` has fixed."""
    return isinstance(network, torch.fx.GraphModule) and "eval" in vars(network)
