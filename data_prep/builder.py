"""Builds a data set: begins or goes on, makes the shards that are missing, completes it."""

import contextlib
import operator
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path

from data_prep.color_statistics import color_statistics
from data_prep.errors import UserError
from data_prep.files import part_of
from data_prep.labels_csv import label_rows, write_labels
from data_prep.manifest import LABELS_FILE, MANIFEST_FILE, PARTS, STATISTICS_FILE, Manifest, Plan
from data_prep.manifest_json import read_manifest, write_manifest
from data_prep.plan import check_room
from data_prep.progress import progress_bar
from data_prep.shard_builder import (
    BAD_PICTURES,
    DISK_BYTES,
    PICTURES,
    BuildSettings,
    ShardTask,
    build_shard,
)
from data_prep.shard_writer import write_statistics
from data_prep.shards import shards_of
from data_prep.workers import worker_pool

LOCK_FILE = "build.lock"
WHEN_HELD = "another build is at work there: wait for it, or choose another directory"


def start_manifest(output: Path, plan: Plan, num_shards: dict[str, int], name: str) -> Manifest:
    """The manifest to go on with: a fresh one, or that of an interrupted build of this plan.

    Raises:
        UserError: the directory holds another data set or other files.
    """
    for there in sorted(output.glob("manifest*.json")):
        manifest = read_manifest(output, there.name)
        differing = plan.differing(manifest.plan)
        if differing:
            raise UserError(
                f"{output}: holds another data set (differs in {', '.join(differing)}): choose "
                "another --output, or remove this directory"
            )
        if there.name == name:
            listed = {part: len(manifest.parts[part]) for part in PARTS}
            if listed != num_shards:
                raise UserError(
                    f"{there}: expected {num_shards} shards, got {listed}: it was changed; "
                    "choose another --output, or remove this directory"
                )
            return manifest
        if MANIFEST_FILE in (there.name, name):
            how = "one machine" if there.name == MANIFEST_FILE else "several machines"
            raise UserError(
                f"{output}: holds {there.name}, of a build by {how}: go on in the same way, or "
                "choose another --output"
            )
    names, known = os.listdir(output), r".*\.(part|lock)"
    # Other machines of a job array may be at work; each writes its manifest before its shards.
    shares = r"manifest-\d+-of-\d+\.json"
    if any(re.fullmatch(shares, one) for one in names):
        known += rf"|{shares}|(train|val|test)-\d{{5,}}\.h5"
    foreign = [one for one in names if not re.fullmatch(known, one)]
    if foreign:
        raise UserError(
            f"{output}: is in use: expected an empty directory or an unfinished build, found "
            f"{len(foreign)} other entries (such as {sorted(foreign)[0]}): choose another --output"
        )
    manifest = Manifest(plan, plan.sha256(), {part: (None,) * num_shards[part] for part in PARTS})
    # Written before the first shard: an interrupted build is recognized by it.
    write_manifest(output, manifest, name)
    return manifest


def build(
    tasks: list[ShardTask],
    settings: BuildSettings,
    manifest: Manifest,
    *,
    output: Path,
    manifest_name: str,
    num_workers: int,
) -> Manifest:
    """Builds the shards that the manifest does not list yet, and returns it with them.

    Raises:
        UserError: the disk refuses, the input changed, or with `strict` a picture cannot be read.
    """
    sizes = _sizes(output)
    missing = [task for task in tasks if not _is_listed(task, manifest, sizes)]
    if not missing:
        # To be mended, or only to be joined: now each shard is looked into.
        missing = [task for task in tasks if not is_whole(task, manifest)]
    num_missing = sum(len(task.pictures) for task in missing)
    kept = sum(len(task.pictures) for task in tasks) - num_missing
    for task in tasks:
        if part_of(task.path).name in sizes:
            part_of(task.path).unlink(missing_ok=True)
    if not missing:
        return manifest
    if kept:
        print(f"continuing: {kept} pictures are built already")
    check_room(output, missing, settings)
    with (
        _no_parts_left(missing),
        worker_pool(min(num_workers, len(missing))) as workers,
        progress_bar(num_missing, " images", seconds=10) as progress,
    ):

        def show() -> None:
            done = workers.counters()
            written, bad = f"{done[DISK_BYTES] / 1e9:.2f} GB written", done[BAD_PICTURES]
            progress.set_postfix_str(f"{written}, {bad} bad files", refresh=False)
            progress.update(done[PICTURES] - progress.n)

        work = partial(build_shard, settings=settings)
        try:
            for task, entry in workers.each(work, missing, on_wait=show):
                manifest = manifest.with_shard(task.part, task.number, entry)
                write_manifest(output, manifest, manifest_name)
        finally:
            show()
    return manifest


def _sizes(directory: Path) -> dict[str, int]:
    """The bytes of each file of a directory, by its name."""
    sizes = {}
    with os.scandir(directory) as listing:
        for file in listing:
            # Another machine of a job array may rename its own meanwhile.
            with contextlib.suppress(FileNotFoundError):
                sizes[file.name] = file.stat().st_size
    return sizes


def _is_listed(task: ShardTask, manifest: Manifest, sizes: dict[str, int]) -> bool:
    """Whether the manifest has a shard, and the directory a file of its size."""
    entry = manifest.parts[task.part][task.number]
    if entry is None or entry.file is None:
        return entry is not None
    return sizes.get(task.path.name) == entry.file.num_bytes


def is_whole(task: ShardTask, manifest: Manifest) -> bool:
    """Whether a shard that is listed can be the one that the manifest names."""
    entry = manifest.parts[task.part][task.number]
    assert entry is not None
    return entry.file is None or entry.file.problem(task.path.parent) is None


@contextlib.contextmanager
def _no_parts_left(tasks: list[ShardTask]) -> Iterator[None]:
    """Removes what a killed worker left; the parent is the last to go."""
    try:
        yield
    finally:
        for task in tasks:
            with contextlib.suppress(OSError):
                part_of(task.path).unlink(missing_ok=True)


def is_complete(manifest: Manifest, output: Path) -> bool:
    """Whether a build has ended, and its smaller files are there."""
    return manifest.complete and not any(
        file.problem(output) for file in (manifest.statistics, manifest.labels) if file
    )


def complete(manifest: Manifest, output: Path) -> Manifest:
    """Writes the statistics and the labels of the finished shards, then the whole manifest.

    Raises:
        UserError: no picture of a part could be read, or a shard was damaged meanwhile.
    """
    for part in PARTS:
        files = manifest.shard_files(part)
        if manifest.parts[part] and not files:
            raise UserError(f"{output}: none of the {part} pictures could be read")
        for file in files:
            if problem := file.problem(output):
                raise UserError(
                    f"{output}: {problem}: run the same command again; it builds that shard anew"
                )
    sums = (shard.sums() for shard in shards_of(output, manifest, "train"))
    statistics = color_statistics(reduce(operator.add, sums))
    manifest = replace(
        manifest,
        statistics=write_statistics(output / STATISTICS_FILE, statistics),
        labels=write_labels(output / LABELS_FILE, label_rows(manifest, output)),
        complete=True,
    )
    write_manifest(output, manifest)
    return manifest
