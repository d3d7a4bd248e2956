"""The kernels of conv1 as a picture (paper, Figure 3)."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from replica.recipes import Recipe

KERNELS_PER_ROW = 16  # Figure 3 shows 96 kernels in six rows

# In pixels of the picture: a weight's side, the white between kernels, the height and the letters
# of a line of text.
PIXELS_PER_WEIGHT, GAP, LINE_HEIGHT, LETTER_SIZE = 8, 2, 26, 16


def rgb_kernels(weights: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """The kernels of a recipe's first layer, (kernels, 3, side, side), red first."""
    return weights.flip(1) if recipe.channels == "bgr" else weights


def color_energy(weights: torch.Tensor | np.ndarray) -> np.ndarray:
    """Which share of each kernel's energy is color (paper 6.1: color-agnostic, color-specific).

    The mean over red, green and blue of each place is the kernel's gray part, what is left its
    color: sum((w - mean_RGB(w)) ** 2) / sum(w ** 2). A gray kernel has 0, one whose three colors
    cancel at each place 1, and independent random weights 2/3 on average, as two of three
    directions are color. A kernel of zeros has 0.

    Args:
        weights: float (kernels, 3, side, side), red, green and blue in any order.

    Returns:
        float64 (kernels,), from 0 to 1.

    Raises:
        ValueError: the kernels do not read three colors, or a weight is not finite.
    """
    w = torch.as_tensor(weights).detach().cpu().double().numpy()
    if w.ndim != 4 or w.shape[1] != 3:
        raise ValueError(f"color_energy: expected weights (kernels, 3, side, side), got {w.shape}")
    if not np.isfinite(w).all():
        raise ValueError("color_energy: expected finite weights")
    # Scaled, as squares of the smallest weights would be zero.
    largest = np.abs(w).max(axis=(1, 2, 3), keepdims=True, initial=0)
    w = w / np.where(largest > 0, largest, 1)
    color = w - w.mean(axis=1, keepdims=True)
    energy = (w**2).sum(axis=(1, 2, 3))
    share: np.ndarray = (color**2).sum(axis=(1, 2, 3)) / np.where(energy > 0, energy, 1)
    return share


def scaled_kernels(weights: torch.Tensor) -> np.ndarray:
    """Weights as pixels, uint8 of the same shape: the smallest of all is black, the largest white.

    As in the source, all kernels share one scale.
    """
    values = weights.detach().double().numpy()
    low, high = values.min(), values.max()
    scaled: np.ndarray = (255 * (values - low) / max(high - low, 1e-12)).round().astype(np.uint8)
    return scaled


def kernel_picture(weights: torch.Tensor, *, towers: int, title: str) -> Image.Image:
    """Draws the kernels of conv1, as Figure 3 does: tower 0 above, tower 1 below.

    Args:
        weights: float (kernels, 3, side, side), red first; `scaled_kernels` gives their colors.
        towers: kernels of each begin a row of their own, below the tower's name.
        title: stands above; what is not ASCII becomes an escape, as the letters have no more.
    """
    scaled = scaled_kernels(weights)
    tile_size = scaled.shape[-1] * PIXELS_PER_WEIGHT
    cell = tile_size + GAP
    per_tower = len(scaled) // towers
    columns = min(KERNELS_PER_ROW, per_tower)
    tower_height = LINE_HEIGHT + math.ceil(per_tower / columns) * cell
    font = ImageFont.load_default(LETTER_SIZE)
    title = title.encode("ascii", "backslashreplace").decode()
    width = max(columns * cell, math.ceil(font.getlength(title)) + GAP) + GAP
    picture = Image.new("RGB", (width, LINE_HEIGHT + towers * tower_height), "white")
    lines = [title, *(f"tower {tower}" for tower in range(towers))]
    for line, top in zip(
        lines, [0, *range(LINE_HEIGHT, picture.height, tower_height)], strict=True
    ):
        middle = (GAP, top + LINE_HEIGHT // 2)
        ImageDraw.Draw(picture).text(middle, line, fill="black", font=font, anchor="lm")
    for i, kernel in enumerate(scaled):
        tower, place = divmod(i, per_tower)
        row, column = divmod(place, columns)
        top = 2 * LINE_HEIGHT + tower * tower_height + row * cell
        tile = Image.fromarray(np.ascontiguousarray(kernel.transpose(1, 2, 0)))
        tile = tile.resize((tile_size, tile_size), Image.Resampling.NEAREST)
        picture.paste(tile, (GAP + column * cell, top))
    return picture
