"""Batches that threads make ahead: the same bit for bit, in memory that is used again."""

import ctypes
import dataclasses
import io
import itertools
import mmap
import os
import shutil
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import ClassVar

import h5py
import numpy as np
import oracles
import pytest
import torch
from PIL import Image

from data_prep.build_shards import main as build_shards
from data_prep.errors import UserError
from data_prep.jpeg import decoder_in_use
from data_prep.shards import open_data_set
from replica.feed import stored as stored_module
from replica.feed.ahead import Ahead
from replica.feed.augment import Crops
from replica.feed.buffers import Buffers
from replica.feed.feed import TrainFeed
from replica.feed.images import CPU, BatchImages
from replica.feed.order import cost_of_blocks, order_of_epoch
from replica.feed.stored import StoredImages
from replica.network.draws import permutation, words_to_sort_by
from replica.recipes import MINI, with_changes
from replica.train import parse_arguments
from replica.training.options import DEFAULT_SEED
from replica.training.run import prepare_run


def same(batch, other):
    pairs = [(batch.images, other.images), (batch.labels, other.labels), (batch.rows, other.rows)]
    return batch.step == other.step and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("threads", [0, 1, 8])
def test_batches_do_not_depend_on_threads_and_begin_in_mid_epoch(data, threads):
    feed = TrainFeed(data, MINI, seed=1)
    expected = [feed.batch(step) for step in range(5)]
    for first in (0, 3):
        made = list(feed.batches(first, 5, threads=threads))
        assert len(made) == 5 - first
        assert all(map(same, made, expected[first:]))


@pytest.mark.parametrize("threads", [0, 2])
def test_nor_on_the_number_of_processes(data, threads):
    whole = list(TrainFeed(data, MINI, seed=1).batches(0, 3))
    shares = [list(TrainFeed(data, MINI, 1, i, 4).batches(0, 3, threads=threads)) for i in range(4)]
    for step, batch in enumerate(whole):
        images = torch.cat([of_step[step].images for of_step in shares])
        assert torch.equal(images, batch.images)


def test_a_batch_is_the_paper_s_image_by_image(shards_dir, data):
    """Against the oracle, which reads the files and draws for itself."""
    feed, known = TrainFeed(data, MINI, seed=5), oracles.read_data(shards_dir)
    batch = feed.batch(3)  # of the second epoch
    rows = oracles.cycle_order(known["cycle_seed"], 60)[32:]
    how = {"epoch": 2, "seed": 5, "crop_size": MINI.crop_size, "color_noise": MINI.color_noise}
    for image, row in zip(batch.images, rows, strict=True):
        expected = oracles.training_crop(known, int(row), **how)
        assert np.allclose(image, expected, rtol=0, atol=1e-5)
        assert (image.numpy() == expected.astype(np.float32)).mean() > 0.99


# --- The rules for the images: the text's, and those of the 2012 source

RULES = {
    "order=reshuffle": ["image_order=reshuffle"],
    "order=block of shards": ["image_order=block"],
    "order=block of 7": ["image_order=block", "block_images=7"],
    "32 share a crop": ["shared_crops=32"],
    "5 share a crop": ["shared_crops=5"],
    "deviations": ["color_scale=standard-deviations"],
    "division": ["color_division=true"],
    "central mean": ["mean=center"],
    "source": [
        *("image_order=block", "block_images=7", "shared_crops=5", "mean=center"),
        *("color_scale=standard-deviations", "color_division=true"),
    ],
}
OF_ORDER = ("image_order", "block_images")
OF_IMAGES = ("shared_crops", "color_scale", "color_division", "mean")


def told_to_the_oracle(changes):
    """Fields that were changed, for `oracles.order_at` and `oracles.training_crop`."""
    recipe, names = with_changes(MINI, changes), [change.split("=")[0] for change in changes]
    ordered = {name: getattr(recipe, name) for name in OF_ORDER if name in names}
    return ordered, {name: getattr(recipe, name) for name in OF_IMAGES if name in names}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("noise", [0.25, 0.0], ids=["noise", "no noise"])
def test_a_batch_of_each_rule_is_the_oracles(shards_dir, data, rule, noise):
    """The second batch of the second epoch; where noise has ended, nothing is divided."""
    feed = TrainFeed(data, with_changes(MINI, RULES[rule]), seed=5)
    known, (ordered, source) = oracles.read_data(shards_dir), told_to_the_oracle(RULES[rule])
    batch = feed.batch(3, color_noise=noise)
    rows = oracles.order_at(known, 2, seed=5, **ordered)[32:]
    assert feed.image_rows(3).tolist() == rows
    how = {"epoch": 2, "seed": 5, "crop_size": MINI.crop_size, "color_noise": noise}
    for i, (image, row) in enumerate(zip(batch.images, rows, strict=True)):
        expected = oracles.training_crop(known, row, source=source, place=32 + i, **how)
        assert np.allclose(image, expected, rtol=0, atol=2e-5)
        assert (image.numpy() == expected).mean() > (0.99 if noise else 0.9999)


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_depends_on_threads_copies_or_where_a_run_goes_on(data, rule):
    recipe = with_changes(MINI, RULES[rule])
    expected = [TrainFeed(data, recipe, seed=1).batch(step) for step in range(6)]
    for threads, first in ((0, 0), (1, 3), (8, 1)):
        made = TrainFeed(data, recipe, seed=1).batches(first, 6, threads=threads)
        assert all(map(same, made, expected[first:]))
    shares = [list(TrainFeed(data, recipe, 1, i, 4).batches(1, 4)) for i in range(4)]
    for step in (1, 2, 3):
        images = torch.cat([of_step[step - 1].images for of_step in shares])
        assert torch.equal(images, expected[step].images)


@pytest.mark.parametrize("rule", ["order=reshuffle", "order=block of shards", "order=block of 7"])
def test_every_epoch_has_each_image_once_in_an_order_of_its_own(data, rule):
    recipe = with_changes(MINI, RULES[rule])
    orders = [
        np.concatenate([TrainFeed(data, recipe, seed).image_rows(step) for step in steps])
        for seed, steps in ((1, (0, 1)), (1, (2, 3)), (2, (0, 1)))
    ]
    for order in orders:
        assert sorted(order) == list(range(60))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (orders[i] == orders[j]).mean() < 0.25


@pytest.mark.parametrize("size", [1, 100_000], ids=["a block each", "one block"])
def test_blocks_are_sorted_as_numpy_sorts(size):
    """More blocks than 16 bits count, and images than have words of their own."""
    recipe = with_changes(MINI, ["image_order=block", f"block_images={size}"])
    rows = order_of_epoch(recipe, range(100_000), epoch=2, seed=3)
    starts = range(0, 100_000, size)
    drawn = permutation(3, len(starts), purpose="blocks", epoch=2)
    places = np.empty(len(starts), np.int64)
    places[drawn] = np.arange(len(starts))
    words = words_to_sort_by(3, 100_000, purpose="order", epoch=2)
    assert rows.tolist() == np.lexsort((words, places[np.arange(100_000) // size])).tolist()


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [([], [40, 20]), (["block_images=7"], [7] * 8 + [4])],
    ids=["shards", "7 images"],
)
def test_the_images_of_a_block_follow_each_other(data, changes, sizes):
    recipe = with_changes(MINI, ["image_order=block", *changes])
    rows, ends = order_of_epoch(recipe, data.train, epoch=3, seed=1), np.cumsum(sizes)
    blocks = np.searchsorted(ends, rows, side="right")
    runs = np.split(blocks, np.flatnonzero(np.diff(blocks)) + 1)
    assert sorted(len(run) for run in runs) == sorted(sizes)
    in_a_block = rows[blocks == 0]
    assert in_a_block.tolist() != sorted(in_a_block)


def test_what_blocks_cost_is_said_in_classes(data):
    """By counting the classes of each batch."""
    for changes in (["block_images=6"], [], ["batch_size=100"]):
        recipe = with_changes(MINI, ["image_order=block", *changes])
        means = []
        for kind in ("block", "reshuffle"):
            known = dataclasses.replace(recipe, image_order=kind, block_images=None)
            feed = TrainFeed(data, recipe if kind == "block" else known, seed=4)
            steps = range(feed.steps_per_epoch)
            means.append(np.mean([len({*feed.batch(step).labels.tolist()}) for step in steps]))
        said = cost_of_blocks(recipe, data.train, seed=4)
        size = min(60, recipe.batch_size)
        assert f"a batch of {size} has {means[0]:.1f} classes on average, of the" in said
        assert said.endswith(f" {means[1]:.1f}")
        largest, number = (6, 10) if "block_images=6" in changes else (40, 2)
        assert said.startswith(f"shuffled within blocks of {largest} stored images ({number} bl")


def test_images_that_share_a_crop_share_a_reflection_and_no_color(data):
    """A minibatch of 128 has only 4 distinct draws (facts of the source, section 4)."""
    drawn = []

    class Recorded(BatchImages):
        def make(self, rows, crops, shifts, **how):
            drawn.append((crops, shifts))
            return super().make(rows, crops, shifts, **how)

    how = {"mean_image": data.statistics.mean_image, "crop_size": 224}
    images = Recorded(StoredImages(data.train), **how)
    for size, expected in ((60, [32, 28]), (20, [20])):
        recipe = with_changes(MINI, ["shared_crops=32", f"batch_size={size}"])
        TrainFeed(data, recipe, seed=1).batch(0, images=images)
        crops, shifts = drawn.pop()
        draws = np.stack([crops.tops, crops.lefts, crops.flips], axis=1)
        changes = np.flatnonzero((np.diff(draws, axis=0) != 0).any(axis=1)) + 1
        assert np.diff([0, *changes, size]).tolist() == expected
        assert len(np.unique(shifts, axis=0)) == size


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("mean", ["place", "center"])
def test_bytes_that_are_finished_later_are_the_same_batch(data, layout, mean):
    """The way of a GPU, taken on the CPU."""
    rng, rows = np.random.default_rng(0), np.array([3, 41, 0, 59, 40, 39])
    crops = Crops(*rng.integers(0, 33, (2, 6)), rng.integers(0, 2, 6) == 1)
    shifts = rng.normal(0, 20, (6, 3))
    how = {"mean_image": data.statistics.mean_image, "crop_size": 224, "memory_format": layout}
    stored = StoredImages(data.train)
    whole, in_bytes = (BatchImages(stored, **how, mean=mean, as_bytes=x) for x in (False, True))
    for colors, divisor in ((shifts, 1.0), (None, 1.0), (shifts, 1.1)):
        expected, _ = whole.make(rows, crops, colors, divisor=divisor)
        actual, arrived = in_bytes.make(rows, crops, colors, divisor=divisor, parallel=False)
        assert torch.equal(actual, expected)
        assert arrived is None
        assert actual.is_contiguous(memory_format=layout)


def test_bytes_on_their_way_to_a_gpu_are_not_overwritten(data, monkeypatch):
    """With a stream that is late: their memory is lent again after its event, not before."""
    events = []

    class Event:
        def __init__(self):
            self.is_over = False
            events.append(self)

        def record(self, stream):
            assert stream is images._stream

        def query(self):
            return self.is_over

    class Recorded(Buffers):
        lent: ClassVar = []

        def take(self, shape, dtype):
            tensor = super().take(shape, dtype)
            self.lent.append(tensor.data_ptr())
            return tensor

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    how = {"mean_image": data.statistics.mean_image, "crop_size": 224, "as_bytes": True}
    images = BatchImages(StoredImages(data.train), **how)
    images._stream, images._buffers = object(), Recorded()
    rows = np.arange(3)
    crops = Crops(rows, rows, rows == 1)
    for _ in range(3):
        _, arrived = images.make(rows, crops, None)
        assert arrived is events[-1]
    assert len(set(Recorded.lent)) == 3
    events[0].is_over = events[2].is_over = True
    images.make(rows, crops, None)  # which gives back the first, for the next one
    images.make(rows, crops, None)
    assert len(set(Recorded.lent)) == 4
    assert Recorded.lent[-1] == Recorded.lent[0]


def test_batches_have_the_format_that_was_asked_for(data):
    feed = TrainFeed(data, MINI, seed=1)
    (batch,) = feed.batches(0, 1, device=CPU, memory_format=torch.contiguous_format)
    assert batch.images.is_contiguous()
    assert same(batch, feed.batch(0))


@pytest.fixture(scope="module")
def jpeg_dir(toy_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp("jpeg shards")
    arguments = ["--source", "kaggle", "--input", str(toy_dir), "--output", str(directory)]
    arguments += ["--storage", "jpeg", "--images-per-shard", "40"]
    assert build_shards([*arguments, "--workers", "1"]) == 0
    return directory


def test_jpeg_shards_give_batches_too(jpeg_dir):
    data = open_data_set(jpeg_dir)
    batch = TrainFeed(data, MINI, seed=1).batch(0)
    rows = TrainFeed(data, MINI, seed=1).image_rows(0)
    assert len(np.unique(rows // 40)) == 2  # of both shards
    images, index = StoredImages(data.train).take(rows)
    decoded = np.stack([data.train.image(int(row)) for row in rows])
    assert np.array_equal(torch.cat(images)[index], decoded)
    assert len(batch.images) == 32


def test_images_of_jpeg_shards_are_those_that_h5py_reads(jpeg_dir):
    data = open_data_set(jpeg_dir)
    files = []
    for shard in data.train.shards:
        with h5py.File(shard.path) as file:
            ends, content = file["jpeg_offsets"][:], file["jpeg_bytes"][:].tobytes()
        files += [content[first:end] for first, end in itertools.pairwise(ends)]
    for row in (0, 39, 40, 59):
        with Image.open(io.BytesIO(files[row])) as picture:
            expected = np.array(picture)
        assert np.array_equal(data.train.image(row), expected)
        with pytest.raises(ValueError, match="read-only"):
            data.train.image(row)[:] = 0
        images, index = StoredImages(data.train).take(np.array([row]))
        assert np.array_equal(images[0][index[0]], expected)


def test_decoded_images_stay_as_long_as_somebody_has_them(jpeg_dir):
    """In memory that is used again after that."""
    stored = StoredImages(open_data_set(jpeg_dir).train)
    one, other = (stored.take(np.array([row, 59]))[0][0] for row in (3, 50))
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    address = one.data_ptr()
    del one
    assert stored.take(np.array([1, 2]))[0][0].data_ptr() == address


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_of_jpeg_shards_do_not_depend_on_threads(jpeg_dir, threads):
    feed = TrainFeed(open_data_set(jpeg_dir), MINI, seed=1)
    for batch in feed.batches(0, 6, threads=threads):
        assert same(batch, feed.batch(batch.step))


def test_jpeg_files_of_a_large_part_are_read_ahead(jpeg_dir, monkeypatch):
    asked = []
    monkeypatch.setattr(stored_module, "_read_ahead", lambda *range_: asked.append(range_))
    train = open_data_set(jpeg_dir).train
    stored = StoredImages(train, reads_ahead=True)
    stored.take(np.array([41, 0]))
    for (begin, num_bytes), (number, place) in zip(asked, [(1, 1), (0, 0)], strict=True):
        encoded = train.shards[number].images().encoded(place)
        assert ctypes.string_at(begin, num_bytes) == encoded


def test_a_part_that_memory_does_not_hold_is_read_ahead(data, monkeypatch):
    asked = []
    monkeypatch.setattr(stored_module, "_read_ahead", lambda *range_: asked.append(range_))
    rows = np.array([59, 3, 41, 0])
    StoredImages(data.train).take(rows)
    assert not asked  # 12 MB
    images, index = StoredImages(data.train, reads_ahead=True).take(rows)
    whole = [image for part in images for image in part]
    assert asked == [(whole[i].data_ptr(), 256 * 256 * 3) for i in index]
    monkeypatch.undo()
    assert StoredImages(data.train, reads_ahead=True).take(rows)[1].tolist() == index.tolist()
    monkeypatch.setattr(stored_module, "_memory", lambda: 60 * 256 * 256 * 3 * 2 - 1)
    assert StoredImages(data.train)._reads_ahead


def test_what_is_asked_for_is_whole_pages(monkeypatch):
    calls = []
    libc = SimpleNamespace(madvise=lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(stored_module, "_LIBC", libc)
    stored_module._read_ahead(7 * mmap.PAGESIZE + 5, 100)
    ((address, length, advice),) = calls
    assert (address.value, length.value) == (7 * mmap.PAGESIZE, 105)
    assert advice == mmap.MADV_WILLNEED


# --- Memory


def test_memory_is_lent_again_only_when_nobody_has_it():
    buffers = Buffers()
    one = buffers.take((2, 5), torch.float32)
    part, address = one[1], one.data_ptr()
    del one
    other = buffers.take((2, 5), torch.float32)
    assert other.data_ptr() != address  # a view is still there
    del part
    assert buffers.take((1, 3), torch.float32).data_ptr() == address
    assert buffers.take((3,), torch.uint8).data_ptr() == address  # it was free again at once
    assert address % 64 == 0


def test_too_little_memory_is_not_lent():
    buffers = Buffers()
    buffers.take((1,), torch.uint8)
    large = buffers.take((1000,), torch.float64)
    large[:] = 1
    assert large.sum() == 1000


def test_a_run_of_batches_takes_memory_for_a_few(data):
    feed = TrainFeed(data, MINI, seed=1)
    addresses = {batch.images.data_ptr() for batch in feed.batches(0, 20)}
    assert len(addresses) <= 5


# --- What goes wrong


def cut_off(path):
    os.truncate(path, path.stat().st_size // 2)


def rewritten(path):
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("change", [cut_off, rewritten, os.unlink], ids=lambda f: f.__name__)
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_a_shard_that_changes_or_vanishes_ends_in_one_line(
    request, storage, change, threads, monkeypatch, tmp_path
):
    directory = request.getfixturevalue("shards_dir" if storage == "raw" else "jpeg_dir")
    copied = shutil.copytree(directory, tmp_path / "shards")
    made = []
    make = BatchImages.make
    monkeypatch.setattr(BatchImages, "make", lambda *a, **k: [make(*a, **k), made.append(1)][0])
    feed = TrainFeed(open_data_set(copied), MINI, seed=1)
    batches = iter(feed.batches(0, 100, threads=threads))
    next(batches)
    next(batches)
    while len(made) < (4 if threads else 2):  # who reads a file while it is cut off is ended
        time.sleep(0.001)
    change(copied / "train-00001.h5")
    with pytest.raises(UserError, match=r"train-00001.h5: image \d+: the file was changed, repl"):
        for _ in batches:
            pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_error_of_a_thread_comes_where_its_batch_is_due(threads):
    def make(step, noise):
        if step == 4:
            raise BrokenError("step 4")
        return step

    got = []
    with pytest.raises(BrokenError, match="step 4"):
        got.extend(Ahead(make, 0, 10, noise_of=lambda _: 0.1, threads=threads))
    assert got == [0, 1, 2, 3]


def test_who_stops_asking_leaves_no_thread_behind(data):
    for batch in TrainFeed(data, MINI, seed=1).batches(0, 100, threads=2):
        assert batch.step == 0
        break
    del batch
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_color_noise_that_was_changed_by_hand_makes_a_batch_anew(threads):
    noise = [0.1] * 10

    def change(step):
        if step == 2:
            noise[4:] = [0.2] * 6

    got = []
    ahead = Ahead(lambda s, n: (s, n), 0, 8, noise_of=lambda step: noise[step], threads=threads)
    for step, value in ahead:
        change(step)
        got.append(value)
    assert got == noise[:8]


# --- What it costs


@pytest.mark.parametrize("threads", [0, 2])
def test_cpu_seconds_are_those_of_the_threads_that_make_batches(threads):
    def busy(step, noise):
        end = time.thread_time() + 0.03
        while time.thread_time() < end:
            pass
        return step

    ahead = Ahead(busy, 0, 6, noise_of=lambda _: 0.0, threads=threads)
    seen = []
    for _ in ahead:
        seen.append(ahead.cpu_seconds())
    assert seen == sorted(seen)
    assert seen[0] >= 0.03
    assert 0.18 <= ahead.cpu_seconds() < 0.3
    assert ahead.cpu_seconds() == ahead.cpu_seconds()


# --- What is said


@pytest.mark.parametrize("order", ["block", "reshuffle"])
def test_a_run_says_at_its_start_what_blocks_cost(shards_dir, data, tmp_path, order):
    change, said = f"image_order={order}", []
    arguments = ["--data", str(shards_dir), "--recipe", "mini", "--out", str(tmp_path / "run")]
    prepare_run(parse_arguments([*arguments, "--set", change]), None, say=said.append)
    cost = cost_of_blocks(with_changes(MINI, [change]), data.train, seed=DEFAULT_SEED)
    lines = [line for line in said if line.startswith("order: ")]
    assert lines == ([f"order: {cost}"] if order == "block" else [])


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_a_run_says_at_its_start_what_decodes(request, tmp_path, storage):
    directory, said = request.getfixturevalue("shards_dir" if storage == "raw" else "jpeg_dir"), []
    arguments = ["--data", str(directory), "--recipe", "mini", "--out", str(tmp_path / "run")]
    prepare_run(parse_arguments(arguments), None, say=said.append)
    lines = [line for line in said if line.startswith("images: ")]
    assert lines == ([f"images: decoded by {decoder_in_use()}"] if storage == "jpeg" else [])
