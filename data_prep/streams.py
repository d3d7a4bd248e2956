"""Standard output and error as commands need them: that nobody listens stops no work.

Python's own streams raise where a pipe is closed or a disk is full, in the midst of whatever
prints, and where a descriptor was closed before the start they are None.
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any


class _Descriptor(io.RawIOBase):
    """A descriptor that takes all that is written; `refusal` is why the system took some not."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.refusal: OSError | None = None

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._number, left) :]
        except OSError as error:
            self.refusal = self.refusal or error
        return len(data)


def _taking_all(stream: Any, number: int) -> Any:
    """A stream like this one whose writing never fails; itself where it is no file's."""
    if stream is None:
        return io.TextIOWrapper(_Descriptor(number), "utf-8", "backslashreplace")
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream.buffer, _Descriptor):
        return stream
    try:
        number = stream.fileno()
    except OSError:  # in memory
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    # No buffer of bytes between: one refuses a handler of signals that prints in the midst of it.
    # A name that is not UTF-8 is printed with its bytes as escapes.
    return io.TextIOWrapper(
        _Descriptor(number),
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _fill_standard_descriptors() -> None:
    """Opens closed ones of 0, 1 and 2 on nothing: else the next file that is opened gets one."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)
    os.close(number)


@contextlib.contextmanager
def lasting_output() -> Iterator[Callable[[], OSError | None]]:
    """Within the block, standard output and error take all that is printed, whatever happens.

    What the system refuses is dropped, and printing goes on.

    Yields:
        A function that says why output was refused, or None: also where nobody wanted it, as a
        pipe was closed.
    """
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _fill_standard_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _taking_all(sys.stdout, 1), _taking_all(sys.stderr, 2)
    output = sys.stdout

    def refusal() -> OSError | None:
        output.flush()
        error = getattr(getattr(output, "buffer", None), "refusal", None)
        return None if error is None or error.errno == errno.EPIPE else error

    try:
        yield refusal
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
