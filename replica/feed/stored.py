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
from cuda_ext.mapped_reads import MappedReads, num_lost_pages
from data_prep.errors import UserError
from data_prep.files import NO_FILE, identity_of
from data_prep.shards import JpegImages, Part, Shard
from replica.feed.buffers import Buffers

AGAIN = (
    "restore it and check it with `python -m data_prep.verify_shards`, then run the command again "
    "(training: with --resume)"
)


@dataclass(frozen=True)
class _Mapped:
    images: torch.Tensor | JpegImages
    path: Path
    reads: MappedReads

    def image_at(self, byte: int) -> int:
        """The image that has a byte of the mapped ones."""
        if isinstance(self.images, JpegImages):
            return int(np.searchsorted(self.images.offsets, byte, side="right")) - 1
        return byte // self.images[0].numel()


class StoredImages:
    """The images of a part by row; threads may read at once.

    Shards are mapped at their first use. Raw pixels are read in place; JPEG files are decoded into
    memory that is used again.

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
        self._buffers = Buffers()
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
        numbers = np.searchsorted(self._first_rows, rows, side="right") - 1
        distinct, first_uses, which = np.unique(numbers, return_index=True, return_inverse=True)
        mapped = [
            self._images(int(number), int(rows[use]))
            for number, use in zip(distinct, first_uses, strict=True)
        ]
        places = rows - self._first_rows[numbers]
        tensors = [x for x in mapped if isinstance(x, torch.Tensor)]
        if not tensors:
            jpegs = [x for x in mapped if isinstance(x, JpegImages)]
            return [self._decoded([jpegs[i] for i in which], places)], np.arange(len(rows))
        if self._reads_ahead:
            num_bytes = tensors[0][0].numel()
            begins = np.array([tensor.data_ptr() for tensor in tensors])
            for begin in begins[which] + places * num_bytes:
                _read_ahead(int(begin), num_bytes)
        starts = np.cumsum([0] + [len(tensor) for tensor in tensors])
        return tensors, starts[which] + places

    def check(self) -> None:
        """To be called once what `take` gave has been read: whether all of it could be.

        Raises:
            UserError: a file was cut off meanwhile, or a disk fails; some of the images are wrong.
        """
        if not num_lost_pages():
            return
        for known in list(self._mapped.values()):
            byte = known.reads.lost_byte()
            if byte is not None:
                raise UserError(
                    f"{known.path}: image {known.image_at(byte)}: the file was cut off while "
                    f"it was read, or its disk fails: {AGAIN}"
                )

    def _decoded(self, shards: list[JpegImages], places: np.ndarray) -> torch.Tensor:
        """An image of each of the shards: uint8 (N, H, W, 3)."""
        if self._reads_ahead:
            for shard, place in zip(shards, places, strict=True):
                first, end = shard.offsets[place : place + 2]
                _read_ahead(shard.data.ctypes.data + int(first), int(end - first))
        size = shards[0].image_size
        decoded = self._buffers.take((len(shards), size, size, 3), torch.uint8)
        pixels = decoded.numpy()
        try:
            for shard, place, image in zip(shards, places.tolist(), pixels, strict=True):
                shard.decode_into(place, image)
        except UserError:
            self.check()  # which may be why
            raise
        return decoded

    def _images(self, number: int, row: int) -> torch.Tensor | JpegImages:
        """The images of a shard; the row is one that is asked for, for a message."""
        shard, known = self._part.shards[number], self._mapped.get(number)
        identity = identity_of(shard.path)
        if identity == NO_FILE or identity != self._part.identities[number]:
            # What is behind the end of a file that was cut off cannot be read.
            raise UserError(
                f"{shard.path}: image {row - int(self._first_rows[number])}: the file was changed, "
                f"replaced or removed since it was opened: {AGAIN}"
            )
        if known is None:
            # Two threads may both map a shard; either map serves both.
            known = self._mapped[number] = _map(shard)
        return known.images


def _map(shard: Shard) -> _Mapped:
    images = shard.images()
    if isinstance(images, JpegImages):
        return _Mapped(images, shard.path, MappedReads(images.data))
    return _Mapped(as_tensor(images), shard.path, MappedReads(images))


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
