"""Building shards of real pictures: what it costs beside decoding and resizing them.

The same pictures go N and 4N times through a pool of workers; a figure is the difference, a
picture, so that starting processes does not count. `decode and resize` is Pillow alone: open,
convert, resize, crop. Everything else (reading, sums, hashing, writing, counting) is in `build`.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import Row, say
from data_prep import shard_builder
from data_prep.color_statistics import PixelSums
from data_prep.errors import UserError
from data_prep.jpeg import QUALITY, decode_jpeg, encode_jpeg
from data_prep.manifest import ShardFile, Storage, Structure
from data_prep.pictures import PictureFormat, decode_picture, decoder_name
from data_prep.shard_builder import BuildSettings, ShardTask, build_shard
from data_prep.shard_writer import Classes
from data_prep.sources import kaggle
from data_prep.sources.picture_set import Picture, Pictures
from data_prep.sources.trees import Folder
from data_prep.workers import worker_pool

PICTURES_A_SHARD = 256
IMAGE_SIZE = 256
PLAIN, BUILD = "decode and resize", "build"
RAW = Storage("raw")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--input",
        type=Path,
        metavar="PATH",
        help="ImageNet as Kaggle packs it, a directory or an unpacked tar (default: "
        "imagenet_a.tar in REPLICA_REAL_DATA)",
    )
    parser.add_argument("--pictures", type=int, default=512, help="N (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="default: 1 2")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows."""
    with tempfile.TemporaryDirectory(prefix="bench-shards-") as scratch:
        return _measure(arguments, Path(scratch))


def _measure(arguments: argparse.Namespace, scratch: Path) -> list[Row]:
    source = arguments.input
    if source is None:
        real = os.environ.get("REPLICA_REAL_DATA")
        if not real:
            return [Row(BUILD, None, "ms", note="no --input, and REPLICA_REAL_DATA is not set")]
        source = Path(real) / "imagenet_a.tar"
    if source.is_file():
        # Files of their own, as most people have them.
        with tarfile.open(source) as archive:
            archive.extractall(scratch / "pictures", filter="data")
        source = scratch / "pictures"
    if arguments.pictures % PICTURES_A_SHARD:
        raise UserError(f"--pictures: expected a multiple of {PICTURES_A_SHARD}")
    found = kaggle.find(Folder(source))
    pictures = found.parts["train"]
    classes = Classes(found.wnids, found.class_names, "0" * 64)
    candidates = _candidates(classes)
    times: dict[tuple[str, int], list[float]] = {}
    for number in range(arguments.rounds):
        for workers in arguments.workers:
            for name, work in candidates.items():
                say(f"round {number + 1} of {arguments.rounds}: {name}, {workers} workers")
                seconds = {}
                for count in (arguments.pictures, 4 * arguments.pictures):
                    seconds[count] = _run(work, pictures, count, workers, scratch)
                slope = (seconds[4 * arguments.pictures] - seconds[arguments.pictures]) / (
                    3 * arguments.pictures
                )
                times.setdefault((name, workers), []).append(slope * 1e3)
    rows = []
    for workers in arguments.workers:
        of = {name: statistics.median(times[name, workers]) for name in candidates}
        plain = f"{PLAIN}, {workers} workers"
        for name, value in of.items():
            baseline = None if name == PLAIN else plain
            ratio = None if name == PLAIN else value / of[PLAIN]
            rows.append(Row(f"{name}, {workers} workers", value, "ms", baseline, ratio))
    peak = _peak_memory(source, scratch / "peak")
    rows.append(Row("peak memory of the largest process that builds", peak, "MB"))
    return [*rows, *_differences(pictures)]


def _candidates(classes: Classes) -> dict[str, Callable[[ShardTask], None]]:
    def settings(decoder: str = "pillow", storage: Storage = RAW) -> BuildSettings:
        return BuildSettings(PictureFormat(IMAGE_SIZE, decoder=decoder), storage, classes, True)

    candidates: dict[str, Callable[[ShardTask], None]] = {
        PLAIN: _decode_and_resize,
        BUILD: partial(_build, settings()),
        "build without hashing and writing": partial(_build_without_writing, settings()),
        "build, storage jpeg": partial(_build, settings(storage=Storage("jpeg", QUALITY))),
    }
    try:
        say(decoder_name("fast"))
        candidates["build, decoder fast"] = partial(_build, settings("fast"))
    except UserError as error:
        say(str(error))
    return candidates


def _run(
    work: Callable[[ShardTask], None], pictures: Pictures, count: int, workers: int, scratch: Path
) -> float:
    """Seconds for so many pictures, the given ones over and over."""
    out = scratch / "out"
    out.mkdir()
    repeated = [
        Picture(f"{i}/{picture.name}", picture.label, picture.place)
        for i in range(-(-count // len(pictures)))
        for picture in pictures
    ][:count]
    tasks = [
        ShardTask("train", i, out / f"train-{i:05d}.h5", tuple(repeated[first:][:PICTURES_A_SHARD]))
        for i, first in enumerate(range(0, count, PICTURES_A_SHARD))
    ]
    start = time.perf_counter()
    with worker_pool(workers) as pool:
        for _ in pool.each(work, tasks, on_wait=lambda: None):
            pass
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds


PEAK_OF_COMMAND = (
    "import resource, subprocess, sys\n"
    "subprocess.run([sys.executable, *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
)


def _peak_memory(source: Path, out: Path) -> float:
    """Megabytes of the largest process of the command itself, which needs no torch."""
    command = ["data_prep/build_shards.py", "--input", str(source), "--output", str(out)]
    result = subprocess.run(
        [sys.executable, "-c", PEAK_OF_COMMAND, *command, "--workers", "2"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(result.stdout) * 1024 / 1e6


def _decode_and_resize(task: ShardTask) -> None:
    """In a worker: what Pillow alone takes for the paper's pixels, from the file to the array."""
    for picture in task.pictures:
        with Image.open(str(picture.place)) as opened:
            rgb = opened.convert("RGB")
        scale = IMAGE_SIZE / min(rgb.size)
        width, height = (round(side * scale) for side in rgb.size)
        left, top = (width - IMAGE_SIZE + 1) // 2, (height - IMAGE_SIZE + 1) // 2
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
        np.asarray(rgb.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE)))


def _build(settings: BuildSettings, task: ShardTask) -> None:
    """In a worker: what `build_shards.py` does with a shard."""
    build_shard(task, settings)


class _NoWriter:
    """Takes images and forgets them."""

    def __init__(self, *_: Any, **__: Any):
        """Opens nothing."""

    def add(self, image: np.ndarray, **_: Any) -> np.ndarray:
        """Gives the image back."""
        return image

    def finish(self, sums: PixelSums) -> ShardFile:
        """An entry of no file."""
        return ShardFile("", 1, "", 1, Structure((), ""))


def _build_without_writing(settings: BuildSettings, task: ShardTask) -> None:
    """In a worker: all but the file."""
    writer = shard_builder.RawShardWriter
    shard_builder.RawShardWriter = _NoWriter  # type: ignore[assignment, misc]
    try:
        build_shard(task, settings)
    finally:
        shard_builder.RawShardWriter = writer  # type: ignore[misc]


def _differences(pictures: Pictures) -> list[Row]:
    """How far other decoders and storages are from the pixels of `paper`, and JPEG's size."""
    others: dict[str, list[np.ndarray]] = {}
    sizes: dict[int, list[int]] = {85: [], 95: []}

    def add(name: str, image: np.ndarray, reference: np.ndarray) -> None:
        others.setdefault(name, []).append(np.abs(image.astype(np.int16) - reference))

    fast: Any = PictureFormat(IMAGE_SIZE, decoder="fast")
    try:
        decoder_name("fast")
    except UserError:
        fast = None
    for picture in pictures:
        data = Path(str(picture.place)).read_bytes()
        image = decode_picture(data, PictureFormat(IMAGE_SIZE)).image
        if fast is not None:
            add("decoder fast", decode_picture(data, fast).image, image)
        for quality, found in sizes.items():
            encoded = encode_jpeg(image, quality)
            found.append(len(encoded))
            add(f"storage jpeg, quality {quality}", decode_jpeg(encoded, IMAGE_SIZE), image)
    rows = []
    for name, differences in others.items():
        values = np.stack(differences)
        rows.append(Row(f"{name}: mean pixel difference", float(values.mean()), "of 255"))
        rows.append(Row(f"{name}: largest pixel difference", float(values.max()), "of 255"))
    for quality, found in sizes.items():
        ratio = statistics.mean(found) / IMAGE_SIZE**2 / 3
        rows.append(
            Row(
                f"storage jpeg, quality {quality}: an image",
                statistics.mean(found) / 1e3,
                "kB",
                "raw",
                ratio,
            )
        )
    return rows
