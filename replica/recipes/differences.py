"""What two recipes differ in, with both values and where each stands; and the list of all.

`python -m replica.recipes` prints them, and REPRODUCE.md has the table of `paper` and `source-2012`
as `--markdown` prints it.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_plain_file
from data_prep.manifest_json import strict_json
from replica.recipes.evidence import evidence_of
from replica.recipes.expected import EXPECTED
from replica.recipes.geometry import geometry
from replica.recipes.recipe import Recipe, layer_names, shown
from replica.recipes.record import fields_by_name
from replica.recipes.registry import RECIPES

NO_EVIDENCE, NOT_MEASURED, LACKS = "not on record", "not measured", "no such layer"
# Names, not values.
_NAMES = ("name", "claim")
# What recorded runs say of single fields: name of the field -> a sentence, by `FIRST SECOND`.
EFFECTS_FILE = (
    Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "claims" / "differences.json"
)
MOST_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One field in which two recipes differ; of a layer that one of them lacks, the layer.

    Attributes:
        field: such as `lrn_alpha`, `conv1.order`, or `conv6`.
        values: of both recipes, in words as `--set` takes them.
        evidence: where each stands.
        effect: what the change of this field alone did in recorded runs.
    """

    field: str
    values: tuple[str, str]
    evidence: tuple[str, str]
    effect: str


def differences(first: Recipe, second: Recipe, *, effects: Path = EFFECTS_FILE) -> list[Difference]:
    """The fields in which two recipes differ, in the order of the record.

    Args:
        first, second: the recipes.
        effects: the file with what was measured; where there is none, nothing was.

    Raises:
        UserError: the file is damaged.
    """
    layers = dict.fromkeys(layer_names(first) + layer_names(second))
    both = set(layer_names(first)) & set(layer_names(second))
    one, other = fields_by_name(first), fields_by_name(second)
    names = [
        name
        for name in one
        if name not in _NAMES
        and ("." not in name or name.split(".")[0] in both)
        and one[name] != other[name]
        and _value(first, name) != _value(second, name)
    ]
    names += [layer for layer in layers if layer not in both]
    known = _measured(effects).get(f"{first.name} {second.name}", {})
    return [
        Difference(
            field=name,
            values=(_value(first, name), _value(second, name)),
            evidence=(_where(first, name), _where(second, name)),
            effect=known.get(name, NOT_MEASURED),
        )
        for name in names
    ]


def _value(recipe: Recipe, name: str) -> str:
    """A field's value; where a layer says nothing, what holds for all of them."""
    layer, _, field = name.partition(".")
    if field and layer in layer_names(recipe):
        value = getattr(recipe.layer(layer), field)
        return _shown(getattr(recipe, field, None) if value is None else value)
    if hasattr(recipe, name):
        return _shown(getattr(recipe, name))
    for row in geometry(recipe):
        if row.name == layer:
            return f"{row.weight_shape[0]} outputs, {row.parameters:,} parameters"
    return LACKS


def _shown(value: Any) -> str:
    return shown(value).lower() if value is None or isinstance(value, bool) else shown(value)


def _where(recipe: Recipe, name: str) -> str:
    """Where a value stands, or that nothing is known of it."""
    value = _value(recipe, name)
    if value == LACKS:
        return "-"
    known = RECIPES.get(recipe.name, recipe)
    if _value(known, name) != value:  # it has the name, and was changed
        return NO_EVIDENCE
    return evidence_of(recipe, name) or NO_EVIDENCE


def _measured(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    try:
        content = strict_json(read_plain_file(path, at_most=MOST_BYTES))
        if not all(isinstance(text, str) for of in content.values() for text in of.values()):
            raise ValueError("expected a sentence for each field")
    except (ValueError, AttributeError) as error:
        rule = 'expected {"FIRST SECOND": {"FIELD": "SENTENCE"}}'
        raise UserError(f"{path}: {rule}, got a damaged file ({error}): restore it") from None
    return {pair: dict(of) for pair, of in content.items()}


def as_text(first: Recipe, second: Recipe, rows: list[Difference]) -> str:
    """A paragraph for each field."""
    lines = [f"{first.name} against {second.name}: {len(rows)} fields differ"]
    width = max(len(first.name), len(second.name))
    for row in rows:
        lines += ["", f"{row.field}: {row.values[0]} against {row.values[1]}"]
        for recipe, evidence in zip((first, second), row.evidence, strict=True):
            lines.append(f"  {recipe.name:{width}}  {evidence}")
        lines.append(f"  {'effect':{width}}  {row.effect}")
    return "\n".join(lines)


def as_markdown(first: Recipe, second: Recipe, rows: list[Difference]) -> str:
    """A table with a row for each field."""
    head = ("field", first.name, "where", second.name, "where", "measured effect")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        (one, other), (of_one, of_other) = row.values, row.evidence
        lines.append((f"`{row.field}`", one, of_one, other, of_other, row.effect))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def as_json(first: Recipe, second: Recipe, rows: list[Difference]) -> str:
    """One object; values in words, as `--set` takes them."""
    fields = [dataclasses.asdict(row) for row in rows]
    return json.dumps({"first": first.name, "second": second.name, "fields": fields}, indent=1)


# --- The list


def listed(recipe: Recipe) -> dict[str, Any]:
    """A recipe's name, claim, cost and expected result, as plain JSON values."""
    layers = geometry(recipe)
    expected = EXPECTED.get(recipe.name)
    return {
        "name": recipe.name,
        "claim": recipe.claim,
        "cost": {
            "parameters": sum(layer.parameters for layer in layers),
            # Forward; backward takes about twice as many.
            "multiply_adds_per_image": sum(layer.macs for layer in layers),
            "epochs": recipe.epochs,
        },
        "expected": None if expected is None else dataclasses.asdict(expected),
    }


def list_as_text(recipes: list[Recipe]) -> str:
    """A paragraph for each recipe."""
    paragraphs = []
    for row in map(listed, recipes):
        cost, expected = row["cost"], EXPECTED.get(row["name"])
        paragraphs.append(
            f"{row['name']}\n"
            f"  claim     {row['claim']}\n"
            f"  cost      {cost['parameters']:,} parameters, {cost['multiply_adds_per_image']:,} "
            f"multiply-adds per image forward, {cost['epochs']} epochs\n"
            f"  expected  {expected or 'no figure on record'}"
        )
    return "\n\n".join(paragraphs)
