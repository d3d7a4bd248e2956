"""What a run's schedule sets, step by step: learning rates and color noise (paper 5).

Three things change them: the recipe's rule for the drops, the changes that the recipe lists by
epoch, and changes by hand (`python -m replica.control`), which are logged with their step. What is
in force at a step is a pure function of the recipe, the validation errors before it and that log,
so a resumed run and a replayed one have the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from replica.recipes import Recipe
from replica.recipes.recipe import FullyConnected, Layer, layer_of

# In the place of a layer of a user's own network: it says nothing.
_OWN = FullyConnected(name="own", num_units=1, weight_standard_deviation=0, bias=0, dropout=False)


@dataclass(frozen=True)
class HandChange:
    """An `EpochChange` that was set by hand, and acts first on a step, counted from 1."""

    step: int
    target: str
    value: float


@dataclass(frozen=True)
class Settings:
    """What is in force at one step.

    Attributes:
        learning_rate: the common one, of layers for which nothing else was said.
        rates: the learning rate of every tensor by its name; 0 where it is frozen.
        weight_decays: of every tensor by its name.
        color_noise: standard deviation of the alphas (paper 4.1), 0 adds none.
    """

    learning_rate: float
    rates: dict[str, float]
    weight_decays: dict[str, float]
    color_noise: float


def num_drops(recipe: Recipe, *, epoch: int, val_errors: list[float]) -> int:
    """How many times the rate has been reduced before the first step of an epoch, from 1.

    A plateau is `plateau_patience` epochs in a row without a top-1 error (`val_errors`, after each
    epoch) that is lower than the best one so far by `plateau_improvement`; after a drop the count
    begins anew.
    """
    if recipe.drop_every is not None:
        return (epoch - 1) // recipe.drop_every
    if recipe.drop_rule == "epochs":
        return sum(drop_epoch <= epoch for drop_epoch in recipe.drop_epochs)
    drops, best, since_best = 0, float("inf"), 0
    for error in val_errors[: epoch - 1]:
        if error < best - recipe.plateau_improvement:
            best, since_best = error, 0
        else:
            since_best += 1
        if since_best == recipe.plateau_patience and drops < recipe.max_drops:
            drops, since_best = drops + 1, 0
    return drops


def last_epoch(recipe: Recipe, *, val_errors: list[float]) -> int | None:
    """The epoch after which `stop_patience` ends a run; None while it goes on.

    It is the first one behind so many epochs in a row without a new best top-1 error, as a plateau
    has it; a drop of the rates changes nothing in the count.
    """
    best, since_best, improvement = float("inf"), 0, recipe.plateau_improvement
    for epoch, error in enumerate(val_errors, start=1):
        if error < best - improvement:
            best, since_best = error, 0
        else:
            since_best += 1
        if since_best == recipe.stop_patience:
            return epoch
    return None


@dataclass
class _Rate:
    """A rate, and how many drops there had been when it was set; None: drops do not change it."""

    value: float
    drops: int | None

    def after(self, drops: int, factor: float) -> float:
        return self.value if self.drops is None else self.value * factor ** (drops - self.drops)


def _first_rate(recipe: Recipe, name: str) -> _Rate:
    """What a tensor begins with: its layer's own rate, or the recipe's."""
    layer = _layer(recipe, name)
    if name.endswith(".bias"):
        for own in (layer.bias_learning_rate, recipe.bias_learning_rate):
            if own is not None:
                return _Rate(own, None)
    return _Rate(recipe.learning_rate if layer.learning_rate is None else layer.learning_rate, 0)


def _layer(recipe: Recipe, name: str) -> Layer:
    """A tensor's layer; `_OWN` of a user's own network, whose names are not the recipe's."""
    known = layer_of(name)
    return next((layer for layer in recipe.layers if layer.name == known), _OWN)


def _weight_decay(recipe: Recipe, name: str) -> float:
    """Of a layer's weights its own or the recipe's; of biases and scales what the recipe says."""
    layer = _layer(recipe, name)
    if layer is _OWN:
        has_decay = recipe.decay_biases or not name.endswith(".bias")
        return recipe.weight_decay if has_decay else 0.0
    if name != f"{layer.name}.weight":
        return recipe.weight_decay if recipe.decay_biases else 0.0
    return recipe.weight_decay if layer.weight_decay is None else layer.weight_decay


def settings_at(
    recipe: Recipe,
    names: Iterable[str],
    *,
    step: int,
    steps_per_epoch: int,
    val_errors: list[float],
    by_hand: Iterable[HandChange] = (),
) -> Settings:
    """What is in force at a step, counted from 1, for tensors of names such as `conv1.weight`.

    A drop multiplies every rate but the biases' own, which the source changed by hand. A change of
    `learning_rate` leaves frozen layers frozen; naming a layer is what thaws it. Changes `by_hand`
    come in the order in which they were made, and `val_errors` are as in `num_drops`.
    """
    names = list(names)
    biases = {name for name in names if name.endswith(".bias")}
    common = _Rate(recipe.learning_rate, 0)
    rates = {name: _first_rate(recipe, name) for name in names}
    apart = {name for name, rate in rates.items() if rate.drops is None}
    color_noise = recipe.color_noise
    changes = [
        HandChange((change.epoch - 1) * steps_per_epoch + 1, change.target, change.value)
        for change in recipe.changes
    ]

    def drops_at(step: int) -> int:
        epoch = (step - 1) // steps_per_epoch + 1
        return num_drops(recipe, epoch=epoch, val_errors=val_errors)

    for change in sorted([*changes, *by_hand], key=lambda change: change.step):
        if change.step > step:
            break
        drops, target, value = drops_at(change.step), change.target, change.value
        if target == "color_noise":
            color_noise = value
        elif target == "bias_learning_rate":
            apart = biases
            rates.update({n: _Rate(value, None) for n in biases if rates[n].value})
        elif target == "learning_rate":
            common = _Rate(value, drops)
            moved = [n for n in names if n not in apart and rates[n].value]
            rates.update({n: _Rate(value, drops) for n in moved})
        else:
            named = [n for n in names if target in (n, layer_of(n))]
            rates.update({n: _Rate(value, None if n in apart else drops) for n in named})
    drops, factor = drops_at(step), recipe.drop_factor
    return Settings(
        common.after(drops, factor),
        {name: rate.after(drops, factor) for name, rate in rates.items()},
        {name: _weight_decay(recipe, name) for name in names},
        color_noise,
    )
