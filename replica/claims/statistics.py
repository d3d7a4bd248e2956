"""Differences over seeds: how large, how sure, and whether their sign is the paper's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Paired differences over seeds, in the unit of what was compared.

    Attributes:
        n: pairs.
        mean, deviation: of the differences; the deviation is that of a sample.
        low, high: of the mean, by Student's t; infinite where n is 1.
        p: of the paired t test, two-sided; 1 where n is 1.
    """

    n: int
    mean: float
    deviation: float
    low: float
    high: float
    p: float

    @property
    def is_apart_from_zero(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def paired_difference(ones: Sequence[float], others: Sequence[float]) -> Difference:
    """What the first are more than the second, pair by pair.

    Raises:
        ValueError: there is no pair, or one without a partner.
    """
    if len(ones) != len(others) or not ones:
        raise ValueError(f"expected pairs, got {len(ones)} and {len(others)} values")
    differences = [one - other for one, other in zip(ones, others, strict=True)]
    n = len(differences)
    mean = math.fsum(differences) / n
    if n == 1:
        return Difference(1, mean, math.nan, -math.inf, math.inf, 1.0)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in differences) / (n - 1))
    error = deviation / math.sqrt(n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return Difference(n, mean, deviation, mean - half, mean + half, p)


def least_detectable(*, n: int, num_images: int, error: float) -> float:
    """The smallest difference of two error rates whose interval would leave zero out.

    Before anything has run: as if both rates were `error`, counted on `num_images` images, with
    nothing but chance in them, and independent of each other. Seeds in common make it less,
    differences between seeds more.
    """
    of_one = math.sqrt(2 * error * (1 - error) / num_images)
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * of_one / math.sqrt(n)
