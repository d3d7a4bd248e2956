"""Augmentations of other projects, on stored pixels before the paper's own (not in the paper).

A pure function of seed, epoch and image, as all draws are. Resizing and colors are torchvision's
functions; the draws are not its own, which come from one generator of the process.

    counter words: epoch, what (below), image (high, low)
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

from data_prep.errors import UserError
from replica.network.draws import UINT32_RANGE, high_low, key_of, normals, philox, uniforms
from replica.recipes import Recipe

# The second word of the counter; of resized crops one for each try, of noise one for four values.
FLIP, JITTER, ORDER, FIRST_TRY, FIRST_NOISE = 0, 1, 2, 16, 32
# As torchvision's RandomResizedCrop has them.
NUM_TRIES, LOG_RATIO = 10, float(np.log(4 / 3))


def check_variants(recipe: Recipe) -> None:
    """Refuses a recipe that needs torchvision where there is none, with a UserError."""
    if recipe.color_jitter or recipe.resized_crops:
        _torchvision(recipe)


def has_variants(recipe: Recipe) -> bool:
    """Whether a recipe has any of these."""
    return bool(
        recipe.vertical_flips or recipe.resized_crops or recipe.color_jitter or recipe.pixel_noise
    )


def vary(
    images: Sequence[torch.Tensor],
    index: np.ndarray,
    rows: np.ndarray,
    *,
    recipe: Recipe,
    seed: int,
    epoch: int,
) -> torch.Tensor:
    """Turns upside down, cuts and resizes, changes colors and adds noise, in this order.

    Args:
        images, index: of `StoredImages.take`.
        rows: int64 (N,), of the training part.
        recipe: says what.
        seed, epoch: of the draws.

    Returns:
        uint8 (N, H, W, 3). Resized crops have the size of a crop and are in the middle.
    """
    starts = np.cumsum([0] + [len(part) for part in images])
    parts = np.searchsorted(starts, index, side="right") - 1
    varied = []
    for row, part, place in zip(rows, parts, index - starts[parts], strict=True):
        image = images[part][place].permute(2, 0, 1)
        varied.append(_varied(image, int(row), recipe, seed, epoch).permute(1, 2, 0))
    return torch.stack(varied).contiguous()


def _varied(image: torch.Tensor, row: int, recipe: Recipe, seed: int, epoch: int) -> torch.Tensor:
    """One image: uint8 (3, H, W)."""

    def words(first: int, number: int = 1) -> Any:
        what = np.arange(first, first + number)
        return philox(key_of(seed, "variant"), (epoch, what, *high_low(row)))

    whole = image
    if recipe.vertical_flips and words(FLIP)[0] % 2 == 1:
        image = image.flip(1)
    if recipe.resized_crops:
        image = _resized_crop(image, words, recipe)
    if recipe.color_jitter:
        image = _jittered(image, words, recipe)
    if recipe.pixel_noise:
        image = _noisy(image, words, recipe.pixel_noise)
    if image.shape == whole.shape:
        return image
    canvas, size = torch.zeros_like(whole), recipe.crop_size
    top, left = ((side - size) // 2 for side in whole.shape[1:])
    canvas[:, top : top + size, left : left + size] = image
    return canvas


def _resized_crop(image: torch.Tensor, words: Any, recipe: Recipe) -> torch.Tensor:
    """A part with a share of the area and sides of 3 to 4 up to 4 to 3, resized to a crop."""
    height, width = image.shape[1:]
    least, most = recipe.resized_crops
    for attempt in range(NUM_TRIES):
        share, ratio, down, right = (int(word[0]) for word in words(FIRST_TRY + attempt))
        area = height * width * (least + (most - least) * uniforms(share))
        sides = np.exp(LOG_RATIO * (2 * uniforms(ratio) - 1))
        columns, rows = round(float(np.sqrt(area * sides))), round(float(np.sqrt(area / sides)))
        if 0 < columns <= width and 0 < rows <= height:
            top = down * (height - rows + 1) // UINT32_RANGE
            left = right * (width - columns + 1) // UINT32_RANGE
            break
    else:
        top, left, rows, columns = 0, 0, height, width  # the images are square
    functional = _torchvision(recipe)
    size = [recipe.crop_size, recipe.crop_size]
    result: torch.Tensor = functional.resized_crop(
        image, top, left, rows, columns, size, antialias=True
    )
    return result


def _jittered(image: torch.Tensor, words: Any, recipe: Recipe) -> torch.Tensor:
    """Brightness, contrast, saturation and hue, in an order that is drawn, too."""
    functional = _torchvision(recipe)
    names = ("brightness", "contrast", "saturation", "hue")
    for i in np.argsort(np.ravel(words(ORDER)), kind="stable"):
        reach, drawn = recipe.color_jitter[i], float(uniforms(words(JITTER)[i][0]))
        low, high = (-reach, reach) if names[i] == "hue" else (max(0.0, 1 - reach), 1 + reach)
        if reach:
            image = getattr(functional, f"adjust_{names[i]}")(image, low + (high - low) * drawn)
    return image


def _noisy(image: torch.Tensor, words: Any, deviation: float) -> torch.Tensor:
    """Each value with a normal number added, rounded to a byte again."""
    count = image.numel()
    noise = normals(words(FIRST_NOISE, -(-count // 4))).reshape(-1)[:count]
    values = image.numpy() + deviation * noise.reshape(image.shape)
    return torch.from_numpy(values.round().clip(0, 255).astype(np.uint8))


def _torchvision(recipe: Recipe) -> ModuleType:
    try:
        from torchvision.transforms import functional
    except (ImportError, RuntimeError):  # the latter: its operators are for another PyTorch
        name = "color_jitter" if recipe.color_jitter else "resized_crops"
        raise UserError(
            f"recipe {recipe.name}: {name} needs a torchvision that fits PyTorch: `pip install "
            "'replica-alexnet[augment]'`"
        ) from None
    return functional  # type: ignore[no-any-return]
