"""Figure 3: has one tower the kernels without color and the other those with it, in every run?

At small scale: `mini64` with half of the paper's first kernels, once as it is and once with towers
that meet in the logits alone, as in `source-2012-no-communication`. Which tower is which does not
matter; a run counts as divided where the kernels of its towers differ in color by more than chance
does once in twenty times.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from replica import paper
from replica.claims.trials import Outcome, Trial, seed_by_seed
from replica.recipes import find_recipe

NAME = "towers"
RECIPE = "mini64"
TOGETHER, APART = "together", "apart"
NUM_KERNELS = paper.CONV_KERNELS[0] // 2
CHANCE = 0.05


def arms() -> dict[str, tuple[str, ...]]:
    """Changes of `mini64` by arm: towers that communicate, and towers that do not."""
    recipe = find_recipe(RECIPE)
    first, second = recipe.convs[:2]
    # conv2 reads more kernels: with so much less of each, its sums stay as large.
    less = math.sqrt(first.num_kernels / NUM_KERNELS)
    wide = (
        f"conv1.num_kernels={NUM_KERNELS}",
        f"conv2.weight_standard_deviation={second.weight_standard_deviation * less:.6g}",
    )
    readers = [layer.name for layer in recipe.layers[1:-1] if layer.reads_both_towers]
    return {
        TOGETHER: wide,
        APART: (*wide, *(f"{name}.reads_both_towers=false" for name in readers)),
    }


def plan(finished: Mapping[str, Outcome], *, seeds: Sequence[int]) -> list[Trial]:
    """Seed by seed both arms."""
    return seed_by_seed(NAME, find_recipe(RECIPE), arms(), seeds=seeds, colors=True)


@dataclass(frozen=True)
class Colors:
    """The color of a run's first kernels.

    Attributes:
        means: of each tower's kernels, 0 (gray) to 1.
        p: how often kernels that are dealt to towers at random differ as much, by their ranks.
    """

    means: tuple[float, float]
    p: float

    @property
    def is_divided(self) -> bool:
        """Whether one tower has more color than chance gives it."""
        return self.p < CHANCE


def colors_of(finished: Mapping[str, Outcome], arm: str) -> list[Colors]:
    """The runs of an arm in the order of their seeds, without those that diverged."""
    runs = sorted((x for x in finished.values() if x.trial.arm == arm), key=lambda x: x.trial.seed)
    found = []
    for run in runs:
        if run.color_energy is not None:
            one, other = run.color_energy
            p = float(stats.mannwhitneyu(one, other).pvalue)
            found.append(Colors((math.fsum(one) / len(one), math.fsum(other) / len(other)), p))
    return found
