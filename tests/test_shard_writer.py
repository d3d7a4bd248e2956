"""Shards of raw pixels while they are written: with bad pictures, on a disk that fails."""

import errno
import os

import h5py
import numpy as np
import pytest

from data_prep.color_statistics import PixelSummer
from data_prep.errors import UserError
from data_prep.files import part_of, sha256_of_file
from data_prep.shard_writer import IMAGES_OFFSET, PAGE_BYTES, Classes, RawShardWriter


def write_shard(path, num_images, *, num_bad=0, size=64):
    """A shard, of which some planned pictures turned out to be bad; and its manifest entry."""
    images = np.random.default_rng(5).integers(0, 256, (num_images, size, size, 3), np.uint8)
    classes = Classes(("n00000000",), ("thing",), "0" * 64)
    writer = RawShardWriter(path, classes=classes, size=size, num_planned=num_images + num_bad)
    summer = PixelSummer(size)
    try:
        for i, image in enumerate(images):
            summer.add(writer.add(image, picture=f"{i}.png", label=0))
        entry = writer.finish(summer.sums())
    except BaseException:
        writer.abandon()
        raise
    with h5py.File(path) as file:
        assert (file["images"][:] == images).all()
        is_moved = file["images"].id.get_offset() != IMAGES_OFFSET
        assert is_moved == (images.nbytes < 8 * 9)  # the alignment_threshold
        assert (file["pixel_sum"][:] == images.sum(axis=0, dtype=np.uint64)).all()
        assert file["pictures"].asstr()[:].tolist() == [f"{i}.png" for i in range(num_images)]
    return entry


def write_less(monkeypatch):
    """A system that writes less than it is asked to."""
    system_pwrite = os.pwrite

    def less(file, data, offset):
        return system_pwrite(file, data[:-2] or data, offset)

    monkeypatch.setattr(os, "pwrite", less)


@pytest.mark.parametrize("disturb", [None, write_less])
@pytest.mark.parametrize("num_bad", [0, 1])
def test_a_shard_is_the_same_file_however_it_is_written(tmp_path, monkeypatch, disturb, num_bad):
    expected = write_shard(tmp_path / "shard.h5", 53)
    if disturb:
        disturb(monkeypatch)
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "shard.h5"
    part_of(path).write_bytes(b"left by a killed build" * 100_000)
    assert write_shard(path, 53, num_bad=num_bad) == expected
    assert sha256_of_file(path) == expected.sha256


@pytest.mark.parametrize(("num_images", "size"), [(1, 1), (3, 2), (1, 5), (1, 8), (2, 33)])
def test_images_too_small_for_a_page_of_their_own_are_where_hdf5_has_them(
    num_images, size, tmp_path
):
    entry = write_shard(tmp_path / "shard.h5", num_images, size=size)
    assert sha256_of_file(tmp_path / "shard.h5") == entry.sha256


def test_a_shard_gets_its_name_when_the_disk_has_it(tmp_path, monkeypatch):
    path, synced = tmp_path / "shard.h5", []
    system_fsync = os.fsync

    def noting(file):
        system_fsync(file)
        synced.append((path.exists(), part_of(path).stat().st_size))

    monkeypatch.setattr(os, "fsync", noting)
    entry = write_shard(path, 20)
    assert synced == [(False, entry.num_bytes)]


@pytest.mark.parametrize("failing_image", [1, 2, 53])
def test_a_disk_that_fails_under_a_shard_leaves_nothing(tmp_path, monkeypatch, failing_image):
    system_pwrite, images = os.pwrite, []

    def failing(file, data, offset):
        if len(data) > PAGE_BYTES:
            images.append(offset)
            if len(images) >= failing_image:
                raise OSError(errno.EIO, "Input/output error")
        return system_pwrite(file, data, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(UserError, match=r"cannot write .*shard\.h5 .*Input/output error"):
        write_shard(tmp_path / "shard.h5", 53)
    assert list(tmp_path.iterdir()) == []
