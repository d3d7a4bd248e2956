"""Kernels of the first layer (paper, Figure 3), and the maps of every layer, as mosaics.

K kernels, C channels, H rows, W columns, M maps.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_prep.errors import UserError
from replica.feed.augment import center_crop
from replica.network.kernels import (
    KERNELS_PER_ROW,
    PIXELS_PER_WEIGHT,
    color_energy,
    rgb_kernels,
    scaled_kernels,
)
from replica.results.prediction import TrainedNetwork
from replica.results.style import (
    PAGE_WIDTH,
    PALE_BLUE,
    SMALL_POINTS,
    new_figure,
    set_title,
    shortened,
    styled,
)

GAP = 2  # pixels between tiles
# In a row, so that all layers of the paper's network fit a page: of at most so many, and of more.
MAPS_PER_ROW = {64: 16, 128: 32, 1_000_000: 48}
UNITS_PER_ROW = {1024: 64, 1_000_000: 256}
LEAST_PER_ROW = 16  # a row of fewer does not fill the page
MAP_SIDE = 32  # pixels; smaller maps are enlarged
BRIGHTEST = 99.5  # percentile of a layer's outputs; of a few large ones the rest would be dark
TOP = 5


def mosaic(tiles: np.ndarray, *, columns: int, scale: int, between: float) -> np.ndarray:
    """Tiles in rows, with `GAP` pixels around each.

    Args:
        tiles: (M, H, W) or (M, H, W, C).
        columns: how many in a row.
        scale: each value becomes a square of so many pixels.
        between: what the pixels between them are.
    """
    num_tiles, height, width, *channels = tiles.shape
    cell = np.array([height, width]) * scale + GAP
    size = cell * [math.ceil(num_tiles / columns), columns] + GAP
    whole = np.full((*size, *channels), between, tiles.dtype)
    for place, tile in enumerate(tiles):
        top, left = cell * divmod(place, columns) + GAP
        large = tile.repeat(scale, axis=0).repeat(scale, axis=1)
        whole[top : top + len(large), left : left + large.shape[1]] = large
    return whole


@dataclass(frozen=True)
class FirstKernels:
    """The kernels of a network's first layer.

    Attributes:
        layer: its name.
        weights: float (K, 3, side, side), red first.
        towers: how many; of each, the kernels follow each other.
        color: float64 (towers, K / towers), the `color_energy` of each kernel.
    """

    layer: str
    weights: torch.Tensor
    towers: int
    color: np.ndarray


def first_kernels(network: TrainedNetwork) -> FirstKernels:
    """The kernels of the first layer, with their share of color by tower.

    Raises:
        UserError: they were drawn, each place has its own, or a weight is no number.
    """
    recipe = network.recipe
    first = recipe.convs[0]
    if first.name in network.lacking:
        raise UserError(f"{first.name}: expected trained kernels, the file has none")
    if first.is_local:
        raise UserError(f"{first.name}: expected one set of kernels, each place has its own")
    stored = network.module.get_submodule(first.name).get_parameter("weight")
    weights = rgb_kernels(stored.detach().float().cpu(), recipe)
    try:
        color = color_energy(weights)
    except ValueError as error:
        raise UserError(f"{first.name}: {error}: use another checkpoint") from None
    return FirstKernels(first.name, weights, recipe.towers, color.reshape(recipe.towers, -1))


@styled
def kernels_figure(kernels: FirstKernels, *, title: str, gray: bool = False) -> Any:
    """The figure: the kernels of tower 0 above those of tower 1, in one scale.

    Args:
        kernels: of a network.
        title: above all.
        gray: draw the mean of the three colors.

    Raises:
        UserError: matplotlib is not installed.
    """
    weights = kernels.weights
    if gray:
        weights = weights.mean(dim=1, keepdim=True).expand_as(weights)
    tiles = scaled_kernels(weights).transpose(0, 2, 3, 1)
    towers = np.split(tiles, kernels.towers)
    columns = min(KERNELS_PER_ROW, len(towers[0]))
    pictures = [
        mosaic(tiles, columns=columns, scale=PIXELS_PER_WEIGHT, between=255) for tiles in towers
    ]
    height, width, _ = pictures[0].shape
    inches = max(PAGE_WIDTH / 2, PAGE_WIDTH * columns / KERNELS_PER_ROW)
    tower_inches = inches * height / width + 0.25
    figure = new_figure(inches, tower_inches * kernels.towers)
    set_title(figure, title)
    for tower, (axes, picture) in enumerate(
        zip(figure.subplots(kernels.towers, squeeze=False).flat, pictures, strict=True)
    ):
        axes.imshow(picture)
        axes.set_axis_off()
        share = f"color energy {kernels.color[tower].mean():.2f}"
        axes.set_title(f"tower {tower}: {share}" if kernels.towers > 1 else share, loc="left")
    return figure


@styled
def activations_figure(
    network: TrainedNetwork, image: np.ndarray, *, class_names: list[str], title: str
) -> Any:
    """The figure: a picture's central crop and classes, and below the outputs of every layer.

    Of a convolution each map is a tile, of a fully connected layer each unit a square; those of
    tower 1 stand below those of tower 0. Layers whose weights were drawn are left out. Each layer
    has a scale of its own, which its caption says.

    Args:
        network: in evaluation mode.
        image: uint8 (H, W, 3), of the side of the network's mean image.
        class_names: in the order of the logits.
        title: above all.

    Raises:
        UserError: an output is no number, or matplotlib is not installed.
    """
    recipe = network.recipe
    names = [layer.name for layer in recipe.layers]
    drawn = [place for place, name in enumerate(names) if name in network.lacking]
    trained = names[: min(drawn, default=len(names))]
    outputs = {name: network.features(image, layer=name) for name in trained}
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise UserError(f"{name}: its outputs are no numbers: use another checkpoint")
    logits = outputs.pop(names[-1], None)
    pictures = {name: _of_towers(values, recipe.towers) for name, values in outputs.items()}
    inches = [0.25 + PAGE_WIDTH * x.shape[0] / x.shape[1] for x in pictures.values()]
    figure = new_figure(PAGE_WIDTH, 1.5 + sum(inches))
    set_title(figure, title)
    above, *below = figure.add_gridspec(1 + len(pictures), 1, height_ratios=[1.5, *inches])
    left, right = above.subgridspec(1, 2, width_ratios=[1, 2.5])
    axes = figure.add_subplot(left)
    axes.imshow(center_crop(image, crop_size=recipe.crop_size)[0])
    axes.set_axis_off()
    if logits is not None:
        _draw_classes(figure.add_subplot(right), logits, class_names)
    for place, (name, picture) in zip(below, pictures.items(), strict=True):
        values = outputs[name]
        axes = figure.add_subplot(place)
        low, high = values.min(), np.percentile(values, BRIGHTEST)
        axes.imshow(picture, cmap="viridis", vmin=low, vmax=high)
        axes.set_axis_off()
        what = f"{len(values)} units"
        if values.ndim > 1:
            what = f"{len(values)} maps of {' x '.join(map(str, values.shape[1:]))}"
        towers = ", tower 0 above tower 1" if recipe.towers > 1 else ""
        scale = f"{low:.3g} (dark) to {high:.3g} and more (bright)"
        axes.set_title(f"{name}: {what}{towers}; {scale}", loc="left", fontsize=7, pad=2)
    return figure


def _of_towers(values: np.ndarray, towers: int) -> np.ndarray:
    """The outputs of a layer as a picture, float64 (H, W); what lies between is NaN.

    Args:
        values: float (M, H, W) or (M,).
        towers: of each, the outputs begin a row of their own.
    """
    table = MAPS_PER_ROW if values.ndim > 1 else UNITS_PER_ROW
    columns = next(number for most, number in table.items() if len(values) <= most)
    parts = []
    for own in np.split(values.astype(np.float64), towers):
        if values.ndim > 1:
            some = math.ceil(len(own) / math.ceil(len(own) / columns))
            scale = math.ceil(MAP_SIDE / own.shape[-1])
            part = mosaic(own, columns=some, scale=scale, between=np.nan)
            beside = max(0, LEAST_PER_ROW - some) * (own.shape[-1] * scale + GAP)
            part = np.pad(part, ((0, GAP), (0, beside)), constant_values=np.nan)
        else:
            whole = np.pad(own, (0, -len(own) % columns), constant_values=np.nan)
            part = np.pad(whole.reshape(-1, columns), ((0, 1), (0, 0)), constant_values=np.nan)
        parts.append(part)
    return np.concatenate(parts)


def _draw_classes(axes: Any, logits: np.ndarray, names: list[str]) -> None:
    """Bars of the most probable classes of the central crop."""
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    probabilities /= probabilities.sum()
    for place, label in enumerate(np.argsort(-probabilities, kind="stable")[:TOP]):
        axes.barh(place, probabilities[label], color=PALE_BLUE)
        text = f"{shortened(names[label], 50)}  {probabilities[label]:.1%}"
        axes.text(0.01, place, text, va="center", fontsize=SMALL_POINTS, clip_on=True)
    axes.set(xlim=(0, 1), ylim=(TOP - 0.4, -0.6), xticks=[], yticks=[])
