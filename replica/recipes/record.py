"""A recipe as plain JSON values, for run.json and checkpoints, and back.

Version 1 had no `version`; its layers said `normalised` and `pooled`, and nothing of the other
fields. A field that a record lacks has its default, which is what the older versions did.
"""

import dataclasses
import json
from typing import Any

from data_prep.errors import UserError
from replica.recipes.recipe import Conv, EpochChange, FullyConnected, Recipe, shown

VERSION = 2


def to_record(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values."""
    record: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return {"version": VERSION, **record}


def from_record(record: dict[str, Any]) -> Recipe:
    """The recipe that `to_record` wrote down, in this version or an older one.

    Raises:
        UserError: a field is missing or unknown, or the version is newer.
    """
    name = record.get("name")
    version = record.get("version", 1)
    if version not in range(1, VERSION + 1):
        raise UserError(
            f"recipe {name}: has version {version}, expected at most {VERSION}: it was written by "
            "a newer version of the project"
        )
    if version == 1:
        record = _from_version_1(record)
    problems: list[str] = []
    values = _checked({k: v for k, v in record.items() if k != "version"}, Recipe, "", problems)
    for field, kind in (
        ("convs", Conv),
        ("fully_connected", FullyConnected),
        ("changes", EpochChange),
    ):
        values[field] = tuple(
            kind(**_checked(entry, kind, f"{entry.get('name', field)}.", problems))
            if not problems
            else entry
            for entry in record.get(field, ())
        )
    if problems:
        raise UserError(
            f"recipe {name}: {'; '.join(problems)}: it was written by another version of the "
            "project"
        )
    return Recipe(**values)


def _checked(record: dict[str, Any], kind: type, of: str, problems: list[str]) -> dict[str, Any]:
    """The values of a record for a dataclass, lists as tuples; appends what does not fit."""
    fields = dataclasses.fields(kind)
    needed = {f.name for f in fields if f.default is dataclasses.MISSING}
    missing = sorted(needed - record.keys())
    unknown = sorted(record.keys() - {field.name for field in fields})
    if missing or unknown:
        lacks, has = ([of + name for name in names] for names in (missing, unknown))
        problems.append(f"missing fields {lacks}, unknown fields {has}")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}


def _from_version_1(record: dict[str, Any]) -> dict[str, Any]:
    record = dict(record)
    convs = []
    for old in record.get("convs", ()):
        conv = dict(old)
        if "normalised" in conv:
            conv["normalization"] = ["lrn"] if conv.pop("normalised") else []
        if "pooled" in conv:
            conv["pooling"] = "max" if conv.pop("pooled") else "none"
        convs.append(conv)
    # The rule was applied once, to the recipe `mini` alone.
    return {**record, "convs": convs, "keeps_gain": record.get("name") == "mini"}


def differing_fields(first: Recipe, second: Recipe) -> list[str]:
    """The fields in which two recipes differ, with both values."""
    one, other = _flat(first), _flat(second)
    return [
        f"{name}: {shown(one.get(name))} against {shown(other.get(name))}"
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Fields by name, those of layers as `conv1.stride`."""
    flat: dict[str, Any] = {
        field.name: getattr(recipe, field.name)
        for field in dataclasses.fields(recipe)
        if field.name not in ("convs", "fully_connected")
    }
    for layer in recipe.layers:
        flat |= {f"{layer.name}.{k}": v for k, v in vars(layer).items() if k != "name"}
    return flat
