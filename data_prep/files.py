"""Files that are whole or not there, their digests, their bytes in memory, and locks."""

import contextlib
import ctypes
import fcntl
import hashlib
import math
import mmap
import os
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

from data_prep.errors import UserError

if TYPE_CHECKING:
    import numpy as np

READ_BYTES = 1 << 20  # at once


# Of a file: size, time of the last change in ns, and inode.
Identity = tuple[int, int, int]
NO_FILE: Identity = (0, 0, 0)


def identity_of(path: Path) -> Identity:
    """What tells a file from the one that it was; `NO_FILE` where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return NO_FILE
    return found.st_size, found.st_mtime_ns, found.st_ino


def part_of(path: Path) -> Path:
    """The temporary name of a file that is being written."""
    return path.with_name(path.name + ".part")


@contextlib.contextmanager
def disk_errors(path: Path, num_bytes: int) -> Iterator[None]:
    """Turns what a file system refuses into one line, and removes the unfinished file."""
    try:
        yield
    except BaseException as error:
        # On a read-only file system there is nothing to remove.
        with contextlib.suppress(OSError):
            part_of(path).unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise UserError(
            f"cannot write {path} ({num_bytes / 1e6:.1f} MB): {error.strerror}: make room or "
            "choose another directory, then run the same command again (with --resume if a run had "
            "begun); finished files are kept"
        ) from None


@contextlib.contextmanager
def whole_file(path: Path, num_bytes: int = 0) -> Iterator[BinaryIO]:
    """A new file to write to, which is there completely after the block, or not at all.

    The bytes reach the disk under a temporary name before the file gets its own. Where the file
    system refuses, nothing is left behind, as `disk_errors` says.

    Raises:
        UserError: the file system refuses (full, read-only, ...); nothing is left behind.
    """
    temporary = part_of(path)
    with disk_errors(path, num_bytes):
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        # Its name, too, before anything that it replaces is removed; some file systems refuse.
        with contextlib.suppress(OSError):
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def check_can_write(path: Path, title: str, *, makes_directories: bool = False) -> None:
    """Refuses, before the work for it, a file that could not be written behind it.

    Args:
        path: of the file.
        title: what a message begins with, such as `--picture runs/1.png`.
        makes_directories: whether those are made that lack above it.

    Raises:
        UserError: it is a directory, or is to be in a file or where this user may not write.
    """
    place, rule = path.parent, "expected a file in a directory that exists"
    if makes_directories:
        rule = f"expected a directory that has, or may have, a file {path.name}"
        while not place.exists():
            place = place.parent
    if path.is_dir() or not place.is_dir():
        raise UserError(f"{title}: {rule}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            f"{title}: cannot be written: you may not write in {place}: choose another directory"
        )


def write_whole(path: Path, data: bytes | memoryview) -> str:
    """Writes a file completely or not at all, as `whole_file`, and returns its SHA-256."""
    with whole_file(path, len(data)) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path, *, but_last: int = 0) -> str:
    """The SHA-256 of a file's bytes, or of all but the last few, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size - but_last
        while left > 0 and (data := file.read(min(left, READ_BYTES))):
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()


def mapped_bytes(path: Path, shape: tuple[int, ...], *, offset: int) -> "np.ndarray":
    """Bytes of a file as an array, uint8 of a shape, only to be read: mapped, not copied.

    No descriptor stays open, as Python's own maps keep one each: ImageNet has more shards than a
    process may usually have files (1,024).

    Raises:
        OSError: the file cannot be opened or mapped.
    """
    import numpy as np  # which a command that says what is missing may not have

    begin = offset - offset % mmap.ALLOCATIONGRANULARITY
    num_bytes = math.prod(shape)
    length = offset - begin + num_bytes
    if not num_bytes:
        return np.empty(shape, np.uint8)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        address = _MMAP(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, begin)
        if address in (None, ctypes.c_void_p(-1).value):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)
    memory = (ctypes.c_uint8 * length).from_address(address)
    # Whoever has the array, or a part of it, has the memory.
    weakref.finalize(memory, _MUNMAP, address, length).atexit = False
    array = np.frombuffer(memoryview(memory).toreadonly(), np.uint8)
    return array[offset - begin :].reshape(shape)


_LIBC = ctypes.CDLL(None, use_errno=True)
_MMAP, _MUNMAP = _LIBC.mmap, _LIBC.munmap
_MMAP.restype = ctypes.c_void_p
_MMAP.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ctypes.c_int64,
)
_MUNMAP.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def read_plain_file(path: Path, *, at_most: int) -> bytes:
    """The bytes of a plain file; a directory or a pipe is refused and never waited for.

    Raises:
        UserError: it is no plain file, has more than `at_most` bytes, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"{path}: expected a plain file")
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(at_most + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > at_most:
        raise UserError(f"{path}: expected at most {at_most} bytes")
    return data


@contextlib.contextmanager
def locked(path: Path, *, title: str, when_held: str) -> Iterator[None]:
    """Holds a lock for this process alone; the lock ends with the process, however it ends.

    A block that fails leaves neither a file nor a directory that was made for the lock, so what is
    refused leaves nothing.

    Args:
        path: the file that is locked; it is made where it is missing, with its directory.
        title: what a message begins with, such as `--out runs/1`.
        when_held: the rest of it where another process holds the lock.

    Raises:
        UserError: another process holds it, or the file cannot be made.
    """
    try:
        made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        file, is_new = _opened(path)
    except OSError as error:
        raise UserError(f"{title}: cannot be written: {error.strerror}") from None
    if file is None:
        raise UserError(f"{title}: {when_held}")
    with file:
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                if is_new:
                    path.unlink()
                for folder in made:
                    folder.rmdir()  # where nothing is in it
            raise


def _opened(path: Path) -> tuple[TextIO | None, bool]:
    """A file that is locked, or None where another process has done so; and whether it is new."""
    while True:
        is_new = not path.exists()
        file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None, False
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file, is_new
        file.close()  # who held it has removed it meanwhile
