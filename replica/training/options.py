"""What a user asks a run to be: the options of `python -m replica.train`, typed."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import UserError
from replica.recipes import EpochChange, Recipe
from replica.recipes.recipe import layer_names

DEFAULT_DATA = Path("shards")
DEFAULT_RECIPE = "paper"
DEFAULT_SEED = 2012
DEFAULT_TIMEOUT_SECONDS = 600.0

# Prints a line for the user: a default that was taken, or what was found.
Say = Callable[[str], None]


def say_nothing(line: str) -> None:
    """For a process whose lines another one says."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What was asked for; None where the data, the run that is resumed, or a default decides.

    Attributes:
        model: of a user's own network, as `FILE:FUNCTION`.
        changes: of the recipe, as `field=value`, aliases under their full names.
        freeze, rate, new_layers: layers as they were typed, such as `conv1,conv2` and `fc8=0.01`.
    """

    data: Path | None
    recipe: str | None
    model: str | None
    changes: list[str]
    freeze: list[str]
    rate: list[str]
    seed: int | None
    init: Path | None
    new_head: bool
    new_layers: str | None
    gpus: int | None
    split: int | None
    device: str
    precision: str | None
    memory_format: str | None
    compile: str | None
    deterministic: bool | None
    convolution: str | None
    loader_threads: int
    timeout: float
    steps: int | None
    checkpoint_steps: int | None
    keep: int | None
    out: Path | None
    resume: bool
    replay: Path | None
    tensorboard: bool
    verify: bool
    dry_run: bool


def layers_in(option: str, texts: Iterable[str]) -> list[str]:
    """The layers of options such as `--freeze conv1,conv2 --freeze conv3`.

    Raises:
        UserError: a text names none.
    """
    layers = []
    for text in texts:
        named = [layer.strip() for layer in text.split(",") if layer.strip()]
        if not named:
            raise UserError(f"{option} {text!r}: expected layers such as conv1,conv2")
        layers += named
    return layers


def rates_in(texts: Iterable[str], *, example: str) -> list[tuple[str, float]]:
    """Layers, or single tensors, and their rates, of options such as `--rate fc8=0.01`.

    Raises:
        UserError: a text is no such pair; the example says what was expected.
    """
    rates = []
    for text in texts:
        target, _, value = text.partition("=")
        try:
            rates.append((target.strip(), float(value)))
        except ValueError:
            raise UserError(f"--rate {text}: expected LAYER=RATE such as {example}") from None
    return rates


def with_rates(recipe: Recipe, options: TrainOptions) -> Recipe:
    """The recipe with what `--freeze` and `--rate` set from its first epoch on.

    Raises:
        UserError: one names no layer, or nothing would learn.
    """
    frozen = layers_in("--freeze", options.freeze)
    rates = rates_in(options.rate, example="fc8=0.01")
    _check_layers("--freeze", frozen, recipe)
    _check_layers("--rate", [target for target, _ in rates], recipe)
    if set(layer_names(recipe)) <= set(frozen):
        raise UserError("--freeze: names all layers, so nothing would learn: leave one out")
    first = [EpochChange(1, layer, 0.0) for layer in frozen]
    first += [EpochChange(1, target, rate) for target, rate in rates]
    return dataclasses.replace(recipe, changes=(*first, *recipe.changes)) if first else recipe


def _check_layers(option: str, targets: Sequence[str], recipe: Recipe) -> None:
    """Refuses what is neither a layer of the recipe nor one of its tensors."""
    names = layer_names(recipe)
    for target in targets:
        if target.removesuffix(".weight").removesuffix(".bias") not in names:
            raise UserError(
                f"{option} {target}: recipe {recipe.name} has no such layer: expected one of "
                f"{', '.join(names)}, or a tensor of one, such as {names[0]}.bias"
            )
