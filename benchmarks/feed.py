"""Feeding: from raw shards to batches in memory, beside a copy of the bytes that a batch has.

The shards hold random pixels; they are written to a temporary directory and read once beforehand,
so that maps and page cache are warm. The candidates are interleaved, each makes the same batches,
and a figure is the median. The copy is the C library's of as many bytes as the float32 batches
have, past the caches, on as many threads. "NumPy" is how batches were made before: image by image,
with the interpreter's lock between NumPy's calls. "By the source's rules" is with its central
mean, its color division and one crop for 32 images.
"""

import argparse
import ctypes
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Row, interleaved, say
from cuda_ext import augment_batch
from data_prep.color_statistics import PixelSummer, color_statistics
from data_prep.shard_writer import Classes, RawShardWriter
from data_prep.shards import Part, Shard
from replica.feed.augment import Crops, draw_color_shifts, draw_crops
from replica.feed.feed import TrainFeed
from replica.feed.stored import StoredImages
from replica.recipes import PAPER

IMAGE_SIZE, IMAGES_PER_SHARD = 256, 256
FEED = "raw shards -> float32 batches, {}"
BY_SOURCE = "by the source's rules, {}"
SOURCE_RULES: dict[str, Any] = {
    **{"mean": "center", "color_division": True, "shared_crops": 32},
    **{"color_scale": "standard-deviations"},
}
COPY = "copy of as many bytes, {}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=2048, help="in shards; default: %(default)s")
    parser.add_argument("--batches", type=int, default=8, help="in a call; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="at most; default: %(default)s")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows."""
    with tempfile.TemporaryDirectory() as directory:
        number = (
            -(-arguments.images // arguments.batch_size) * arguments.batch_size
        )  # whole batches
        say(f"writing {number} images")
        data = _random_shards(Path(directory), number)
        candidates: dict[str, Callable[[], Any]] = {}
        for threads in sorted({1, arguments.threads}):
            candidates |= _candidates(arguments, data, threads)
        say(f"{len(candidates)} candidates, {arguments.rounds} rounds")
        medians = interleaved(candidates, rounds=arguments.rounds, seconds=120.0)
    images = arguments.batch_size * arguments.batches
    return _rows({name: images / seconds for name, seconds in medians.items()}, arguments.threads)


def _of(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _candidates(
    arguments: argparse.Namespace, data: Any, threads: int
) -> dict[str, Callable[[], Any]]:
    batch_size, batches = arguments.batch_size, arguments.batches
    recipe = replace(PAPER, batch_size=batch_size)
    feed = TrainFeed(data, recipe, seed=1)
    source_feed = TrainFeed(data, replace(recipe, **SOURCE_RULES), seed=1)
    stored, mean = StoredImages(data.train), torch.from_numpy(data.statistics.mean_image)
    pool = ThreadPoolExecutor(threads)
    shape = (batch_size, 3, recipe.crop_size, recipe.crop_size)
    kinds = (torch.float32, torch.bfloat16, torch.uint8)
    outs = {
        dtype: [
            torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
            for _ in range(threads)
        ]
        for dtype in kinds
    }

    def draw(step: int) -> tuple[np.ndarray, Crops, np.ndarray]:
        rows = feed.image_rows(step)
        crops = draw_crops(rows, epoch=1, seed=1, image_size=IMAGE_SIZE, crop_size=recipe.crop_size)
        shifts = draw_color_shifts(
            rows,
            epoch=1,
            seed=1,
            standard_deviation=recipe.color_noise,
            eigenvalues=data.statistics.eigenvalues,
            eigenvectors=data.statistics.eigenvectors,
        )
        return rows, crops, shifts

    drawn = [draw(step) for step in range(batches)]

    def operator(dtype: torch.dtype) -> Callable[[int], None]:
        def make(step: int) -> None:
            rows, crops, shifts = drawn[step]
            images, index = stored.take(rows)
            columns = [index, crops.tops, crops.lefts, crops.flips]
            is_cut_only = dtype == torch.uint8
            if is_cut_only:
                columns[3] = np.zeros_like(index)
            augment_batch(
                images,
                torch.from_numpy(np.stack(columns, axis=1)),
                crop_size=recipe.crop_size,
                mean_image=None if is_cut_only else mean,
                shifts=None if is_cut_only else torch.from_numpy(shifts.astype(np.float32)),
                out=outs[dtype][step % threads],
                parallel=False,
            )

        return make

    def with_numpy(step: int) -> None:
        rows, crops, shifts = draw(step)
        out = outs[torch.float32][step % threads].permute(0, 2, 3, 1).numpy()
        for n, row in enumerate(rows):
            top, left = slice(crops.tops[n], None), slice(crops.lefts[n], None)
            to = out[n, :, ::-1] if crops.flips[n] else out[n]
            image, less = data.train.image(int(row)), data.statistics.mean_image
            place = tuple(slice(s.start, s.start + recipe.crop_size) for s in (top, left))
            np.subtract(image[place], less[place], out=to)
            out[n].reshape(recipe.crop_size, -1)[...] += np.tile(
                shifts[n].astype(np.float32), recipe.crop_size
            )

    source = torch.zeros(shape)

    def copy(step: int) -> None:
        to = outs[torch.float32][step % threads]
        ctypes.memmove(to.data_ptr(), source.data_ptr(), source.nbytes)  # without the lock

    def all_of(make: Callable[[int], None]) -> Callable[[], Any]:
        return lambda: list(pool.map(make, range(batches)))

    def whole(feed: TrainFeed) -> Callable[[], None]:
        def call() -> None:
            for _ in feed.batches(0, batches, threads=threads):
                pass

        return call

    def numpy_feed() -> None:
        list(pool.map(with_numpy, range(batches)))

    operators = {
        f"augment_batch, {str(dtype).removeprefix('torch.')}, {_of(threads)}": all_of(
            operator(dtype)
        )
        for dtype in kinds
    }
    return {
        FEED.format(_of(threads)): whole(feed),
        BY_SOURCE.format(_of(threads)): whole(source_feed),
        COPY.format(_of(threads)): all_of(copy),
        f"NumPy, {_of(threads)}": numpy_feed,
        **operators,
    }


def _rows(speeds: dict[str, float], threads: int) -> list[Row]:
    """Images a second, each beside what it is to be compared with."""
    rows = []
    for name, speed in speeds.items():
        others = []
        for number in sorted({1, threads}):
            if name == FEED.format(_of(number)):
                others = [COPY.format(_of(number)), f"NumPy, {_of(number)}"]
            if name == BY_SOURCE.format(_of(number)):
                others = [FEED.format(_of(number))]
        if threads > 1 and name.endswith(_of(threads)):
            others.append(name.replace(_of(threads), _of(1)))
        rows.append(Row(name, speed, "images/s"))
        rows += [
            Row(f"{name} / {other}", speed, "images/s", other, speed / speeds[other])
            for other in others
        ]
    return rows


def _random_shards(directory: Path, number: int) -> Any:
    """What a feed reads of a data set: shards of random pixels, on warm maps, and statistics."""
    rng = np.random.default_rng(0)
    classes = Classes(("n00000000",), ("random",), "0" * 64)
    shards: list[Shard] = []
    of_all = PixelSummer(IMAGE_SIZE)
    for first in range(0, number, IMAGES_PER_SHARD):
        count = min(IMAGES_PER_SHARD, number - first)
        path = directory / f"train-{len(shards):05d}.h5"
        writer = RawShardWriter(path, classes=classes, size=IMAGE_SIZE, num_planned=count)
        for row in range(count):
            image = rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
            of_all.add(writer.add(image, picture=str(first + row), label=0))
        writer.finish(of_all.sums())  # of the shard alone nobody asks
        shards.append(Shard(path, count, 1, IMAGE_SIZE))
    part = Part(shards)
    for row in range(number):
        part.image(row).max()
    return SimpleNamespace(train=part, statistics=color_statistics(of_all.sums()), cycle_seed=1)
