"""Exact nearest neighbors among vectors in a file, against the product of matrices alone.

The vectors are rectified normal numbers, so distances are close to each other, and are read from a
temporary file in chunks. The product is that of the same sizes, from memory.
"""

import argparse
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Row, interleaved, rows_of, say
from replica import paper
from replica.results.neighbors import NeighborSearch

CHUNK = 1024  # vectors that are read at once: 17 MB
OURS, PRODUCT = "NeighborSearch", "the product alone"
NUM_NEIGHBORS = 6  # as in Figure 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--queries", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--vectors", type=int, default=128_000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="default: one per core")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dimensions = paper.FC_UNITS[-1]
    generator = torch.Generator().manual_seed(0)

    def vectors(count: int) -> torch.Tensor:
        return torch.randn(count, dimensions, generator=generator).relu_()

    queries = vectors(arguments.queries)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "vectors"
        say(f"writing {arguments.vectors * dimensions * 4 / 1e9:.1f} GB")
        with path.open("wb") as file:
            for begin in range(0, arguments.vectors, CHUNK):
                vectors(min(CHUNK, arguments.vectors - begin)).numpy().tofile(file)

        def chunks() -> Iterator[torch.Tensor]:
            with path.open("rb") as file:
                while len(numbers := np.fromfile(file, np.float32, CHUNK * dimensions)):
                    yield torch.from_numpy(numbers).view(-1, dimensions)

        def search() -> None:
            found = NeighborSearch(queries, k=NUM_NEIGHBORS)
            for chunk in chunks():
                found.add(chunk)

        def product() -> None:
            for begin in range(0, arguments.vectors, CHUNK):
                torch.mm(queries, chunk[: arguments.vectors - begin].T)

        chunk = vectors(CHUNK)
        medians = interleaved(
            {OURS: search, PRODUCT: product}, rounds=arguments.rounds, seconds=300.0
        )
    rows = rows_of(medians, baselines={OURS: PRODUCT}, unit="s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    note = "of the process, with Python, PyTorch and the queries"
    return [*rows, Row("most memory", peak, "MB", note=note)]
