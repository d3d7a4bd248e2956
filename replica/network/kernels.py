"""The kernels of conv1 as a picture (paper, Figure 3)."""

import numpy as np
import torch
from PIL import Image

KERNELS_PER_ROW = 16  # Figure 3 shows 96 kernels in six rows

PIXELS_PER_WEIGHT = 4


def kernel_picture(weights: torch.Tensor, *, towers: int) -> Image.Image:
    """Draws the kernels of conv1, as Figure 3 does: tower 0 above, tower 1 below.

    As in the source, all kernels share one scale: the smallest weight of the layer is black, the
    largest is white. `weights` are float (kernels, 3, side, side), red first.
    """
    values = weights.detach().double().numpy()
    low, high = values.min(), values.max()
    scaled = (255 * (values - low) / max(high - low, 1e-12)).round().astype(np.uint8)
    side = values.shape[-1]
    cell = side * PIXELS_PER_WEIGHT + 2
    per_tower = len(values) // towers
    columns = min(KERNELS_PER_ROW, per_tower)
    rows_per_tower = -(-per_tower // columns)
    picture = Image.new("RGB", (columns * cell + 2, towers * rows_per_tower * cell + 2), "white")
    for i, kernel in enumerate(scaled):
        tower, place = divmod(i, per_tower)
        row = tower * rows_per_tower + place // columns
        tile = Image.fromarray(np.ascontiguousarray(kernel.transpose(1, 2, 0)))
        tile = tile.resize((cell - 2, cell - 2), Image.Resampling.NEAREST)
        picture.paste(tile, (place % columns * cell + 2, row * cell + 2))
    return picture
