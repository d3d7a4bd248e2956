"""The 2012 AlexNet, rebuilt so that anybody can check it; `python -m replica` lists commands.

model = replica.load("runs/first/best.pt")
model.predict("cat.jpg", top=5)
model.features("cat.jpg", layer="fc7")
net = replica.build("paper", num_classes=10)
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from data_prep import require_environment

if TYPE_CHECKING:
    from replica.feed.dataset import ShardDataset
    from replica.feed.transforms import (
        CenterCrop,
        ColorNoise,
        RandomCropAndFlip,
        SubtractMean,
        TenCrop,
    )
    from replica.network.initialization import build
    from replica.recipes import RECIPES, with_changes
    from replica.results.prediction import TrainedNetwork, load
    from replica.training.optimizer import PaperSGD

# `python -m` imports this package before the command, which then says for itself what it lacks.
if sys.argv[0] != "-m":
    require_environment(__name__, "torch")

__version__ = "0.1.0"

# Where the public names are. They are imported when they are first used: PyTorch takes seconds.
_MODULES = {
    "RECIPES": "replica.recipes",
    "CenterCrop": "replica.feed.transforms",
    "ColorNoise": "replica.feed.transforms",
    "PaperSGD": "replica.training.optimizer",
    "RandomCropAndFlip": "replica.feed.transforms",
    "ShardDataset": "replica.feed.dataset",
    "SubtractMean": "replica.feed.transforms",
    "TenCrop": "replica.feed.transforms",
    "TrainedNetwork": "replica.results.prediction",
    "build": "replica.network.initialization",
    "load": "replica.results.prediction",
    "with_changes": "replica.recipes",
}
__all__ = [
    "RECIPES",
    "CenterCrop",
    "ColorNoise",
    "PaperSGD",
    "RandomCropAndFlip",
    "ShardDataset",
    "SubtractMean",
    "TenCrop",
    "TrainedNetwork",
    "build",
    "load",
    "with_changes",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> "list[str]":  # in quotes, so that an old Python reads this far
    return sorted({*globals(), *__all__})
