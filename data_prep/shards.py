"""The on-disk format of a data set: the one writer and the one reader.

A data set is a directory of immutable HDF5 files (`train-00000.h5`, `val-00000.h5`, ...), with
`statistics.h5` and `manifest.json`, which names every file with its size and SHA-256. A shard
holds:

    images         uint8 (N, 256, 256, 3), contiguous and page-aligned: readers memory-map it
    labels         int32 (N,), indices into wnids
    pictures       bytes (N,), where each image came from, relative to the source's directory
    wnids, names   bytes (K,), one a class
    pixel_sum, rgb_second_moment   uint64, the exact sums that statistics.h5 is made of

N images, H rows, W columns, C channels, K classes.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_prep.color_statistics import ColorStatistics, PixelSums

FORMAT_NAME = "replica-shards"
FORMAT_VERSION = 1
IMAGE_SIZE = 256
PARTS = ("train", "val")
MANIFEST_FILE = "manifest.json"
STATISTICS_FILE = "statistics.h5"
PAGE_BYTES = 4096
BUILD_COMMAND = "python data_prep/build_shards.py"


class UserError(ValueError):
    """What a user gave cannot be used; the message holds the value, the rule and the way out.

    The commands print it as one line and end with exit status 2.
    """


def write_whole(path: Path, data: bytes) -> str:
    """Writes a file completely or not at all, and returns its SHA-256.

    The bytes reach the disk under a temporary name before the file gets its own.

    Raises:
        UserError: the file system refuses (full, read-only, ...); nothing is left behind.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # On a read-only file system there is nothing to remove.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path} ({len(data) / 1e6:.1f} MB): {error.strerror}: make room or "
            "choose another directory, then run the same command again; finished files are kept"
        ) from None
    return hashlib.sha256(data).hexdigest()


def _hdf5_bytes(fill: Callable[[h5py.File], None]) -> bytes:
    """Builds an HDF5 file in memory, so that the same content gives the same bytes."""
    with h5py.File(
        "shard.h5",
        "w",
        driver="core",
        backing_store=False,
        libver=("earliest", "v110"),
        alignment_threshold=PAGE_BYTES,
        alignment_interval=PAGE_BYTES,
    ) as file:
        fill(file)
        file.flush()
        return file.id.get_file_image()


def write_shard(
    path: Path,
    *,
    images_NHWC: np.ndarray,
    labels: np.ndarray,
    pictures: list[str],
    wnids: tuple[str, ...],
    names: tuple[str, ...],
    sums: PixelSums,
) -> dict[str, Any]:
    """Writes one shard and returns its manifest entry (file, num_images, num_bytes, sha256)."""

    def fill(file: h5py.File) -> None:
        file.attrs["format"] = FORMAT_NAME
        file.attrs["version"] = FORMAT_VERSION
        file.create_dataset("images", data=images_NHWC)
        file.create_dataset("labels", data=labels.astype(np.int32))
        file.create_dataset("pictures", data=np.array([os.fsencode(p) for p in pictures]))
        file.create_dataset("wnids", data=np.array([os.fsencode(w) for w in wnids]))
        file.create_dataset("names", data=np.array([os.fsencode(n) for n in names]))
        file.create_dataset("pixel_sum", data=sums.pixel_sum.astype(np.uint64))
        file.create_dataset("rgb_second_moment", data=sums.rgb_second_moment.astype(np.uint64))

    data = _hdf5_bytes(fill)
    return {
        "file": path.name,
        "num_images": len(images_NHWC),
        "num_bytes": len(data),
        "sha256": write_whole(path, data),
    }


def write_statistics(path: Path, statistics: ColorStatistics) -> dict[str, Any]:
    """Writes `statistics.h5` and returns its manifest entry."""

    def fill(file: h5py.File) -> None:
        file.attrs["format"] = FORMAT_NAME
        file.attrs["version"] = FORMAT_VERSION
        for name in ("mean_image", "rgb_covariance", "eigenvalues", "eigenvectors"):
            file.create_dataset(name, data=getattr(statistics, name))
        file["mean_image"].attrs["unit"] = "pixel value, 0..255"
        file["rgb_covariance"].attrs["unit"] = "squared pixel value, RGB in [0, 1]"

    data = _hdf5_bytes(fill)
    return {"file": path.name, "num_bytes": len(data), "sha256": write_whole(path, data)}


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Replaces `manifest.json`; no times and no host names, so equal builds give equal bytes."""
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=True)
    write_whole(directory / MANIFEST_FILE, (text + "\n").encode())


def read_manifest(directory: Path) -> dict[str, Any]:
    """Reads and checks `manifest.json`.

    Raises:
        UserError: there is none, it is damaged, or it is of another format version.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise UserError(
            f"no data at {directory}: expected {MANIFEST_FILE} there; build the shards with "
            f"`{BUILD_COMMAND} --output {directory}`, or give their place with --data"
        )
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, got {error}: build the shards again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_NAME:
        raise UserError(
            f"{path}: expected the manifest of a data set of shards, got something else"
        )
    if manifest.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: expected format version {FORMAT_VERSION}, got {manifest.get('version')}: "
            "build the shards with this version of the project, or use the one that built them"
        )
    return manifest


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shard_problem(path: Path, entry: dict[str, Any]) -> str | None:
    """Why a file cannot be the one that the manifest names, without reading its content."""
    if not path.is_file():
        return f"{path.name} is missing"
    num_bytes = path.stat().st_size
    if num_bytes != entry["num_bytes"]:
        return f"{path.name} has {num_bytes} bytes instead of {entry['num_bytes']}"
    return None


def _open_dataset(
    file: h5py.File, name: str, *, dtype: str, shape: tuple[int, ...]
) -> h5py.Dataset:
    """Opens a data set that is really inside the file and has the form that the format states."""
    problem = None
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        problem = "is missing or is a link to another place"
    elif not isinstance(file[name], h5py.Dataset):
        problem = "is no data set"
    else:
        dataset = file[name]
        if dataset.chunks is not None or dataset.is_virtual or dataset.external:
            problem = "is not stored contiguously in the file"
        elif dataset.dtype.kind + str(dataset.dtype.itemsize) != dtype and dtype != "S":
            problem = f"has type {dataset.dtype} instead of {dtype}"
        elif dtype == "S" and dataset.dtype.kind != "S":
            problem = f"has type {dataset.dtype} instead of bytes"
        elif dataset.shape != shape:
            problem = f"has shape {dataset.shape} instead of {shape}"
    if problem:
        raise UserError(
            f"{file.filename}: {name} {problem}: build this shard again (remove the file, then run "
            f"`{BUILD_COMMAND}` as before)"
        )
    return file[name]


def _open_file(path: Path) -> h5py.File:
    try:
        # Shards never change once they have their name, so no lock is needed (NFS has none).
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise UserError(f"{path}: expected an HDF5 file, got {error}: build it again") from None
    version = file.attrs.get("version")
    if file.attrs.get("format") != FORMAT_NAME or version != FORMAT_VERSION:
        file.close()
        raise UserError(
            f"{path}: expected a shard of format version {FORMAT_VERSION}, got {version}: build "
            "the shards with this version of the project"
        )
    return file


@dataclass(frozen=True)
class Shard:
    """One shard file; reading opens it anew, so no handle crosses a fork."""

    path: Path
    num_images: int
    num_classes: int

    def images(self) -> np.ndarray:
        """Memory-maps the images: uint8 (N, H, W, C), read-only."""
        shape = (self.num_images, IMAGE_SIZE, IMAGE_SIZE, 3)
        with _open_file(self.path) as file:
            offset = _open_dataset(file, "images", dtype="u1", shape=shape).id.get_offset()
        return np.memmap(self.path, np.uint8, "r", offset=offset, shape=shape)

    def labels(self) -> np.ndarray:
        """Reads the labels: int32 (N,), checked to lie in [0, num_classes)."""
        with _open_file(self.path) as file:
            labels = _open_dataset(file, "labels", dtype="i4", shape=(self.num_images,))[:]
        if len(labels) and not (labels.min() >= 0 and labels.max() < self.num_classes):
            raise UserError(
                f"{self.path}: expected labels in [0, {self.num_classes}), got "
                f"{labels.min()}..{labels.max()}: build this shard again"
            )
        return labels

    def pictures(self) -> list[str]:
        """Reads where each image came from."""
        with _open_file(self.path) as file:
            names = _open_dataset(file, "pictures", dtype="S", shape=(self.num_images,))[:]
        return [os.fsdecode(name) for name in names]

    def wnids(self) -> list[str]:
        """Reads the class identifiers."""
        with _open_file(self.path) as file:
            wnids = _open_dataset(file, "wnids", dtype="S", shape=(self.num_classes,))[:]
        return [os.fsdecode(wnid) for wnid in wnids]

    def sums(self) -> PixelSums:
        """Reads the sums that the statistics are made of."""
        shape = (IMAGE_SIZE, IMAGE_SIZE, 3)
        with _open_file(self.path) as file:
            return PixelSums(
                self.num_images,
                _open_dataset(file, "pixel_sum", dtype="u8", shape=shape)[:],
                _open_dataset(file, "rgb_second_moment", dtype="u8", shape=(3, 3))[:],
            )


@dataclass
class Part:
    """The train or the val images of a data set, addressed by row in the stored order.

    Files are opened and mapped at the first read in each process.
    """

    shards: list[Shard]
    _maps: dict[int, np.ndarray] = field(default_factory=dict)
    _process: int = -1

    @cached_property
    def _first_rows(self) -> np.ndarray:
        return np.cumsum([0] + [shard.num_images for shard in self.shards])

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    @cached_property
    def labels(self) -> np.ndarray:
        """int32 (N,), all labels of the part."""
        return np.concatenate([np.empty(0, np.int32), *(shard.labels() for shard in self.shards)])

    def image(self, row: int) -> np.ndarray:
        """One image: uint8 (H, W, C), a read-only view of the file."""
        if not 0 <= row < len(self):
            raise IndexError(f"expected a row in [0, {len(self)}), got {row}")
        if self._process != os.getpid():
            self._maps, self._process = {}, os.getpid()
        number = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        if number not in self._maps:
            self._maps[number] = self.shards[number].images()
        return self._maps[number][row - self._first_rows[number]]


@dataclass(frozen=True)
class DataSet:
    """A complete data set of shards."""

    directory: Path
    manifest: dict[str, Any]
    manifest_sha256: str
    train: Part
    val: Part

    @property
    def wnids(self) -> list[str]:
        """One identifier a class."""
        return list(self.manifest["wnids"])

    @property
    def class_names(self) -> list[str]:
        """One readable name a class."""
        return list(self.manifest["class_names"])

    @property
    def recipe(self) -> str | None:
        """The recipe that the data set names as its default."""
        return self.manifest["recipe"]

    @property
    def cycle_seed(self) -> int:
        """The seed of the one order in which training goes through the images, epoch by epoch."""
        return int(self.manifest["cycle_seed"])

    @cached_property
    def statistics(self) -> ColorStatistics:
        """Mean image and RGB principal components of the training images."""
        with _open_file(self.directory / STATISTICS_FILE) as file:
            square = (IMAGE_SIZE, IMAGE_SIZE, 3)
            return ColorStatistics(
                _open_dataset(file, "mean_image", dtype="f4", shape=square)[:],
                _open_dataset(file, "rgb_covariance", dtype="f8", shape=(3, 3))[:],
                _open_dataset(file, "eigenvalues", dtype="f8", shape=(3,))[:],
                _open_dataset(file, "eigenvectors", dtype="f8", shape=(3, 3))[:],
            )


def open_data_set(directory: Path) -> DataSet:
    """Opens a data set and checks that every file is there, whole, and of this format.

    Contents are not read: `python data_prep/verify_shards.py` compares every SHA-256.

    Raises:
        UserError: anything is missing, truncated, unfinished or of another version; all the
            damaged files are named at once.
    """
    manifest = read_manifest(directory)
    again = f"run `{BUILD_COMMAND}` as before; it makes what is missing"
    if not manifest.get("complete"):
        raise UserError(f"{directory}: the build has not finished: {again}")
    entries = [entry for part in PARTS for entry in shard_entries(manifest, part)]
    problems = [
        shard_problem(directory / entry["file"], entry)
        for entry in [*entries, manifest["statistics"]]
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise UserError(f"{directory}: {'; '.join(found)}: {again}")
    num_classes = len(manifest["wnids"])
    parts = {
        part: Part(
            [
                Shard(directory / entry["file"], entry["num_images"], num_classes)
                for entry in shard_entries(manifest, part)
            ]
        )
        for part in PARTS
    }
    data_set = DataSet(
        directory, manifest, sha256_of_file(directory / MANIFEST_FILE), parts["train"], parts["val"]
    )
    # What is wrong with a file fails now, not in the middle of an epoch.
    for part in parts.values():
        for shard in part.shards:
            shard.images()
            if shard.wnids() != data_set.wnids:
                raise UserError(
                    f"{shard.path}: its classes are not those of {MANIFEST_FILE}: this shard is of "
                    f"another data set; remove it and {again}"
                )
        _ = part.labels
    _ = data_set.statistics
    return data_set


def shard_entries(manifest: dict[str, Any], part: str) -> list[dict[str, Any]]:
    """The manifest's entries of the shards of a part that hold images."""
    return [entry for entry in manifest["parts"][part]["shards"] if entry["num_images"]]
