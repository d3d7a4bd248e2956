"""How badly a linear classifier on raw pixels does: `python -m benchmarks.linear_baseline --help`.

Ridge regression to one-hot labels, on every S-th pixel of the 256 x 256 images, for several S and
penalties; the best of all, chosen on the validation images themselves, is a bound in its favour.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from data_prep.shards import Part, open_data_set

STRIDES = (4, 8, 16)
PENALTIES = (1e2, 1e3, 1e4, 1e5)


def pixels(part: Part, stride: int) -> np.ndarray:
    """Every `stride`-th pixel of each image: float64 (N, features)."""
    rows = [part.image(row)[::stride, ::stride].reshape(-1) for row in range(len(part))]
    return np.stack(rows).astype(np.float64)


def main() -> None:
    """Prints one JSON object with the error of each setting and the best one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.linear_baseline", description=main.__doc__
    )
    parser.add_argument("--data", type=Path, default=Path("shards"), help="default: %(default)s")
    arguments = parser.parse_args()
    data = open_data_set(arguments.data)
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
    result = {
        "manifest_sha256": data.manifest_sha256,
        "num_train": len(data.train),
        "num_val": len(data.val),
        "top1_errors": errors,
        "best_top1_error": min(errors.values()),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
