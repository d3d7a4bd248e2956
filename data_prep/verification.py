"""Reads a data set again, all of it, compares it with its manifest, and finds images twice."""

import functools
import hashlib
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from data_prep.color_statistics import PixelSummer, color_statistics
from data_prep.errors import UserError
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
    """What reading one shard gave.

    Attributes:
        part: train, val or test.
        number: of the shard among those of its part that hold images.
        faults: what is wrong with it, one line each.
        digests: of each image one of 16 bytes, joined.
    """

    part: str
    number: int
    faults: list[str]
    digests: bytes


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
    checks: list[ShardCheck] = []
    num_images = sum(task.shard.num_images for task in tasks)
    with (
        progress_bar(num_images, " images", seconds=30) as progress,
        worker_pool(min(num_workers, len(tasks))) as workers,
    ):

        def update() -> None:
            progress.update(workers.counters()[IMAGES] - progress.n)

        checks.extend(workers.each(check_shard, tasks, on_wait=update))
        update()
    return sorted(checks, key=lambda check: (PARTS.index(check.part), check.number))


def faults_of(data: DataSet, checks: list[ShardCheck]) -> list[str]:
    """What is wrong with a data set whose shards were read, one line each.

    That the file of statistics is the manifest's was seen when the data set was opened.
    """
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
    digest = hashlib.sha256()
    for block in csv_blocks(label_rows(data.manifest, data.directory)):
        digest.update(block)
    if digest.hexdigest() != listed.sha256:
        yield f"{LABELS_FILE}: does not say what the shards say"
    for part in PARTS:
        labels = data.part(part).labels
        if len(data.wnids) > 1 and len(labels) > 1 and len(set(labels.tolist())) == 1:
            yield f"{part}: all {len(labels)} images have the label {labels[0]}"


def stray_files(data: DataSet) -> list[str]:
    """Shards in the directory that the manifest does not name."""
    named = {file.file for part in PARTS for file in data.manifest.shard_files(part)}
    return sorted(
        f"{path.name}: the manifest does not name it"
        for path in data.directory.glob("*.h5")
        if path.name not in {*named, STATISTICS_FILE}
    )


@dataclass(frozen=True)
class Duplicates:
    """Images with the same pixels: each group is a list of (part, row)."""

    groups: list[list[tuple[str, int]]]

    def across(self) -> list[list[tuple[str, int]]]:
        """The groups with images of two parts."""
        return [group for group in self.groups if len({part for part, _ in group}) > 1]


def find_duplicates(data: DataSet, checks: list[ShardCheck]) -> Duplicates:
    """Groups the images of all parts by their pixels."""
    digests, first_rows, total = [], [], 0
    for part in PARTS:
        for check in checks:
            if check.part == part and check.digests:
                digests.append(np.frombuffer(check.digests, "<u8").reshape(-1, 2))
                shards = data.part(part).shards[: check.number]
                first_rows.append((total, part, sum(shard.num_images for shard in shards)))
                total += len(digests[-1])
    if not digests:
        return Duplicates([])
    every = np.concatenate(digests)
    order = np.lexsort((np.arange(total), every[:, 1], every[:, 0]))
    same = (every[order][1:] == every[order][:-1]).all(axis=1)
    groups: list[list[tuple[str, int]]] = []
    starts = np.array([start for start, _, _ in first_rows])

    def place(index: int) -> tuple[str, int]:
        start, part, row = first_rows[int(np.searchsorted(starts, index, side="right")) - 1]
        return part, row + index - start

    for i in np.flatnonzero(same):
        if groups and i and same[i - 1]:
            groups[-1].append(place(int(order[i + 1])))
        else:
            groups.append([place(int(order[i])), place(int(order[i + 1]))])
    return Duplicates(groups)


def describe_duplicates(data: DataSet, duplicates: Duplicates) -> list[str]:
    """Lines that say which images are the same."""
    groups = duplicates.groups
    if not groups:
        return ["no two images have the same pixels"]
    across = duplicates.across()
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
    wnid = data.wnids[images.labels[row]]
    for shard in images.shards:
        if row < shard.num_images:
            return f"{part} {shard.pictures()[row]} ({wnid})"
        row -= shard.num_images
    raise IndexError(f"expected a row of {part}, got {row}")


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
                f"{len(filled)} of {len(data.wnids)} classes, {filled.min()} to {filled.max()} a "
                "class"
            )
    return lines
