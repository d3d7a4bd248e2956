"""Images before and after augmentation, as a picture (paper 4.1).

N images, C channels, H rows, W columns, S rows and columns of a crop.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.shards import DataSet, open_data_set
from replica.feed.augment import Crops
from replica.feed.feed import TrainFeed
from replica.feed.images import BatchImages, mean_image_of
from replica.feed.stored import StoredImages
from replica.recipes import Recipe, from_record
from replica.results.style import (
    BLUE,
    GREEN,
    PAGE_WIDTH,
    VERMILION,
    new_figure,
    set_title,
    shortened,
    styled,
)
from replica.training.run_record import read_run_record

# Of each epoch, color and line.
EPOCHS = {1: (BLUE, "-"), 2: (VERMILION, "--"), 3: (GREEN, ":")}


@dataclass(frozen=True)
class Augmented:
    """What training makes of some images in an epoch.

    Attributes:
        images: float32 (N, S, S, C), in pixel values, the mean image added again.
        crops: one place per image.
        shifts: (N, C), in pixel values, or None without color noise.
    """

    images: np.ndarray
    crops: Crops
    shifts: np.ndarray | None


@dataclass(frozen=True)
class _SomeImages(TrainFeed):
    """A feed whose batches are the same few images."""

    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def image_rows(self, step: int) -> np.ndarray:
        return self.rows


class _Recorded(BatchImages):
    """Keeps what was drawn for the last batch."""

    drawn: tuple[Crops, np.ndarray | None]

    def make(
        self, rows: np.ndarray, crops: Crops, shifts: np.ndarray | None, **how: Any
    ) -> tuple[torch.Tensor, Any]:
        self.drawn = crops, shifts
        return super().make(rows, crops, shifts, **how)


def augmented(
    data: DataSet, recipe: Recipe, rows: np.ndarray, *, seed: int, epoch: int
) -> Augmented:
    """What a run's feed makes of rows of the training part: int64 (N,)."""
    size, mean = recipe.crop_size, mean_image_of(recipe, data.statistics.mean_image)
    feed = _SomeImages(data, recipe, seed, rows=rows)
    maker = _Recorded(StoredImages(data.train), mean_image=mean, crop_size=size)
    batch = feed.batch((epoch - 1) * feed.steps_per_epoch, images=maker)
    crops, shifts = maker.drawn
    images = batch.images.permute(0, 2, 3, 1).numpy().copy()
    for image, top, left, flip in zip(images, crops.tops, crops.lefts, crops.flips, strict=True):
        image += mean[top : top + size, left : left + size][:, :: -1 if flip else 1]
    return Augmented(images, crops, shifts)


@styled
def augmentation_figure(run_dir: Path, data_dir: Path | None, *, num_images: int) -> Any:
    """The first images of a run: as they are stored with their crops, and what the epochs make.

    Args:
        run_dir: whose recipe and seed are taken.
        data_dir: None for the run's own.
        num_images: at most; a batch may have fewer.

    Raises:
        UserError: there is no such run or data, or matplotlib is not installed.
    """
    record = read_run_record(run_dir)
    recipe = from_record(record.recipe_record)
    data = open_data_set(data_dir or Path(record.data.directory))
    rows = TrainFeed(data, recipe, record.seed).image_rows(0)[:num_images]
    of_epochs = {
        epoch: augmented(data, recipe, rows, seed=record.seed, epoch=epoch) for epoch in EPOCHS
    }
    figure = new_figure(PAGE_WIDTH, 0.25 + 2.1 * len(rows))
    set_title(figure, f"{run_dir}: {recipe.name}, seed {record.seed}")
    # Else crops are of other images than the stored ones.
    is_placed = not (recipe.vertical_flips or recipe.resized_crops)
    panels = figure.subplots(len(rows), 1 + len(EPOCHS), squeeze=False)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
    for i, row in enumerate(rows):
        stored, *others = panels[i]
        stored.imshow(data.train.image(int(row)))
        name = shortened(data.class_names[data.train.labels[row]], 30)
        stored.set_xlabel(f"{name}\ntraining image {row}", fontsize=7)
        for axes, (epoch, made) in zip(others, of_epochs.items(), strict=True):
            if is_placed:
                _draw_crop(stored, made.crops, i, recipe.crop_size, epoch)
            axes.imshow((made.images[i] / 255).clip(0, 1))
            axes.set_xlabel(_described(made, i, is_placed=is_placed), fontsize=7)
            color, style = EPOCHS[epoch]
            for spine in axes.spines.values():
                spine.set(color=color, linestyle=style, linewidth=2.5)
    side = data.image_size
    panels[0, 0].set_title(f"stored, {side} x {side}")
    for axes, epoch in zip(panels[0, 1:], EPOCHS, strict=True):
        axes.set_title(f"epoch {epoch}", color=EPOCHS[epoch][0])
    return figure


def _draw_crop(axes: Any, crops: Crops, i: int, size: int, epoch: int) -> None:
    """The outline of an image's crop, on white below all outlines, as images have all colors."""
    top, left = crops.tops[i] - 0.5, crops.lefts[i] - 0.5
    rows = [top, top, top + size, top + size, top]
    columns = [left, left + size, left + size, left, left]
    color, style = EPOCHS[epoch]
    axes.plot(columns, rows, color="white", linewidth=4, clip_on=False, zorder=2)
    label = f"epoch {epoch}"
    axes.plot(columns, rows, style, color=color, linewidth=2, clip_on=False, zorder=3, label=label)


def _described(made: Augmented, i: int, *, is_placed: bool) -> str:
    """Place (where it is one of the stored image), reflection and color shift of an image."""
    crops = made.crops
    reflected = ", reflected" if crops.flips[i] else ""
    place = f"row {crops.tops[i]}, column {crops.lefts[i]}" if is_placed else "changed before"
    place += reflected
    if made.shifts is None:
        return f"{place}\nno color noise"
    red, green, blue = made.shifts[i]
    return f"{place}\nR {red:+.1f}, G {green:+.1f}, B {blue:+.1f}".replace("-", "\N{MINUS SIGN}")
