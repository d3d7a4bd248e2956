"""The arithmetic of feeding a node: the bytes are those of real batches, the page has its table."""

import json

import numpy as np
import pytest
from conftest import PROJECT_DIR

from benchmarks import node_on_paper
from benchmarks.node_on_paper import FLOWS, GPUS, table
from replica import paper
from replica.feed.feed import TrainFeed
from replica.feed.images import BatchImages
from replica.recipes import PAPER

PAGE = PROJECT_DIR / "docs" / "performance.md"
BEGIN, END = "<!-- printed by benchmarks/node_on_paper.py -->\n\n", "\n<!-- end -->"
FLOW = {flow.name: flow for flow in FLOWS}


def test_the_page_has_the_table_and_calls_it_arithmetic():
    section = PAGE.read_text().split("### A node of 8 GPUs, on paper")[1].split("\n#")[0]
    assert section.split(BEGIN)[1].split(END)[0] == table()
    assert "arithmetic, not a measurement" in section


def test_the_bytes_of_an_upload_are_those_of_a_real_batch(data, monkeypatch):
    uploaded = []
    finish = BatchImages._finish

    def count(self, cut, places, colors, **options):
        uploaded.append(cut.nbytes + places.nbytes + colors.nbytes)
        return finish(self, cut, places, colors, **options)

    monkeypatch.setattr(BatchImages, "_finish", count)
    feed = TrainFeed(data, PAPER, seed=1)
    images = BatchImages(
        feed._stored,
        mean_image=data.statistics.mean_image,
        crop_size=PAPER.crop_size,
        as_bytes=True,
    )
    batch = feed.batch(0, images=images)
    number = len(batch.labels)
    uploaded.append(batch.labels.nbytes + batch.rows.nbytes)
    assert sum(uploaded) == number * FLOW["PCIe, bytes"].bytes_per_image
    whole = batch.images.nbytes + batch.labels.nbytes + batch.rows.nbytes
    assert whole == number * FLOW["PCIe, were they float32"].bytes_per_image


def test_the_bytes_of_a_stored_image_are_those_of_the_shards(data):
    assert data.train.image(0).nbytes == FLOW["disk, raw shards"].bytes_per_image
    record = json.loads((PROJECT_DIR / "benchmarks/results/build_shards.json").read_text())
    rows = {row["name"]: row for row in record["rows"]}
    measured = rows["storage jpeg, quality 95: an image"]["value"] * 1000
    assert FLOW["disk, JPEG shards"].bytes_per_image == pytest.approx(measured, rel=0.01)


def test_nearly_all_bytes_between_the_rows_of_a_crop_are_read():
    """By lines of 64 bytes, for every place of a crop."""
    read = []
    for left in range(paper.IMAGE_SIZE - paper.CROP_SIZE + 1):
        starts = 3 * (np.arange(paper.CROP_SIZE) * paper.IMAGE_SIZE + left)
        lines = {
            line
            for start in starts
            for line in range(start // 64, (start + 3 * paper.CROP_SIZE - 1) // 64 + 1)
        }
        read.append(64 * len(lines))
    assert 0.9 * node_on_paper.ROWS_READ < np.mean(read) <= node_on_paper.ROWS_READ


def test_rates_and_limits_are_multiplied_as_the_page_says():
    assert [flow.limit for flow in FLOWS] == pytest.approx(
        [7e9] * 2 + [614.4e9] * 3 + [504e9] * 2, rel=1e-3
    )
    assert GPUS == 8
    row = next(line for line in table().splitlines() if line.startswith("| disk, raw"))
    # 196,608 bytes, 32,000 times: 6.291 GB, of 7 GB 89.9 %; 7e9 / 196,608 = 35,603.
    assert "| 6.3 GB/s (90%) |" in row
    assert row.endswith("| 7 GB/s | 36,000 images/s |")
    # 1,281,167 images, 90 times, at 32,000 a second: 3,603 s.
    assert table().splitlines()[-1].startswith("| 90 epochs of ImageNet | | 192 min | 60 min |")
