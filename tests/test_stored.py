"""Shards that change, vanish or cannot be read while training reads them: one line, no signal."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
from conftest import PROJECT_DIR, run, run_here
from runs import train_command

from cuda_ext import library
from cuda_ext.mapped_reads import MappedReads, num_lost_pages
from data_prep.build_shards import main as build_shards
from data_prep.errors import UserError
from data_prep.shards import open_data_set
from replica.feed.feed import TrainFeed
from replica.feed.images import BatchImages
from replica.feed.stored import StoredImages
from replica.recipes import MINI, with_changes

needs_library = pytest.mark.skipif(
    not library.compiled_state().is_live, reason="no library that watches mapped files here"
)
SMALL = with_changes(MINI, ["crop_size=96", "batch_size=10"])
# Of the data set below: its last shard of training images has 8 of 40.
LAST, IN_LAST = "train-00002.h5", 8


@pytest.fixture(scope="module")
def stored(toy_dir, tmp_path_factory):
    """Data sets of 40 training images of 104 pixels, in shards of 16, with either storage."""
    made = {}
    for storage in ("raw", "jpeg"):
        made[storage] = tmp_path_factory.mktemp("stored") / storage
        arguments = ["--source", "kaggle", "--input", str(toy_dir), "--size", "104", "--limit", "4"]
        arguments += ["--output", str(made[storage]), "--images-per-shard", "16", "--workers", "1"]
        assert build_shards([*arguments, "--storage", storage]) == 0
    return made


@pytest.fixture(params=["raw", "jpeg"])
def copied(request, stored, tmp_path):
    return shutil.copytree(stored[request.param], tmp_path / "shards")


def first_byte(path, image):
    """Where an image begins in its file."""
    with h5py.File(path) as file:
        if "images" in file:
            return file["images"].id.get_offset() + image * 104 * 104 * 3
        return file["jpeg_bytes"].id.get_offset() + int(file["jpeg_offsets"][image])


def cut_off(path):
    os.truncate(path, path.stat().st_size // 2)


def rewritten(path):
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def feeding_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


# --- Between two batches


@pytest.mark.fault(47)
@pytest.mark.parametrize("change", [cut_off, rewritten, os.unlink], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "when", ["before it is read", "once it is mapped", "before it is read anew"]
)
def test_a_shard_that_is_not_the_one_that_was_opened_is_named(copied, change, when):
    rows, part = np.arange(32, 40), open_data_set(copied).train
    if when == "before it is read":
        change(copied / LAST)
    stored = StoredImages(part)
    if when != "before it is read":
        stored.take(rows)
        change(copied / LAST)
    if when == "before it is read anew":  # as each validation does
        stored = StoredImages(part)
    with pytest.raises(UserError, match=rf"{LAST}: image 3: the file was changed, replaced or rem"):
        stored.take(rows[3:])
    assert len(stored.take(np.arange(32))[1]) == 32  # the others are as they were


# --- While a batch is made


@pytest.mark.fault(47)
@needs_library
@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("way", ["float32", "bytes"])
@pytest.mark.parametrize("cut_in", [1, 5])
def test_a_shard_that_is_cut_off_while_it_is_read_is_named(
    copied, threads, way, cut_in, monkeypatch
):
    """In the midst of an image, after the look at its size and before the images are read."""
    feed = TrainFeed(open_data_set(copied), SMALL, seed=1)
    images = BatchImages(
        feed._stored,
        mean_image=feed.data.statistics.mean_image,
        crop_size=96,
        as_bytes=way == "bytes",
    )
    monkeypatch.setattr(TrainFeed, "_images", lambda *_: images)
    path, find = copied / LAST, StoredImages._images
    # Where the first page begins of which nothing is there.
    end = -(-first_byte(path, cut_in) // 4096) * 4096
    are_cut = [image for image in range(IN_LAST) if first_byte(path, image + 1) > end]

    def find_and_cut(self, number, row):
        found = find(self, number, row)
        if number == 2:
            os.truncate(path, end)
        return found

    monkeypatch.setattr(StoredImages, "_images", find_and_cut)
    before, message = num_lost_pages(), ""
    try:
        for _ in feed.batches(0, 100, threads=threads):
            pass
    except UserError as error:
        message = str(error)
    found = re.search(rf"{LAST}: image (\d): the file was cut off while it was read, or ", message)
    assert found, message
    assert int(found[1]) in are_cut
    assert num_lost_pages() > before
    assert not feeding_threads()


ENDED = """
import os, signal, sys, tempfile
import numpy as np
from cuda_ext.mapped_reads import MappedReads, num_lost_pages

with tempfile.NamedTemporaryFile() as file:
    file.write(bytes(range(200)) * 100)
    file.flush()
    array = np.memmap(file.name, np.uint8, "r")
    reads = MappedReads(array)
    assert array.sum() and reads.lost_byte() is None and num_lost_pages() == 0
    os.truncate(file.name, 5000)
    assert not array[9000:].any() and array[:5000].any()
    assert (reads.lost_byte(), num_lost_pages()) == (9000, 3)
    if sys.argv[1] == "signal":
        os.kill(os.getpid(), signal.SIGBUS)
    if sys.argv[1] == "unwatched":
        other = np.memmap(file.name, np.uint8, "r")
    if sys.argv[1] == "unmapped":
        # The next mapping is at the place of the last one.
        place = array.ctypes.data
        del array
        file.truncate(20000)
        other = np.memmap(file.name, np.uint8, "r")
        assert other.ctypes.data == place
    os.truncate(file.name, 0)
    other.sum()
"""


@needs_library
@pytest.mark.parametrize("how", ["signal", "unwatched", "unmapped"])
def test_any_other_bus_error_ends_the_process_as_ever(how):
    result = run("-c", ENDED, how)
    assert (result.returncode, result.stderr) == (-signal.SIGBUS, "")


@needs_library
def test_each_map_of_a_file_remembers_its_own_loss(tmp_path):
    """Also where a range that was watched before is used again."""
    path = tmp_path / "file"
    for end in (4096, 8192, 12288):
        path.write_bytes(bytes(range(1, 251)) * 80)
        array = np.memmap(path, np.uint8, "r")
        reads, other = MappedReads(array[100:]), MappedReads(np.memmap(path, np.uint8, "r"))
        assert array.all()
        assert reads.lost_byte() is other.lost_byte() is None
        os.truncate(path, end)
        assert (array[:end].all(), array[end:].any()) == (True, False)
        assert (reads.lost_byte(), other.lost_byte()) == (end - 100, None)
        del array


# --- As a user sees it


def test_a_picture_that_cannot_be_decoded_stops_training_with_its_place(stored, tmp_path):
    """What a thread that feeds has found; without --verify."""
    path = shutil.copytree(stored["jpeg"], tmp_path / "shards") / LAST
    place = first_byte(path, 6)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\0\0")
    options = ("--set", "crop_size=96", "--epochs", "1")
    command = train_command(path.parent, tmp_path / "run", *options)
    result = run_here(*command)
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(rf"{LAST}: image 6: a JPEG in it cannot be decoded: its \d+ bytes are n", last)
    assert not feeding_threads()
    verified = run_here(*command, "--verify")
    assert verified.returncode == 2
    assert f"{LAST}: not in every byte what" in verified.stderr


@pytest.mark.fault(47)
def test_a_shard_that_vanishes_under_two_processes_ends_both_in_one_line(stored, tmp_path):
    shards = shutil.copytree(stored["raw"], tmp_path / "shards")
    options = ("--set", "crop_size=96", "--gpus", "2", "--epochs", "10000")
    process = subprocess.Popen(
        [sys.executable, *train_command(shards, tmp_path / "run", *options)],
        cwd=PROJECT_DIR,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics, end = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and '"step": 3,' in metrics.read_text()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)
    (shards / LAST).unlink()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in stderr
    last = stderr.strip().splitlines()[-1]
    assert re.search(rf"{LAST}: image \d: the file was changed, replaced or removed", last)
