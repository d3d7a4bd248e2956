"""A file that is written once, past the memory in which the system keeps files.

Copying pixels into that memory takes several times as long as giving them to the disk, and would
push all other files out of it.
"""

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PAGE_BYTES = 4096
# Without this flag (macOS), or on a file system that refuses it, files are written as usual.
_DIRECT = getattr(os, "O_DIRECT", 0)


def page_aligned(num_bytes: int) -> np.ndarray:
    """New memory, uint8 (num_bytes,), from which a disk can take its data."""
    return np.frombuffer(mmap.mmap(-1, num_bytes), np.uint8)


class DirectFile:
    """A new file for reading and writing at given places.

    Whole pages go directly to the disk if the memory that they come from is aligned, too;
    everything else goes the usual way. An existing file is emptied.
    """

    def __init__(self, path: Path, num_bytes: int):
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._direct = -1
        try:
            os.ftruncate(self._file, num_bytes)
            if _DIRECT:
                with _unless_refused():
                    self._direct = os.open(path, os.O_RDWR | os.O_CLOEXEC | _DIRECT)
        except OSError:
            self.close()
            raise

    def write(self, data: memoryview, offset: int) -> None:
        """Writes bytes at a place."""
        if self._direct >= 0 and not (offset % PAGE_BYTES or data.nbytes % PAGE_BYTES):
            with _unless_refused():
                _write_all(self._direct, data, offset)
                return
        _write_all(self._file, data, offset)

    def read(self, num_bytes: int, offset: int) -> bytes:
        """The bytes at a place."""
        return os.pread(self._file, num_bytes, offset)

    def sync(self) -> None:
        """Returns when the disk has it all."""
        os.fsync(self._file)

    def forget(self) -> None:
        """Lets the system use the memory in which it may keep this file."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Closes the file; a second time does nothing."""
        for file in (self._file, self._direct):
            if file >= 0:
                os.close(file)
        self._file = self._direct = -1


@contextlib.contextmanager
def _unless_refused() -> Iterator[None]:
    """Goes on after the block where a file system does not do this kind of reading and writing."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _write_all(file: int, data: memoryview, offset: int) -> None:
    data = data.cast("B")
    while len(data):
        count = os.pwrite(file, data, offset)
        data, offset = data[count:], offset + count
