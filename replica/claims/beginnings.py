"""Does the text train at all, and which difference from the source decides how soon?

At small scale: `mini64`, which has no dropout, with the first weights that the paper's gains give
it, which is how narrow a network of the text begins; the same with the text's dropout; then the
source's values, one at a time and all together. What is looked at is when the training loss leaves
ln(classes).
"""

import math
from collections.abc import Mapping, Sequence

from replica import paper
from replica.claims.ablations import held_out_error
from replica.claims.statistics import paired_difference
from replica.claims.trials import Outcome, Trial, seed_by_seed
from replica.recipes import find_recipe
from replica.recipes.changes import with_gain_of_paper
from replica.recipes.recipe import layer_names

NAME = "beginnings"
RECIPE = "mini64"
TEXT, DROPOUT, SOURCE = "text", "text-with-dropout", "source"
# So much below ln(classes), in nats, a mean over an epoch is no chance.
LEFT = 0.05
# Of conv3 to conv5, 0.03 in the source for 0.01 in the text; the biases' rate over the weights'.
_WIDER, _BIAS_RATE = 3, 2
_WIDER_LAYERS = ("conv3", "conv4", "conv5")
_POOLED_FIRST = "normalization,pooling,activation"
# The fields that an arm changes, as `replica.recipes diff paper source-2012` names them.
_FIELDS = {
    "alpha": ("lrn_alpha",),
    "bias-rate": ("bias_learning_rate",),
    "order": ("conv1.order",),
    "same-map": ("conv2.normalization",),
    "color": ("color_scale", "color_division"),
    "wider": tuple(f"{layer}.weight_standard_deviation" for layer in _WIDER_LAYERS),
}


def arms() -> dict[str, tuple[str, ...]]:
    """Changes of `mini64` by arm: the text, with its dropout, one difference each, the source."""
    recipe = find_recipe(RECIPE)
    text = with_gain_of_paper(recipe, layer_names(recipe))
    deviations = {x.name: x.weight_standard_deviation for x in text.layers}

    def drawn(factors: Mapping[str, float]) -> tuple[str, ...]:
        return tuple(
            f"{name}.weight_standard_deviation={deviation * factors.get(name, 1):.6g}"
            for name, deviation in deviations.items()
        )

    first = drawn({})
    wider = drawn(dict.fromkeys(_WIDER_LAYERS, _WIDER))
    differences = {
        "alpha": (f"lrn_alpha={paper.LRN_ALPHA / paper.LRN_N:g}",),
        "bias-rate": (f"bias_learning_rate={_BIAS_RATE * recipe.learning_rate:g}",),
        "order": (f"conv1.order={_POOLED_FIRST}",),
        "same-map": ("conv2.normalization=lrn,same-map",),
        "color": ("color_scale=standard-deviations", "color_division=true"),
    }
    others = ("pool_ties=all", "shared_crops=32", "mean=center")
    everything = tuple(change for changes in differences.values() for change in changes)
    return {
        TEXT: first,
        DROPOUT: (*first, f"dropout_keep={paper.DROPOUT_KEEP}"),
        "wider": wider,
        **{name: (*first, *changes) for name, changes in differences.items()},
        SOURCE: (*wider, *everything, *others),
    }


def plan(finished: Mapping[str, Outcome], *, seeds: Sequence[int]) -> list[Trial]:
    """Seed by seed all arms."""
    return seed_by_seed(NAME, find_recipe(RECIPE), arms(), seeds=seeds)


def left_after(outcome: Outcome) -> int | None:
    """The first epoch whose mean training loss was below ln(classes)."""
    for epoch, loss in enumerate(outcome.train_losses, start=1):
        if loss is not None and loss <= math.log(outcome.num_classes) - LEFT:
            return epoch
    return None


def by_arm(finished: Mapping[str, Outcome]) -> dict[str, list[Outcome]]:
    """The finished runs of each arm, in the order of their seeds."""
    runs: dict[str, list[Outcome]] = {arm: [] for arm in arms()}
    for outcome in sorted(finished.values(), key=lambda x: x.trial.seed):
        runs[outcome.trial.arm].append(outcome)
    return runs


def effects(finished: Mapping[str, Outcome]) -> dict[str, str]:
    """What each field of the source alone did to the text's top-1 error, in words, by its name."""
    runs = {arm: {x.trial.seed: x for x in of} for arm, of in by_arm(finished).items()}
    found: dict[str, str] = {}
    for arm, fields in _FIELDS.items():
        seeds = sorted(runs[arm].keys() & runs[TEXT].keys())
        if not seeds:
            continue
        errors = ([100 * held_out_error(runs[x][seed]) for seed in seeds] for x in (arm, TEXT))
        effect = paired_difference(*errors)
        sentence = f"{RECIPE}: {effect.mean:+.1f} points of top-1 error"
        if effect.n > 1:
            sentence += f" ({effect.low:+.1f} to {effect.high:+.1f})"
        sentence += f", n = {effect.n}"
        if len(fields) > 1:
            sentence += "; set together: " + ", ".join(f"`{x}`" for x in fields)
        found |= dict.fromkeys(fields, sentence)
    return found
