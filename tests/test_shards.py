"""The file format: what is written, what is refused, what an interruption leaves behind."""

import errno
import gc
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import PROJECT_DIR, assert_user_error, is_running, run_here

from data_prep.build_shards import main as build_shards
from data_prep.errors import UserError
from data_prep.files import mapped_bytes, write_whole
from data_prep.shard_writer import structure_of
from data_prep.shards import Part, open_data_set
from data_prep.sources import kaggle
from data_prep.sources.trees import Folder

BUILD, VERIFY = "data_prep/build_shards.py", "data_prep/verify_shards.py"


@pytest.fixture
def copy(shards_dir, tmp_path):
    """A copy of the small data set that a test may damage."""
    return shutil.copytree(shards_dir, tmp_path / "shards")


def test_images_are_contiguous_and_page_aligned(shards_dir):
    for path in shards_dir.glob("*-0*.h5"):
        with h5py.File(path) as file:
            images = file["images"]
            assert images.chunks is None
            assert images.dtype == np.uint8
            assert images.shape[1:] == (256, 256, 3)
            assert images.id.get_offset() % 4096 == 0


def test_memory_mapped_images_are_those_that_h5py_reads(shards_dir, data):
    rows = []
    for path in sorted(shards_dir.glob("train-*.h5")):
        with h5py.File(path) as file:
            rows.append(file["images"][:])
    images = np.concatenate(rows)
    assert len(images) == len(data.train) == 60
    for row in (0, 39, 40, 59):  # the second shard begins at 40
        assert np.array_equal(data.train.image(row), images[row])


@pytest.mark.parametrize("offset", [0, 5, 4096, 9000])
def test_mapped_bytes_begin_where_they_were_asked_for(tmp_path, offset):
    content = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8)
    (tmp_path / "file").write_bytes(content.tobytes())
    mapped = mapped_bytes(tmp_path / "file", (30, 7, 3), offset=offset)
    assert np.array_equal(mapped.reshape(-1), content[offset : offset + 630])
    assert mapped_bytes(tmp_path / "file", (0, 7), offset=offset).shape == (0, 7)
    with pytest.raises(FileNotFoundError):
        mapped_bytes(tmp_path / "no file", (1,), offset=0)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_a_map_holds_no_descriptor_and_ends_with_its_last_array(data):
    """ImageNet has more shards than a process may usually have files."""

    def maps():
        return Path("/proc/self/maps").read_text().count(str(shard.path))

    shard = data.train.shards[0]
    descriptors = len(os.listdir("/proc/self/fd"))
    images = [shard.images() for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == descriptors
    one = images[7][3]
    before = maps()
    with pytest.raises(ValueError, match="flag to True"):
        one.setflags(write=True)
    del images
    gc.collect()
    assert maps() <= before - 19
    assert one.sum() > 0
    before = maps()
    del one
    assert maps() == before - 1


def test_labels_and_names_follow_the_source(toy_dir, shards_dir, data):
    found = kaggle.find(Folder(toy_dir))
    for part, stored in (("train", data.train), ("val", data.val)):
        assert stored.labels.tolist() == [picture.label for picture in found.parts[part]]
        names = [name for shard in stored.shards for name in shard.pictures()]
        assert names == [picture.name for picture in found.parts[part]]


def test_statistics_are_those_of_the_training_images(data):
    images = np.stack([data.train.image(row) for row in range(len(data.train))])
    np.testing.assert_allclose(data.statistics.mean_image, images.mean(axis=0), atol=1e-4)
    pixels = images.reshape(-1, 3) / 255.0
    np.testing.assert_allclose(
        data.statistics.rgb_covariance, np.cov(pixels.T, bias=True), rtol=1e-9
    )


def test_equal_builds_give_equal_bytes(toy_dir, shards_dir, tmp_path):
    arguments = ["--source", "kaggle", "--input", str(toy_dir), "--output", str(tmp_path / "b")]
    assert build_shards([*arguments, "--images-per-shard", "40", "--workers", "2"]) == 0
    for path in [*shards_dir.glob("*.h5"), shards_dir / "manifest.json"]:
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes(), path.name


def test_limit_takes_the_first_pictures_of_each_class(toy_dir, tmp_path):
    arguments = ["--source", "kaggle", "--input", str(toy_dir), "--output", str(tmp_path / "b")]
    assert build_shards([*arguments, "--limit", "2"]) == 0
    data = open_data_set(tmp_path / "b")
    assert np.bincount(data.train.labels).tolist() == [2] * 10
    assert len(data.val) == 20


def test_verify_accepts_a_whole_data_set_and_finds_one_changed_byte(copy):
    assert run_here(VERIFY, str(copy)).returncode == 0
    with (copy / "train-00001.h5").open("r+b") as file:
        file.seek(5_000_000 % (copy / "train-00001.h5").stat().st_size)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    result = run_here(VERIFY, str(copy))
    assert result.returncode == 2
    assert "fault: train-00001.h5: is not the file of the manifest (SHA-256)" in result.stdout
    assert "1 faults: remove the files that are named and build again" in result.stderr


def read_in_child(data, queue):
    queue.put((data.val.image(3).sum(), data.val.labels[3]))


@pytest.mark.fault(38)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_an_open_data_set_may_be_read_by_other_processes(data, method):
    """However they are started; a handle or a map that crossed over would give wrong pixels."""
    expected = (data.val.image(3).sum(), data.val.labels[3])
    assert len(pickle.dumps(data)) < 2_000_000  # the mean image, but not the 18 MB of pixels
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    children = [context.Process(target=read_in_child, args=(data, queue)) for _ in range(2)]
    with warnings.catch_warnings():
        # Python warns of fork where there are threads, as there are in the tests.
        warnings.simplefilter("ignore", DeprecationWarning)
        for child in children:
            child.start()
    assert [queue.get(timeout=60) for _ in children] == [expected] * 2
    for child in children:
        child.join()


@pytest.mark.fault(39)
def test_a_read_only_directory_is_enough(copy):
    files = list(copy.iterdir())
    for path in [*files, copy]:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        assert len(open_data_set(copy).val) == 30
        assert run_here(VERIFY, str(copy)).returncode == 0
    finally:
        for path in [copy, *files]:
            path.chmod(path.stat().st_mode | 0o200)


# --- Damage


def test_no_data_names_the_command_that_builds_it(tmp_path):
    result = run_here("-m", "replica.train", "--data", str(tmp_path / "none"))
    assert_user_error(result, "no data at", "none", "python data_prep/build_shards.py")


@pytest.mark.fault(36)
def test_missing_and_truncated_shards_are_all_named(copy):
    (copy / "train-00000.h5").unlink()
    os.truncate(copy / "val-00000.h5", 1000)
    with pytest.raises(UserError) as error:
        open_data_set(copy)
    assert "train-00000.h5 is missing" in str(error.value)
    assert "val-00000.h5 has 1000 bytes instead of" in str(error.value)
    result = run_here("-m", "replica.train", "--data", str(copy))
    assert_user_error(result, "train-00000.h5 is missing; val-00000.h5 has 1000 bytes")


def rewrite(path, change, *, is_signed=True):
    """Changes an HDF5 file and its entry in the manifest, so that only the format is wrong."""
    with h5py.File(path, "r+") as file:
        change(file)
    manifest_path = path.parent / "manifest.json"
    manifest = json.loads(manifest_path.read_text())
    for part in manifest["parts"].values():
        for entry in part["shards"]:
            if entry["file"] == path.name:
                entry["num_bytes"] = path.stat().st_size
                if is_signed:
                    entry["structure"] = vars(structure_of(path))
    manifest_path.write_text(json.dumps(manifest))


def replace(file, name, **options):
    values = file[name][:]
    del file[name]
    file.create_dataset(name, **{"data": values, **options})


def make_virtual(file):
    del file["labels"]
    layout = h5py.VirtualLayout((30,), "i4")
    layout[:] = h5py.VirtualSource("a.h5", "x", (30,))
    file.create_virtual_dataset("labels", layout)


DAMAGES = {
    "version": (lambda f: f.attrs.modify("version", 99), "expected a shard of format version 2"),
    "chunks": (lambda f: replace(f, "images", chunks=True), "images is not stored contiguously"),
    "type": (lambda f: replace(f, "labels", dtype="f4"), "labels has type float32 instead of i4"),
    "length": (
        lambda f: replace(f, "labels", data=np.zeros(3, np.int32)),
        r"labels has shape \(3,\) instead of \(30,\)",
    ),
    "range": (
        lambda f: replace(f, "labels", data=np.arange(30, dtype=np.int32) - 20),
        r"val-00000.h5: image 0: expected labels in \[0, 10\), got -20",
    ),
    "range above": (
        lambda f: replace(f, "labels", data=np.clip(np.arange(30, dtype=np.int32), 7, 17)),
        r"val-00000.h5: image 10: expected labels in \[0, 10\), got 10",
    ),
    "link": (
        lambda f: (f.move("labels", "x"), f.__setitem__("labels", h5py.SoftLink("/x"))),
        "labels is missing or is a link",
    ),
    "external": (
        lambda f: (f.pop("labels"), f.__setitem__("labels", h5py.ExternalLink("a.h5", "/x"))),
        "labels is missing or is a link",
    ),
    "virtual": (lambda f: make_virtual(f), "labels is not stored contiguously"),
    "elsewhere": (
        lambda f: (
            f.pop("labels"),
            f.create_dataset("labels", (30,), "i4", external=[("/etc/passwd", 0, 120)]),
        ),
        "labels is not stored contiguously",
    ),
    "group": (lambda f: (f.pop("labels"), f.create_group("labels")), "labels is no data set"),
    "byte order": (
        lambda f: replace(f, "labels", data=f["labels"][:].astype(">i4")),
        "labels is stored with the other order of bytes",
    ),
    "filter": (
        lambda f: replace(f, "labels", compression="gzip"),
        "labels is not stored contiguously",
    ),
    "missing": (lambda f: f.pop("images"), "images is missing or is a link"),
    "size": (
        lambda f: replace(f, "images", data=np.zeros((30, 8, 8, 3), np.uint8)),
        r"images has shape \(30, 8, 8, 3\) instead of \(30, 256, 256, 3\)",
    ),
    "plan": (
        lambda f: f.attrs.modify("plan_sha256", "0" * 64),
        "is of another data set than manifest.json",
    ),
}


@pytest.mark.fault(22, 36, 37)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_of_another_form_is_refused_with_what_is_wrong(copy, damage):
    change, message = DAMAGES[damage]
    rewrite(copy / "val-00000.h5", change)
    with pytest.raises(UserError, match=message):
        open_data_set(copy)


@pytest.mark.fault(36, 37)
def test_a_changed_structure_is_refused_before_hdf5_sees_it(copy):
    rewrite(copy / "val-00000.h5", lambda f: f["labels"].write_direct(np.zeros(30, np.int32)),
            is_signed=False)  # fmt: skip
    with pytest.raises(UserError, match=r"val-00000.h5 is not the shard that the manifest names"):
        open_data_set(copy)


@pytest.mark.fault(36)
def test_swapped_shards_are_refused(copy):
    first, second = copy / "train-00000.h5", copy / "val-00000.h5"
    manifest = json.loads((copy / "manifest.json").read_text())
    entries = [manifest["parts"][part]["shards"][0] for part in ("train", "val")]
    first.rename(copy / "x")
    second.rename(first)
    (copy / "x").rename(second)
    with pytest.raises(UserError, match=r"train-00000.h5 has \d+ bytes instead of"):
        open_data_set(copy)
    # Even where the manifest is made to fit: the parts of its plan no longer do.
    for key in ("num_bytes", "sha256", "structure", "num_images"):
        entries[0][key], entries[1][key] = entries[1][key], entries[0][key]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = run_here(VERIFY, str(copy))
    assert result.returncode == 2
    assert "labels.csv: does not say what the shards say" in result.stdout
    assert "statistics.h5: mean_image is not that of the training images" in result.stdout


def test_a_shard_of_another_build_of_the_same_pictures_is_refused(copy, toy_dir, tmp_path):
    other = tmp_path / "other"
    arguments = ["--input", str(toy_dir), "--output", str(other), "--images-per-shard", "40"]
    assert build_shards([*arguments, "--resampling", "box", "--workers", "1"]) == 0
    assert (other / "val-00000.h5").stat().st_size == (copy / "val-00000.h5").stat().st_size
    shutil.copy(other / "val-00000.h5", copy / "val-00000.h5")
    with pytest.raises(UserError, match=r"val-00000.h5 is not the shard that the manifest names"):
        open_data_set(copy)


def test_a_changed_plan_in_the_manifest_is_refused(copy):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["class_names"].reverse()
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"is of another data set than manifest.json, or one of"):
        open_data_set(copy)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_data_set_without_a_part_is_refused(copy, part):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["parts"][part]["shards"] = []
    path.write_text(json.dumps(manifest))
    number = {"train": "0 train, 30 val, 0 test", "val": "60 train, 0 val, 0 test"}[part]
    with pytest.raises(UserError, match=f"expected train and val or test images, got {number}: "):
        open_data_set(copy)


def test_a_build_that_has_not_finished_is_refused(copy):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "complete": False}))
    with pytest.raises(UserError, match=r"the build has not finished: run `python data_prep/build"):
        open_data_set(copy)


def test_a_file_that_is_no_hdf5_is_refused(copy):
    path = copy / "val-00000.h5"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(UserError, match=r"val-00000.h5 is not the shard that the manifest names"):
        open_data_set(copy)


@pytest.mark.fault(41)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "expected the manifest of a data set"),
        ('{"format": "replica-shards", "version": 3}', "expected format version 2, got 3"),
        ('{"format": "replica-shards", "version": 1}', "expected format version 2, got 1"),
        ('{"format": "replica-shards", "version": 2}', "expected wnids, a list of texts"),
        ('{"format": "replica-shards", "format": 1}', "a key that stands there twice"),
        ('{"format": NaN}', "expected JSON, got NaN"),
        ("[" * 100_000, "too many brackets"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=message):
        open_data_set(tmp_path)


# --- Interruptions


@pytest.mark.fault(34)
def test_a_build_continues_and_gives_the_same_bytes(toy_dir, shards_dir, copy):
    (copy / "train-00001.h5").unlink()
    (copy / "statistics.h5").unlink()
    arguments = ["--source", "kaggle", "--input", str(toy_dir), "--output", str(copy)]
    kept = (copy / "train-00000.h5").stat().st_mtime_ns
    result = run_here(BUILD, *arguments, "--images-per-shard", "40")
    assert result.returncode == 0, result.stderr
    assert "continuing: 70 pictures are built already" in result.stdout
    assert (copy / "train-00000.h5").stat().st_mtime_ns == kept
    for path in [*shards_dir.glob("*.h5"), shards_dir / "manifest.json"]:
        assert (copy / path.name).read_bytes() == path.read_bytes(), path.name


def child_pids(pid):
    result = subprocess.run(
        ["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, text=True
    )
    return [int(line) for line in result.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("moment", ["drawing", "decoding"])
def test_ctrl_c_ends_a_build_with_one_line_and_no_process_left(moment, toy_dir, tmp_path):
    command = [sys.executable, BUILD, "--output", str(tmp_path / "out"), "--workers", "2"]
    if moment == "drawing":
        command += ["--source", "toy", "--input", str(tmp_path / "toy")]
        begun = tmp_path / "toy" / "LOC_synset_mapping.txt"
    else:
        command += ["--source", "kaggle", "--input", str(toy_dir), "--images-per-shard", "2"]
        begun = tmp_path / "out" / "train-00002.h5"
    build = subprocess.Popen(
        command,
        cwd=PROJECT_DIR,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A background job of a shell ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.time() + 60
    while not begun.exists() or len(child_pids(build.pid)) < 2:
        assert time.time() < deadline
        time.sleep(0.01)
    children = child_pids(build.pid)
    os.killpg(build.pid, signal.SIGINT)  # as a terminal does: parent and workers
    _, stderr = build.communicate(timeout=60)
    assert build.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "run the same command again to continue" in stderr.strip().splitlines()[-1]
    deadline = time.time() + 10
    while any(is_running(pid) for pid in children):
        assert time.time() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def test_a_directory_with_another_data_set_or_other_files_is_refused(toy_dir, copy, tmp_path):
    arguments = [BUILD, "--source", "kaggle", "--input", str(toy_dir)]
    result = run_here(*arguments, "--output", str(copy), "--limit", "1")
    assert_user_error(result, "holds another data set", "limit", "choose another --output")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    result = run_here(*arguments, "--output", str(tmp_path / "mine"))
    assert_user_error(result, "in use", "thesis.tex")


def test_what_cannot_be_written_whole_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*file.*No space left on device: make room"):
        write_whole(path, b"newer")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_may_read_a_part_for_the_first_time_at_once(data):
    """Threads that pause at any line of `image`: what one has mapped another does not lose."""
    rng = random.Random(5)
    errors = []

    def pause(frame, event, _):
        if frame.f_code is Part.image.__code__:
            time.sleep(rng.random() / 1000)
            return pause
        return None

    def read(part, row):
        sys.settrace(pause)
        try:
            assert part.image(row).shape == (256, 256, 3)
        except Exception as error:
            errors.append(error)
        finally:
            sys.settrace(None)

    for _ in range(20):
        part = Part(data.train.shards)
        threads = [threading.Thread(target=read, args=(part, 7 * i)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
