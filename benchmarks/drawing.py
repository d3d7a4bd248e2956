"""Drawing the embedded data set, beside its random numbers alone.

Every value of a picture has a normal number of its own, in the order of NumPy's generator: without
other pictures, none can be drawn faster than these are made. One process; JPEG files of the quality
that the set has are encoded into memory.
"""

import argparse
import io

import numpy as np

from benchmarks.measure import Row, interleaved
from data_prep.sources.toy import CLASS_NAMES, draw_picture

DRAWING, WITH_FILES, NUMBERS = "drawing", "drawing and encoding", "normal numbers alone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--pictures", type=int, default=100, help="a call; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows."""

    def draw(*, is_encoded: bool) -> None:
        for i in range(arguments.pictures):
            rng = np.random.default_rng(i)
            picture, _ = draw_picture(rng, label=i % len(CLASS_NAMES))
            if is_encoded:
                picture.save(io.BytesIO(), "JPEG", quality=int(rng.integers(75, 96)))

    sizes = []
    for i in range(arguments.pictures):
        picture, _ = draw_picture(np.random.default_rng(i), label=i % len(CLASS_NAMES))
        sizes.append(3 * picture.width * picture.height)
    out = np.empty(max(sizes))

    def numbers() -> None:
        for i, size in enumerate(sizes):
            np.random.default_rng(i).standard_normal(out=out[:size])

    medians = interleaved(
        {
            DRAWING: lambda: draw(is_encoded=False),
            WITH_FILES: lambda: draw(is_encoded=True),
            NUMBERS: numbers,
        },
        rounds=arguments.rounds,
        seconds=120.0,
    )
    speeds = {name: arguments.pictures / seconds for name, seconds in medians.items()}
    rows = [Row(name, speed, "pictures/s") for name, speed in speeds.items()]
    ratio = speeds[DRAWING] / speeds[NUMBERS]
    return [*rows, Row(f"{DRAWING} / {NUMBERS}", speeds[DRAWING], "pictures/s", NUMBERS, ratio)]
