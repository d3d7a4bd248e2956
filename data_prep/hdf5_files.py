"""HDF5 files of the format: opened, checked and read; what is wrong in one becomes one line.

On h5py's low level: training on ImageNet opens 1,300 files before its first step, at a third of
the time that h5py's objects take.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from h5py import h5a, h5d, h5f, h5l, h5o, h5p, h5s

from data_prep.errors import UserError, command_for
from data_prep.manifest import BUILDER, FORMAT_NAME, FORMAT_VERSION


@dataclass(frozen=True)
class Hdf5File:
    """A file of the format that is open for reading."""

    path: Path
    id: h5f.FileID

    def attribute(self, name: str) -> Any:
        """The value of an attribute of the file, text as `str`; None where there is none."""
        if not h5a.exists(self.id, name.encode()):
            return None
        attribute = h5a.open(self.id, name.encode())
        value = np.zeros(attribute.shape, attribute.dtype)
        attribute.read(value)
        value = value[()]
        return value.decode() if isinstance(value, bytes) else value

    def dataset(self, name: str, *, dtype: str, shape: tuple[int | None, ...]) -> h5d.DatasetID:
        """Opens a data set that is really inside the file and has the form that the format states.

        `dtype` is kind and size, such as `u1`; `S` is bytes of any length. None in `shape` is any
        length, too.
        """
        problem, dataset = self._problem(name.encode(), dtype, shape)
        if problem:
            raise UserError(
                f"{self.path}: {name} {problem}: build this shard again (remove the file, then run "
                f"`{command_for(BUILDER)}` as before)"
            )
        return dataset

    def read(self, name: str, *, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """All values of such a data set."""
        dataset = self.dataset(name, dtype=dtype, shape=shape)
        values = np.empty(dataset.shape, dataset.dtype)
        if values.size:
            dataset.read(h5s.ALL, h5s.ALL, values)
        return values

    def _problem(
        self, name: bytes, dtype: str, shape: tuple[int | None, ...]
    ) -> tuple[str | None, Any]:
        links = self.id.links
        if not links.exists(name) or links.get_info(name).type != h5l.TYPE_HARD:
            return "is missing or is a link to another place", None
        dataset = h5o.open(self.id, name)
        if not isinstance(dataset, h5d.DatasetID):
            return "is no data set", None
        created, found = dataset.get_create_plist(), dataset.dtype
        is_elsewhere = created.get_layout() in (h5d.CHUNKED, h5d.VIRTUAL)
        if is_elsewhere or created.get_external_count():
            return "is not stored contiguously in the file", None
        kind = found.kind if dtype == "S" else found.kind + str(found.itemsize)
        if kind != dtype:
            return f"has type {found} instead of {'bytes' if dtype == 'S' else dtype}", None
        have = dataset.shape
        if len(have) != len(shape) or any(
            want not in (None, length) for length, want in zip(have, shape, strict=True)
        ):
            return f"has shape {have} instead of {shape}", None
        if found.byteorder == ">":
            return "is stored with the other order of bytes", None
        if num_bytes := math.prod(have) * found.itemsize:
            offset = dataset.get_offset()
            if offset is None or offset + num_bytes > self.path.stat().st_size:
                return "reaches beyond the end of the file", None
        return None, dataset


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[Hdf5File]:
    """Opens a file of the format; whatever HDF5 finds wrong in it becomes one line."""
    try:
        file = Hdf5File(path, h5f.open(bytes(path), h5f.ACC_RDONLY, _access()))
        try:
            version = file.attribute("version")
            if file.attribute("format") != FORMAT_NAME or version != FORMAT_VERSION:
                raise UserError(
                    f"{path}: expected a shard of format version {FORMAT_VERSION}, got {version}: "
                    "build the shards with this version of the project"
                )
            yield file
        finally:
            file.id.close()
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{path}: expected an HDF5 file, got {' '.join(str(error).split())}: build it again"
        ) from None


def _access() -> h5p.PropFAID:
    access = h5p.create(h5p.FILE_ACCESS)
    # Shards never change once they have their name, so no lock is needed (NFS has none).
    access.set_file_locking(False, ignore_when_disabled=True)
    access.set_fclose_degree(h5f.CLOSE_STRONG)  # what was opened in the file is closed with it
    return access
