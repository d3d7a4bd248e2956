"""The page about the format is true: other programs read what we write."""

import json
import re
import shutil
import subprocess

import h5py
import numpy as np
import pytest
from conftest import PROJECT_DIR

from data_prep.build_shards import main as build_shards
from data_prep.shard_writer import STATISTICS_FIELDS
from data_prep.shards import open_data_set

PAGE = (PROJECT_DIR / "data_prep" / "FORMAT.md").read_text()


@pytest.fixture(scope="module")
def jpeg_dir(toy_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp("jpeg shards")
    arguments = ["--input", str(toy_dir), "--output", str(directory), "--storage", "jpeg"]
    assert build_shards([*arguments, "--images-per-shard", "40", "--workers", "1"]) == 0
    return directory


def test_the_reader_on_the_page_reads_both_kinds_of_storage(shards_dir, jpeg_dir):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(code.split("def ")[1].strip().splitlines()) <= 1 + 10
    scope = {}
    exec(code, scope)
    for directory in (shards_dir, jpeg_dir):
        data = open_data_set(directory)
        for part in ("train", "val"):
            images = data.part(part)
            read = list(scope["images"](directory, part))
            assert [label for _, label in read] == images.labels.tolist()
            for row, (image, _) in enumerate(read):
                assert image.dtype == np.uint8
                assert np.array_equal(image, images.image(row))
        assert list(scope["images"](directory, "test")) == []


def test_jpeg_shards_hold_nearly_the_same_pixels_in_much_less_room(shards_dir, jpeg_dir):
    raw, jpeg = open_data_set(shards_dir), open_data_set(jpeg_dir)
    assert raw.train.labels.tolist() == jpeg.train.labels.tolist()
    for row in range(0, 60, 7):
        difference = np.abs(raw.train.image(row).astype(int) - jpeg.train.image(row))
        assert 0 < difference.mean() < 6
        other = np.abs(raw.train.image(row).astype(int) - jpeg.train.image((row + 9) % 60))
        assert other.mean() > 4 * difference.mean()
    sizes = [sum(p.stat().st_size for p in d.glob("train-*.h5")) for d in (shards_dir, jpeg_dir)]
    assert sizes[1] < sizes[0] / 2


def test_the_sums_of_jpeg_shards_are_those_of_the_pixels_that_readers_get(jpeg_dir):
    data = open_data_set(jpeg_dir)
    for shard in data.train.shards:
        images = np.stack([shard.images()[row] for row in range(shard.num_images)])
        assert np.array_equal(shard.sums().pixel_sum, images.sum(axis=0, dtype=np.uint64))


def test_quality_85_takes_less_room_than_95(toy_dir, jpeg_dir, tmp_path):
    arguments = ["--input", str(toy_dir), "--output", str(tmp_path / "out"), "--storage", "jpeg"]
    assert build_shards([*arguments, "--quality", "85", "--images-per-shard", "40"]) == 0
    sizes = []
    for directory in (jpeg_dir, tmp_path / "out"):
        with h5py.File(directory / "train-00000.h5") as file:
            sizes.append(len(file["jpeg_bytes"]))
    assert sizes[1] < 0.8 * sizes[0]


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_the_tables_on_the_page_name_every_data_set(kind, shards_dir, jpeg_dir):
    directory = shards_dir if kind == "raw" else jpeg_dir
    for pattern in ("train-*.h5", "statistics.h5"):
        for path in directory.glob(pattern):
            with h5py.File(path) as file:
                for name in file:
                    assert f"`{name}`" in PAGE, name
                    assert file[name].chunks is None
                    assert file[name].compression is None
                for name in file.attrs:
                    assert f"`{name}`" in PAGE, name
    manifest = json.loads((directory / "manifest.json").read_text())
    for key in [*manifest, *manifest["parts"]["train"]["shards"][0], *STATISTICS_FIELDS]:
        assert f"`{key}`" in PAGE, key


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="no h5dump here (hdf5-tools)")
@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_h5dump_reads_the_shards(kind, shards_dir, jpeg_dir):
    directory = shards_dir if kind == "raw" else jpeg_dir
    data = open_data_set(directory)
    path = directory / "train-00001.h5"

    def dump(*options):
        result = subprocess.run(
            ["h5dump", *options, str(path)], capture_output=True, text=True, check=True
        )
        return result.stdout

    head = dump("-H")
    assert 'DATASET "labels"' in head
    assert "H5T_STD_I32LE" in head
    assert "FILTERS" not in head
    labels = dump("-d", "/labels", "-y").split("DATA {")[1].split("}")[0]
    assert [int(word) for word in re.findall(r"\d+", labels)] == data.train.labels[40:].tolist()
    if kind == "raw":
        pixels = dump("-d", "/images", "-s", "3,10,20,0", "-c", "1,1,2,3", "-y")
        numbers = re.findall(r"\d+", pixels.split("DATA {")[1].split("}")[0])
        expected = data.train.image(43)[10, 20:22].ravel().tolist()
        assert [int(word) for word in numbers] == expected
    else:
        offsets = dump("-d", "/jpeg_offsets", "-y").split("DATA {")[1].split("}")[0]
        assert len(re.findall(r"\d+", offsets)) == 21
