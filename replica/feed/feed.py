"""Shards -> batches, as a pure function of the step: no state to save, none to lose.

N images, C channels, H rows, W columns.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch

from data_prep.shards import DataSet
from replica.feed.ahead import Ahead
from replica.feed.augment import draw_color_shifts, draw_crops, in_the_center
from replica.feed.images import CPU, BatchImages
from replica.feed.order import order_of_epoch
from replica.feed.stored import StoredImages
from replica.feed.variants import has_variants, vary
from replica.network.draws import permutation
from replica.recipes import Recipe


@dataclass(frozen=True)
class Batch:
    """What one process gets of one step.

    Attributes:
        step: counted from 0.
        images: float32 (N, 3, crop_size, crop_size), channels last in memory unless another
            format was asked for; on a GPU where the feed was told so.
        labels: int64 (N,).
        rows: int64 (N,), the places of these images in the whole batch.
        batch_size: images in the whole batch, over all processes.
        arrived: the event after which the images are on their GPU, or None where they are.
    """

    step: int
    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    batch_size: int
    arrived: Any = None


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

    @cached_property
    def _order_of(self) -> Callable[[int], np.ndarray]:
        """The order of an epoch; batches made ahead are of two epochs at its end."""

        def order(epoch: int) -> np.ndarray:
            return order_of_epoch(self.recipe, self.data.train, epoch=epoch, seed=self.seed)

        return lru_cache(maxsize=2)(order)

    def _first_place(self, step: int) -> int:
        """Where a batch begins in the order of its epoch."""
        return step % self.steps_per_epoch * self.recipe.batch_size

    def image_rows(self, step: int) -> np.ndarray:
        """The images of the whole batch of a step: int64 (N,), rows of the training part."""
        first = self._first_place(step)
        if self.recipe.image_order != "cycle":
            order = self._order_of(step // self.steps_per_epoch + 1)
            return order[first : first + self.recipe.batch_size]
        return self._cycle[first : first + self.recipe.batch_size]

    @cached_property
    def _stored(self) -> StoredImages:
        return StoredImages(self.data.train)

    @cached_property
    def _makers(self) -> dict[tuple[torch.device, torch.memory_format], BatchImages]:
        return {}

    def _images(
        self,
        device: torch.device = CPU,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> BatchImages:
        """Who makes images of this kind; the same each time, with its memory."""
        key = device, memory_format
        if key not in self._makers:
            self._makers[key] = BatchImages(
                self._stored,
                mean_image=self.data.statistics.mean_image,
                crop_size=self.recipe.crop_size,
                mean=self.recipe.mean,
                device=device,
                memory_format=memory_format,
            )
        return self._makers[key]

    def batch(
        self,
        step: int,
        *,
        color_noise: float | None = None,
        images: BatchImages | None = None,
        parallel: bool = True,
    ) -> Batch:
        """The images of a step, with this epoch's crops, reflections and color noise.

        Args:
            step: counted from 0.
            color_noise: its standard deviation; by default the recipe's.
            images: who makes them; by default on the CPU, channels last.
            parallel: whether PyTorch's threads share the work, or the calling one does it.
        """
        recipe, statistics = self.recipe, self.data.statistics
        if color_noise is None:
            color_noise = recipe.color_noise
        epoch = step // self.steps_per_epoch + 1
        whole = self.image_rows(step)
        rows = np.array_split(np.arange(len(whole)), self.data_size)[self.data_index]
        indices = whole[rows]
        image_size = statistics.mean_image.shape[0]
        of_crops = indices
        if recipe.shared_crops > 1:
            of_crops = (self._first_place(step) + rows) // recipe.shared_crops
        crops = draw_crops(
            of_crops, epoch=epoch, seed=self.seed, image_size=image_size, crop_size=recipe.crop_size
        )
        if not recipe.random_crops:
            crops = in_the_center(crops, image_size=image_size, crop_size=recipe.crop_size)
        if not recipe.random_flips:
            crops.flips[:] = False
        shifts, divisor = None, 1.0
        if color_noise:
            scales = statistics.eigenvalues
            if recipe.color_scale == "standard-deviations":
                scales = statistics.standard_deviations / 255
            if recipe.color_division:
                divisor = 1 + color_noise
            shifts = draw_color_shifts(
                indices,
                epoch=epoch,
                seed=self.seed,
                standard_deviation=color_noise,
                eigenvalues=scales,
                eigenvectors=statistics.eigenvectors,
            )
        images = images or self._images()
        change = None
        if has_variants(recipe):
            change = partial(vary, rows=indices, recipe=recipe, seed=self.seed, epoch=epoch)
        made, arrived = images.make(
            indices, crops, shifts, divisor=divisor, vary=change, parallel=parallel
        )
        return Batch(
            step,
            made,
            torch.from_numpy(self.data.train.labels[indices].astype(np.int64)),
            torch.from_numpy(rows),
            len(whole),
            arrived,
        )

    def batches(
        self,
        first_step: int,
        last_step: int,
        *,
        color_noise: Callable[[int], float] | None = None,
        threads: int = 1,
        device: torch.device = CPU,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> "Batches":
        """The batches of steps `first_step` to `last_step - 1`, made ahead in threads.

        Args:
            first_step, last_step: counted from 0.
            color_noise: of a step; asked again when its batch is due, since it may have been
                changed by hand after the batch was made. By default the recipe's.
            threads: how many make batches at a time, 0 for the calling one alone; the batches do
                not depend on it.
            device, memory_format: of the images.
        """
        images = self._images(device, memory_format)

        def make(step: int, noise: float) -> Batch:
            return self.batch(step, color_noise=noise, images=images, parallel=not threads)

        noise_of = color_noise or (lambda _: self.recipe.color_noise)
        return Batches(make, first_step, last_step, noise_of=noise_of, threads=threads)


class Batches(Ahead[Batch]):
    """Batches that are made ahead; on a GPU the current stream waits for what it is given."""

    def __iter__(self) -> Generator[Batch, None, None]:
        """The batches in the order of their steps."""
        for batch in super().__iter__():
            if batch.arrived is not None:
                stream = torch.cuda.current_stream(batch.images.device)
                stream.wait_event(batch.arrived)
                batch.images.record_stream(stream)  # which has the memory longer than its maker
            yield batch
            del batch  # its memory is free for the next one
