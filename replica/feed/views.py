"""Batches of the views of images, for validation and test (paper 4.1)."""

from collections.abc import Sequence

import numpy as np
import torch

from data_prep.shards import Part
from replica.feed.augment import Crops
from replica.feed.feed import Batch, Batches
from replica.feed.images import CPU, BatchImages
from replica.feed.stored import StoredImages


def view_batches(
    part: Part,
    rows: Sequence[int],
    *,
    views: Crops,
    mean_image: np.ndarray,
    crop_size: int,
    images_per_batch: int,
    mean: str = "place",
    threads: int = 1,
    device: torch.device = CPU,
    memory_format: torch.memory_format = torch.channels_last,
) -> Batches:
    """All views of some images, in the order of the rows, made ahead in threads.

    Args:
        part: that has the images.
        rows: which of them.
        views: V places, of `view_places`.
        mean_image: float32 (H, W, 3), subtracted from each.
        crop_size: in pixels.
        mean: of `MEANS`: which part of the mean image is subtracted.
        images_per_batch: N; the last batch has the rest.
        threads: how many make batches at a time, 0 for the calling one alone.
        device, memory_format: of the views.

    Returns:
        Batches whose `images` are float32 (N * V, 3, crop_size, crop_size), the views of the first
        image first, and whose `labels` are int64 (N,).
    """
    images = BatchImages(
        StoredImages(part),
        mean_image=mean_image,
        mean=mean,
        crop_size=crop_size,
        device=device,
        memory_format=memory_format,
    )

    def make(step: int, _: float) -> Batch:
        chosen = np.asarray(rows[step * images_per_batch : (step + 1) * images_per_batch])
        crops = Crops(*(np.tile(x, len(chosen)) for x in (views.tops, views.lefts, views.flips)))
        made, arrived = images.make(chosen, crops, None, parallel=not threads)
        labels = torch.from_numpy(part.labels[chosen].astype(np.int64))
        return Batch(step, made, labels, torch.arange(len(chosen)), len(chosen), arrived)

    num_batches = -(-len(rows) // images_per_batch)
    return Batches(make, 0, num_batches, noise_of=lambda _: 0.0, threads=threads)
