"""`--set field=value`: one-off changes of a recipe, of its layers too."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Collection
from typing import Any

from data_prep.errors import UserError
from replica import paper
from replica.recipes.geometry import geometry
from replica.recipes.paper import PAPER
from replica.recipes.recipe import EpochChange, Layer, Recipe, layer_names

# Options that users of other projects expect; each is `--set` of the field beside it.
ALIASES = {
    "--lr": "learning_rate",
    "--momentum": "momentum",
    "--weight-decay": "weight_decay",
    "--ema": "ema",
    "--batch-size": "batch_size",
    "--epochs": "epochs",
    "--classes": "num_classes",
}
WITHOUT = "without"


def is_of_layers(change: str) -> bool:
    """Whether `--set` of it changes layers of a recipe, which a user's own network has not."""
    target = change.partition("=")[0]
    return "." in target or target == WITHOUT


def settable_fields() -> dict[str, Any]:
    """The fields that `--set` takes, with their types: all but the name, the claim, the layers."""
    hints = typing.get_type_hints(Recipe)
    fixed = ("name", "claim", "convs", "fully_connected")
    return {name: hint for name, hint in hints.items() if name not in fixed}


def settable_layer_fields(kind: type[Layer]) -> dict[str, Any]:
    """The fields of a kind of layer that `--set LAYER.FIELD=VALUE` takes, with their types."""
    return {name: hint for name, hint in typing.get_type_hints(kind).items() if name != "name"}


def with_changes(recipe: Recipe, changes: list[str]) -> Recipe:
    """The recipe with fields changed by texts.

    These are `field=value`, `conv3.num_kernels=192` for a field of a layer, and `without=conv4` to
    leave layers out.

    Raises:
        UserError: a field or a layer does not exist, or a value is not of its type or outside its
            range.
    """
    values: dict[str, Any] = {}
    of_layers: dict[str, dict[str, Any]] = {}
    left_out: set[str] = set()
    for change in changes:
        target, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"--set {change}: expected field=value")
        layer, dot, field = target.partition(".")
        if target == WITHOUT:
            names = [name.strip() for name in text.split(",") if name.strip()]
            if not names:
                raise UserError(f"--set {change}: expected layers such as {WITHOUT}=conv4")
            for name in names:
                _check_known(change, recipe, "layer", name, layer_names(recipe))
            left_out.update(names)
        elif dot:
            _check_known(change, recipe, "layer", layer, layer_names(recipe))
            hints = settable_layer_fields(type(recipe.layer(layer)))
            _check_known(change, recipe, f"field of {layer} named", field, list(hints))
            of_layers.setdefault(layer, {})[field] = _value(change, target, text, hints[field])
        else:
            hints = settable_fields()
            if target not in hints:
                _check_known(change, recipe, "field", target, [*hints, WITHOUT, "LAYER.FIELD"])
            values[target] = _value(change, target, text, hints[target])
    if both := sorted(left_out & of_layers.keys()):
        raise UserError(f"--set {WITHOUT}={both[0]}: expected no other --set of {both[0]}")

    new = _with_layers(recipe, of_layers, left_out, **values)
    if not new.keeps_gain:
        return new
    given = {name for name, fields in of_layers.items() if "weight_standard_deviation" in fields}
    before = {layer.name: layer.fan_in for layer in geometry(recipe)}
    moved = [x.name for x in geometry(new) if x.fan_in != before[x.name] and x.name not in given]
    return with_gain_of_paper(new, moved)


def with_gain_of_paper(recipe: Recipe, layers: list[str]) -> Recipe:
    """The recipe with deviations that give these layers the gain that they have in `paper`.

    A layer multiplies the size of its signal by about sqrt(fan-in) * standard deviation. With the
    paper's 0.01 a narrow network stays at ln(classes); so std = 0.01 * sqrt(fan-in in paper /
    fan-in here). A layer that `paper` does not have keeps its own.
    """
    papers = {layer.name: layer.fan_in for layer in geometry(PAPER)}
    ours = {layer.name: layer.fan_in for layer in geometry(recipe)}
    gains = {name: math.sqrt(papers[name] / ours[name]) for name in layers if name in papers}
    usual = paper.WEIGHT_STANDARD_DEVIATION
    return _with_layers(
        recipe, {name: {"weight_standard_deviation": usual * x} for name, x in gains.items()}
    )


def _with_layers(
    recipe: Recipe,
    of_layers: dict[str, dict[str, Any]],
    left_out: Collection[str] = (),
    **values: Any,
) -> Recipe:
    """The recipe with changed fields of layers, without some of them, and with changed values."""

    def changed(layers: tuple[Any, ...]) -> tuple[Any, ...]:
        kept = [layer for layer in layers if layer.name not in left_out]
        return tuple(dataclasses.replace(x, **of_layers.get(x.name, {})) for x in kept)

    return dataclasses.replace(
        recipe,
        convs=changed(recipe.convs),
        fully_connected=changed(recipe.fully_connected),
        **values,
    )


def _check_known(change: str, recipe: Recipe, what: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise UserError(
            f"--set {change}: recipe {recipe.name} has no {what} {name}; expected one of "
            f"{', '.join(known)}"
        )


def _value(change: str, target: str, text: str, hint: Any) -> Any:
    words, read = _reader(hint)
    try:
        return read(text)
    except (ValueError, KeyError):
        raise UserError(f"--set {change}: expected {words} for {target}, got {text!r}") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _change(text: str) -> EpochChange:
    epoch, _, rest = text.partition(":")
    target, _, value = rest.partition("=")
    return EpochChange(int(epoch), target.strip(), float(value))


# In words what a text must be, and what reads it.
_READERS: dict[type, tuple[str, Callable[[str], Any]]] = {
    bool: ("true or false", lambda text: {"true": True, "false": False}[text.lower()]),
    int: ("an integer", int),
    float: ("a number", _finite),
    str: ("a word", str),
}
_LIST_READERS: dict[type, tuple[str, Callable[[str], Any]]] = {
    int: ("integers with commas between them", int),
    float: ("numbers with commas between them", _finite),
    str: ("words with commas between them", str),
    EpochChange: ("changes such as 67:conv1=0.00001,67:color_noise=0", _change),
}


def _reader(hint: Any) -> tuple[str, Callable[[str], Any]]:
    """Of a type of a field: in words what a text must be, and what reads it."""
    if isinstance(hint, types.UnionType):
        words, read = _reader(typing.get_args(hint)[0])
        return f"{words} or none", lambda text: None if text.lower() == "none" else read(text)
    if typing.get_origin(hint) is not tuple:
        return _READERS[hint]
    words, read = _LIST_READERS[typing.get_args(hint)[0]]

    def read_list(text: str) -> tuple[Any, ...]:
        items = [item.strip() for item in text.split(",") if item.strip()]
        if text.strip() and not items:
            raise ValueError(text)
        return () if [item.lower() for item in items] == ["none"] else tuple(map(read, items))

    return words, read_list
