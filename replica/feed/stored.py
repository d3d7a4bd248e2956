"""The images of a part as `cuda_ext.augment_batch` takes them: shards, mapped into memory.

N images, H rows, W columns.
"""

import ctypes
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cuda_ext.augment_batch import as_tensor
from data_prep.errors import UserError
from data_prep.shards import Part, Shard

# Of a file as it was mapped: size, time of the last change in ns, and inode.
_Identity = tuple[int, int, int]


@dataclass(frozen=True)
class _Mapped:
    images: torch.Tensor
    path: Path
    identity: _Identity


class StoredImages:
    """The images of a part by row; threads may read at once.

    Shards of raw pixels are mapped at their first use and read in place; JPEG shards are decoded.

    Args:
        part: that has the images.
        reads_ahead: whether to ask the system for all images of a batch before the first is read,
            so that a disk has them all to read at once; by default where the part is larger than
            half of the memory, and its pages do not stay there.
    """

    def __init__(self, part: Part, *, reads_ahead: bool | None = None) -> None:
        self._part = part
        num_bytes = sum(3 * x.image_size**2 * x.num_images for x in part.shards)
        self._reads_ahead = num_bytes > _memory() / 2 if reads_ahead is None else reads_ahead
        self._first_rows = np.cumsum([0] + [shard.num_images for shard in part.shards])
        self._is_raw = all(shard.storage == "raw" for shard in part.shards)
        self._mapped: dict[int, _Mapped] = {}

    def take(self, rows: np.ndarray) -> tuple[list[torch.Tensor], np.ndarray]:
        """Where some images are.

        Args:
            rows: int64 (N,), at least one.

        Returns:
            Tensors uint8 (M, H, W, 3), only to be read, and each row's place in them, counted
            through: int64 (N,).

        Raises:
            UserError: a shard is damaged, or is not the file any more that it was.
        """
        if not self._is_raw:
            decoded = [as_tensor(self._part.image(int(row))[None]) for row in rows]
            return decoded, np.arange(len(rows))
        numbers = np.searchsorted(self._first_rows, rows, side="right") - 1
        distinct, first_uses, which = np.unique(numbers, return_index=True, return_inverse=True)
        tensors = [
            self._tensor(int(number), int(rows[use]))
            for number, use in zip(distinct, first_uses, strict=True)
        ]
        places = rows - self._first_rows[numbers]
        if self._reads_ahead:
            num_bytes = tensors[0][0].numel()
            begins = np.array([tensor.data_ptr() for tensor in tensors])
            for begin in begins[which] + places * num_bytes:
                _read_ahead(int(begin), num_bytes)
        starts = np.cumsum([0] + [len(tensor) for tensor in tensors])
        return tensors, starts[which] + places

    def _tensor(self, number: int, row: int) -> torch.Tensor:
        """The images of a shard; the row is one that is asked for, for a message."""
        known = self._mapped.get(number)
        if known is None:
            # Two threads may both map a shard; either map serves both.
            known = self._mapped[number] = _map(self._part.shards[number])
        elif _identity(known.path) != known.identity:
            # To read on behind the end of a file that was cut off would end the process.
            raise UserError(
                f"{known.path}: image {row - int(self._first_rows[number])}: the file was changed, "
                "replaced or removed since it was mapped: restore it and check it with "
                "`python -m data_prep.verify_shards`, then run the command again (training: with "
                "--resume)"
            )
        return known.images


def _map(shard: Shard) -> _Mapped:
    identity = _identity(shard.path)
    images = shard.images()
    assert isinstance(images, np.ndarray)
    return _Mapped(as_tensor(images), shard.path, identity)


def _identity(path: Path) -> _Identity:
    """Zeros where there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ino


def _memory() -> int:
    """Of the machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read_ahead(begin: int, num_bytes: int) -> None:
    """Asks the system to read mapped bytes, and does not wait for them."""
    first = begin - begin % mmap.PAGESIZE
    # Advice: where it cannot be followed, nothing is lost.
    _LIBC.madvise(ctypes.c_void_p(first), ctypes.c_size_t(begin + num_bytes - first), _WILL_NEED)


_LIBC = ctypes.CDLL(None)
_WILL_NEED = mmap.MADV_WILLNEED
