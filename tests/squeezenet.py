"""SqueezeNet v1.0 from its published Caffe weights: a network that nobody here trained.

A fixture: it checks labels, crops and averaging against results that do not come from our own code.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

CROP_SIZE = 227
MEAN_BGR = np.array([104, 117, 123], np.float32)


def prepare(image: np.ndarray) -> np.ndarray:
    """Red-green-blue bytes to what Caffe's network expects: blue first, minus the mean color."""
    return np.ascontiguousarray(image[:, :, ::-1].astype(np.float32) - MEAN_BGR)


class SqueezeNet:
    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self.weights = {name: torch.from_numpy(arrays[name]) for name in arrays}

    def conv(self, x, name, **options):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.relu(F.conv2d(x, weight, bias, **options))

    def fire(self, x, name):
        x = self.conv(x, f"{name}/conv1x1_1")
        wide = self.conv(x, f"{name}/conv3x3_2", padding=1)
        return torch.cat([self.conv(x, f"{name}/conv1x1_2"), wide], dim=1)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 1000) of crops (N, 3, 227, 227)."""
        x = F.max_pool2d(self.conv(x, "conv1", stride=2), 3, 2, ceil_mode=True)
        for i in range(2, 10):
            x = self.fire(x, f"fire{i}")
            if i in (4, 8):
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        # The published network pads its 1 x 1 convolution by one, so the mean has 15 x 15 places.
        return self.conv(x, "conv_final", padding=1).mean(dim=(2, 3))
