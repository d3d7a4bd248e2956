"""A recipe as plain JSON values, for run.json and checkpoints, and back.

Version 1 had no `version`; its layers said `normalised` and `pooled`, and nothing of the other
fields. A field that a record lacks has its default, which is what the older versions did.
"""

import copy
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from data_prep.errors import UserError
from replica.recipes.recipe import Conv, EpochChange, FullyConnected, Recipe, shown

VERSION = 2
# The fields that are lists of records, each with what it is a list of.
LISTS = {"convs": Conv, "fully_connected": FullyConnected, "changes": EpochChange}


def to_record(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values."""
    record: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return {"version": VERSION, **record}


def from_record(record: dict[str, Any]) -> Recipe:
    """The recipe that `to_record` wrote down, in this version or an older one.

    Raises:
        UserError: a field is missing or unknown, the version is newer, or the record is damaged.
    """
    try:
        return _recipe_of(record)
    except UserError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"expected the record of a recipe, got a damaged one ({error})") from None


def _recipe_of(record: dict[str, Any]) -> Recipe:
    name = record.get("name")
    version = record.get("version", 1)
    if version not in range(1, VERSION + 1):
        raise UserError(
            f"recipe {name}: has version {version}, expected at most {VERSION}: it was written by "
            "a newer version of the project"
        )
    if version == 1:
        record = _from_version_1(record)
    record = {key: value for key, value in record.items() if key != "version"}
    problems = list(_misfits(record, Recipe, ""))
    for field, kind in LISTS.items():
        for entry in record.get(field, ()):
            problems += _misfits(entry, kind, f"{entry.get('name', field)}.")
    if problems:
        raise UserError(
            f"recipe {name}: {'; '.join(problems)}: it was written by another version of the "
            "project"
        )
    lists = {
        field: tuple(kind(**_with_tuples(entry)) for entry in record[field])
        for field, kind in LISTS.items()
    }
    return Recipe(**{**_with_tuples(record), **lists})


def _misfits(record: dict[str, Any], kind: type, of: str) -> Iterator[str]:
    """Which fields of a dataclass a record lacks, and which it has that are none."""
    fields = dataclasses.fields(kind)
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    missing = sorted(of + name for name in needed - record.keys())
    unknown = sorted(of + name for name in record.keys() - {field.name for field in fields})
    if missing or unknown:
        yield f"missing fields {missing}, unknown fields {unknown}"


def _with_tuples(record: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}


def _from_version_1(record: dict[str, Any]) -> dict[str, Any]:
    record = copy.deepcopy(record)
    for conv in record.get("convs", ()):
        if "normalised" in conv:
            conv["normalization"] = ["lrn"] if conv.pop("normalised") else []
        if "pooled" in conv:
            conv["pooling"] = "max" if conv.pop("pooled") else "none"
    # The rule was applied once, to the recipe `mini` alone.
    return {**record, "keeps_gain": record.get("name") == "mini"}


def differing_fields(first: Recipe, second: Recipe) -> list[str]:
    """The fields in which two recipes differ, with both values."""
    one, other = fields_by_name(first), fields_by_name(second)
    return [
        f"{name}: {shown(one.get(name))} against {shown(other.get(name))}"
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]


def fields_by_name(recipe: Recipe) -> dict[str, Any]:
    """Fields by name, those of layers as `conv1.stride`."""
    flat: dict[str, Any] = {
        field.name: getattr(recipe, field.name)
        for field in dataclasses.fields(recipe)
        if field.name not in ("convs", "fully_connected")
    }
    for layer in recipe.layers:
        flat |= {f"{layer.name}.{k}": v for k, v in vars(layer).items() if k != "name"}
    return flat
