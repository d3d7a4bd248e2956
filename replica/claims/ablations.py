"""The claims of the paper that have a sign: a network with and without one thing, over seeds.

At full scale the network is `paper` on ILSVRC-2012, at small scale `mini64` on pictures of 64 x 64.
Both arms of a pair share their seed, and so first weights (of equal layers), crops, reflections and
colors; the pairs are what is compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from replica import paper
from replica.claims.statistics import Difference, paired_difference
from replica.claims.trials import Outcome, Trial
from replica.recipes import Recipe, find_recipe

BASE = "base"
RECIPES = {"small": "mini64", "full": "paper"}
NAMES = {"small": "ablations", "full": "ablations-full"}
# Of the first look at how fast training starts (paper 5: "the early stages of learning").
EARLY_EPOCH = 1
# Up to so many times as often right as by chance is chance.
CHANCE_MARGIN = 1.2


def held_out_error(outcome: Outcome) -> float:
    """Top-1 error on the held-out part after the last epoch, central crop; 1 where it diverged."""
    return outcome.val_top1[-1] if outcome.outcome != "diverged" else 1.0


def training_error(outcome: Outcome) -> float:
    """Top-1 error over the steps of the last epoch."""
    return outcome.train_errors[-1] if outcome.outcome != "diverged" else 1.0


def early_error(outcome: Outcome) -> float:
    """Top-1 error on the held-out part after the first epoch."""
    return outcome.val_top1[EARLY_EPOCH - 1] if outcome.val_top1 else 1.0


def overfitting(outcome: Outcome) -> float:
    """How much more of the held-out part than of the training images is wrong at the end."""
    return held_out_error(outcome) - training_error(outcome)


def _half(recipe: Recipe) -> list[str]:
    """One tower with half the kernels; conv5 and the fully connected layers as they were (3.2)."""
    narrower = [f"{conv.name}.num_kernels={conv.num_kernels // 2}" for conv in recipe.convs[:-1]]
    return ["towers=1", *narrower]


def _zero_biases(recipe: Recipe) -> list[str]:
    return [f"{layer.name}.bias=0" for layer in recipe.layers if layer.bias]


def _no_normalization(recipe: Recipe) -> list[str]:
    return [f"{conv.name}.normalization=none" for conv in recipe.convs if conv.normalization]


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What is taken away, and what the paper says comes of it.

    Attributes:
        name: of the arm.
        sentence: what of the paper it tests, in few words.
        changes: of the recipe.
        added_at_small: changes where the small network lacks the thing: then they add it, and the
            arms change places.
        measure: of a run, a fraction; the paper says that it is larger in this arm.
        of: what the measure is, in words.
        paper: by how many points, as the paper has it.
        limit: what small scale cannot show of it.
    """

    name: str
    sentence: str
    changes: Callable[[Recipe], list[str]]
    added_at_small: tuple[str, ...] = ()
    measure: Callable[[Outcome], float] = held_out_error
    of: str = "top-1 error"
    paper: float | None = None
    limit: str = ""

    def is_added(self, scale: str) -> bool:
        """Whether its arm has the thing, and the base does not."""
        return scale == "small" and bool(self.added_at_small)

    def changes_at(self, scale: str, recipe: Recipe) -> tuple[str, ...]:
        """What its arm changes."""
        return self.added_at_small if self.is_added(scale) else tuple(self.changes(recipe))


def _fixed(*changes: str) -> Callable[[Recipe], list[str]]:
    return lambda _: list(changes)


_LONG = "twelve epochs are few to overfit in"
ABLATIONS = (
    Ablation(
        name="no-normalization",
        sentence="without local response normalization",
        changes=_no_normalization,
        paper=paper.POINTS_OF_NORMALIZATION,
    ),
    Ablation(
        name="no-overlap",
        sentence="with pooling that does not overlap, z = 2",
        changes=_fixed("pool_window=2"),
        paper=paper.POINTS_OF_OVERLAP,
        limit="an effect of 0.4 points is less than it can detect",
    ),
    Ablation(
        name="no-color-noise",
        sentence="without color noise",
        changes=_fixed("color_noise=0"),
        paper=paper.POINTS_OF_COLOR_NOISE,
        limit=_LONG,
    ),
    Ablation(
        name="no-crops",
        sentence="without random crops",
        changes=_fixed("random_crops=false"),
        limit=_LONG,
    ),
    Ablation(
        name="no-flips",
        sentence="without reflections",
        changes=_fixed("random_flips=false"),
        limit=_LONG,
    ),
    Ablation(
        name="dropout",
        sentence="without dropout",
        changes=_fixed("dropout_keep=1"),
        added_at_small=(f"dropout_keep={paper.DROPOUT_KEEP}",),
        measure=overfitting,
        of="top-1 error beyond that of training",
        limit="the training error is that with dropout at work; " + _LONG,
    ),
    Ablation(
        name="no-weight-decay",
        sentence="without weight decay",
        changes=_fixed("weight_decay=0"),
        measure=training_error,
        of="training error",
        limit="in so few steps decay takes less than a percent of a weight",
    ),
    Ablation(
        name="half",
        sentence="with one tower and half the kernels",
        changes=_half,
        paper=paper.POINTS_OF_TWO_TOWERS,
    ),
    Ablation(
        name="no-conv3",
        sentence="without conv3",
        changes=_fixed("without=conv3"),
    ),
    Ablation(
        name="no-conv4",
        sentence="without conv4",
        changes=_fixed("without=conv4"),
        paper=paper.POINTS_OF_A_MIDDLE_LAYER,
    ),
    Ablation(
        name="zero-biases",
        sentence="with biases that begin at zero",
        changes=_zero_biases,
        measure=early_error,
        of="top-1 error after the first epoch",
    ),
)


def plan(
    finished: Mapping[str, Outcome], *, scale: str, seeds: Sequence[int], names: Sequence[str] = ()
) -> list[Trial]:
    """Seed by seed the base and each ablation, all or those that are named."""
    recipe = find_recipe(RECIPES[scale])
    arms = {BASE: ()} | {
        x.name: x.changes_at(scale, recipe) for x in ABLATIONS if not names or x.name in names
    }
    return [
        Trial(
            experiment=NAMES[scale],
            arm=arm,
            recipe=recipe.name,
            changes=changes,
            seed=seed,
            epochs=recipe.epochs,
            ten_crop=arm == BASE,
        )
        for seed in seeds
        for arm, changes in arms.items()
    ]


def seeds_of(finished: Mapping[str, Outcome], arm: str) -> dict[int, Outcome]:
    """The finished runs of an arm by their seeds."""
    return {x.trial.seed: x for x in finished.values() if x.trial.arm == arm}


def is_at_chance(outcome: Outcome) -> bool:
    """Whether a trained network is right no more often than one that guesses."""
    return 1 - held_out_error(outcome) <= CHANCE_MARGIN / outcome.num_classes


def arm_at_chance(ablation: Ablation, finished: Mapping[str, Outcome]) -> str | None:
    """The arm of a comparison of which every run is at chance, if there is one."""
    for arm in (ablation.name, BASE):
        runs = seeds_of(finished, arm).values()
        if runs and all(map(is_at_chance, runs)):
            return arm
    return None


def difference_of(
    ablation: Ablation, finished: Mapping[str, Outcome], *, scale: str
) -> Difference | None:
    """How much larger its measure is without, in points; None where no seed has both arms."""
    base, without = seeds_of(finished, BASE), seeds_of(finished, ablation.name)
    if ablation.is_added(scale):
        base, without = without, base
    seeds = sorted(base.keys() & without.keys())
    if not seeds:
        return None
    ones, others = ([100 * ablation.measure(runs[s]) for s in seeds] for runs in (without, base))
    return paired_difference(ones, others)


def ten_crop_gain(finished: Mapping[str, Outcome], *, top: int = 1) -> Difference | None:
    """How many points the central crop has more errors than ten crops, of the base's runs."""
    runs = [run for run in seeds_of(finished, BASE).values() if run.ten_crop is not None]
    if not runs:
        return None
    field = "val_top1" if top == 1 else "val_top5"
    center = [100 * getattr(run, field)[-1] for run in runs]
    ten = [100 * run.ten_crop[0 if top == 1 else 1] for run in runs if run.ten_crop]
    return paired_difference(center, ten)
