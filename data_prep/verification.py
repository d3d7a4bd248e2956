"""Reads a data set again, all of it, compares it with its manifest, and finds images twice."""

import functools
import hashlib
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from data_prep.color_statistics import PixelSummer, color_statistics
from data_prep.errors import UserError, printable
from data_prep.files import sha256_of_file
from data_prep.labels_csv import csv_blocks, label_rows
from data_prep.manifest import LABELS_FILE, PARTS, STATISTICS_FILE
from data_prep.progress import progress_bar
from data_prep.shards import DataSet, Shard
from data_prep.workers import check_wanted, count, worker_pool

IMAGES = 0  # the counter that the progress line shows
DIGEST_BYTES = 16
SHOWN = 10
# Numbers that were computed from the same sums on another machine may differ in their last bits.
STATISTICS_TOLERANCE = 1e-9


@dataclass(frozen=True)
class ShardCheck:
    """What reading one shard gave."""

    part: str
    number: int  # of the shard among those of its part that hold images
    faults: list[str]  # one line each
    digests: bytes  # of each image one of 16 bytes, joined


@dataclass(frozen=True)
class ShardToCheck:
    """One shard with what the manifest says of it."""

    part: str
    number: int
    shard: Shard
    sha256: str
    wnids: list[str]
    class_names: list[str]


def check_shard(task: ShardToCheck) -> ShardCheck:
    """In a worker: reads a shard again, all of it."""
    shard, name = task.shard, task.shard.path.name
    found = ShardCheck(task.part, task.number, [], b"")
    try:
        if sha256_of_file(shard.path) != task.sha256:
            # Nothing else in such a file is looked at.
            return replace(found, faults=[f"{name}: is not the file of the manifest (SHA-256)"])
        faults = []
        if shard.wnids() != task.wnids or shard.class_names() != task.class_names:
            faults.append(f"{name}: its classes are not those of the manifest")
        shard.labels()
        if len(set(shard.pictures())) != shard.num_images:
            faults.append(f"{name}: two of its images have the same name")
        images, summer, digests = shard.images(), PixelSummer(shard.image_size), bytearray()
        for row in range(shard.num_images):
            check_wanted()
            image = np.asarray(images[row])
            summer.add(image)
            digests += hashlib.blake2b(image.tobytes(), digest_size=DIGEST_BYTES).digest()
            count(IMAGES)
        sums, stored = summer.sums(), shard.sums()
        for field in ("pixel_sum", "rgb_second_moment"):
            if not np.array_equal(getattr(sums, field), getattr(stored, field)):
                faults.append(f"{name}: {field} is not that of its images")
        return replace(found, faults=faults, digests=bytes(digests))
    except (UserError, OSError) as error:
        return replace(found, faults=[f"{name}: {error}"])


def verify(data: DataSet, *, num_workers: int) -> list[ShardCheck]:
    """Reads every shard again, in several processes."""
    tasks = [
        ShardToCheck(part, number, shard, file.sha256, data.wnids, data.class_names)
        for part in PARTS
        for number, (shard, file) in enumerate(
            zip(data.part(part).shards, data.manifest.shard_files(part), strict=True)
        )
    ]
    num_images = sum(task.shard.num_images for task in tasks)
    with (
        progress_bar(num_images, " images", seconds=30) as progress,
        worker_pool(min(num_workers, len(tasks))) as workers,
    ):

        def update() -> None:
            progress.update(workers.counters()[IMAGES] - progress.n)

        checks = list(workers.each(check_shard, tasks, on_wait=update))
        update()
    return sorted(checks, key=lambda check: (PARTS.index(check.part), check.number))


def faults_of(data: DataSet, checks: list[ShardCheck]) -> list[str]:
    """What is wrong with a data set that was opened, and its shards read, one line each."""
    faults = [fault for check in checks for fault in check.faults]
    if not any(check.faults for check in checks if check.part == "train"):
        # The sums in the shards are those of their images: `check_shard` has compared them.
        sums = (shard.sums() for shard in data.train.shards)
        expected = color_statistics(functools.reduce(operator.add, sums))
        for name, value in vars(expected).items():
            stored = getattr(data.statistics, name)
            if not np.allclose(value, stored, rtol=STATISTICS_TOLERANCE, atol=STATISTICS_TOLERANCE):
                faults.append(f"{STATISTICS_FILE}: {name} is not that of the training images")
    return [*faults, *_label_faults(data, has_bad_shards=any(check.faults for check in checks))]


def _label_faults(data: DataSet, *, has_bad_shards: bool) -> Iterator[str]:
    listed = data.manifest.labels
    assert listed is not None
    if problem := listed.problem(data.directory):
        yield problem
    if has_bad_shards:
        return
    # Earlier versions wrote names as they are.
    if not any(_labels_sha256(data, shown=shown) == listed.sha256 for shown in (printable, str)):
        yield f"{LABELS_FILE}: does not say what the shards say"
    for part in PARTS:
        labels = data.part(part).labels
        if len(data.wnids) > 1 and len(labels) > 1 and len(set(labels.tolist())) == 1:
            yield f"{part}: all {len(labels)} images have the label {labels[0]}"


def _labels_sha256(data: DataSet, *, shown: Callable[[str], str]) -> str:
    digest = hashlib.sha256()
    for block in csv_blocks(label_rows(data.manifest, data.directory), shown=shown):
        digest.update(block)
    return digest.hexdigest()


def stray_files(data: DataSet) -> list[str]:
    """Shards in the directory that the manifest does not name."""
    named = {file.file for part in PARTS for file in data.manifest.shard_files(part)}
    return sorted(
        f"{path.name}: the manifest does not name it"
        for path in data.directory.glob("*.h5")
        if path.name not in {*named, STATISTICS_FILE}
    )


Group = list[tuple[str, int]]  # images with the same pixels, each by its part and row


def find_duplicates(data: DataSet, checks: list[ShardCheck]) -> list[Group]:
    """Groups the images of all parts by their pixels, in the order of their digests."""
    every = np.frombuffer(b"".join(check.digests for check in checks), "<u8").reshape(-1, 2)
    distinct, counts = np.unique(every, axis=0, return_counts=True)
    groups: dict[bytes, Group] = {digest.tobytes(): [] for digest in distinct[counts > 1]}
    for check in checks:
        first = sum(shard.num_images for shard in data.part(check.part).shards[: check.number])
        for start in range(0, len(check.digests), DIGEST_BYTES):
            digest = check.digests[start : start + DIGEST_BYTES]
            if digest in groups:
                groups[digest].append((check.part, first + start // DIGEST_BYTES))
    return list(groups.values())


def describe_duplicates(data: DataSet, groups: list[Group]) -> list[str]:
    """Lines that say which images are the same."""
    if not groups:
        return ["no two images have the same pixels"]
    across = [group for group in groups if len({part for part, _ in group}) > 1]
    differing = [
        group
        for group in groups
        if len({int(data.part(part).labels[row]) for part, row in group}) > 1
    ]
    lines = [
        f"{sum(map(len, groups))} images are {len(groups)} different ones; {len(across)} of these "
        f"are in two parts, {len(differing)} have different labels; nothing was removed:"
    ]
    ordered = sorted(groups, key=lambda group: (group not in across, group not in differing))
    for group in ordered[:SHOWN]:
        lines.append("  " + " = ".join(_described(data, part, row) for part, row in group[:4]))
    if len(groups) > SHOWN:
        lines.append(f"  and {len(groups) - SHOWN} more")
    return lines


def _described(data: DataSet, part: str, row: int) -> str:
    images = data.part(part)
    return f"{part} {images.picture(row)} ({data.wnids[images.labels[row]]})"


def describe_parts(data: DataSet) -> list[str]:
    """One line a part: images, classes, and how evenly they are filled."""
    lines = []
    for part in PARTS:
        labels = data.part(part).labels
        if len(labels):
            counts = np.bincount(labels, minlength=len(data.wnids))
            filled = counts[counts > 0]
            lines.append(
                f"{part}: {len(labels)} images in {len(data.part(part).shards)} shards, "
                f"{len(filled)} of {len(data.wnids)} classes, {filled.min()} to {filled.max()} per "
                "class"
            )
    return lines
