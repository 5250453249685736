"""Separate processes, so that one measurement does not change the next one's memory or caches."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

__all__ = ["OwnProcess", "in_own_process"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class OwnProcess(ProcessPoolExecutor):
    """A fresh interpreter that runs functions one after another, for as long as a ``with`` block.

    Functions are imported there by name; arguments and results are pickled. An exception that the
    function raises is raised here.

    Example:
        >>> with OwnProcess() as process:
        ...     process.call(len, "four")
        4
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1, mp_context=get_context("spawn"))

    def call(
        self,
        function: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """Run a function in the process, and return its result."""
        return self.submit(function, *arguments, **named).result()


def in_own_process(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> Result:
    """Run one function in a process that does nothing else, and return its result.

    >>> in_own_process(max, 1, 2)
    2
    """
    with OwnProcess() as process:
        return process.call(function, *arguments, **named)
