"""The mean image (paper 2) and the principal components of RGB (paper 4.1) of a training set.

H rows, W columns.
"""

from dataclasses import dataclass

import numpy as np

# What others measured on ImageNet: the `color_pca` and the mean image in the `input_meta` that came
# with cuda-convnet2 (2014), by the first author of the paper. Pixels of 0..255; column i of the
# vectors belongs to deviation i. Which pictures of ImageNet they were measured on is not known.
PUBLISHED_RGB_MEAN = (127.30, 119.72, 104.91)
PUBLISHED_STANDARD_DEVIATIONS = (121.780, 37.094, 19.721)
PUBLISHED_EIGENVECTORS = (
    (-0.5635, -0.7126, 0.4180),
    (-0.5762, -0.0235, -0.8170),
    (-0.5920, 0.7012, 0.3973),
)
# float32 holds sums of products of bytes exactly over so many pixels: 255 * 255 * 258 < 2 ** 24.
EXACT_PRODUCTS = 258
# The same for sums of bytes: 255 * 65793 < 2 ** 24.
EXACT_IMAGES = 65_793


@dataclass(frozen=True)
class PixelSums:
    """Exact integer sums over pictures, so that their total does not depend on any order."""

    num_images: int
    pixel_sum: np.ndarray  # uint64 (H, W, 3)
    rgb_second_moment: np.ndarray  # uint64 (3, 3), over all pixels: rgb times rgb transposed

    def __add__(self, other: "PixelSums") -> "PixelSums":
        return PixelSums(
            self.num_images + other.num_images,
            self.pixel_sum + other.pixel_sum,
            self.rgb_second_moment + other.rgb_second_moment,
        )


class PixelSummer:
    """Adds up images one by one, exactly.

    One conversion to float32 serves both sums. They stay exact, because partial sums are taken out
    before they could reach 2 ** 24: a NumPy product in float64 alone costs more than all of this.
    """

    def __init__(self, image_size: int):
        self._planes = np.empty((3, image_size, image_size), np.float32)
        self._pixels = np.zeros((3, image_size, image_size), np.float32)
        self._total = np.zeros((image_size, image_size, 3), np.uint64)
        self._moment = np.zeros((3, 3), np.uint64)
        self._num_images = self._num_pending = 0
        # Rows of products that float32 sums exactly.
        num_pixels = image_size * image_size
        row = next(n for n in range(EXACT_PRODUCTS, 0, -1) if num_pixels % n == 0)
        self._rows = self._planes.reshape(3, -1, row)

    def add(self, image: np.ndarray) -> None:
        """Adds one image, uint8 (H, W, 3)."""
        self._planes[:] = image.transpose(2, 0, 1)
        self._pixels += self._planes
        for i in range(3):
            for j in range(i, 3):
                row_sums = np.vecdot(self._rows[i], self._rows[j])
                self._moment[i, j] += np.uint64(row_sums.sum(dtype=np.float64))
        self._num_images += 1
        self._num_pending += 1
        if self._num_pending == EXACT_IMAGES:
            self._settle()

    def _settle(self) -> None:
        self._total += self._pixels.transpose(1, 2, 0).astype(np.uint64)
        self._pixels[:] = 0
        self._num_pending = 0

    def sums(self) -> PixelSums:
        """The sums so far."""
        self._settle()
        upper = np.triu(self._moment, 1)
        return PixelSums(self._num_images, self._total.copy(), self._moment + upper.T)


@dataclass(frozen=True)
class ColorStatistics:
    """What training subtracts and what color noise is made of; float64 but for the mean image."""

    mean_image: np.ndarray  # float32 (H, W, 3), on 0..255
    rgb_mean: np.ndarray  # (3,), on 0..255
    rgb_covariance: np.ndarray  # (3, 3) over all training pixels, of RGB in [0, 1]
    eigenvalues: np.ndarray  # (3,), of that matrix, largest first
    eigenvectors: np.ndarray  # (3, 3), in columns; the largest entry of each is positive
    # (3,), along the eigenvectors, of RGB in 0..255: the form in which the 2012 source uses them.
    standard_deviations: np.ndarray


def color_statistics(sums: PixelSums) -> ColorStatistics:
    """Mean image and principal components of the RGB of one training picture or more.

    Raises:
        ValueError: no picture was added.
    """
    if sums.num_images == 0:
        raise ValueError("color_statistics: expected at least one training picture, got 0")
    height, width, _ = sums.pixel_sum.shape
    num_pixels = sums.num_images * height * width
    channel_sums = sums.pixel_sum.sum(axis=(0, 1))
    rgb_mean = channel_sums.astype(np.float64) / num_pixels
    # Differences of integers, so that nothing cancels: N * sum(xy) - sum(x) * sum(y).
    totals, moment = channel_sums.astype(object), sums.rgb_second_moment.astype(object)
    scatter = num_pixels * moment - np.outer(totals, totals)
    covariance = (scatter / (255 * num_pixels) ** 2).astype(np.float64)
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    # eigh sorts upwards; a covariance has no negative eigenvalue but for rounding.
    eigenvalues = eigenvalues[::-1].clip(min=0.0)
    eigenvectors = eigenvectors[:, ::-1]
    largest = np.abs(eigenvectors).argmax(axis=0)
    signs = np.sign(eigenvectors[largest, range(3)])
    return ColorStatistics(
        mean_image=(sums.pixel_sum / sums.num_images).astype(np.float32),
        rgb_mean=rgb_mean,
        rgb_covariance=covariance,
        eigenvalues=eigenvalues,
        eigenvectors=eigenvectors * signs,
        standard_deviations=255 * np.sqrt(eigenvalues),
    )


def comparison_with_published(statistics: ColorStatistics) -> list[str]:
    """Lines that set statistics beside those that others measured on ImageNet."""
    published = np.array(PUBLISHED_EIGENVECTORS)
    # An eigenvector has no sign: the published ones get the sign of the computed ones.
    published = published * np.sign((published * statistics.eigenvectors).sum(axis=0))

    def row(title: str, ours: np.ndarray, theirs: np.ndarray, form: str) -> str:
        here, there = ("  ".join(form % value for value in values) for values in (ours, theirs))
        return f"  {title:<24}{here:<28}{there}"

    lines = [f"  {'':<24}{'this training set':<28}published for ImageNet"]
    lines.append(row("mean R, G, B", statistics.rgb_mean, np.array(PUBLISHED_RGB_MEAN), "%.2f"))
    deviations = np.array(PUBLISHED_STANDARD_DEVIATIONS)
    lines.append(row("standard deviations", statistics.standard_deviations, deviations, "%.3f"))
    for i in range(3):
        ours, theirs = statistics.eigenvectors[:, i], published[:, i]
        lines.append(row(f"principal component {i + 1}", ours, theirs, "%+.4f"))
    return lines
