"""Writes the files of a data set of shards: the other side of shards.py.

N images, H rows, W columns, C channels.
"""

import contextlib
import io
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.color_statistics import ColorStatistics, PixelSums
from data_prep.files import disk_errors, part_of, sha256_of_file, write_whole
from data_prep.jpeg import decode_jpeg, encode_jpeg
from data_prep.manifest import (
    FORMAT_NAME,
    FORMAT_VERSION,
    FileEntry,
    ShardFile,
    Structure,
    structure_sha256,
)

PAGE_BYTES = 4096
# Where HDF5 begins the images, as long as they fill more bytes than it aligns.
IMAGES_OFFSET = 5 * PAGE_BYTES
MOMENT_SHAPE = (3, 3)  # of a shard's rgb_second_moment, uint64
_HDF5_OPTIONS: dict[str, Any] = {
    "libver": ("earliest", "v110"),
    # The images, and all that is as large as the sums, begin on pages of their own.
    "alignment_threshold": 8 * math.prod(MOMENT_SHAPE),
    "alignment_interval": PAGE_BYTES,
}
# What is left out of the SHA-256 of a shard's structure, as it is large: reading a data set of
# ImageNet's size would else begin with gigabytes.
LARGE_DATA = ("images", "jpeg_bytes", "pixel_sum", "wnids", "names")
STATISTICS_FIELDS = {
    "mean_image": "pixel value, 0..255",
    "rgb_mean": "pixel value, 0..255",
    "rgb_covariance": "squared pixel value, RGB in [0, 1]",
    "eigenvalues": "squared pixel value, RGB in [0, 1]",
    "eigenvectors": "column i belongs to eigenvalue i",
    "standard_deviations": "pixel value, 0..255, along the eigenvectors",
}


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, as every shard holds them, and the digest of the build's plan."""

    wnids: tuple[str, ...]
    names: tuple[str, ...]
    plan_sha256: str


def structure_of(path: Path) -> Structure:
    """The structure of a new shard: all its bytes but those of the large data sets."""
    with h5py.File(path, "r", locking=False) as file:
        spans = sorted(
            (int(file[name].id.get_offset()), int(file[name].nbytes))
            for name in LARGE_DATA
            if name in file and file[name].id.get_offset() is not None
        )
    return Structure(tuple(spans), structure_sha256(path, tuple(spans)))


def _hdf5_bytes(fill: Callable[[h5py.File], None]) -> bytes:
    """Builds an HDF5 file in memory, so that the same content gives the same bytes."""
    with h5py.File("shard.h5", "w", driver="core", backing_store=False, **_HDF5_OPTIONS) as file:
        fill(file)
        file.flush()
        return file.id.get_file_image()


def _bytes_array(texts: Iterable[str]) -> np.ndarray:
    return np.array([os.fsencode(text) for text in texts])


def _fill_head(file: h5py.File) -> None:
    file.attrs["format"] = FORMAT_NAME
    file.attrs["version"] = FORMAT_VERSION


def _fill_labels(file: h5py.File, labels: list[int], pictures: list[str], classes: Classes) -> None:
    file.create_dataset("labels", data=np.array(labels, np.int32))
    file.create_dataset("pictures", data=_bytes_array(pictures))
    file.create_dataset("wnids", data=_bytes_array(classes.wnids))
    file.create_dataset("names", data=_bytes_array(classes.names))
    file.attrs["plan_sha256"] = classes.plan_sha256


class _WriteLog(io.RawIOBase):
    """What HDF5 writes into a new file: all but the pixels, and it reads nothing of it back.

    HDF5 lays a shard out in it, where no disk can fail under it, and without room for the pixels.
    """

    def __init__(self) -> None:
        self.writes: list[tuple[int, bytes]] = []
        self.size = self._at = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        self.writes.append((self._at, bytes(data)))
        self._at += len(data)
        self.size = max(self.size, self._at)
        return len(data)


class RawShardWriter:
    """Writes a shard of raw pixels image by image, so that one is in memory.

    HDF5 begins the images at the same place however many there are: they go there as they come, and
    what it lays out around them follows, once it is known which pictures are bad.
    """

    def __init__(self, path: Path, *, classes: Classes, size: int, num_planned: int):
        self._path, self._classes, self._size = path, classes, size
        self._pictures: list[str] = []
        self._labels: list[int] = []
        self._image_bytes = size * size * 3
        self._planned_bytes = num_planned * self._image_bytes
        with self._errors():
            # A killed build may have left a file; its bytes must not show through.
            self._file = part_of(path).open("w+b", buffering=0)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return disk_errors(self._path, self._planned_bytes)

    def add(self, image: np.ndarray, *, picture: str, label: int) -> np.ndarray:
        """Adds the next image, uint8 (size, size, 3), and returns what a reader will get."""
        with self._errors():
            offset = IMAGES_OFFSET + len(self._pictures) * self._image_bytes
            self._write(np.ascontiguousarray(image).data, offset)
        self._pictures.append(picture)
        self._labels.append(label)
        return image

    def _write(self, data: memoryview, offset: int) -> None:
        data = data.cast("B")
        while data:
            count = os.pwrite(self._file.fileno(), data, offset)
            data, offset = data[count:], offset + count

    def abandon(self) -> None:
        """Removes the unfinished file."""
        self._file.close()
        part_of(self._path).unlink(missing_ok=True)

    def finish(self, sums: PixelSums) -> ShardFile:
        """Writes the rest, gives the file its name, and returns its manifest entry."""
        layout, first = self.lay_out(sums)
        num_images, temporary = len(self._pictures), part_of(self._path)
        num_bytes = num_images * self._image_bytes
        with self._errors():
            if first != IMAGES_OFFSET:
                images = os.pread(self._file.fileno(), num_bytes, IMAGES_OFFSET)
                assert len(images) == num_bytes  # one call gives up to 2 GB
                self._file.truncate(0)
                self._write(memoryview(images), first)
            for offset, data in layout.writes:
                assert offset + len(data) <= first or offset >= first + num_bytes
                self._write(memoryview(data), offset)
            self._file.truncate(layout.size)
            os.fsync(self._file.fileno())
            sha256, structure = sha256_of_file(temporary), structure_of(temporary)
            entry = ShardFile(self._path.name, layout.size, sha256, num_images, structure)
            if hasattr(os, "posix_fadvise"):
                # A quarter of a terabyte would push all other files out of memory.
                os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._file.close()
            temporary.replace(self._path)
        return entry

    def lay_out(self, sums: PixelSums) -> tuple[_WriteLog, int]:
        """The file without its images, and where they begin."""
        log = _WriteLog()
        with h5py.File(log, "w", **_HDF5_OPTIONS) as file:
            _fill_head(file)
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            layout.set_obj_track_times(False)  # no times in the file: equal builds, equal bytes
            square = (self._size, self._size, 3)
            for name, shape, dtype in (
                ("images", (len(self._pictures), *square), h5py.h5t.NATIVE_UINT8),
                ("pixel_sum", square, h5py.h5t.STD_U64LE),
                ("rgb_second_moment", MOMENT_SHAPE, h5py.h5t.STD_U64LE),
            ):
                space = h5py.h5s.create_simple(shape)
                dataset = h5py.h5d.create(file.id, name.encode(), dtype, space, layout)
                if name == "images":
                    first = dataset.get_offset()
                else:
                    values = np.ascontiguousarray(getattr(sums, name), "<u8")
                    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
            _fill_labels(file, self._labels, self._pictures, self._classes)
        return log, first


class JpegShardWriter:
    """Collects a shard of JPEG files, some 30 MB, and writes them at the end."""

    def __init__(self, path: Path, *, classes: Classes, size: int, quality: int):
        self._path, self._classes, self._size, self._quality = path, classes, size, quality
        self._files: list[bytes] = []
        self._pictures: list[str] = []
        self._labels: list[int] = []

    def add(self, image: np.ndarray, *, picture: str, label: int) -> np.ndarray:
        """Adds the next image, uint8 (size, size, 3), and returns what a reader will get."""
        data = encode_jpeg(image, self._quality)
        self._files.append(data)
        self._pictures.append(picture)
        self._labels.append(label)
        return decode_jpeg(data, self._size)

    def abandon(self) -> None:
        """Forgets everything."""
        self._files.clear()

    def finish(self, sums: PixelSums) -> ShardFile:
        """Writes the file, and returns its manifest entry."""

        def fill(file: h5py.File) -> None:
            _fill_head(file)
            sizes = [0, *(len(data) for data in self._files)]
            file.create_dataset("jpeg_offsets", data=np.cumsum(sizes, dtype=np.uint64))
            file.create_dataset("jpeg_bytes", data=np.frombuffer(b"".join(self._files), np.uint8))
            file.create_dataset("pixel_sum", data=sums.pixel_sum)
            file.create_dataset("rgb_second_moment", data=sums.rgb_second_moment)
            _fill_labels(file, self._labels, self._pictures, self._classes)

        data = _hdf5_bytes(fill)
        sha256 = write_whole(self._path, data)
        structure = structure_of(self._path)
        return ShardFile(self._path.name, len(data), sha256, len(self._files), structure)


def write_statistics(path: Path, statistics: ColorStatistics) -> FileEntry:
    """Writes `statistics.h5` and returns its manifest entry."""

    def fill(file: h5py.File) -> None:
        _fill_head(file)
        for name, unit in STATISTICS_FIELDS.items():
            file.create_dataset(name, data=getattr(statistics, name))
            file[name].attrs["unit"] = unit

    data = _hdf5_bytes(fill)
    return FileEntry(path.name, len(data), write_whole(path, data))
