"""Crops, reflections and color noise (paper 4.1), and the views of the test.

N images, V views, C channels (red, green, blue), H rows, W columns.
"""

from dataclasses import dataclass

import numpy as np

from replica.network.draws import UINT32_RANGE, high_low, key_of, normals, philox


@dataclass(frozen=True)
class Crops:
    """Where each image of a batch, or each view of an image, is cut, and whether it is reflected.

    Attributes:
        tops, lefts: int64 (N,), the first row and column.
        flips: bool (N,), reflected left to right.
    """

    tops: np.ndarray
    lefts: np.ndarray
    flips: np.ndarray


def draw_crops(
    image_indices: np.ndarray, *, epoch: int, seed: int, image_size: int, crop_size: int
) -> Crops:
    """Each image's own place and reflection in an epoch (paper 4.1).

    All (image_size - crop_size + 1) ** 2 places are equally likely: 33 * 33, with reflections 2178.
    DEVIATION D5: the paper says 2048 = 32 * 32 * 2; the source draws from 33 offsets.

    Args:
        image_indices: int64 (N,), rows of the training part; where images share a crop, the same
            number for each of them.
        epoch: counted from 1.
        seed: of the run.
        image_size, crop_size: in pixels.
    """
    places = image_size - crop_size + 1
    high, low = high_low(image_indices.astype(np.int64))
    counter = (np.full_like(low, epoch), np.zeros_like(low), high, low)
    down, right, flip, _ = philox(key_of(seed, "crop"), counter)
    return Crops(down * places // UINT32_RANGE, right * places // UINT32_RANGE, flip % 2 == 1)


def in_the_center(crops: Crops, *, image_size: int, crop_size: int) -> Crops:
    """The central place for every image; reflections stay as they were drawn."""
    start = np.full_like(crops.tops, (image_size - crop_size) // 2)
    return Crops(start, start, crops.flips)


def draw_color_shifts(
    image_indices: np.ndarray,
    *,
    epoch: int,
    seed: int,
    standard_deviation: float,
    eigenvalues: np.ndarray,
    eigenvectors: np.ndarray,
) -> np.ndarray:
    """What is added to every pixel of each image: 255 * P (alphas * lambdas) (paper 4.1).

    DEVIATION D6: eigenvalues are those of RGB in [0, 1] and the sum is scaled back by 255; on
    pixels of 0..255 the literal sentence would add thousands.

    Args:
        image_indices: int64 (N,).
        epoch: counted from 1; the alphas are drawn anew each time an image is used.
        seed: of the run.
        standard_deviation: of each alpha, 0.1 in the paper.
        eigenvalues: (3,), lambdas of the RGB covariance; the source takes their roots.
        eigenvectors: (3, 3), P, in columns.

    Returns:
        float64 (N, 3), in pixel values of 0..255.
    """
    high, low = high_low(image_indices.astype(np.int64))
    counter = (np.full_like(low, epoch), np.zeros_like(low), high, low)
    alphas = standard_deviation * normals(philox(key_of(seed, "color_noise"), counter))[:, :3]
    shifts: np.ndarray = 255.0 * (alphas * eigenvalues) @ eigenvectors.T
    return shifts


def view_places(views: str, image_size: tuple[int, int], *, crop_size: int) -> Crops:
    """Where the views of an image lie that a test averages (paper 4.1).

    Args:
        views: `center`, the central square; `ten`, the four corners and the center, then the same
            five reflected; `grid:K`, K x K squares evenly from edge to edge, row by row, then the
            same reflected. An odd pixel is below or to the right; K = 1 is the center.
        image_size: rows and columns, in pixels.
        crop_size: in pixels.
    """
    down, right = (side - crop_size for side in image_size)
    center = (down // 2, right // 2)
    if views == "center":
        places = [center]
    elif views == "ten":
        places = [(0, 0), (0, right), center, (down, 0), (down, right)]
    else:
        per_side = int(views.removeprefix("grid:"))
        places = [
            (top, left) for top in _evenly(down, per_side) for left in _evenly(right, per_side)
        ]
    num_reflected = 0 if views == "center" else len(places)
    flips = np.arange(len(places) + num_reflected) >= len(places)
    tops, lefts = np.resize(np.array(places, np.int64), (len(flips), 2)).T
    return Crops(tops, lefts, flips)


def _evenly(last: int, number: int) -> list[int]:
    """Numbers from 0 to `last`, or the middle as the only one."""
    return [last * i // (number - 1) for i in range(number)] if number > 1 else [last // 2]


def less_central_mean(views: np.ndarray, mean_image: np.ndarray) -> np.ndarray:
    """Views minus the central part of the mean image, reflected ones too (`mean=center`).

    As the 2012 source has it: whatever the place of a view, and never reflected.

    Args:
        views: uint8 (V, S, S, C), as they are stored.
        mean_image: float32 (H, W, C).

    Returns:
        float32 (V, S, S, C).
    """
    less: np.ndarray = views - center_crop(mean_image, crop_size=views.shape[1])
    return less


def ten_crops(image: np.ndarray, *, crop_size: int) -> np.ndarray:
    """The four corners and the center, then the same five reflected (paper 4.1).

    Args:
        image: (H, W, C), any type.
        crop_size: in pixels.

    Returns:
        (10, crop_size, crop_size, C), of the same type.
    """
    return _cut("ten", image, crop_size)


def center_crop(image: np.ndarray, *, crop_size: int) -> np.ndarray:
    """The central square as the one view: (1, crop_size, crop_size, C)."""
    return _cut("center", image, crop_size)


def cut_views(image: np.ndarray, *, crop_size: int, views: str) -> np.ndarray:
    """The views that `view_places` names: (V, crop_size, crop_size, C)."""
    return _cut(views, image, crop_size)


def _cut(views: str, image: np.ndarray, crop_size: int) -> np.ndarray:
    height, width, _ = image.shape
    crops = view_places(views, (height, width), crop_size=crop_size)
    cut = [
        image[top : top + crop_size, left : left + crop_size][:, :: -1 if flip else 1]
        for top, left, flip in zip(crops.tops, crops.lefts, crops.flips, strict=True)
    ]
    return np.stack(cut)
