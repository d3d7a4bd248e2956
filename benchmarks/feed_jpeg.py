"""Feeding: from JPEG shards to batches in memory, beside decoding the same files alone.

The shards hold drawn pictures (`--source toy`) at quality 95, some 40 kB each, as ImageNet's are;
they are written to a temporary directory and are in memory. The candidates are interleaved, each
decodes the same files on as many threads, and a figure is the median. Alone is the library's own
shortest call: simplejpeg into memory that is there already, Pillow's `load`. "To arrays" is how the
feed read JPEG shards before.
"""

import argparse
import importlib.util
import io
import itertools
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import Row, interleaved, say
from data_prep.color_statistics import PixelSummer, color_statistics
from data_prep.jpeg import QUALITY, decode_jpeg, decoder_in_use
from data_prep.pictures import PictureFormat, fit_picture
from data_prep.shard_writer import Classes, JpegShardWriter
from data_prep.shards import JpegImages, Part, Shard
from data_prep.sources.toy import CLASS_NAMES, draw_picture
from replica.feed.feed import TrainFeed
from replica.recipes import PAPER

IMAGE_SIZE, NUM_DRAWN = 256, 64
FEED = "JPEG shards -> float32 batches"
SIMPLEJPEG, PILLOW, ARRAYS = "simplejpeg alone", "Pillow alone", "Pillow to arrays"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=1024, help="in shards; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="at most; default: %(default)s")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows."""
    numbers = sorted({1, arguments.threads})
    with tempfile.TemporaryDirectory() as directory:
        say(f"writing {arguments.images} images; the feed decodes with {decoder_in_use()}")
        data = _drawn_shards(Path(directory), arguments.images)
        candidates: dict[str, Callable[[], Any]] = {}
        for threads in numbers:
            candidates |= _candidates(data, arguments.batch_size, threads)
        say(f"{len(candidates)} candidates, {arguments.rounds} rounds")
        medians = interleaved(candidates, rounds=arguments.rounds, seconds=120.0)
    speeds = {name: arguments.images / seconds for name, seconds in medians.items()}
    rows = [Row(name, speed, "images/s") for name, speed in speeds.items()]
    if _missing():
        rows += [Row(SIMPLEJPEG, None, "images/s", note="simplejpeg is not installed")]
    pairs = [(f"{FEED}, {of}", f"{name}, {of}") for of in map(_of, numbers) for name in _alone()]
    if arguments.threads > 1:
        pairs += [
            (f"{name}, {_of(arguments.threads)}", f"{name}, {_of(1)}") for name in (FEED, *_alone())
        ]
    return rows + [
        Row(f"{one} / {other}", speeds[one], "images/s", other, speeds[one] / speeds[other])
        for one, other in pairs
    ]


def _missing() -> bool:
    return importlib.util.find_spec("simplejpeg") is None


def _alone() -> list[str]:
    return [PILLOW, ARRAYS] if _missing() else [SIMPLEJPEG, PILLOW, ARRAYS]


def _of(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _candidates(data: Any, batch_size: int, threads: int) -> dict[str, Callable[[], Any]]:
    feed = TrainFeed(data, replace(PAPER, batch_size=batch_size), seed=1)
    pool = ThreadPoolExecutor(threads)
    shard = data.train.shards[0].images()
    assert isinstance(shard, JpegImages)
    files = [shard.encoded(row) for row in range(len(shard))]
    shares = [files[i::threads] for i in range(threads)]

    def whole_feed() -> None:
        for _ in feed.batches(0, feed.steps_per_epoch, threads=threads):
            pass

    def with_simplejpeg(share: list[bytes]) -> None:
        import simplejpeg

        out = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for file in share:
            simplejpeg.decode_jpeg(file, "RGB", buffer=out)

    def with_pillow(share: list[bytes]) -> None:
        for file in share:
            with Image.open(io.BytesIO(file), formats=("JPEG",)) as picture:
                picture.load()

    def to_arrays(share: list[bytes]) -> None:
        for file in share:
            decode_jpeg(file, IMAGE_SIZE)

    def all_of(decode: Callable[[list[bytes]], None]) -> Callable[[], Any]:
        return lambda: list(pool.map(decode, shares))

    ways = {SIMPLEJPEG: with_simplejpeg, PILLOW: with_pillow, ARRAYS: to_arrays}
    alone = {f"{name}, {_of(threads)}": all_of(ways[name]) for name in _alone()}
    return {f"{FEED}, {_of(threads)}": whole_feed, **alone}


def _drawn_shards(directory: Path, number: int) -> Any:
    """What a feed reads of a data set: one JPEG shard of drawn pictures, and statistics."""
    path, sums = directory / "train-00000.h5", PixelSummer(IMAGE_SIZE)
    classes = Classes(("n00000000",), ("drawn",), "0" * 64)
    writer = JpegShardWriter(path, classes=classes, size=IMAGE_SIZE, quality=QUALITY)
    drawn = []
    for i in range(min(number, NUM_DRAWN)):
        picture, _ = draw_picture(np.random.default_rng(i), label=i % len(CLASS_NAMES))
        drawn.append(fit_picture(picture, PictureFormat(image_size=IMAGE_SIZE)))
    for row, image in enumerate(itertools.islice(itertools.cycle(drawn), number)):
        sums.add(writer.add(image, picture=str(row), label=0))
    writer.finish(sums.sums())
    part = Part([Shard(path, number, 1, IMAGE_SIZE, "jpeg")])
    return SimpleNamespace(train=part, statistics=color_statistics(sums.sums()), cycle_seed=1)
