"""Verifying finds every kind of fault, and images that are there twice."""

import json
import shutil

import h5py
import numpy as np
import pytest
from archives import picture
from conftest import assert_user_error, run_here
from PIL import Image
from runs import train

from data_prep.build_shards import main as build_shards
from data_prep.files import sha256_of_file
from data_prep.shard_writer import structure_of
from data_prep.shards import check_every_byte, open_data_set
from data_prep.verification import describe_duplicates, find_duplicates, verify

VERIFY = "data_prep/verify_shards.py"


@pytest.fixture
def copy(shards_dir, tmp_path):
    return shutil.copytree(shards_dir, tmp_path / "shards")


def signed(path, change):
    """Changes a shard, and the manifest so that every digest is right again."""
    with h5py.File(path, "r+") as file:
        change(file)
    manifest_path = path.parent / "manifest.json"
    manifest = json.loads(manifest_path.read_text())
    for part in manifest["parts"].values():
        for entry in part["shards"]:
            if entry["file"] == path.name:
                entry["num_bytes"] = path.stat().st_size
                entry["sha256"] = sha256_of_file(path)
                entry["structure"] = vars(structure_of(path))
    manifest_path.write_text(json.dumps(manifest))


def test_a_whole_data_set_is_verified_and_described(shards_dir):
    result = run_here(VERIFY, str(shards_dir))
    assert result.returncode == 0, result.stderr
    assert "train: 60 images in 2 shards, 10 of 10 classes, 6 to 6 per class" in result.stdout
    assert "no two images have the same pixels" in result.stdout
    assert "is in every byte that its manifest says" in result.stdout
    quick = run_here(VERIFY, str(shards_dir), "--quick")
    assert quick.returncode == 0
    assert "has the files, sizes and labels" in quick.stdout
    assert "pixels" not in quick.stdout


def flip_pixel(file):
    file["images"][7, 100, 100, 1] ^= 1


@pytest.mark.fault(36)
def test_one_flipped_bit_of_a_pixel_is_found_though_all_digests_fit(copy):
    signed(copy / "train-00000.h5", flip_pixel)
    result = run_here(VERIFY, str(copy))
    assert result.returncode == 2
    assert "fault: train-00000.h5: pixel_sum is not that of its images" in result.stdout
    assert "fault: train-00000.h5: rgb_second_moment is not that of its images" in result.stdout
    assert run_here(VERIFY, str(copy), "--quick").returncode == 0


def test_every_fault_is_named_at_once(copy):
    signed(copy / "train-00001.h5", flip_pixel)
    with (copy / "val-00000.h5").open("r+b") as file:
        with h5py.File(copy / "val-00000.h5") as shard:
            offset = shard["images"].id.get_offset()
        file.seek(offset + 5000)
        file.write(b"\x01\x02\x03")
    lines = (copy / "labels.csv").read_text().splitlines(keepends=True)
    (copy / "labels.csv").write_text("".join([*lines[:5], lines[5].upper(), *lines[6:]]))
    shutil.copy(copy / "val-00000.h5", copy / "val-00001.h5")
    result = run_here(VERIFY, str(copy))
    assert result.returncode == 2
    faults = [line for line in result.stdout.splitlines() if line.startswith("fault: ")]
    for name, what in (
        ("train-00001.h5", "pixel_sum is not that of its images"),
        ("val-00000.h5", "is not the file of the manifest"),
        ("labels.csv", "is not the file that the manifest names"),
        ("val-00001.h5", "the manifest does not name it"),
    ):
        assert any(name in fault and what in fault for fault in faults), (name, faults)
    assert f"{len(faults)} faults" in result.stderr.splitlines()[-1]


def flip_stored_pixel(path):
    """As a disk may do it: the file keeps its size and its structure."""
    with h5py.File(path) as shard:
        offset = shard["images"].id.get_offset()
    with path.open("r+b") as file:
        file.seek(offset + 5000)
        pixel = file.read(1)[0]
        file.seek(offset + 5000)
        file.write(bytes([pixel ^ 16]))


@pytest.mark.fault(36)
def test_training_on_a_flipped_pixel_is_refused_with_verify(copy, tmp_path):
    flip_stored_pixel(copy / "train-00001.h5")
    flip_stored_pixel(copy / "val-00000.h5")
    named = "train-00001.h5, val-00000.h5: not in every byte what manifest.json says: remove the"
    for more in ((), ("--dry-run",)):
        result = train(copy, tmp_path / "run", "--steps", "1", "--verify", *more)
        assert result.returncode == 2
        assert named in result.stderr.splitlines()[-1]
        assert not (tmp_path / "run").exists()
    # Without it, nothing is read before its time: docs/checks.md says so.
    assert train(copy, tmp_path / "run", "--steps", "1").returncode == 0
    result = train(copy, tmp_path / "run", "--resume", "--verify")
    assert (result.returncode, named in result.stderr) == (2, True)


def test_verify_says_what_it_has_read_and_processes_share_it(shards_dir, tmp_path):
    result = train(shards_dir, tmp_path / "run", "--steps", "1", "--verify")
    assert result.returncode == 0, result.stderr
    data = open_data_set(shards_dir)
    sizes = [path.stat().st_size for path in sorted(shards_dir.glob("*-0*.h5"))]
    assert len(sizes) == 3
    assert f"verify: {sum(sizes) / 1e6:.1f} MB of shards are in every byte what" in result.stdout
    assert check_every_byte(data, first=0, step=2) == sizes[0] + sizes[2]
    assert check_every_byte(data, first=1, step=2) == sizes[1]


def test_labels_that_differ_from_the_list_are_found(copy):
    def change(file):
        labels = file["labels"][:]
        labels[3] = (labels[3] + 1) % 10
        file["labels"][:] = labels

    signed(copy / "val-00000.h5", change)
    result = run_here(VERIFY, str(copy))
    assert "fault: labels.csv: does not say what the shards say" in result.stdout


@pytest.mark.fault(32)
def test_duplicates_are_found_within_and_across_parts_and_nothing_is_removed(tmp_path):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(6)]
    layout = {  # which image is where
        "train/ant": [0, 1, 1],
        "train/bee": [2, 3],
        "val/ant": [4, 0],
        "val/bee": [5, 1],
    }
    for folder, numbers in layout.items():
        (tmp_path / "in" / folder).mkdir(parents=True)
        for i, number in enumerate(numbers):
            images[number].save(tmp_path / "in" / folder / f"{i}.png")
    out = tmp_path / "out"
    arguments = ["--input", str(tmp_path / "in"), "--output", str(out), "--size", "8"]
    assert build_shards([*arguments, "--images-per-shard", "2", "--workers", "1"]) == 0
    data = open_data_set(out)
    duplicates = find_duplicates(data, verify(data, num_workers=1))
    groups = sorted(sorted(group) for group in duplicates)
    assert groups == [[("train", 0), ("val", 1)], [("train", 1), ("train", 2), ("val", 3)]]
    lines = describe_duplicates(data, duplicates)
    assert lines[0].startswith(
        "5 images are 2 different ones; 2 of these are in two parts, 1 have different labels"
    )
    # First the group with different labels.
    assert "train/ant/1.png (ant) = train train/ant/2.png (ant) = val val/bee/1.png" in lines[1]
    result = run_here(VERIFY, str(out))
    assert result.returncode == 0
    assert lines[0] in result.stdout
    assert len(open_data_set(out).train) == 5


def test_a_part_with_one_label_is_a_fault(tmp_path):
    for part, classes in (("train", "ab"), ("val", "ab")):
        for name in classes:
            (tmp_path / "in" / part / name).mkdir(parents=True)
            for i in range(2):
                (tmp_path / "in" / part / name / f"{i}.JPEG").write_bytes(
                    picture((i, ord(name), 9)) if (part, name) != ("val", "b") else b"bad"
                )
    out = tmp_path / "out"
    arguments = ["--input", str(tmp_path / "in"), "--output", str(out), "--size", "8"]
    assert build_shards([*arguments, "--workers", "1"]) == 0
    result = run_here(VERIFY, str(out))
    assert result.returncode == 2
    assert "fault: val: all 2 images have the label 0" in result.stdout


def test_wrong_options_are_one_line(tmp_path, shards_dir):
    assert_user_error(run_here(VERIFY, str(tmp_path)), "no data at", "build_shards.py")
    assert_user_error(
        run_here(VERIFY, str(shards_dir), "--workers", "0"), "expected at least 1, got 0"
    )
    assert_user_error(
        run_here(VERIFY, str(shards_dir), "--quick", "--contact-sheet", "x.png"),
        "--quick: expected no",
    )
