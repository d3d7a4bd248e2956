"""Folders, zip files and tar files as one kind of tree; nothing is ever extracted.

A file of a tree is read where it lies: an uncompressed tar, and a tar inside it, hold each file as
one span of bytes, and a zip file holds it as one compressed span. So a worker that is told the span
needs neither the archive's index nor its neighbours.
"""

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from data_prep.errors import UserError

# The largest file that is read as a picture; ImageNet's largest is below 16 MB.
MAX_PICTURE_BYTES = 256 << 20
# The largest text beside the pictures; WordNet's names are 2.6 MB.
MAX_TEXT_BYTES = 64 << 20
# A compressed tar cannot be read in the middle: it is held in memory, up to this size.
MAX_COMPRESSED_TAR_BYTES = 2 << 30
OPEN_CONTAINERS = 8
ZIP_HEADER_BYTES = 30


class InputChangedError(UserError):
    """The input vanished or changed while the build was reading it."""


class Container(NamedTuple):
    """A tar or zip file, as it was when it was listed."""

    path: str
    num_bytes: int
    modified_ns: int


class Span(NamedTuple):
    """A file inside a container.

    `compressed` is 0 for plain bytes, else the number of bytes that the zip file holds for it,
    which begin after the header at `offset`.
    """

    container: Container
    offset: int
    size: int
    compressed: int = 0
    is_zip: bool = False


class Held(NamedTuple):
    """A file that is held in memory."""

    data: bytes


class Pixels(NamedTuple):
    """A picture that needs no decoding: uint8 planes (3, side, side), red first."""

    data: bytes
    side: int


Place = str | Span | Held | Pixels  # a string is the path of a file on disk


class Tree(Protocol):
    """What a source reads from: folders and files, whatever they are stored in."""

    @property
    def title(self) -> str:
        """What messages call it."""

    def names(self, directory: str) -> list[str]:
        """The names in a directory in byte order; empty where there is no such directory."""

    def is_dir(self, path: str) -> bool:
        """Whether the path is a directory."""

    def is_file(self, path: str) -> bool:
        """Whether the path is a file."""

    def place(self, path: str) -> Place:
        """Where the bytes of a file are."""


class Folder:
    """A directory on disk."""

    def __init__(self, root: Path):
        self.root = root
        self.title = str(root)

    def names(self, directory: str) -> list[str]:
        """The names in a directory in byte order, whatever the locale and the file system."""
        try:
            return sorted(os.listdir(self.root / directory), key=os.fsencode)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(
                f"{self.root / directory}: cannot be listed: {error.strerror}"
            ) from None

    def is_dir(self, path: str) -> bool:
        """Whether the path is a directory."""
        return (self.root / path).is_dir()

    def is_file(self, path: str) -> bool:
        """Whether the path is a file."""
        return (self.root / path).is_file()

    def place(self, path: str) -> Place:
        """Where the bytes of a file are."""
        return str(self.root / path)


class Archive:
    """The files of a tar or zip file."""

    def __init__(self, title: str, files: dict[str, Place]):
        self.title, self._files = title, files
        self._children: dict[str, set[str]] = {"": set()}
        for path in files:
            parent, _, name = path.rpartition("/")
            while name not in self._children.setdefault(parent, set()):
                self._children[parent].add(name)
                if not parent:
                    break
                parent, _, name = parent.rpartition("/")

    def names(self, directory: str) -> list[str]:
        """The names in a directory in byte order."""
        return sorted(self._children.get(_normal(directory), ()), key=os.fsencode)

    def is_dir(self, path: str) -> bool:
        """Whether the path is a directory."""
        return _normal(path) in self._children

    def is_file(self, path: str) -> bool:
        """Whether the path is a file."""
        return _normal(path) in self._files

    def place(self, path: str) -> Place:
        """Where the bytes of a file are."""
        return self._files[_normal(path)]


@dataclass
class Below:
    """The part of a tree below one of its directories."""

    tree: Tree
    prefix: str

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.tree.title}/{self.prefix}"

    def names(self, directory: str) -> list[str]:
        """The names in a directory in byte order."""
        return self.tree.names(self._inner(directory))

    def is_dir(self, path: str) -> bool:
        """Whether the path is a directory."""
        return self.tree.is_dir(self._inner(path))

    def is_file(self, path: str) -> bool:
        """Whether the path is a file."""
        return self.tree.is_file(self._inner(path))

    def place(self, path: str) -> Place:
        """Where the bytes of a file are."""
        return self.tree.place(self._inner(path))

    def _inner(self, path: str) -> str:
        return f"{self.prefix}/{path}" if path else self.prefix


def _normal(path: str) -> str:
    return str(PurePosixPath(path)) if path else ""


def visible_names(tree: Tree, directory: str) -> list[str]:
    """The names in a directory that do not begin with a dot."""
    return [name for name in tree.names(directory) if not name.startswith(".")]


def open_tree(path: Path) -> Tree:
    """The tree at a path: a directory, a zip file or a tar file.

    Raises:
        UserError: there is nothing, or a file of another kind.
    """
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise UserError(f"{path}: expected a directory, a zip file or a tar file, found none there")
    kind = file_kind(path)
    if kind == "zip":
        return Archive(str(path), dict(zip_files(path)))
    if kind == "tar":
        return Archive(str(path), dict(tar_files(path)))
    if kind in COMPRESSIONS:
        return Archive(str(path), dict(compressed_tar_files(path)))
    raise UserError(f"{path}: expected a directory, a zip file or a tar file, found something else")


COMPRESSIONS = {"gz": gzip.GzipFile, "bz2": bz2.BZ2File, "xz": lzma.LZMAFile}


def file_kind(path: Path) -> str | None:
    """`zip`, `tar`, `gz`, `bz2`, `xz`, or None: told by the first bytes, not by the name."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    for magic, kind in (
        (b"PK\x03\x04", "zip"),
        (b"\x1f\x8b", "gz"),
        (b"BZh", "bz2"),
        (b"\xfd7zXZ\0", "xz"),
    ):
        if head.startswith(magic):
            return kind
    return "tar" if head[257:262] == b"ustar" or _is_old_tar_header(head) else None


def _is_old_tar_header(head: bytes) -> bool:
    if len(head) < 512 or not head[0]:
        return False
    try:
        checksum = int(head[148:156].strip(b"\0 ") or b"x", 8)
    except ValueError:
        return False
    return checksum == sum(head[:148]) + 8 * 32 + sum(head[156:])


def container_at(path: Path) -> Container:
    """What identifies an archive, so that a change is noticed."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return Container(str(path), status.st_size, status.st_mtime_ns)


def _check_name(title: str, name: str) -> str:
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


# --- Tar


class _Part(io.RawIOBase):
    """The bytes of a file from `start` to `end`."""

    def __init__(self, file: io.BufferedIOBase | io.RawIOBase, start: int, end: int):
        self._file, self._start, self._end, self._at = file, start, end, start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: self._start, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence]
        self._at = max(self._start, base + offset)
        return self._at - self._start

    def tell(self) -> int:
        return self._at - self._start

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), max(0, self._end - self._at))
        self._file.seek(self._at)
        data = self._file.read(wanted) or b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def tar_files(path: Path, *, within: Span | None = None) -> Iterator[tuple[str, Span]]:
    """Lists the plain files of an uncompressed tar, in the tar's order.

    Args:
        path: the file.
        within: a tar inside that file, instead of the file itself.

    Raises:
        UserError: the tar is damaged or cut off, or holds something else than directories and
            plain files below itself (links, devices, `..`), or a name twice.
    """
    container = within.container if within else container_at(path)
    start = within.offset if within else 0
    end = start + (within.size if within else container.num_bytes)
    title = str(path)
    seen: set[str] = set()
    with (
        _archive_errors(title, "tar"),
        path.open("rb", buffering=0) as file,
        io.BufferedReader(_Part(file, start, end), 4096) as part,
        tarfile.open(fileobj=part, mode="r:") as tar,
    ):
        while (member := tar.next()) is not None:
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
    if not isinstance(place, str | Span) or (isinstance(place, Span) and place.is_zip):
        raise UserError(f"{title}: a tar inside a compressed file cannot be read: unpack the outer")
    try:
        if isinstance(place, str):
            yield from tar_files(Path(place))
        else:
            yield from tar_files(Path(place.container.path), within=place)
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
    """Reads a compressed tar into memory, and lists its plain files.

    Raises:
        UserError: as `tar_files`, or it holds more than `MAX_COMPRESSED_TAR_BYTES`.
    """
    title, total, seen = str(path), 0, set[str]()
    with (
        _archive_errors(title, "tar"),
        COMPRESSIONS[file_kind(path) or "gz"](path) as file,
        tarfile.open(fileobj=file, mode="r|") as tar,
    ):
        for member in tar:
            name = _check_member(title, member, seen)
            total += member.size
            if total > MAX_COMPRESSED_TAR_BYTES:
                raise UserError(
                    f"{title}: holds more than {MAX_COMPRESSED_TAR_BYTES >> 30} GiB: a "
                    "compressed tar is read in memory; decompress it, and give the plain tar"
                )
            if name is None:
                continue
            opened = tar.extractfile(member)
            assert opened is not None
            data = opened.read()
            if len(data) != member.size:
                raise UserError(f"{title}: is cut off in {name}: expected the whole archive")
            yield name, Held(data)
        while rest := file.read(1 << 20):  # up to the checksum at the end
            total += len(rest)
            if total > MAX_COMPRESSED_TAR_BYTES:
                raise UserError(f"{title}: has too much after its last file")


# --- Zip


def zip_files(path: Path) -> Iterator[tuple[str, Span]]:
    """Lists the files of a zip file, stored or deflated.

    Raises:
        UserError: the zip is damaged or encrypted, or holds names outside of itself or twice.
    """
    container, title, seen = container_at(path), str(path), set[str]()
    with _archive_errors(title, "zip"), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                _check_name(title, info.filename)
                continue
            name = _check_name(title, info.filename)
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
            seen.add(name)
            compressed = info.compress_size if info.compress_type else 0
            yield name, Span(container, info.header_offset, info.file_size, compressed, True)


# --- Reading


class Reader:
    """Reads files at their places; keeps a few containers open."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, place: Place, *, limit: int = MAX_PICTURE_BYTES) -> bytes:
        """The bytes of a file.

        Raises:
            OSError: the file cannot be read.
            InputChangedError: an archive is not the one that was listed.
            ValueError: the file is larger than `limit`, or an archive's entry is damaged.
        """
        if isinstance(place, Held | Pixels):
            return place.data
        if isinstance(place, str):
            data = _read_file(place, limit)
        else:
            if place.size > limit:
                raise ValueError(f"has {place.size} bytes, more than {limit}")
            data = self._read_span(place)
        if len(data) > limit:
            raise ValueError(f"has more than {limit} bytes")
        return data

    def close(self) -> None:
        """Closes the containers."""
        while self._open:
            os.close(self._open.popitem()[1])

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
        if container.path in self._open:
            self._open.move_to_end(container.path)
            return self._open[container.path]
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
        if len(self._open) >= OPEN_CONTAINERS:
            os.close(self._open.popitem(last=False)[1])
        self._open[container.path] = file
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


def read_text(tree: Tree, path: str, what: str) -> str:
    """The text of a file of a tree, in UTF-8 with or without a byte order mark.

    Raises:
        UserError: there is no such file, or it is too large or no text; `what` says what was
            expected in it.
    """
    title = f"{tree.title}/{path}"
    try:
        return read_bytes(tree, path, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{title}: expected text in UTF-8, got {error.reason}") from None


def read_bytes(tree: Tree, path: str, what: str, *, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The bytes of a file of a tree that stands beside the pictures.

    Raises:
        UserError: there is no such file, or it is too large or cannot be read.
    """
    title = f"{tree.title}/{path}"
    if not tree.is_file(path):
        raise UserError(f"{title}: expected {what}, found no file")
    reader = Reader()
    try:
        return reader.read(tree.place(path), limit=limit)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{title}: {error}: expected {what}") from None
    except OSError as error:
        raise UserError(f"{title}: cannot be read: {error.strerror}") from None
    finally:
        reader.close()


def text_lines(tree: Tree, path: str, what: str) -> list[tuple[int, str]]:
    """The numbered lines of a text file that are not empty."""
    lines = read_text(tree, path, what).splitlines()
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
