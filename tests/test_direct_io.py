"""Files past the page cache: the same bytes on every file system."""

import errno
import os

import numpy as np
import pytest

from data_prep.color_statistics import PixelSummer
from data_prep.direct_io import PAGE_BYTES, DirectFile, page_aligned
from data_prep.errors import UserError
from data_prep.files import sha256_of_file
from data_prep.shard_writer import IMAGES_AT_ONCE, Classes, RawShardWriter

DIRECT = getattr(os, "O_DIRECT", 0)


def refuse_to_open(monkeypatch):
    """A file system without direct reading and writing."""
    system_open = os.open

    def refusing(path, flags, *rest):
        if flags & DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return system_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)


def refuse_to_write(monkeypatch):
    """A file system that opens files so, and then does not write."""
    system_open, system_pwrite, direct = os.open, os.pwrite, []

    def noting(path, flags, *rest):
        file = system_open(path, flags, *rest)
        if flags & DIRECT:
            direct.append(file)
        return file

    def refusing(file, data, offset):
        if file in direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return system_pwrite(file, data, offset)

    monkeypatch.setattr(os, "open", noting)
    monkeypatch.setattr(os, "pwrite", refusing)


@pytest.mark.skipif(not DIRECT, reason="this system has no O_DIRECT")
@pytest.mark.parametrize("refuse", [None, refuse_to_open, refuse_to_write])
def test_whole_and_broken_pages_arrive_at_their_places(tmp_path, monkeypatch, refuse):
    if refuse:
        refuse(monkeypatch)
    expected = np.random.default_rng(3).integers(0, 256, 5 * PAGE_BYTES + 77, np.uint8)
    aligned = page_aligned(2 * PAGE_BYTES)
    aligned[:] = expected[PAGE_BYTES : 3 * PAGE_BYTES]
    path = tmp_path / "file"
    path.write_bytes(b"left by a killed build" * 10_000)
    file = DirectFile(path, len(expected))
    file.write(aligned.data, PAGE_BYTES)
    file.write(expected[:PAGE_BYTES].data, 0)
    file.write(expected[3 * PAGE_BYTES :].data, 3 * PAGE_BYTES)
    assert file.read(3 * PAGE_BYTES, PAGE_BYTES // 2) == (
        expected[PAGE_BYTES // 2 : 7 * PAGE_BYTES // 2].tobytes()
    )
    file.sync()
    file.close()
    file.close()
    assert path.read_bytes() == expected.tobytes()


def write_shard(path, num_images, num_planned, size=64):
    """A shard, of which some planned pictures turned out to be bad; and its manifest entry."""
    images = np.random.default_rng(5).integers(0, 256, (num_images, size, size, 3), np.uint8)
    writer = RawShardWriter(
        path,
        pictures=[f"{i}.png" for i in range(num_planned)],
        labels=[0] * num_planned,
        classes=Classes(("n00000000",), ("thing",), "0" * 64),
        size=size,
    )
    summer = PixelSummer(size)
    try:
        for i, image in enumerate(images):
            writer.add(image, picture=f"{i}.png", label=0)
            summer.add(image)
        return writer.finish(summer.sums())
    except BaseException:
        writer.abandon()
        raise


@pytest.mark.parametrize("refuse", [None, refuse_to_open, refuse_to_write])
@pytest.mark.parametrize("num_bad", [0, 1])
def test_a_shard_is_the_same_file_wherever_it_is_written(tmp_path, monkeypatch, refuse, num_bad):
    num_images = 3 * IMAGES_AT_ONCE + 5
    expected = write_shard(tmp_path / "shard.h5", num_images, num_images)
    if refuse:
        refuse(monkeypatch)
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "shard.h5"
    assert write_shard(path, num_images, num_images + num_bad) == expected
    # The digest was taken while the file was written.
    assert sha256_of_file(path) == expected.sha256


@pytest.mark.parametrize("failing_block", [1, 2, 4])
def test_a_disk_that_fails_under_the_thread_leaves_nothing(tmp_path, monkeypatch, failing_block):
    system_pwrite, blocks = os.pwrite, []

    def failing(file, data, offset):
        if len(data) > PAGE_BYTES:
            blocks.append(offset)
            if len(blocks) >= failing_block:
                raise OSError(errno.EIO, "Input/output error")
        return system_pwrite(file, data, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    num_images = 3 * IMAGES_AT_ONCE + 5
    with pytest.raises(UserError, match=r"cannot write .*shard\.h5 .*Input/output error"):
        write_shard(tmp_path / "shard.h5", num_images, num_images)
    assert list(tmp_path.iterdir()) == []
