"""The mean image (paper 2) and the principal components of RGB (paper 4.1) of a training set."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PixelSums:
    """Exact integer sums over pictures, so that their total does not depend on any order.

    Attributes:
        num_images: how many pictures were added.
        pixel_sum: uint64 (H, W, 3), the sum of the pictures.
        rgb_second_moment: uint64 (3, 3), the sum over all pixels of rgb times rgb transposed.
    """

    num_images: int
    pixel_sum: np.ndarray
    rgb_second_moment: np.ndarray

    def __add__(self, other: "PixelSums") -> "PixelSums":
        return PixelSums(
            self.num_images + other.num_images,
            self.pixel_sum + other.pixel_sum,
            self.rgb_second_moment + other.rgb_second_moment,
        )


@dataclass(frozen=True)
class ColorStatistics:
    """What training subtracts and what colour noise is made of.

    Attributes:
        mean_image: float32 (H, W, 3), on 0..255.
        rgb_covariance: float64 (3, 3) over all training pixels, of RGB in [0, 1].
        eigenvalues: float64 (3,), of that matrix, largest first.
        eigenvectors: float64 (3, 3), column i belongs to eigenvalue i; the largest entry of each
            column is positive.
    """

    mean_image: np.ndarray
    rgb_covariance: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray


def rgb_second_moment(image: np.ndarray) -> np.ndarray:
    """The sum over the pixels of a uint8 image (H, W, 3) of rgb times rgb transposed, exactly."""
    # Sums of products of bytes over one image stay far below 2 ** 53: float64 is exact.
    rgb = image.reshape(-1, 3).astype(np.float64)
    return (rgb.T @ rgb).astype(np.uint64)


def color_statistics(sums: PixelSums) -> ColorStatistics:
    """Mean image, covariance of RGB, and its eigenvalues and eigenvectors.

    Raises:
        ValueError: no picture was added.
    """
    if sums.num_images == 0:
        raise ValueError("color_statistics: expected at least one training picture, got 0")
    height, width, _ = sums.pixel_sum.shape
    num_pixels = sums.num_images * height * width
    rgb_mean = sums.pixel_sum.sum(axis=(0, 1)).astype(np.float64) / num_pixels
    second_moment = sums.rgb_second_moment.astype(np.float64) / num_pixels
    covariance = (second_moment - np.outer(rgb_mean, rgb_mean)) / 255.0**2
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    # eigh sorts upwards; a covariance has no negative eigenvalue but for rounding.
    eigenvalues = eigenvalues[::-1].clip(min=0.0)
    eigenvectors = eigenvectors[:, ::-1]
    largest = np.abs(eigenvectors).argmax(axis=0)
    signs = np.sign(eigenvectors[largest, range(3)])
    return ColorStatistics(
        mean_image=(sums.pixel_sum / sums.num_images).astype(np.float32),
        rgb_covariance=covariance,
        eigenvalues=eigenvalues,
        eigenvectors=eigenvectors * signs,
    )
