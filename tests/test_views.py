"""The views of a test: made by the feed's machinery, the oracle's to the bit."""

import numpy as np
import oracles
import pytest
import torch

from data_prep.build_shards import main as build_shards
from data_prep.errors import UserError
from data_prep.shards import JpegImages, open_data_set
from replica.feed import views as views_module
from replica.feed.augment import view_places
from replica.feed.images import CPU, BatchImages
from replica.feed.views import view_batches
from replica.results.members import places_of

CROP_SIZE = 224
NAMES = {"center": {}, "ten": {"ten": True}, "grid:2": {"grid": 2}}


def batches_of(data, names="ten", rows=(5, 3, 29, 0, 11), **how):
    how = {"images_per_batch": 2, "mean_image": data.statistics.mean_image, **how}
    views = view_places(names, (256, 256), crop_size=CROP_SIZE)
    return view_batches(data.val, rows, views=views, crop_size=CROP_SIZE, **how)


@pytest.mark.parametrize("views", NAMES)
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_are_the_views_of_the_oracle(shards_dir, data, views, threads):
    known, rows = oracles.read_data(shards_dir), [5, 3, 29, 0, 11]
    batches = list(batches_of(data, views, rows, threads=threads))
    assert [len(batch.labels) for batch in batches] == [2, 2, 1]
    images = known["val"][0][rows]
    expected = oracles.views_of(known, images, crop_size=CROP_SIZE, **NAMES[views])
    made = torch.cat([batch.images for batch in batches])
    assert np.array_equal(made.numpy(), expected.reshape(-1, *expected.shape[2:]))
    labels = torch.cat([batch.labels for batch in batches])
    assert np.array_equal(labels, known["val"][1][rows])


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_views_have_the_format_that_was_asked_for(data, layout):
    for batch, other in zip(batches_of(data, memory_format=layout), batches_of(data), strict=True):
        assert batch.images.is_contiguous(memory_format=layout)
        assert torch.equal(batch.images, other.images)


def test_views_that_are_finished_from_bytes_are_the_same(data, monkeypatch):
    """The way of a GPU, taken on the CPU."""
    expected = list(batches_of(data))

    class InBytes(BatchImages):
        def __init__(self, *args, **how):
            super().__init__(*args, **how, as_bytes=True)

    monkeypatch.setattr(views_module, "BatchImages", InBytes)
    for batch, other in zip(batches_of(data, device=CPU), expected, strict=True):
        assert torch.equal(batch.images, other.images)


def test_an_image_of_a_jpeg_shard_is_decoded_once_for_all_its_views(toy_dir, tmp_path, monkeypatch):
    arguments = ["--source", "kaggle", "--input", str(toy_dir), "--output", str(tmp_path)]
    assert build_shards([*arguments, "--storage", "jpeg", "--workers", "1"]) == 0
    data, asked, decode = open_data_set(tmp_path), [], JpegImages.decode_into

    def decode_into(images, row, out):
        asked.append(row)
        decode(images, row, out)

    monkeypatch.setattr(JpegImages, "decode_into", decode_into)
    for batch in batches_of(data, threads=0):
        assert len(batch.images) == 10 * len(batch.labels)
    assert asked == [5, 3, 29, 0, 11]


def test_no_rows_are_no_batches(data):
    assert list(batches_of(data, rows=range(0))) == []


def test_memory_for_views_is_used_again(data):
    rows = [0] * 24
    addresses = {batch.images.data_ptr() for batch in batches_of(data, rows=rows)}
    assert len(addresses) <= 5 < 12


def test_a_grid_finer_than_the_pixels_is_refused_with_the_finest():
    assert len(places_of("grid:5", 100, 96).flips) == 50
    message = (
        "--views grid:6: expected at most grid:5, as crops of 96 pixels have so many places per "
        "side in images of 100"
    )
    with pytest.raises(UserError, match=message):
        places_of("grid:6", 100, 96)
