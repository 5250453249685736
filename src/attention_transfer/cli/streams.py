"""The standard streams of a command, which may be closed, full or without a reader."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

__all__ = ["SilencedStream", "guarded_streams"]


class SilencedStream:
    """A text stream that drops what can no longer be written, and keeps the error.

    A run goes on when nobody reads its output, or when the disk that takes it is full.

    Args:
        stream: the stream that is written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text, if the stream still takes it."""
        if self.error is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._silence(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if it still takes anything."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._silence(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _silence(self, error: OSError) -> None:
        """Let the stream end in the null device: Python flushes what is buffered when it exits."""
        self.error = error
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextmanager
def guarded_streams() -> Iterator[tuple[SilencedStream, SilencedStream]]:
    """Put silenced streams in the place of stdout and stderr inside the block, and flush them."""
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    streams = tuple(SilencedStream(stream or open(os.devnull, "w")) for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = cast(tuple[TextIO, TextIO], streams)
    try:
        yield streams[0], streams[1]
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before


def _open_closed_descriptors() -> None:
    """Open the standard descriptors that are closed, which the next file would take for its own.

    What a library prints would land in that file, such as a checkpoint.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
