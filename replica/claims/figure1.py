"""Figure 1: epochs to 25 % training error on CIFAR-10, with ReLU and with tanh (3.1).

"The learning rates for each network were chosen independently to make training as fast as
possible": rates are tried from a middle one outward with a seed of their own, until the best of
them has a slower one on either side; then every seed runs with it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replica import paper
from replica.claims.statistics import paired_difference
from replica.claims.trials import Outcome, Trial

NAME = "figure1"
ACTIVATIONS = ("relu", "tanh")
# Rates of weights, each twice the one before; biases have twice as much, as in the source.
FIRST_RATES = (0.001, 0.002, 0.004)
MOST_RATES = 8
SCAN_SEED = 0
SCAN_EPOCHS = 6
MOST_EPOCHS = 100


def _trial(activation: str, rate: float, *, seed: int, epochs: int) -> Trial:
    return Trial(
        experiment=NAME,
        arm=f"{activation}-rate-{rate:g}",
        recipe=f"figure1-{activation}",
        changes=(f"learning_rate={rate:g}", f"bias_learning_rate={2 * rate:g}"),
        seed=seed,
        epochs=epochs,
        until=paper.FIGURE_1_TRAINING_ERROR,
    )


def speed(outcome: Outcome) -> tuple[float, float]:
    """What is less is faster: epochs to the target, then the training error of the last epoch."""
    if outcome.outcome == "diverged" or not outcome.train_errors:
        return math.inf, math.inf
    reached_at = math.inf if outcome.reached_at is None else outcome.reached_at
    return reached_at, outcome.train_errors[-1]


def chosen_rate(
    activation: str, finished: Mapping[str, Outcome]
) -> tuple[float | None, list[Trial]]:
    """The fastest rate, or None as long as trials of the scan are missing; and all of the scan."""
    rates = list(FIRST_RATES)
    while True:
        scan = {r: _trial(activation, r, seed=SCAN_SEED, epochs=SCAN_EPOCHS) for r in rates}
        trials = [scan[rate] for rate in sorted(rates)]
        if any(trial.name not in finished for trial in trials):
            return None, trials
        best = min(rates, key=lambda rate: speed(finished[scan[rate].name]))
        if min(rates) < best < max(rates) or len(rates) == MOST_RATES:
            return best, trials
        rates.append(best / 2 if best == min(rates) else best * 2)


def plan(finished: Mapping[str, Outcome], *, seeds: Sequence[int]) -> list[Trial]:
    """The scans of both networks, then for every seed both, side by side."""
    trials, rates = [], {}
    for activation in ACTIVATIONS:
        rates[activation], scan = chosen_rate(activation, finished)
        trials += scan
    for seed in seeds:
        for activation, rate in rates.items():
            if rate is not None:
                trials.append(_trial(activation, rate, seed=seed, epochs=MOST_EPOCHS))
    return trials


@dataclass(frozen=True)
class Figure1:
    """What the runs say.

    Attributes:
        rates: chosen, by activation.
        outcomes: of the runs with the chosen rate, by activation and seed, those of the scan left
            out.
        epochs: to the target by activation, of the seeds that both have; one that never reached it
            counts with all its epochs.
        factor, low, high: how many times more epochs tanh needs: geometric mean and its interval.
        p: of the paired t test of the logarithms.
        is_bound: whether some run never reached the target, so the factor is at least so large.
    """

    rates: dict[str, float]
    outcomes: dict[str, dict[int, Outcome]]
    epochs: dict[str, list[float]]
    factor: float
    low: float
    high: float
    p: float
    is_bound: bool


def result(finished: Mapping[str, Outcome]) -> Figure1 | None:
    """What the finished runs come to; None as long as there is no seed that both have."""
    rates, outcomes = {}, {}
    for activation in ACTIVATIONS:
        rate, _ = chosen_rate(activation, finished)
        if rate is None:
            return None
        arm = _trial(activation, rate, seed=1, epochs=MOST_EPOCHS).arm
        runs = [x for x in finished.values() if x.trial.arm == arm]
        outcomes[activation] = {x.trial.seed: x for x in runs if x.trial.seed != SCAN_SEED}
        rates[activation] = rate
    seeds = sorted(set.intersection(*(set(runs) for runs in outcomes.values())))
    if not seeds:
        return None
    pairs = {name: [runs[seed] for seed in seeds] for name, runs in outcomes.items()}
    epochs = {name: [_epochs(run) for run in runs] for name, runs in pairs.items()}
    logs = {name: [math.log(x) for x in values] for name, values in epochs.items()}
    difference = paired_difference(logs["tanh"], logs["relu"])
    return Figure1(
        rates,
        outcomes,
        epochs,
        factor=math.exp(difference.mean),
        low=math.exp(difference.low),
        high=math.exp(difference.high),
        p=difference.p,
        is_bound=any(run.reached_at is None for runs in pairs.values() for run in runs),
    )


def _epochs(outcome: Outcome) -> float:
    return (
        outcome.steps / outcome.steps_per_epoch
        if outcome.reached_at is None
        else outcome.reached_at
    )
