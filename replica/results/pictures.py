"""The pictures that a user names: files, folders, and lists of paths."""

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from data_prep.errors import UserError
from data_prep.files import read_plain_file
from data_prep.pictures import BadPictureError, PictureFormat, decode_picture

# What is tried in a folder, by the end of its name in any case; a file that is named itself is
# tried whatever its name.
SUFFIXES = (
    *(".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"),
    *(".avif", ".heic", ".heif"),
)
STANDARD_INPUT = "-"
MOST_BYTES = 1 << 30  # of a file; more is no picture of any camera
AHEAD = 2  # pictures that are read while the network has another one


@dataclass(frozen=True)
class Found:
    """A picture to be tried, or why there is none where one was named."""

    path: Path
    problem: str | None = None


class NamedPictures:
    """Lists pictures one after the other, and holds no more than the names of one folder.

    A folder gives the pictures in it and beneath it, by name; links to folders are not followed.

    Args:
        paths: files and folders; `-` stands for those that standard input names, one a line.

    Attributes:
        passed_over: how many files of folders were not tried, because of their names.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = paths
        self.passed_over = 0

    def __iter__(self) -> Iterator[Found]:
        """Every picture; a path that leads to none has a problem."""
        for path in self._paths:
            if path != STANDARD_INPUT:
                yield from self._at(Path(path))
                continue
            for line in sys.stdin.buffer:
                if name := os.fsdecode(line.rstrip(b"\r\n")):
                    yield from self._at(Path(name))

    def _at(self, path: Path) -> Iterator[Found]:
        if not path.is_dir():
            yield Found(path, None if path.exists() else "expected a picture or a folder")
            return
        num_found, before = 0, self.passed_over
        problems: list[OSError] = []
        for folder, folders, names in os.walk(path, onerror=problems.append):
            folders.sort()
            for name in sorted(names):
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    num_found += 1
                    yield Found(Path(folder, name))
                else:
                    self.passed_over += 1
            while problems:
                num_found += 1
                error = problems.pop()
                yield Found(Path(error.filename), f"cannot be listed: {error.strerror}")
        if not num_found:
            others = self.passed_over - before
            yield Found(
                path,
                f"expected pictures ({' '.join(SUFFIXES[:5])} ...) in the folder, found none"
                + (f" among {others} files: name those that are" if others else ""),
            )


def with_a_picture(found: Iterable[Found]) -> Iterator[Found]:
    """The same, once there is a picture to be tried at all.

    Raises:
        UserError: there is none; the message says what each path lacks.
    """
    rest = iter(found)
    before = []
    for one in rest:
        before.append(one)
        if one.problem is None:
            return _chained(before, rest)
    if not before:
        raise UserError("standard input: expected the path of a picture on each line, got none")
    more = f" (and {len(before) - 1} more)" if before[1:] else ""
    raise UserError(f"{before[0].path}: {before[0].problem}{more}")


def _chained(before: list[Found], rest: Iterator[Found]) -> Iterator[Found]:
    yield from before
    before.clear()
    yield from rest


def read_picture(path: Path, side: int) -> np.ndarray:
    """A file as the network's data had it: uint8 (side, side, 3) (paper 2).

    Raises:
        UserError: it cannot be read, or is no picture; the message begins with the path.
    """
    try:
        data = read_plain_file(path, at_most=MOST_BYTES)
        return decode_picture(data, PictureFormat(image_size=side)).image
    except (BadPictureError, MemoryError) as error:
        raise UserError(f"{path}: {error or 'too large for the memory'}") from None


def read_ahead(found: Iterable[Found], side: int) -> Iterator[tuple[Found, np.ndarray | None]]:
    """Pictures in their order, each read while its predecessors are worked on.

    Args:
        found: which; taken from only a few ahead.
        side: of the images.

    Yields:
        What was found, with the problem where it could not be read, and uint8 (side, side, 3) or
        None.
    """

    def read(one: Found) -> tuple[Found, np.ndarray | None]:
        if one.problem is not None:
            return one, None
        try:
            return one, read_picture(one.path, side)
        except UserError as error:
            return Found(one.path, str(error).removeprefix(f"{one.path}: ")), None

    rest = iter(found)
    ahead: deque[Future[tuple[Found, np.ndarray | None]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="pictures") as pool:
        try:
            ahead.extend(pool.submit(read, one) for one in islice(rest, AHEAD))
            while ahead:
                done = ahead.popleft().result()
                ahead.extend(pool.submit(read, one) for one in islice(rest, 1))
                yield done
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
