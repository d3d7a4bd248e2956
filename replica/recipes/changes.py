"""`--set field=value`: one-off changes of a recipe, of its layers too."""

import dataclasses
import math
import types
import typing
from collections.abc import Collection
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
    "--batch-size": "batch_size",
    "--epochs": "epochs",
    "--classes": "num_classes",
}
WITHOUT = "without"


def settable_fields() -> dict[str, Any]:
    """The fields that `--set` takes, with their types: all but the name, the claim, the layers."""
    hints = typing.get_type_hints(Recipe)
    return {
        name: hint
        for name, hint in hints.items()
        if name not in ("name", "claim", "convs", "fully_connected")
    }


def settable_layer_fields(kind: type[Layer]) -> dict[str, Any]:
    """The fields of a kind of layer that `--set LAYER.FIELD=VALUE` takes, with their types."""
    return {name: hint for name, hint in typing.get_type_hints(kind).items() if name != "name"}


def with_changes(recipe: Recipe, changes: list[str]) -> Recipe:
    """The recipe with fields changed by texts.

    Args:
        recipe: stays as it is.
        changes: `field=value`; `conv3.num_kernels=192` for a field of a layer; `without=conv4` to
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

    deviations = {
        name: paper.WEIGHT_STANDARD_DEVIATION * math.sqrt(papers[name] / ours[name])
        for name in layers
        if name in papers
    }
    return _with_layers(
        recipe, {name: {"weight_standard_deviation": x} for name, x in deviations.items()}
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
    try:
        return _parse(text, hint)
    except ValueError:
        raise UserError(
            f"--set {change}: expected {_type_name(hint)} for {target}, got {text!r}"
        ) from None


def _parse(text: str, hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        if text.lower() == "none":
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is tuple:
        items = [item.strip() for item in text.split(",") if item.strip()]
        if [item.lower() for item in items] == ["none"]:
            return ()
        return tuple(_parse(item, typing.get_args(hint)[0]) for item in items)
    if hint is EpochChange:
        return _parse_change(text)
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
        return {
            EpochChange: "changes such as 67:conv1=0.00001,67:color_noise=0",
            int: "integers with commas between them",
            str: "words with commas between them",
        }[typing.get_args(hint)[0]]
    return {bool: "true or false", int: "an integer", float: "a number", str: "a word"}[hint]
