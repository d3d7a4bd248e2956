"""The on-disk format of a data set: how it is read. FORMAT.md says what a shard holds.

N images, H rows, W columns, C channels, K classes.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.color_statistics import ColorStatistics, PixelSums
from data_prep.errors import UserError, command_for
from data_prep.files import Identity, identity_of, mapped_bytes, sha256_of_file
from data_prep.hdf5_files import Hdf5File, open_file
from data_prep.jpeg import decode_jpeg_into, decoder_in_use
from data_prep.manifest import (
    BUILDER,
    MANIFEST_FILE,
    PARTS,
    STATISTICS_FILE,
    Manifest,
)
from data_prep.manifest_json import read_manifest
from data_prep.progress import progress_bar
from data_prep.workers import num_cores

_AGAIN = f"run `{command_for(BUILDER)}` as before; it makes what is missing"


def _joined(labels: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int32), *labels])


@dataclass(frozen=True)
class JpegImages:
    """The images of a shard that holds JPEG files; each is decoded when it is asked for."""

    path: Path
    data: np.ndarray
    offsets: np.ndarray
    image_size: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        image = np.empty((self.image_size, self.image_size, 3), np.uint8)
        self.decode_into(row, image)
        image.setflags(write=False)
        return image

    def decode_into(self, row: int, out: np.ndarray) -> None:
        """The image, into uint8 (H, W, C) without gaps; other threads go on meanwhile."""
        try:
            decode_jpeg_into(self.data[self.offsets[row] : self.offsets[row + 1]], out)
        except UserError as error:
            raise UserError(f"{self.path}: image {row}: {error}: build this shard again") from None

    def encoded(self, row: int) -> bytes:
        """The JPEG file of an image."""
        return self.data[self.offsets[row] : self.offsets[row + 1]].tobytes()


@dataclass(frozen=True)
class Shard:
    """One shard file; reading opens it anew, so no handle crosses a fork."""

    path: Path
    num_images: int
    num_classes: int
    image_size: int = 256
    storage: str = "raw"

    def images(self) -> np.ndarray | JpegImages:
        """Memory-maps the images: element i is uint8 (H, W, C), read-only."""
        with open_file(self.path) as file:
            at, shape, offsets = self._images_in(file)
        mapped = mapped_bytes(self.path, shape, offset=at)
        if offsets is None:
            return mapped
        return JpegImages(self.path, mapped, offsets, self.image_size)

    def _images_in(self, file: Hdf5File) -> tuple[int, tuple[int, ...], np.ndarray | None]:
        """Where the bytes begin and their shape; of JPEG files also where each begins in them."""
        if self.storage != "jpeg":
            square = (self.num_images, self.image_size, self.image_size, 3)
            return file.dataset("images", dtype="u1", shape=square).get_offset(), square, None
        offsets = file.read("jpeg_offsets", dtype="u8", shape=(self.num_images + 1,))
        data = file.dataset("jpeg_bytes", dtype="u1", shape=(None,))
        (num_bytes,) = data.shape
        if offsets[0] != 0 or offsets[-1] != num_bytes or (offsets[1:] <= offsets[:-1]).any():
            raise UserError(
                f"{self.path}: expected jpeg_offsets that rise from 0 to {num_bytes}: build "
                "this shard again"
            )
        return data.get_offset(), (num_bytes,), offsets.astype(np.int64)

    def checked(self, manifest: Manifest) -> np.ndarray:
        """The labels, after all that the file must hold to be one of a data set: one look into it.

        Raises:
            UserError: the images, the labels or the plan are not those of the manifest.
        """
        with open_file(self.path) as file:
            self._images_in(file)
            if str(file.attribute("plan_sha256")) != manifest.plan_sha256:
                raise UserError(
                    f"{self.path}: is of another data set than {MANIFEST_FILE}, or one of them "
                    f"was changed; remove it and {_AGAIN}"
                )
            return self._labels_in(file)

    def labels(self) -> np.ndarray:
        """Reads the labels: int32 (N,), checked to lie in [0, num_classes)."""
        with open_file(self.path) as file:
            return self._labels_in(file)

    def _labels_in(self, file: Hdf5File) -> np.ndarray:
        labels = file.read("labels", dtype="i4", shape=(self.num_images,))
        if len(labels) and not (labels.min() >= 0 and labels.max() < self.num_classes):
            row = np.flatnonzero((labels < 0) | (labels >= self.num_classes))[0]
            raise UserError(
                f"{self.path}: image {row}: expected labels in [0, {self.num_classes}), got "
                f"{labels[row]}: build this shard again"
            )
        return labels

    def pictures(self) -> list[str]:
        """Reads where each image came from."""
        return self._texts("pictures", self.num_images)

    def wnids(self) -> list[str]:
        """Reads the class identifiers."""
        return self._texts("wnids", self.num_classes)

    def class_names(self) -> list[str]:
        """Reads the classes' readable names."""
        return self._texts("names", self.num_classes)

    def sums(self) -> PixelSums:
        """Reads the sums that the statistics are made of."""
        shape = (self.image_size, self.image_size, 3)
        pixel_sum = self._read("pixel_sum", dtype="u8", shape=shape)
        moment = self._read("rgb_second_moment", dtype="u8", shape=(3, 3))
        return PixelSums(self.num_images, pixel_sum, moment)

    def _texts(self, name: str, count: int) -> list[str]:
        return [os.fsdecode(text) for text in self._read(name, dtype="S", shape=(count,))]

    def _read(self, name: str, *, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        with open_file(self.path) as file:
            return file.read(name, dtype=dtype, shape=shape)


@dataclass
class Part:
    """The train, val or test images of a data set, addressed by row in the stored order.

    Files are opened and mapped at the first read in each process; threads may read at once.
    """

    shards: list[Shard]
    _maps: dict[tuple[int, int], np.ndarray | JpegImages] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        # What another process gets, it maps anew: a map would be sent as all of its pixels.
        return {**self.__dict__, "_maps": {}}

    @cached_property
    def _first_rows(self) -> np.ndarray:
        return np.cumsum([0] + [shard.num_images for shard in self.shards])

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    @cached_property
    def labels(self) -> np.ndarray:
        """int32 (N,), all labels of the part."""
        return _joined(shard.labels() for shard in self.shards)

    @cached_property
    def identities(self) -> list[Identity]:
        """Of each file as the part was opened, for readers that look whether it still is that."""
        return [identity_of(shard.path) for shard in self.shards]

    def image(self, row: int) -> np.ndarray:
        """One image: uint8 (H, W, C), read-only; a view of the file, if it holds raw pixels."""
        number, place = self._place(row)
        key = (os.getpid(), number)  # a fork maps anew
        images = self._maps.get(key)
        if images is None:
            # Two threads may both map a shard; either map serves both.
            images = self._maps[key] = self.shards[number].images()
        return images[place]

    def picture(self, row: int) -> str:
        """Where one image came from; reads the names of its whole shard."""
        number, place = self._place(row)
        return self.shards[number].pictures()[place]

    def _place(self, row: int) -> tuple[int, int]:
        """The number of the shard that has a row, and the row in it."""
        if not 0 <= row < len(self):
            raise IndexError(f"expected a row in [0, {len(self)}), got {row}")
        number = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        return number, row - int(self._first_rows[number])


@dataclass(frozen=True)
class DataSet:
    """A complete data set of shards."""

    directory: Path
    manifest: Manifest
    manifest_sha256: str
    train: Part
    val: Part
    test: Part

    @property
    def wnids(self) -> list[str]:
        """One identifier per class."""
        return list(self.manifest.plan.wnids)

    @property
    def class_names(self) -> list[str]:
        """One readable name per class."""
        return list(self.manifest.plan.class_names)

    @property
    def recipe(self) -> str | None:
        """The recipe that the data set names as its default."""
        return self.manifest.plan.recipe

    @property
    def cycle_seed(self) -> int:
        """The seed of the one order in which training goes through the images, epoch by epoch."""
        return self.manifest.plan.cycle_seed

    @property
    def image_size(self) -> int:
        """The side of an image in pixels."""
        return self.manifest.plan.image_size

    @property
    def decoder(self) -> str | None:
        """The library that decodes the images, in words; None where shards hold pixels."""
        return decoder_in_use() if self.manifest.plan.storage.kind == "jpeg" else None

    @property
    def held_out(self) -> str:
        """The part that measures how training goes: val, or test in a set without val."""
        return "val" if len(self.val) else "test"

    def part(self, name: str) -> Part:
        """The images of `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    @cached_property
    def statistics(self) -> ColorStatistics:
        """Mean image and RGB principal components of the training images."""
        shapes: dict[str, tuple[int, ...]] = {
            "mean_image": (self.image_size, self.image_size, 3),
            "rgb_mean": (3,),
            "rgb_covariance": (3, 3),
            "eigenvalues": (3,),
            "eigenvectors": (3, 3),
            "standard_deviations": (3,),
        }
        path, values = self.directory / STATISTICS_FILE, {}
        with open_file(path) as file:
            for name, shape in shapes.items():
                dtype = "f4" if name == "mean_image" else "f8"
                values[name] = file.read(name, dtype=dtype, shape=shape)
        if not all(np.isfinite(value).all() for value in values.values()):
            raise UserError(f"{path}: expected finite numbers: remove it and build again")
        return ColorStatistics(**values)


def open_data_set(directory: Path) -> DataSet:
    """Opens a data set and checks that every file is there, whole, and of this format.

    Pixels are not read: `check_every_byte` and `verify_shards.py` compare every SHA-256.

    Raises:
        UserError: anything is missing, truncated, unfinished or of another version; all the
            damaged files are named at once.
    """
    manifest = read_manifest(directory)
    if not manifest.complete:
        raise UserError(f"{directory}: the build has not finished: {_AGAIN}")
    assert manifest.statistics is not None
    files = [*(file for part in PARTS for file in manifest.shard_files(part)), manifest.statistics]
    problems = [problem for file in files if (problem := file.problem(directory))]
    if problems:
        raise UserError(f"{directory}: {'; '.join(problems)}: {_AGAIN}")
    parts = {part: Part(shards_of(directory, manifest, part)) for part in PARTS}
    data_set = DataSet(directory, manifest, sha256_of_file(directory / MANIFEST_FILE), **parts)
    if not len(data_set.train) or not len(data_set.part(data_set.held_out)):
        have = ", ".join(f"{len(data_set.part(part))} {part}" for part in PARTS)
        raise UserError(f"{directory}: expected train and val or test images, got {have}: {_AGAIN}")
    # What is wrong with a file fails now, not in the middle of an epoch.
    for part in parts.values():
        _ = part.identities
        part.labels = _joined(shard.checked(manifest) for shard in part.shards)
    _ = data_set.statistics
    return data_set


def check_every_byte(data: DataSet, *, first: int = 0, step: int = 1) -> int:
    """Compares the SHA-256 of every `step`-th shard, from the `first` on, with the manifest.

    Shards are all that a run reads beside the statistics, which `open_data_set` has compared.

    Returns:
        The number of bytes that were read.

    Raises:
        UserError: shards are not those of the manifest; all of them are named.
    """
    files = [file for part in PARTS for file in data.manifest.shard_files(part)][first::step]
    num_bytes = sum(file.num_bytes for file in files)
    changed = []
    with (
        progress_bar(num_bytes // 10**6, " MB", desc="verifying") as progress,
        ThreadPoolExecutor(num_cores()) as threads,
    ):
        digests = threads.map(sha256_of_file, [data.directory / file.file for file in files])
        for file, digest in zip(files, digests, strict=True):
            progress.update(file.num_bytes // 10**6)
            if digest != file.sha256:
                changed.append(file.file)
    if changed:
        raise UserError(
            f"{data.directory}: {', '.join(changed)}: not in every byte what {MANIFEST_FILE} says: "
            f"remove the files that are named and run `{command_for(BUILDER)}` as before"
        )
    return num_bytes


def shards_of(directory: Path, manifest: Manifest, part: str) -> list[Shard]:
    """The shards of a part that hold images."""
    return [
        Shard(
            directory / file.file,
            file.num_images,
            len(manifest.plan.wnids),
            manifest.plan.image_size,
            manifest.plan.storage.kind,
        )
        for file in manifest.shard_files(part)
    ]
