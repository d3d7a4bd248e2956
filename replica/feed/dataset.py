"""The shards as PyTorch's data set, for other people's training loops."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from data_prep.errors import UserError
from data_prep.manifest import PARTS
from data_prep.shards import open_data_set


class ShardDataset(Dataset[tuple[Any, int]]):
    """A part of a data set of shards: (image, label) by row, in the stored order.

    An image is uint8 (3, H, W), red first, values of 0..255, or what `transform` makes of it.
    It may be sent to a DataLoader's workers: each opens the files for itself.

    Attributes:
        classes: readable names, in the order of the labels.
        mean_image: float32 (3, H, W), of the training images; for `SubtractMean`.
        eigenvalues, eigenvectors: of their RGB covariance on [0, 1], (3,) and (3, 3) in columns;
            for `ColorNoise`.

    Args:
        directory: what `build_shards.py` wrote.
        part: `train`, `val` or `test`.
        transform: called with each image.

    Raises:
        UserError: the directory holds no whole data set, or not this part.
    """

    def __init__(
        self,
        directory: str | Path,
        part: str = "train",
        *,
        transform: Callable[[torch.Tensor], Any] | None = None,
    ) -> None:
        data = open_data_set(Path(directory))
        if part not in PARTS or not len(data.part(part)):
            have = ", ".join(name for name in PARTS if len(data.part(name)))
            raise UserError(f"part {part}: expected one of {have}, which {directory} has")
        self._images = data.part(part)
        self.transform = transform
        self.classes = data.class_names
        statistics = data.statistics
        self.mean_image = torch.from_numpy(statistics.mean_image).permute(2, 0, 1)
        self.eigenvalues = torch.from_numpy(statistics.eigenvalues)
        self.eigenvectors = torch.from_numpy(statistics.eigenvectors)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        # A copy, since the file is mapped for reading only.
        image = torch.from_numpy(self._images.image(row).copy()).permute(2, 0, 1)
        label = int(self._images.labels[row])
        return (image if self.transform is None else self.transform(image)), label
