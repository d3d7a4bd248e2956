"""Shards -> batches, as a pure function of the step: no state to save, none to lose.

N images, C channels, H rows, W columns.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch

from data_prep.shards import DataSet
from replica.feed.augment import (
    add_color_shifts_,
    cut,
    draw_color_shifts,
    draw_crops,
    in_the_center,
)
from replica.network.draws import permutation
from replica.recipes import Recipe

BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """What one process gets of one step.

    Attributes:
        step: counted from 0.
        images: float32 (N, 3, crop_size, crop_size), channels last in memory.
        labels: int64 (N,).
        rows: int64 (N,), the places of these images in the whole batch.
        batch_size: images in the whole batch, over all processes.
    """

    step: int
    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    batch_size: int


@dataclass(frozen=True)
class TrainFeed:
    """The training batches of a run, for the process that has share `data_index` of `data_size`."""

    data: DataSet
    recipe: Recipe
    seed: int
    data_index: int = 0
    data_size: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every training image is used once (paper 5).

        DEVIATION D9: the text does not say what becomes of a remainder; as in the source, the last
        batch of an epoch is smaller, and its loss is the mean over its true size.
        """
        return -(-len(self.data.train) // self.recipe.batch_size)

    @cached_property
    def _cycle(self) -> np.ndarray:
        # DEVIATION D10: the text does not state the order; the source goes through the images in
        # one fixed order, epoch by epoch, after one shuffle.
        return permutation(self.data.cycle_seed, len(self.data.train))

    def image_rows(self, step: int) -> np.ndarray:
        """The images of the whole batch of a step: int64 (N,), rows of the training part."""
        first = step % self.steps_per_epoch * self.recipe.batch_size
        return self._cycle[first : first + self.recipe.batch_size]

    def batch(self, step: int, *, color_noise: float | None = None) -> Batch:
        """The images of a step, with this epoch's crops, reflections and color noise."""
        recipe, statistics = self.recipe, self.data.statistics
        if color_noise is None:
            color_noise = recipe.color_noise
        epoch = step // self.steps_per_epoch + 1
        whole = self.image_rows(step)
        rows = np.array_split(np.arange(len(whole)), self.data_size)[self.data_index]
        indices = whole[rows]
        images = [self.data.train.image(int(i)) for i in indices]
        image_size = statistics.mean_image.shape[0]
        crops = draw_crops(
            indices, epoch=epoch, seed=self.seed, image_size=image_size, crop_size=recipe.crop_size
        )
        if not recipe.random_crops:
            crops = in_the_center(crops, image_size=image_size, crop_size=recipe.crop_size)
        if not recipe.random_flips:
            crops.flips[:] = False
        # PyTorch's memory, which is kept from batch to batch.
        images_NHWC = torch.empty(len(images), recipe.crop_size, recipe.crop_size, 3)
        crops_NHWC = cut(
            images,
            crops,
            mean_image=statistics.mean_image,
            crop_size=recipe.crop_size,
            out=images_NHWC.numpy(),
        )
        if color_noise:
            shifts = draw_color_shifts(
                indices,
                epoch=epoch,
                seed=self.seed,
                standard_deviation=color_noise,
                eigenvalues=statistics.eigenvalues,
                eigenvectors=statistics.eigenvectors,
            )
            add_color_shifts_(crops_NHWC, shifts)
        return Batch(
            step,
            images_NHWC.permute(0, 3, 1, 2),
            torch.from_numpy(self.data.train.labels[indices].astype(np.int64)),
            torch.from_numpy(rows),
            len(whole),
        )

    def batches(
        self,
        first_step: int,
        last_step: int,
        *,
        color_noise: Callable[[int], float] | None = None,
        threads: int = 1,
    ) -> Iterator[Batch]:
        """The batches of steps `first_step` to `last_step - 1`, made ahead in threads.

        Args:
            first_step, last_step: counted from 0.
            color_noise: of a step; asked again when its batch is due, since it may have been
                changed by hand after the batch was made. By default the recipe's.
            threads: how many make batches at a time; the batches do not depend on it.
        """
        noise_of = color_noise or (lambda _: self.recipe.color_noise)
        steps = iter(range(first_step, last_step))
        ahead: deque[tuple[int, float, Future[Batch]]] = deque()
        with ThreadPoolExecutor(threads) as pool:

            def begin(step: int) -> None:
                noise = noise_of(step)
                ahead.append((step, noise, pool.submit(self.batch, step, color_noise=noise)))

            try:
                for step in islice(steps, max(BATCHES_AHEAD, threads)):
                    begin(step)
                while ahead:
                    step, noise, future = ahead.popleft()
                    batch = future.result()
                    if noise_of(step) != noise:
                        batch = self.batch(step, color_noise=noise_of(step))
                    for following in islice(steps, 1):
                        begin(following)
                    yield batch
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
