"""From a network and a data set to the training images nearest to some images (paper 6.1).

N images, C channels, H rows, W columns, D units.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_prep.errors import UserError
from data_prep.progress import progress_bar
from data_prep.shards import Part
from replica import paper
from replica.feed.augment import view_places
from replica.feed.views import view_batches
from replica.results.neighbors import Neighbors, NeighborSearch
from replica.results.prediction import TrainedNetwork
from replica.results.style import SMALL_POINTS, new_figure, shortened, styled

PANEL_INCHES = 0.95
LETTERS = 16  # of a name


def hidden_layer(network: TrainedNetwork) -> str:
    """The last hidden layer, 4096-dimensional in the paper.

    Raises:
        UserError: the network has none that is fully connected.
    """
    layers = [layer.name for layer in network.recipe.fully_connected][:-1]
    if not layers:
        raise UserError(
            f"recipe {network.recipe.name}: expected a hidden fully connected layer, it has none"
        )
    return layers[-1]


def check_side(network: TrainedNetwork, part: Part) -> None:
    """Refuses images of another side than the network's, with a UserError."""
    side = len(network.mean_image)
    if part.shards[0].image_size != side:
        raise UserError(
            f"{part.shards[0].path.parent}: has images of {part.shards[0].image_size} pixels, but "
            f"the network was trained on {side}: give such data with --data"
        )


def features_of(
    network: TrainedNetwork, part: Part, rows: Sequence[int], *, layer: str
) -> Iterator[torch.Tensor]:
    """What a layer makes of the central crops of some images: float32 (N, D), batch by batch.

    Args:
        network: whose mean image is subtracted, not that of the data.
        part: that has the images, of the side of the network's mean image.
        rows: which of them.
        layer: fully connected.

    Raises:
        UserError: the images have another side.
    """
    check_side(network, part)
    side = len(network.mean_image)
    crop_size = network.recipe.crop_size
    batches = view_batches(
        part,
        rows,
        views=view_places("center", (side, side), crop_size=crop_size),
        mean_image=network.mean_image,
        mean=network.recipe.mean,
        crop_size=crop_size,
        images_per_batch=paper.BATCH_SIZE,
        device=next(network.module.parameters()).device,
    )
    for batch in batches:
        yield network.layer_outputs(batch.images, layer=layer)


def nearest_images(
    network: TrainedNetwork,
    queries: torch.Tensor,
    part: Part,
    *,
    layer: str,
    k: int,
    among: Sequence[int] | None = None,
) -> Neighbors:
    """Searches images of a part; no features are kept but those of the queries.

    Args:
        network: that made the queries' features.
        queries: float32 (Q, D).
        part: such as the training images.
        layer: whose features they are.
        k: how many neighbors.
        among: the rows of the part that are searched, in rising order; None for all.

    Raises:
        UserError: the images have another side than the network's, or features are not finite.
    """
    rows = range(len(part)) if among is None else among
    try:
        search = NeighborSearch(queries, k=k)
        with progress_bar(len(rows), " images") as progress:
            for features in features_of(network, part, rows, layer=layer):
                search.add(features)
                progress.update(len(features))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"features of {layer}: {error}: use another checkpoint") from None
    found = search.result()
    return Neighbors(np.asarray(rows)[found.rows], found.distances)


@dataclass(frozen=True)
class Shown:
    """An image of the figure: uint8 (H, W, C), and what it is."""

    image: np.ndarray
    caption: str


@styled
def neighbors_figure(queries: list[Shown], neighbors: list[list[Shown]]) -> Any:
    """The figure, in the style of the paper's Figure 4, right: a row for each query.

    The query stands first, apart from the others; a neighbor of its class has it in bold.

    Raises:
        UserError: matplotlib is not installed.
    """
    columns = max(map(len, neighbors))
    width = PANEL_INCHES * (columns + 1.4)
    figure = new_figure(width, 1.18 * PANEL_INCHES * len(queries))
    panels = figure.subplots(
        len(queries), columns + 2, squeeze=False, width_ratios=[1, 0.12, *[1] * columns]
    )
    for axes in panels.flat:
        axes.set_axis_off()
    for row, (query, found) in enumerate(zip(queries, neighbors, strict=True)):
        for axes, one in zip(
            panels[row][[0, *range(2, 2 + len(found))]], [query, *found], strict=True
        ):
            axes.imshow(one.image)
            weight = "bold" if one.caption == query.caption else "normal"
            caption = shortened(one.caption, LETTERS)
            axes.set_title(caption, fontsize=SMALL_POINTS, weight=weight, pad=2)
    return figure


def evenly(num_images: int, count: int) -> list[int]:
    """Rows over a whole part, at even distances, the first in the middle of its share."""
    count = min(count, num_images)
    return [math.floor((place + 0.5) * num_images / count) for place in range(count)]
