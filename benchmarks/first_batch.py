"""The first batch for an index of ImageNet's size: what a run waits for before its first step.

The data set is generated: shards as the builder lays them out, with names and labels, whose pixels
are a hole in the file, so that a quarter of a terabyte takes no room. Each repetition is a process
of its own that has imported everything before the clock starts; the files are in the page cache.
"The data set is open" is the manifest, the structure of every shard compared with its SHA-256, and
all labels read and checked; memory is the largest the process had less what it had before and less
the batches.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, say
from data_prep.color_statistics import ColorStatistics, PixelSums
from data_prep.manifest import (
    LABELS_FILE,
    PARTS,
    STATISTICS_FILE,
    FileEntry,
    Manifest,
    Plan,
    ShardEntry,
    ShardFile,
    Storage,
    shard_file,
)
from data_prep.manifest_json import write_manifest
from data_prep.shard_writer import Classes, RawShardWriter, structure_of, write_statistics
from data_prep.shards import open_data_set
from replica.feed.feed import TrainFeed
from replica.recipes import PAPER

IMAGE_SIZE, NUM_CLASSES, IMAGES_PER_SHARD = 256, 1000, 1024
ORDERS = ("cycle", "reshuffle", "block")
AIM_SECONDS, AIM_MEGABYTES = 2.0, 300.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--images", type=int, default=1_281_167, help="of train; default: %(default)s"
    )
    parser.add_argument(
        "--val-images", type=int, default=50_000, help="of val; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows."""
    with tempfile.TemporaryDirectory() as directory:
        say(f"writing the index of {arguments.images:,} + {arguments.val_images:,} images")
        write_index(Path(directory), {"train": arguments.images, "val": arguments.val_images})
        say(f"{len(ORDERS)} orders, {arguments.rounds} rounds")
        measured: dict[str, list[dict[str, float]]] = {order: [] for order in ORDERS}
        for _ in range(arguments.rounds):
            for order in ORDERS:
                measured[order].append(_in_a_process(Path(directory), order))
    rows = []
    for order, results in measured.items():
        for name, unit, aim in (
            ("the data set is open", "s", None),
            ("the first batch is there", "s", AIM_SECONDS),
            ("memory beyond the batches", "MB", AIM_MEGABYTES),
        ):
            value = statistics.median(result[name] for result in results)
            rows.append(Row(f"{order}: {name}", value, unit))
            if aim is not None:
                rows.append(
                    Row(f"{order}: {name} / the aim", value, unit, f"{aim:g} {unit}", value / aim)
                )
    return rows


def _in_a_process(directory: Path, order: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.first_batch", str(directory), order]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr}")
    measured: dict[str, float] = json.loads(result.stdout)
    return measured


def first_batch(directory: Path, order: str) -> dict[str, float]:
    """Seconds and MB until a run of `paper` has its first batch, in a process that does no more."""
    before, began = _memory("VmRSS"), time.perf_counter()
    data = open_data_set(directory)
    opened = time.perf_counter() - began
    batches = TrainFeed(data, replace(PAPER, image_order=order), seed=1).batches(0, 1)
    (batch,) = batches
    seconds = time.perf_counter() - began
    of_batches = batch.images.nbytes / 1e6
    return {
        "the data set is open": opened,
        "the first batch is there": seconds,
        "memory beyond the batches": _memory("VmHWM") - before - of_batches,
    }


def _memory(name: str) -> float:
    """Of this process, in MB: `VmRSS` now, `VmHWM` at most until now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024 / 1e6


def write_index(directory: Path, counts: dict[str, int]) -> None:
    """A data set of so many images per part, whole in all but the pixels, which are zeros."""
    plan = Plan(
        source="generated",
        recipe=None,
        wnids=tuple(f"n{n:08d}" for n in range(NUM_CLASSES)),
        class_names=tuple(f"a class, one of several names, {n}" for n in range(NUM_CLASSES)),
        classes_without_pictures={},
        pictures_sha256={},
        limit=None,
        image_size=IMAGE_SIZE,
        fit="crop",
        images_per_shard=IMAGES_PER_SHARD,
        resampling="bilinear",
        decoder="none",
        exif_orientation="ignored",
        storage=Storage(),
        cycle_seed=2012,
    )
    classes, rng = Classes(plan.wnids, plan.class_names, plan.sha256()), np.random.default_rng(0)
    parts: dict[str, tuple[ShardEntry | None, ...]] = dict.fromkeys(PARTS, ())
    for part, count in counts.items():
        labels = rng.integers(0, NUM_CLASSES, count).tolist()
        firsts = range(0, count, IMAGES_PER_SHARD)
        parts[part] = tuple(
            _sparse_shard(
                directory / shard_file(part, number),
                classes,
                labels[first : first + IMAGES_PER_SHARD],
                first,
            )
            for number, first in enumerate(firsts)
        )
    numbers = np.eye(3)
    known = write_statistics(
        directory / STATISTICS_FILE,
        ColorStatistics(
            mean_image=np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32),
            rgb_mean=numbers[0],
            rgb_covariance=numbers,
            eigenvalues=np.ones(3),
            eigenvectors=numbers,
            standard_deviations=np.full(3, 255.0),
        ),
    )
    labels_entry = FileEntry(LABELS_FILE, 1, "0" * 64)  # which training does not read
    write_manifest(directory, Manifest(plan, plan.sha256(), parts, True, known, labels_entry))


def _sparse_shard(path: Path, classes: Classes, labels: list[int], first: int) -> ShardEntry:
    square = (IMAGE_SIZE, IMAGE_SIZE, 3)
    writer = RawShardWriter(path, classes=classes, size=IMAGE_SIZE, num_planned=0)
    for row, label in enumerate(labels, start=first):
        wnid = classes.wnids[label]
        writer.add(np.empty(0, np.uint8), picture=f"{wnid}/{wnid}_{row}.JPEG", label=label)
    sums = PixelSums(len(labels), np.zeros(square, np.uint64), np.zeros((3, 3), np.uint64))
    layout, _ = writer.lay_out(sums)
    writer.abandon()
    with path.open("wb") as file:
        for offset, data in layout.writes:
            if any(data):
                os.pwrite(file.fileno(), data, offset)
        file.truncate(layout.size)
    found = ShardFile(path.name, layout.size, "0" * 64, len(labels), structure_of(path))
    return ShardEntry(found, (), {})


if __name__ == "__main__":
    print(json.dumps(first_batch(Path(sys.argv[1]), sys.argv[2])))
