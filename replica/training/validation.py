"""Counts over all ranks, and the errors on the held-out images while a network trains."""

import math
import sys

import torch
from tqdm import tqdm

from replica.distributed.heartbeat import beat
from replica.distributed.worker import StopRequest
from replica.feed.augment import center_crop
from replica.training.evaluation import Counts, evaluate
from replica.training.numerics import compute_precision, parameter_dtype
from replica.training.state import RunState


def add_up(
    counts: Counts, *, state: RunState, flags: tuple[bool, ...] = ()
) -> tuple[Counts, list[bool]]:
    """Adds counts over the copies; every rank must call it.

    Returns:
        The sums, and of each flag whether any rank set it.
    """
    # Both towers of a copy have the same counts: one of them counts.
    counted = 1.0 if state.rank.tower == 0 else 0.0
    numbers = (counts.num_images, counts.top1_correct, counts.top5_correct, counts.loss)
    local = torch.tensor([*(counted * x for x in numbers), *map(float, flags)], dtype=torch.float64)
    total = state.mesh.sum_over_all_(local.to(state.rank.device)).tolist()
    num_images, top1_correct, top5_correct, loss = total[:4]
    sums = Counts(round(num_images), top1_correct, top5_correct, loss)
    return sums, [flag > 0 for flag in total[4:]]


def validate(state: RunState, stop: StopRequest) -> tuple[Counts, bool]:
    """Counts the errors on the held-out part, on the center crop; every rank must call it.

    Returns:
        The counts, and whether a stop request cut them short.
    """
    run, recipe, data = state.run, state.run.recipe, state.data
    device, dtype = state.rank.device, parameter_dtype(run.numerics.precision)
    mean_image = data.statistics.mean_image
    num_copies = state.rank.devices.num_copies
    images = data.part(data.held_out)
    rows = range(len(images))[state.rank.copy :: num_copies]

    def predict(crops: torch.Tensor) -> torch.Tensor:
        crops = crops.to(device, dtype)
        with compute_precision(run.numerics.precision, kind=device.type):
            crops = crops.contiguous(memory_format=run.numerics.torch_memory_format)
            logits: torch.Tensor = state.model(crops)
        return logits.to(dtype)

    progress = tqdm(
        total=len(rows),
        desc="validation",
        unit=" images",
        leave=False,
        disable=state.rank.index != 0 or not sys.stderr.isatty(),
    )
    # All copies go through the same number of batches, for the question before each.
    most_rows = math.ceil(len(images) / num_copies)
    counts = Counts()
    with progress:
        for first in range(0, most_rows, recipe.batch_size):
            beat("validation")
            _, (stopped,) = add_up(Counts(), state=state, flags=(stop.is_set(),))
            if stopped:
                return counts, True
            counts += evaluate(
                images,
                rows[first : first + recipe.batch_size],
                prepare=lambda image: image - mean_image,
                views=lambda image: center_crop(image, crop_size=recipe.crop_size),
                predict=predict,
                images_per_batch=recipe.batch_size,
                on_progress=progress.update,
            )
    counts, _ = add_up(counts, state=state)
    counts.check(len(images))
    return counts, False
