"""What a recipe is: a frozen record, how one is changed, and how it is written down."""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from typing import Any

from data_prep.errors import UserError
from replica import paper


@dataclass(frozen=True)
class Conv:
    """A convolutional layer; channels are those of the whole layer, all towers together."""

    name: str
    num_kernels: int
    kernel_size: int
    stride: int
    padding: tuple[int, int]  # rows and columns of zeros before and after, in both directions
    reads_both_towers: bool
    weight_standard_deviation: float
    bias: float
    normalised: bool
    pooled: bool


@dataclass(frozen=True)
class FullyConnected:
    """A fully connected layer; units are those of the whole layer, all towers together.

    The last one of a network gives the logits; its `num_units` is the number of classes.
    """

    name: str
    num_units: int
    weight_standard_deviation: float
    bias: float
    dropout: bool


@dataclass(frozen=True)
class EpochChange:
    """A value that is set before the first step of an epoch, and stays until it is set again.

    Attributes:
        epoch: counted from 1.
        target: `learning_rate` (every layer that is not frozen), `bias_learning_rate` (every bias),
            a layer (`conv1`), one of its tensors (`conv1.bias`), or `color_noise`.
        value: the rate, 0 freezes; or the standard deviation of the alphas.
    """

    epoch: int
    target: str
    value: float

    def __str__(self) -> str:
        return f"{self.epoch}:{self.target}={self.value:g}"


@dataclass(frozen=True)
class Recipe:
    """One network and its training. Field comments name the section that decides the value."""

    name: str
    claim: str  # what the recipe tests: expected figure, where it stands, what it costs

    # --- The network (paper 3)
    towers: int
    num_classes: int | None  # None: as many as the data has
    crop_size: int
    convs: tuple[Conv, ...]
    fully_connected: tuple[FullyConnected, ...]
    lrn_n: int
    lrn_k: float
    lrn_alpha: float
    lrn_beta: float
    pool_window: int
    pool_stride: int
    dropout_keep: float

    # --- Augmentation (paper 4.1)
    random_crops: bool
    random_flips: bool
    color_noise: float  # standard deviation of each alpha; 0 adds none

    # --- The optimiser (paper 5)
    batch_size: int
    momentum: float
    weight_decay: float
    decay_biases: bool
    learning_rate: float
    bias_learning_rate: float | None  # None: as the weights; a number: drops do not change it

    # --- The schedule (paper 5)
    epochs: int
    drop_rule: str  # "plateau": validation error stops improving; "epochs": at `drop_epochs`
    drop_factor: float
    drop_epochs: tuple[int, ...]  # a drop acts before the first step of its epoch, counted from 1
    plateau_patience: int  # epochs without a new best top-1 error after which the rate drops
    plateau_improvement: float  # by how much (fraction) an error must be lower to be a new best
    max_drops: int
    changes: tuple[EpochChange, ...]  # values that are set at the beginning of an epoch

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise UserError(f"recipe {self.name}: {'; '.join(problems)}")


def _problems(recipe: Recipe) -> typing.Iterator[str]:
    def expect(holds: bool, field: str, rule: str) -> typing.Iterator[str]:
        if not holds:
            yield f"{field}: expected {rule}, got {getattr(recipe, field)}"

    yield from expect(recipe.towers in (1, 2), "towers", "1 or 2")
    at_least_two = recipe.num_classes is None or recipe.num_classes >= 2
    yield from expect(
        at_least_two, "num_classes", "at least 2, or none for as many as the data has"
    )
    yield from expect(1 <= recipe.crop_size <= paper.IMAGE_SIZE, "crop_size", "1 to 256 pixels")
    yield from expect(recipe.lrn_n >= 1 and recipe.lrn_n % 2 == 1, "lrn_n", "an odd number >= 1")
    yield from expect(recipe.lrn_k > 0, "lrn_k", "a number > 0")
    yield from expect(recipe.lrn_alpha >= 0, "lrn_alpha", "a number >= 0")
    yield from expect(recipe.pool_window >= 1, "pool_window", "at least 1")
    yield from expect(recipe.pool_stride >= 1, "pool_stride", "at least 1")
    yield from expect(0 < recipe.dropout_keep <= 1, "dropout_keep", "more than 0, at most 1")
    yield from expect(recipe.color_noise >= 0, "color_noise", "a number >= 0")
    yield from expect(recipe.batch_size >= 1, "batch_size", "at least 1")
    yield from expect(0 <= recipe.momentum < 1, "momentum", "at least 0, less than 1")
    yield from expect(recipe.weight_decay >= 0, "weight_decay", "a number >= 0")
    yield from expect(recipe.learning_rate >= 0, "learning_rate", "a number >= 0")
    bias_rate = recipe.bias_learning_rate
    yield from expect(bias_rate is None or bias_rate >= 0, "bias_learning_rate", "a number >= 0")
    yield from expect(recipe.epochs >= 1, "epochs", "at least 1")
    yield from expect(recipe.drop_rule in ("plateau", "epochs"), "drop_rule", "plateau or epochs")
    yield from expect(0 < recipe.drop_factor <= 1, "drop_factor", "more than 0, at most 1")
    rising = list(recipe.drop_epochs) == sorted(set(recipe.drop_epochs))
    from_two = all(epoch >= 1 for epoch in recipe.drop_epochs)
    yield from expect(rising and from_two, "drop_epochs", "rising epochs, counted from 1")
    yield from expect(recipe.plateau_patience >= 1, "plateau_patience", "at least 1")
    yield from expect(recipe.plateau_improvement >= 0, "plateau_improvement", "a number >= 0")
    yield from expect(recipe.max_drops >= 0, "max_drops", "at least 0")
    for change in recipe.changes:
        if change.epoch < 1:
            yield f"changes: expected epochs from 1, got {change}"
        problem = target_problem(recipe, change.target, change.value)
        if problem:
            yield f"changes: {problem}"
    if recipe.towers == 2:
        layers = [(c.name, c.num_kernels) for c in recipe.convs]
        layers += [(f.name, f.num_units) for f in recipe.fully_connected[:-1]]
        for name, width in layers:
            if width % 2:
                yield f"{name}: expected an even width for two towers, got {width}"


def layer_names(recipe: Recipe) -> list[str]:
    """`conv1`, ..., `fc8`, in the order of the network."""
    return [conv.name for conv in recipe.convs] + [fc.name for fc in recipe.fully_connected]


def target_problem(recipe: Recipe, target: str, value: float) -> str | None:
    """Why a target cannot be set to a value, or None; `EpochChange` lists the targets."""
    layer, _, tensor = target.partition(".")
    is_known = target in ("learning_rate", "bias_learning_rate", "color_noise") or (
        layer in layer_names(recipe) and tensor in ("", "weight", "bias")
    )
    if not is_known:
        return (
            f"{target}: expected learning_rate, bias_learning_rate, color_noise, or one of the "
            f"layers {', '.join(layer_names(recipe))}, also with .weight or .bias"
        )
    if not 0 <= value < float("inf"):
        return f"{target}: expected a number >= 0, got {value}"
    return None


# Options that users of other projects expect; each is `--set` of the field beside it.
ALIASES = {
    "--lr": "learning_rate",
    "--momentum": "momentum",
    "--weight-decay": "weight_decay",
    "--batch-size": "batch_size",
    "--epochs": "epochs",
    "--classes": "num_classes",
}


def settable_fields() -> dict[str, Any]:
    """The fields that `--set` takes, with their types: all but the name, the claim, the layers."""
    hints = typing.get_type_hints(Recipe)
    return {
        name: hint
        for name, hint in hints.items()
        if name not in ("name", "claim", "convs", "fully_connected")
    }


def with_changes(recipe: Recipe, changes: list[str]) -> Recipe:
    """The recipe with fields changed by `field=value` texts.

    Raises:
        UserError: a field does not exist, or a value is not of its type or outside its range.
    """
    fields = settable_fields()
    values: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"--set {change}: expected field=value")
        if name not in fields:
            raise UserError(
                f"--set {change}: recipe {recipe.name} has no field {name}; expected one of "
                f"{', '.join(fields)}"
            )
        try:
            values[name] = _parse(text, fields[name])
        except ValueError:
            raise UserError(
                f"--set {change}: expected {_type_name(fields[name])} for {name}, got {text!r}"
            ) from None
    return dataclasses.replace(recipe, **values)


def _parse(text: str, hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        if text.lower() == "none":
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is tuple:
        items = [item for item in text.split(",") if item.strip()]
        if typing.get_args(hint)[0] is EpochChange:
            return tuple(_parse_change(item) for item in items)
        return tuple(int(item) for item in items)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    value = hint(text)
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        raise ValueError(text)
    return value


def _parse_change(text: str) -> EpochChange:
    epoch, colon, rest = text.partition(":")
    target, equals, value = rest.partition("=")
    if not (colon and equals):
        raise ValueError(text)
    return EpochChange(int(epoch), target.strip(), float(value))


def _type_name(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        wanted = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        return f"{_type_name(wanted)} or none"
    if typing.get_origin(hint) is tuple:
        if typing.get_args(hint)[0] is EpochChange:
            return "changes such as 67:conv1=0.00001,67:color_noise=0"
        return "integers with commas between them"
    return {bool: "true or false", int: "an integer", float: "a number", str: "a word"}[hint]


def to_record(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values, for run.json and checkpoints."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def from_record(record: dict[str, Any]) -> Recipe:
    """The recipe that `to_record` wrote down.

    Raises:
        UserError: a field is missing or unknown.
    """
    names = {field.name for field in dataclasses.fields(Recipe)}
    missing, unknown = sorted(names - record.keys()), sorted(record.keys() - names)
    if missing or unknown:
        raise UserError(
            f"recipe {record.get('name')}: missing fields {missing}, unknown fields {unknown}: it "
            "was written by another version of the project"
        )
    values: dict[str, Any] = {
        name: tuple(value) if name == "drop_epochs" else value for name, value in record.items()
    }
    values["convs"] = tuple(
        Conv(**{**conv, "padding": tuple(conv["padding"])}) for conv in record["convs"]
    )
    values["changes"] = tuple(EpochChange(**change) for change in record["changes"])
    values["fully_connected"] = tuple(FullyConnected(**fc) for fc in record["fully_connected"])
    return Recipe(**values)


def differing_fields(first: Recipe, second: Recipe) -> list[str]:
    """The fields in which two recipes differ, with both values."""
    one, other = to_record(first), to_record(second)
    return [
        f"{name}: {one[name]} against {other[name]}" for name in one if one[name] != other[name]
    ]
