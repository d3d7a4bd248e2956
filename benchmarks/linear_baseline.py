"""How badly a linear classifier on raw pixels does.

Ridge regression to one-hot labels, on every S-th pixel of the 256 x 256 images, for several S and
penalties; the best of all, chosen on the validation images themselves, is a bound in its favor.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, say
from data_prep.shards import Part, open_data_set

STRIDES = (4, 8, 16)
PENALTIES = (1e2, 1e3, 1e4, 1e5)


def pixels(part: Part, stride: int) -> np.ndarray:
    """Every `stride`-th pixel of each image: float64 (N, features)."""
    rows = [part.image(row)[::stride, ::stride].reshape(-1) for row in range(len(part))]
    return np.stack(rows).astype(np.float64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--data", type=Path, default=Path("shards"), help="default: %(default)s")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """The top-1 error of each setting, and the best one."""
    data = open_data_set(arguments.data)
    say(f"{len(data.train)} train and {len(data.val)} val images, {data.manifest_sha256}")
    targets = np.eye(len(data.wnids))[data.train.labels] - 1 / len(data.wnids)
    errors = {}
    for stride in STRIDES:
        train, val = pixels(data.train, stride), pixels(data.val, stride)
        mean = train.mean(axis=0)
        train, val = (train - mean) / 64, (val - mean) / 64
        kernel, val_kernel = train @ train.T, val @ train.T
        for penalty in PENALTIES:
            weights = np.linalg.solve(kernel + penalty * np.eye(len(train)), targets)
            wrong = (val_kernel @ weights).argmax(axis=1) != data.val.labels
            errors[f"stride {stride}, penalty {penalty:g}"] = float(wrong.mean())
    chance = 1 - 1 / len(data.wnids)
    rows = [Row("chance", chance, "top-1 error")]
    errors["best"] = min(errors.values())
    for name, error in errors.items():
        rows.append(Row(name, error, "top-1 error", "chance", error / chance))
    return rows
