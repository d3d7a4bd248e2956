"""Several networks as one: the weighted mean of their probabilities (paper 6, "5 CNNs").

M members, N images, K classes.
"""

import math
from collections.abc import Sequence

import torch

from data_prep.errors import UserError
from replica.training.evaluation import count_on_device

EQUAL, SEARCH = "equal", "search"
# The source of 2012 tries the weights 0, 0.05, ..., 1 of one member after the other.
STEPS = 20
ROWS_AT_ONCE = 1 << 12


def read_weights(text: str, num_members: int) -> list[float]:
    """The weights between commas, divided by their sum; `equal` gives all the same.

    Raises:
        UserError: they are not one number for each member, none below 0 and one above.
    """
    if text == EQUAL:
        return [1 / num_members] * num_members
    try:
        weights = [float(word) for word in text.split(",")]
        is_right = all(0 <= weight < math.inf for weight in weights) and 0 < sum(weights) < math.inf
    except ValueError:
        is_right, weights = False, []
    if not is_right or len(weights) != num_members:
        raise UserError(
            f"--weights-of {text}: expected {EQUAL}, {SEARCH}, or a number for each of "
            f"{num_members} --checkpoint between commas, none below 0 and one above"
        )
    return [weight / sum(weights) for weight in weights]


def weighted_mean(members: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The sum of weight times probabilities (N, K); of one member, its own bits."""
    if len(members) == 1:
        return members[0]
    return torch.stack([weight * one for weight, one in zip(weights, members, strict=True)]).sum(0)


def search_weights(members: Sequence[torch.Tensor], labels_N: torch.Tensor) -> list[float]:
    """The weights with the lowest top-5 error, one coordinate after the other as in the source.

    From equal weights on, each member's weight becomes the best of 0, 0.05, ..., 1 while the others
    stay; of equally good ones it keeps its own, else takes the smallest. It ends with a round that
    changes nothing. What the source starts from and how it ends is not known.

    Args:
        members: M times the probabilities (N, K) of the same images.
        labels_N: int64 (N,).

    Returns:
        M weights, divided by their sum.
    """
    places = [STEPS] * len(members)
    most = _top5(members, places, labels_N)
    is_changed = True
    while is_changed:
        is_changed = False
        for number in range(len(members)):
            for place in range(STEPS + 1):
                tried = [*places[:number], place, *places[number + 1 :]]
                if place == places[number] or not any(tried):
                    continue
                correct = _top5(members, tried, labels_N)
                if correct > most:
                    most, places, is_changed = correct, tried, True
    return [place / sum(places) for place in places]


def _top5(members: Sequence[torch.Tensor], places: list[int], labels_N: torch.Tensor) -> float:
    """How many images have their label among the five most probable classes."""
    correct = 0.0
    for begin in range(0, len(labels_N), ROWS_AT_ONCE):
        here = slice(begin, begin + ROWS_AT_ONCE)
        mean = weighted_mean([one[here] for one in members], [x / sum(places) for x in places])
        correct += float(count_on_device(mean, labels_N[here])[1])
    return correct
