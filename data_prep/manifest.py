"""A data set as its manifest says it: what it is, and which files it has."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.files import sha256_of_file

FORMAT_NAME = "replica-shards"
FORMAT_VERSION = 2
PARTS = ("train", "val", "test")
MANIFEST_FILE = "manifest.json"
STATISTICS_FILE = "statistics.h5"
LABELS_FILE = "labels.csv"
BUILDER = "data_prep.build_shards"
MAX_IMAGE_SIZE = 4096
# What a manifest says of EXIF's orientation, by the option; one that says nothing means the first.
RECORDED_ORIENTATION = {"ignore": "ignored", "apply": "applied"}


@dataclass(frozen=True)
class Storage:
    """How shards hold their images: pixels (`raw`), or JPEG files (`jpeg`), and which."""

    kind: str = "raw"
    quality: int | None = None
    subsampling: str | None = None
    encoder: str | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a build; two builds of one plan are the same."""

    source: str
    recipe: str | None
    wnids: tuple[str, ...]
    class_names: tuple[str, ...]
    classes_without_pictures: dict[str, list[str]]
    pictures_sha256: dict[str, str]
    limit: int | None
    image_size: int
    fit: str
    images_per_shard: int
    resampling: str
    decoder: str
    exif_orientation: str
    storage: Storage
    cycle_seed: int

    def record(self) -> dict[str, Any]:
        """What a manifest holds of it."""
        storage = {key: value for key, value in vars(self.storage).items() if value is not None}
        return {"format": FORMAT_NAME, "version": FORMAT_VERSION, **vars(self), "storage": storage}

    def sha256(self) -> str:
        """The digest that each shard of a build holds."""
        return plan_sha256(self.record())

    def differing(self, other: "Plan") -> list[str]:
        """The fields in which two plans differ."""
        return [key for key, value in vars(self).items() if getattr(other, key) != value]


def plan_sha256(record: dict[str, Any]) -> str:
    """The digest of a plan as a manifest holds it."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says of a file."""

    file: str
    num_bytes: int
    sha256: str

    def problem(self, directory: Path) -> str | None:
        """Why the file in a directory cannot be this one; of a shard no pixels are read."""
        path = directory / self.file
        if not path.is_file():
            return f"{self.file} is missing"
        num_bytes = path.stat().st_size
        if num_bytes != self.num_bytes:
            return f"{self.file} has {num_bytes} bytes instead of {self.num_bytes}"
        return self._content_problem(path)

    def _content_problem(self, path: Path) -> str | None:
        if sha256_of_file(path) != self.sha256:
            return f"{self.file} is not the file that the manifest names (SHA-256)"
        return None


@dataclass(frozen=True)
class Structure:
    """A shard but for the spans (offset, size) of its large data sets.

    HDF5 trusts the structure of a file: a flipped bit in it may end the process or never let it
    return. So a reader compares this before HDF5 sees the file.
    """

    large_data: tuple[tuple[int, int], ...]
    sha256: str


@dataclass(frozen=True)
class ShardFile(FileEntry):
    """What the manifest says of a shard that holds images."""

    num_images: int
    structure: Structure

    def _content_problem(self, path: Path) -> str | None:
        if structure_sha256(path, self.structure.large_data) != self.structure.sha256:
            return (
                f"{self.file} is not the shard that the manifest names (SHA-256 of its structure)"
            )
        return None


def structure_sha256(path: Path, large_data: tuple[tuple[int, int], ...]) -> str:
    """The SHA-256 of a file without the spans (offset, size) of its large data sets."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for offset, size in large_data:
            digest.update(file.read(offset - file.tell()))
            file.seek(offset + size)
        digest.update(file.read())
    return digest.hexdigest()


@dataclass(frozen=True)
class BadPicture:
    """A picture that is in no shard."""

    picture: str
    reason: str


@dataclass(frozen=True)
class ShardEntry:
    """What building one shard gave."""

    file: ShardFile | None  # None where none of its pictures could be read
    bad_pictures: tuple[BadPicture, ...]
    pictures_seen: dict[str, int]  # how many of which mode, how many that EXIF would rotate

    def record(self) -> dict[str, Any]:
        """What a manifest holds of it."""
        file = asdict(self.file) if self.file else {"num_images": 0}
        bad = [vars(picture) for picture in self.bad_pictures]
        return {**file, "bad_pictures": bad, "pictures_seen": self.pictures_seen}


@dataclass(frozen=True)
class Manifest:
    """What a data set is, and which files it has.

    `plan_sha256` is as the shards hold it: of a manifest that was read, the digest of all that
    stands there, whether this version knows it or not.
    """

    plan: Plan
    plan_sha256: str
    parts: dict[str, tuple[ShardEntry | None, ...]]  # None is a shard that is not built yet
    complete: bool = False  # the build has ended; only then are the next two surely there
    statistics: FileEntry | None = None
    labels: FileEntry | None = None

    def shard_files(self, part: str) -> list[ShardFile]:
        """The shards of a part that hold images."""
        return [entry.file for entry in self.parts[part] if entry and entry.file]

    def with_shard(self, part: str, number: int, entry: ShardEntry) -> "Manifest":
        """The same with one more shard, which is to be followed by the files made of all."""
        shards = self.parts[part]
        parts = {**self.parts, part: (*shards[:number], entry, *shards[number + 1 :])}
        return replace(self, parts=parts, complete=False)

    def record(self) -> dict[str, Any]:
        """What the file holds."""
        parts = {
            part: {"shards": [entry and entry.record() for entry in shards]}
            for part, shards in self.parts.items()
        }
        others = {"statistics": self.statistics, "labels": self.labels}
        files = {key: vars(entry) for key, entry in others.items() if entry}
        return {**self.plan.record(), "parts": parts, "complete": self.complete, **files}


def shard_file(part: str, number: int) -> str:
    """The name of a shard."""
    return f"{part}-{number:05d}.h5"
