"""Where the bytes of a file are: on disk, in an archive, in memory; and reading them there.

A worker that knows the place needs neither the archive's index nor its neighbors.
"""

import os
import stat
import zlib
from pathlib import Path
from typing import NamedTuple

from data_prep.errors import UserError

# The largest file that is read as a picture; ImageNet's largest is below 16 MB.
MAX_PICTURE_BYTES = 256 << 20
ZIP_HEADER_BYTES = 30


class InputChangedError(UserError):
    """The input vanished or changed while the build was reading it."""


class Container(NamedTuple):
    """A tar or zip file, as it was when it was listed."""

    path: str
    num_bytes: int
    modified_ns: int


class Span(NamedTuple):
    """A file inside a container; of a zip file, `offset` is that of the header before it."""

    container: Container
    offset: int
    size: int
    compressed: int = 0  # the bytes that a zip file holds for it; 0 where they are plain
    is_zip: bool = False


class Held(NamedTuple):
    """A file that is held in memory."""

    data: bytes


class Pixels(NamedTuple):
    """A picture that needs no decoding: uint8 planes (3, side, side), red first."""

    data: bytes
    side: int


class Refused(NamedTuple):
    """A file that is listed, and not read; for this reason."""

    reason: str


Place = str | Span | Held | Pixels | Refused  # a string is the path of a file on disk


def container_at(path: Path) -> Container:
    """What identifies an archive, so that a change is noticed."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return Container(str(path), status.st_size, status.st_mtime_ns)


class Reader:
    """Reads files at their places; keeps the last container open."""

    def __init__(self) -> None:
        self._container: Container | None = None
        self._descriptor = -1

    def read(self, place: Place, *, limit: int = MAX_PICTURE_BYTES) -> bytes:
        """The bytes of a file.

        Raises:
            OSError: the file cannot be read.
            InputChangedError: an archive is not the one that was listed.
            ValueError: the file is refused, larger than `limit`, or an archive's entry is damaged.
        """
        if isinstance(place, Refused):
            raise ValueError(place.reason)
        if isinstance(place, Held | Pixels):
            return place.data
        if isinstance(place, str):
            data = _read_file(place, limit)
        else:
            size = max(place.size, place.compressed)
            if size > limit:
                raise ValueError(f"has {size} bytes, more than {limit}")
            data = self._read_span(place)
        if len(data) > limit:
            raise ValueError(f"has more than {limit} bytes")
        return data

    def close(self) -> None:
        """Closes the container."""
        if self._container is not None:
            os.close(self._descriptor)
            self._container = None

    def _read_span(self, span: Span) -> bytes:
        file = self._file(span.container)
        if not span.is_zip:
            return _exactly(file, span.size, span.offset, span.container)
        header = _exactly(file, ZIP_HEADER_BYTES, span.offset, span.container)
        if not header.startswith(b"PK\x03\x04"):
            raise ValueError("cannot be found in the zip file")
        skip = ZIP_HEADER_BYTES + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
        data = _exactly(file, span.compressed or span.size, span.offset + skip, span.container)
        if not span.compressed:
            return data
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, span.size + 1)
        except zlib.error as error:
            raise ValueError(f"cannot be decompressed: {error}") from None
        if len(data) != span.size:
            raise ValueError(f"has not the {span.size} bytes that the zip file names")
        return data

    def _file(self, container: Container) -> int:
        if container == self._container:
            return self._descriptor
        self.close()
        try:
            file = os.open(container.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputChangedError(
                f"{container.path}: cannot be opened any more ({error.strerror}): bring it back, "
                "then run the same command again; finished shards are kept"
            ) from None
        status = os.fstat(file)
        if (status.st_size, status.st_mtime_ns) != (container.num_bytes, container.modified_ns):
            os.close(file)
            raise InputChangedError(
                f"{container.path}: changed while it was read: let nothing write to it, then run "
                "the same command again; finished shards are kept"
            )
        self._container, self._descriptor = container, file
        return file


def _read_file(path: str, limit: int) -> bytes:
    # Without O_NONBLOCK, opening a named pipe would wait for ever.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is a folder" if stat.S_ISDIR(status.st_mode) else "is no plain file")
        if status.st_size > limit:
            raise ValueError(f"has {status.st_size} bytes, more than {limit}")
        return os.read(file, status.st_size + 1)
    finally:
        os.close(file)


def _exactly(file: int, size: int, offset: int, container: Container) -> bytes:
    data = os.pread(file, size, offset)
    while len(data) < size:
        more = os.pread(file, size - len(data), offset + len(data))
        if not more:
            raise InputChangedError(f"{container.path}: became shorter while it was read")
        data += more
    return data
