"""Crops, reflections and color noise (paper 4.1), and the ten crops of the test.

N images, V views, C channels (red, green, blue), H rows, W columns.
"""

from dataclasses import dataclass

import numpy as np

from replica.network.draws import UINT32_RANGE, high_low, key_of, normals, philox


@dataclass(frozen=True)
class Crops:
    """Where each image of a batch is cut, and whether it is reflected.

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
    height, width, _ = image.shape
    down, right = height - crop_size, width - crop_size
    places = [(0, 0), (0, right), (down // 2, right // 2), (down, 0), (down, right)]
    five = np.stack([image[t : t + crop_size, s : s + crop_size] for t, s in places])
    return np.concatenate([five, five[:, :, ::-1]])


def center_crop(image: np.ndarray, *, crop_size: int) -> np.ndarray:
    """The central square as the one view: (1, crop_size, crop_size, C)."""
    top, left = ((side - crop_size) // 2 for side in image.shape[:2])
    return image[None, top : top + crop_size, left : left + crop_size]
