"""Processes of their own: what is measured in one is not helped or hindered by anything else."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import ParamSpec, TypeVar

__all__ = ["OwnProcess", "in_own_process"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class OwnProcess:
    """A fresh interpreter that calls functions one after another, for as long as a ``with`` block.

    Functions are found by their names, arguments and results are copied; an exception of the
    function is raised here.

    Example:
        >>> with OwnProcess() as process:
        ...     process.call(len, "four")
        4
    """

    def __enter__(self) -> "OwnProcess":
        fresh = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(max_workers=1, mp_context=fresh)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._executor.shutdown(cancel_futures=True)

    def call(
        self,
        function: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """What the function returns there."""
        return self._executor.submit(function, *arguments, **named).result()


def in_own_process(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> Result:
    """What a function returns in a process that does nothing else.

    >>> in_own_process(max, 1, 2)
    2
    """
    with OwnProcess() as process:
        return process.call(function, *arguments, **named)
