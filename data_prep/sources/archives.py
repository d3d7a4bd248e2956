"""The files of tar and zip archives, listed and never extracted.

An uncompressed tar, and a tar inside it, hold each file as one span of bytes; a zip file holds it
as one compressed span.
"""

import bz2
import gzip
import io
import lzma
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.errors import UserError
from data_prep.sources.places import ZIP_HEADER_BYTES, Held, Place, Refused, Span, container_at

# A compressed tar cannot be read in the middle: it is held in memory, up to this size.
MAX_COMPRESSED_TAR_BYTES = 2 << 30
# What Python keeps of a file beside its bytes and its name, about: entries of four tables.
BYTES_PER_FILE = 512
# All that a tar says of one file, its name included: a genuine one has a few hundred bytes.
MAX_HEADER_BYTES = 1 << 20
MAX_NAME_LENGTH = 4096  # of a path in Linux
# The list of files at the end of a zip file: Kaggle's ImageNet has two million of 100 to 140 bytes.
MAX_ZIP_LIST_BYTES = 512 << 20
MAGIC = {"zip": b"PK\x03\x04", "gz": b"\x1f\x8b", "bz2": b"BZh", "xz": b"\xfd7zXZ\0"}
COMPRESSIONS = {"gz": gzip.GzipFile, "bz2": bz2.BZ2File, "xz": lzma.LZMAFile}


def file_kind(path: Path) -> str | None:
    """`zip`, `tar`, `gz`, `bz2`, `xz`, or None: by the first bytes, not by the name."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    for kind, magic in MAGIC.items():
        if head.startswith(magic):
            return kind
    return "tar" if head[257:262] == b"ustar" or _is_old_tar_header(head) else None


def _is_old_tar_header(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")  # compares the checksum
    except tarfile.HeaderError:
        return False
    return True


def _check_name(title: str, name: str) -> str:
    if len(name) > MAX_NAME_LENGTH:
        raise UserError(
            f"{title}: expected names of at most {MAX_NAME_LENGTH} letters, got one of {len(name)} "
            f"({name[:40]!r}...): this is not the archive that it should be"
        )
    parts = name.removeprefix("./").rstrip("/").split("/")
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in parts or "" in parts:
        raise UserError(
            f"{title}: expected names below the archive itself, got {name[:80]!r}: this is not "
            "the archive that it should be"
        )
    return "/".join(part for part in parts if part != ".")


@contextmanager
def _archive_errors(title: str, kind: str) -> Iterator[None]:
    """Whatever a damaged archive leads Python's readers to becomes one line."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{title}: cannot be read: {error}") from None
    except Exception as error:
        raise UserError(f"{title}: expected a whole {kind} file, got one with: {error}") from None


class _Metered:
    """A file for Python's readers of archives, which read into memory what an archive asks for.

    `left` is how much may still be read, which whoever uses the reader sets anew for each file.
    """

    def __init__(self, file: BinaryIO, title: str, left: int):
        self._file, self._title, self.left = file, title, left
        self.total = 0

    def read(self, size: int = -1) -> bytes:
        """As of a file, but the one more byte that is read where too many are asked for."""
        data = self._file.read(size if 0 <= size <= self.left else self.left + 1)
        self.left -= len(data)
        self.total += len(data)
        if self.left < 0:
            raise UserError(
                f"{self._title}: what it says of its files is longer than any genuine archive's: "
                "this is not the archive that it should be"
            )
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of a file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As of a file."""
        return self._file.tell()


# --- Tar


class _Part(io.FileIO):
    """The bytes of a file from `start` to `end`, for a reader that counts from the start."""

    def __init__(self, path: Path, start: int, end: int):
        super().__init__(path)
        self._start, self._end = start, end
        self.seek(0)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET
        return super().seek(self._start + offset) - self._start

    def tell(self) -> int:
        return super().tell() - self._start

    def readinto(self, buffer: Any) -> int:
        return super().readinto(memoryview(buffer)[: max(0, self._end - super().tell())]) or 0


def _open_tar(file: _Metered, mode: str) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode=mode)  # type: ignore[call-overload]


def tar_files(path: Path, *, within: Span | None = None) -> Iterator[tuple[str, Span]]:
    """Lists the plain files of an uncompressed tar, or of one `within` it, in the tar's order.

    Raises:
        UserError: the tar is damaged or cut off, or holds something else than directories and
            plain files below itself (links, devices, `..`), or a name twice.
    """
    container = within.container if within else container_at(path)
    start, size = (within.offset, within.size) if within else (0, container.num_bytes)
    title, end, seen = str(path), start + size, set[str]()
    with (
        _archive_errors(title, "tar"),
        io.BufferedReader(_Part(path, start, end), 4096) as part,
        _open_tar(metered := _Metered(part, title, MAX_HEADER_BYTES), "r:") as tar,
    ):
        while (member := tar.next()) is not None:
            metered.left = MAX_HEADER_BYTES
            tar.members.clear()  # type: ignore[attr-defined]  # it would remember them all
            name = _check_member(title, member, seen)
            if name is None:
                continue
            offset = start + member.offset_data
            if offset + member.size > end:
                raise UserError(f"{title}: is cut off in {name}: expected the whole archive")
            yield name, Span(container, offset, member.size)
        part.seek(tar.offset)
        if part.read(512).count(0) != 512:
            raise UserError(f"{title}: is cut off: expected an end mark after the last file")


def nested_tar_files(title: str, place: Place) -> Iterator[tuple[str, Span]]:
    """Lists the files of a tar that is a file of a tree; `title` is what messages call it.

    Raises:
        UserError: it is no tar, or a damaged one.
    """
    try:
        if isinstance(place, str):
            yield from tar_files(Path(place))
        elif isinstance(place, Refused):
            raise UserError(place.reason)
        elif isinstance(place, Span) and not place.is_zip:
            yield from tar_files(Path(place.container.path), within=place)
        else:
            raise UserError("a tar inside a compressed file cannot be read: unpack the outer")
    except UserError as error:
        raise UserError(f"{title}: {error}") from None


def _check_member(title: str, member: tarfile.TarInfo, seen: set[str]) -> str | None:
    """The name of a plain file; None for a directory, which needs no entry."""
    name = _check_name(title, member.name)
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        raise UserError(
            f"{title}: expected plain files, got {name[:80]!r}, which is a link, a device or the "
            "like: this is not the archive that it should be"
        )
    if name in seen:
        raise UserError(f"{title}: expected each name once, got {name[:80]!r} twice")
    seen.add(name)
    return name


def compressed_tar_files(path: Path) -> Iterator[tuple[str, Held]]:
    """Reads a compressed tar into memory, and lists its plain files, as `tar_files`.

    Raises:
        UserError: as `tar_files`, or it holds more than `MAX_COMPRESSED_TAR_BYTES`.
    """
    title, held, seen = str(path), 0, set[str]()
    with (
        _archive_errors(title, "tar"),
        COMPRESSIONS[file_kind(path) or "gz"](path) as file,
        _open_tar(metered := _Metered(file, title, MAX_HEADER_BYTES), "r|") as tar,
    ):
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would remember them all
            metered.left = MAX_HEADER_BYTES
            name = _check_member(title, member, seen)
            if name is not None:
                held += member.size + sys.getsizeof(name) + BYTES_PER_FILE
            if max(held, metered.total) > MAX_COMPRESSED_TAR_BYTES:
                raise UserError(
                    f"{title}: holds more than {MAX_COMPRESSED_TAR_BYTES >> 30} GiB: a "
                    "compressed tar is read in memory; decompress it, and give the plain tar"
                )
            if name is None:
                continue
            metered.left += member.size
            opened = tar.extractfile(member)
            assert opened is not None
            data = opened.read()
            if len(data) != member.size:
                raise UserError(f"{title}: is cut off in {name}: expected the whole archive")
            yield name, Held(data)
        while rest := file.read(1 << 20):  # up to the checksum at the end
            held += len(rest)
            if held > MAX_COMPRESSED_TAR_BYTES:
                raise UserError(f"{title}: has too much after its last file")


# --- Zip


def zip_files(path: Path) -> Iterator[tuple[str, Span]]:
    """Lists the files of a zip file, stored or deflated; what is odd in it is refused.

    Raises:
        UserError: the zip is damaged or encrypted, or holds names outside of itself or twice.
    """
    container, title, seen, taken = container_at(path), str(path), set[str](), 0
    with (
        _archive_errors(title, "zip"),
        path.open("rb") as file,
        zipfile.ZipFile(_Metered(file, title, MAX_ZIP_LIST_BYTES)) as archive,
    ):
        for info in archive.infolist():
            name = _check_name(title, info.filename)
            if info.is_dir():
                continue
            if info.flag_bits & 1 or info.compress_type not in (0, 8):
                raise UserError(
                    f"{title}: {name[:80]!r} is encrypted or compressed in a way that is not "
                    "read here: expected stored or deflated files; unpack it"
                )
            if name in seen:
                raise UserError(f"{title}: expected each name once, got {name[:80]!r} twice")
            if info.compress_type == 0 and info.compress_size != info.file_size:
                raise UserError(f"{title}: {name[:80]!r} has two sizes: the file is damaged")
            held = info.compress_size if info.compress_type else info.file_size
            if not 0 <= info.header_offset <= container.num_bytes - ZIP_HEADER_BYTES - held:
                raise UserError(f"{title}: {name[:80]!r} is not in the file: it is damaged")
            taken += ZIP_HEADER_BYTES + held
            if taken > container.num_bytes:
                # A megabyte that a million entries share would be decompressed a million times.
                raise UserError(f"{title}: expected files side by side, got some over each other")
            seen.add(name)
            compressed = info.compress_size if info.compress_type else 0
            yield name, Span(container, info.header_offset, info.file_size, compressed, True)
