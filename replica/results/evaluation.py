"""The error rates of a checkpoint, and how sure they are (paper 4.1, 6)."""

import sys
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data_prep.shards import Part
from replica import paper
from replica.feed.augment import center_crop, ten_crops
from replica.network.alexnet import AlexNet
from replica.recipes import from_record
from replica.training.evaluation import Counts, evaluate
from replica.training.numerics import (
    compute_precision,
    parameter_dtype,
)


def test_checkpoint(
    content: dict[str, Any], images: Part, *, ten_crop: bool, device: torch.device, precision: str
) -> Counts:
    """Counts the errors of a checkpoint's network on a part of a data set.

    The mean image is the one that the network was trained with, not that of the data.
    """
    recipe = from_record(content["recipe"])
    model = AlexNet(recipe, num_classes=content["num_classes"]).eval()
    model.load_state_dict(content["model"])
    dtype = parameter_dtype(precision)
    model.to(device, dtype)
    mean_image = content["mean_image"].numpy()

    def predict(crops: torch.Tensor) -> torch.Tensor:
        with compute_precision(precision, kind=device.type):
            return model(crops.to(device, dtype)).to(dtype)

    def views(image: np.ndarray) -> np.ndarray:
        cut = ten_crops if ten_crop else center_crop
        return cut(image, crop_size=recipe.crop_size)

    interval = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=len(images), unit=" images", mininterval=interval) as progress:
        counts = evaluate(
            images,
            range(len(images)),
            prepare=lambda image: image - mean_image,
            views=views,
            predict=predict,
            images_per_batch=max(1, paper.BATCH_SIZE // (paper.TEST_VIEWS if ten_crop else 1)),
            on_progress=progress.update,
        )
    counts.check(len(images))
    return counts


CONFIDENCE = 0.95


def confidence_interval(error: float, num_images: int) -> tuple[float, float]:
    """The 95 % interval of an error rate (Wilson): what a repetition on new images may give."""
    from scipy.stats import binomtest  # takes half a second to import, in every process

    errors = round(error * num_images)
    interval = binomtest(errors, num_images).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
