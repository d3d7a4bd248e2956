"""The training images whose features are nearest to an image's (paper 6.1).

Q queries, M vectors of a chunk, D dimensions, k neighbors.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

UNIT = 2.0**-24  # the rounding of a float32
# Estimates are made for so many pairs of query and vector at once (16 MB), norms and exact
# distances from so many numbers (32 vectors of the paper's 4096 dimensions, which the cache holds).
PAIRS_AT_ONCE, NUMBERS_AT_ONCE = 1 << 22, 1 << 17


@dataclass(frozen=True)
class Neighbors:
    """The nearest of all vectors that a search was shown.

    Attributes:
        rows: int64 (Q, k), their places in the order in which they came, the nearest first; of
            equal distances the lower row.
        distances: float64 (Q, k), Euclidean.
    """

    rows: np.ndarray
    distances: np.ndarray


class NeighborSearch:
    """Finds nearest neighbors among vectors that come in chunks and are not kept.

    A product of matrices in float32 gives a lower bound of each distance; where the bound does not
    rule a vector out, its distance is computed in float64 from the differences. So the result is
    that of comparing all distances in float64, at the cost of the product.

    Args:
        queries: float32 (Q, D), finite.
        k: how many neighbors; fewer where there are fewer vectors.
    """

    def __init__(self, queries: torch.Tensor, *, k: int) -> None:
        self._queries, self._k = queries, k
        self._distances = np.full((len(queries), k), np.inf)  # squared
        self._rows = np.full((len(queries), k), -1)
        self._num_vectors = 0
        # Of a sum of D products, and of what is added to it, relative to |q|^2 + |x|^2.
        self._error = 2 * (queries.shape[1] + 4) * UNIT
        self._norms = queries.double().square().sum(1)
        self._check(self._norms, "queries")

    def add(self, vectors_MD: torch.Tensor) -> None:
        """Compares a chunk of any length, float32 (M, D), with all queries.

        Raises:
            ValueError: it is not finite.
        """
        length = max(1, PAIRS_AT_ONCE // len(self._queries))
        for chunk in vectors_MD.split(length):
            self._add(chunk)

    def result(self) -> Neighbors:
        """The nearest of all that were added."""
        k = min(self._k, self._num_vectors)
        return Neighbors(self._rows[:, :k], np.sqrt(self._distances[:, :k]))

    def _add(self, chunk_MD: torch.Tensor) -> None:
        step = max(1, NUMBERS_AT_ONCE // max(1, chunk_MD.shape[1]))
        norms_M = torch.cat([some.square().sum(1) for some in chunk_MD.split(step)])
        self._check(norms_M, "vectors")
        # |x|^2 - 2 q x, less what rounding may have added for the part of x.
        low_QM = torch.addmm(norms_M * (1 - self._error), self._queries, chunk_MD.T, alpha=-2.0)
        farthest = torch.from_numpy(self._distances[:, -1])
        if farthest.isinf().any() and len(chunk_MD) >= self._k:
            nearest = low_QM.topk(self._k, dim=1, largest=False).values[:, -1].double()
            at_most = nearest + 2 * self._error * (norms_M.max() + self._norms) + self._norms
            farthest = torch.minimum(farthest, at_most)
        limits = farthest - self._norms * (1 - self._error)
        # Up to the next float32, so that the comparison does not lose what rounding takes.
        limits = torch.nextafter(limits.float(), torch.tensor(math.inf))
        of_query, of_chunk = (low_QM <= limits[:, None]).nonzero(as_tuple=True)
        distances = np.empty(len(of_query))
        for begin in range(0, len(of_query), step):
            here = slice(begin, begin + step)
            differences = self._queries[of_query[here]].double() - chunk_MD[of_chunk[here]].double()
            distances[here] = differences.square_().sum(1).numpy()
        self._merge(of_query.numpy(), self._num_vectors + of_chunk.numpy(), distances)
        self._num_vectors += len(chunk_MD)

    def _merge(self, of_query: np.ndarray, rows: np.ndarray, distances: np.ndarray) -> None:
        """Takes the nearest of those so far and of the new ones."""
        if not len(rows):
            return
        num_queries = len(self._queries)
        of_query = np.concatenate([np.repeat(np.arange(num_queries), self._k), of_query])
        # What is not known yet stands last.
        rows = np.concatenate([self._rows.ravel(), rows])
        distances = np.concatenate([self._distances.ravel(), distances])
        order = np.lexsort((rows, distances, of_query))
        begins = np.searchsorted(of_query[order], np.arange(num_queries))
        chosen = order[begins[:, None] + np.arange(self._k)]
        self._rows, self._distances = rows[chosen], distances[chosen]

    @staticmethod
    def _check(norms: torch.Tensor, what: str) -> None:
        if not norms.isfinite().all():
            raise ValueError(f"expected {what} of finite numbers and norms, got others")
