"""The ten-crop test against its forward passes alone, on raw shards in the page cache.

The images are random and the weights a recipe's first ones: both cost what others do. The passes
alone are of the same batches, ten crops of each image, whose crops are in memory already.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Row, interleaved, rows_of, say
from data_prep.pairs import write_shards
from data_prep.pictures import PictureFormat
from replica import paper
from replica.network.alexnet import AlexNet
from replica.network.initialization import initialize_
from replica.recipes import find_recipe
from replica.results.members import CommonLabels, Network
from replica.training import evaluation
from replica.training.allocator import keep_large_blocks
from replica.training.checkpoint import Checkpoint

VIEWS, NUM_VIEWS, NUM_CLASSES = "ten", 10, 10
OURS, ALONE = "the ten-crop test", "its forward passes alone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--recipe", default="paper", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=48, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="default: one per core")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    keep_large_blocks()  # as the test does
    recipe, rng = find_recipe(arguments.recipe), np.random.default_rng(0)
    # As many pixels more than a crop as the paper's images have.
    side = recipe.crop_size + paper.IMAGE_SIZE - paper.CROP_SIZE
    model = AlexNet(recipe, num_classes=NUM_CLASSES).eval()
    initialize_(model, seed=0)
    checkpoint = Checkpoint(
        model=model.state_dict(),
        velocities={},
        step=0,
        epoch=1,
        val_errors=[],
        best_step=None,
        recipe=recipe,
        num_classes=NUM_CLASSES,
        seed=0,
        wnids=[f"n{label:08d}" for label in range(NUM_CLASSES)],
        class_names=[f"class {label}" for label in range(NUM_CLASSES)],
        mean_image=torch.full((side, side, 3), 128.0),
        eigenvalues=torch.ones(3),
        eigenvectors=torch.eye(3),
    )
    labels = CommonLabels(checkpoint.wnids, np.arange(NUM_CLASSES), True)
    cpu = torch.device("cpu")
    network = Network(checkpoint, labels, model=model, device=cpu, precision="float32")
    with tempfile.TemporaryDirectory() as directory:
        say(f"writing {arguments.images} images of {side} x {side} pixels")

        def pictures(count: int) -> Iterator[tuple[np.ndarray, int]]:
            for number in range(count):
                yield rng.integers(0, 256, (side, side, 3), np.uint8), number % NUM_CLASSES

        with contextlib.redirect_stdout(sys.stderr):  # rows alone are for standard output
            data = write_shards(
                {"train": pictures(NUM_CLASSES), "val": pictures(arguments.images)},
                Path(directory) / "shards",
                picture_format=PictureFormat(image_size=side),
            )

        def test() -> None:
            counts = evaluation.Counts()
            rows = range(arguments.images)
            for mean_NK, labels_N in network.probabilities(data.val, rows, views=VIEWS):
                counts += evaluation.count(mean_NK, labels_N)
            counts.check(arguments.images)

        per_batch = network.images_per_batch(VIEWS)
        crops = torch.randn(per_batch * NUM_VIEWS, 3, recipe.crop_size, recipe.crop_size)
        crops = crops.to(memory_format=torch.channels_last)

        def passes() -> None:
            with torch.inference_mode():
                for first in range(0, arguments.images, per_batch):
                    model(crops[: NUM_VIEWS * min(per_batch, arguments.images - first)])

        medians = interleaved({OURS: test, ALONE: passes}, rounds=arguments.rounds, seconds=300.0)
    rows = rows_of(medians, baselines={ALONE: OURS}, unit="s")
    return [*rows, Row("images per second", arguments.images / medians[OURS], "images/s")]
