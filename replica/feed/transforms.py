"""The paper's augmentation (2, 4.1) for other people's pipelines, torchvision's `Compose` included.

Each is called with one image, a tensor (3, H, W), uint8 or float, values of 0..255, and gives a new
tensor. They draw from PyTorch's global generator, as torchvision's do, so a DataLoader's workers
draw for themselves; `replica.train` draws by image and epoch instead (`replica.feed.augment`). The
paper's order is mean, crop, color noise:

    Compose([SubtractMean(data.mean_image), RandomCropAndFlip(224),
             ColorNoise(data.eigenvalues, data.eigenvectors)])
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from replica import paper
from replica.feed.augment import center_crop, ten_crops


@dataclass(frozen=True, eq=False)
class SubtractMean:
    """Subtracts the mean image at each pixel's own place (paper 2): float32 (3, H, W).

    Attributes:
        mean_image: (3, H, W), of the training images; the images have its size.
    """

    mean_image: torch.Tensor

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """The image minus the mean: float32 (3, H, W)."""
        if image.shape != self.mean_image.shape:
            raise ValueError(
                f"SubtractMean: expected an image of {tuple(self.mean_image.shape)}, got "
                f"{tuple(image.shape)}: subtract before the crop"
            )
        return image.float() - self.mean_image.float()


@dataclass(frozen=True)
class RandomCropAndFlip:
    """A square at a random place, reflected left to right half of the time (paper 4.1).

    Attributes:
        size: side of the square in pixels; all places are equally likely.
    """

    size: int = paper.CROP_SIZE

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """A patch of the image: (3, size, size), of the same type."""
        _check_size(image, self.size)
        top, left = (int(torch.randint(side - self.size + 1, ())) for side in image.shape[1:])
        crop = image[:, top : top + self.size, left : left + self.size]
        return crop.flip(2) if torch.rand(()) < 0.5 else crop.clone()


@dataclass(frozen=True, eq=False)
class ColorNoise:
    """Adds 255 * P (alphas * lambdas) to every pixel, alphas drawn anew each time (paper 4.1).

    Attributes:
        eigenvalues: (3,), lambdas of the RGB covariance of images on [0, 1].
        eigenvectors: (3, 3), P, in columns.
        standard_deviation: of each alpha.
    """

    eigenvalues: torch.Tensor
    eigenvectors: torch.Tensor
    standard_deviation: float = paper.COLOR_NOISE_STANDARD_DEVIATION

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """The image with one shift per channel: float32, of the same shape."""
        alphas = self.standard_deviation * torch.randn(3, dtype=torch.float64)
        shift = 255.0 * self.eigenvectors.double() @ (alphas * self.eigenvalues.double())
        return image.float() + shift.float()[:, None, None]


@dataclass(frozen=True)
class CenterCrop:
    """The central square (paper 2).

    Attributes:
        size: of its side, in pixels.
    """

    size: int = paper.CROP_SIZE

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """A patch of the image: (3, size, size), of the same type."""
        return _views(image, self.size, center_crop)[0]


@dataclass(frozen=True)
class TenCrop:
    """Corners and center, then the same five reflected (paper 4.1), for the test.

    Attributes:
        size: of a side, in pixels.
    """

    size: int = paper.CROP_SIZE

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Ten patches: (10, 3, size, size), of the same type."""
        return _views(image, self.size, ten_crops)


def _views(image: torch.Tensor, size: int, cut: Callable[..., np.ndarray]) -> torch.Tensor:
    """What `cut` makes of an image (3, H, W): (V, 3, size, size), in memory of its own."""
    _check_size(image, size)
    crops = cut(image.permute(1, 2, 0).numpy(), crop_size=size)
    return torch.from_numpy(crops.copy()).permute(0, 3, 1, 2)


def _check_size(image: torch.Tensor, size: int) -> None:
    if image.ndim != 3 or min(image.shape[1:]) < size:
        raise ValueError(
            f"expected an image (3, H, W) of at least {size} x {size} pixels, got "
            f"{tuple(image.shape)}"
        )
