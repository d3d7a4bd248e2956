"""Reads and writes `manifest.json`, which FORMAT.md describes."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from data_prep.errors import UserError, command_for
from data_prep.files import write_whole
from data_prep.manifest import (
    BUILDER,
    FORMAT_NAME,
    FORMAT_VERSION,
    LABELS_FILE,
    MANIFEST_FILE,
    MAX_IMAGE_SIZE,
    PARTS,
    RECORDED_ORIENTATION,
    STATISTICS_FILE,
    BadPicture,
    FileEntry,
    Manifest,
    Plan,
    ShardEntry,
    ShardFile,
    Storage,
    Structure,
    plan_sha256,
    shard_file,
)

# A manifest of ImageNet's 1251 shards has 0.5 MB, one of Fall 2011 about 10 MB.
MAX_MANIFEST_BYTES = 512 << 20


def write_manifest(directory: Path, manifest: Manifest, name: str = MANIFEST_FILE) -> None:
    """Replaces `manifest.json`; no times and no host names, so equal builds give equal bytes."""
    text = json.dumps(manifest.record(), indent=1, sort_keys=True, ensure_ascii=True)
    write_whole(directory / name, (text + "\n").encode())


def strict_json(data: bytes) -> Any:
    """Reads JSON that says one thing: no key twice, no number beyond float64, few brackets.

    Raises:
        ValueError: it is something else.
    """
    try:
        return _STRICT.decode(data.decode())
    except RecursionError:
        raise ValueError("too many brackets") from None


def read_manifest(directory: Path, name: str = MANIFEST_FILE) -> Manifest:
    """Reads and checks `manifest.json`, or that of one machine of several.

    Raises:
        UserError: there is none, it is damaged, or it is of another format version; all that is
            wrong with its form is named.
    """
    path = directory / name
    if not path.is_file():
        raise UserError(
            f"no data at {directory}: expected {name} there; build the shards with "
            f"`{command_for(BUILDER)} --output {directory}`, or give their place with --data"
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise UserError(f"{path}: expected at most {MAX_MANIFEST_BYTES >> 20} MiB")
    try:
        content = strict_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, got {error}: build the shards again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        raise UserError(
            f"{path}: expected the manifest of a data set of shards, got something else"
        )
    if content.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: expected format version {FORMAT_VERSION}, got {content.get('version')}: "
            "build the shards with this version of the project, or use the one that built them"
        )
    try:
        return _manifest_of(content)
    except ValueError as error:
        raise UserError(f"{path}: {error}: it was changed; build the shards again") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key that stands there twice")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text}, which is beyond float64")
    return number


# Made once: a run reads a line of each of its steps.
_STRICT = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
)


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**53


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _manifest_of(content: dict[str, Any]) -> Manifest:
    """What a manifest says.

    Raises:
        ValueError: its form is wrong; the message names what is, each with its rule.
    """
    problems, complete = list(_plan_problems(content)), content.get("complete")
    files: dict[str, FileEntry] = {}
    for key, file in (("statistics", STATISTICS_FILE), ("labels", LABELS_FILE)):
        try:
            files[key] = _file_entry_of(content.get(key), file)
        except ValueError:
            if complete:
                problems.append(f"expected {key}, the entry of {file}")
    parts = content.get("parts")
    if not isinstance(parts, dict) or set(parts) != set(PARTS):
        problems.append(f"expected the parts {', '.join(PARTS)}")
        parts = {}
    entries: dict[str, list[ShardEntry | None]] = {part: [] for part in PARTS}
    for part, listed in parts.items():
        shards = listed.get("shards") if isinstance(listed, dict) else None
        if not isinstance(shards, list):
            problems.append(f"expected a list of shards in {part}")
            continue
        for i, entry in enumerate(shards):
            if entry is None and complete:
                problems.append(f"{part} lacks shard {i}")
            file = shard_file(part, i)
            try:
                entries[part].append(None if entry is None else _shard_entry_of(entry, file))
            except ValueError as error:
                problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems[:5]))
    plan: dict[str, Any] = {field.name: content.get(field.name) for field in fields(Plan)}
    plan["exif_orientation"] = content.get("exif_orientation", RECORDED_ORIENTATION["ignore"])
    plan["wnids"], plan["class_names"] = tuple(content["wnids"]), tuple(content["class_names"])
    plan["storage"] = Storage(*(content["storage"].get(field.name) for field in fields(Storage)))
    outcome = ("parts", "complete", "statistics", "labels")
    digest = plan_sha256({key: value for key, value in content.items() if key not in outcome})
    whole = {part: tuple(entries[part]) for part in PARTS}
    return Manifest(Plan(**plan), digest, whole, content["complete"], **files)


def _plan_problems(manifest: Any) -> Iterator[str]:
    wnids, names = manifest.get("wnids"), manifest.get("class_names")
    if not wnids or not _is_texts(wnids):
        yield "expected wnids, a list of texts"
    elif len(set(wnids)) != len(wnids):
        yield "expected wnids that all differ"
    elif not _is_texts(names) or len(names) != len(wnids):
        yield "expected class_names, one per wnid"
    size = manifest.get("image_size")
    if not _is_count(size, 1) or size > MAX_IMAGE_SIZE:
        yield f"expected an image_size of 1 to {MAX_IMAGE_SIZE}, got {str(size)[:20]}"
    if not _is_count(manifest.get("cycle_seed")):
        yield "expected a cycle_seed, a whole number"
    if not isinstance(manifest.get("complete"), bool):
        yield "expected complete to be true or false"
    if not isinstance(manifest.get("recipe"), str | None):
        yield "expected a recipe's name or null"
    orientations = RECORDED_ORIENTATION.values()
    if manifest.get("exif_orientation", "ignored") not in orientations:
        yield f"expected exif_orientation to be {' or '.join(orientations)}"
    storage = manifest.get("storage")
    if not isinstance(storage, dict) or storage.get("kind") not in ("raw", "jpeg"):
        yield "expected storage of the kind raw or jpeg"


def _file_entry_of(entry: Any, file: str) -> FileEntry:
    if (
        not isinstance(entry, dict)
        or entry.get("file") != file
        or not _is_count(entry.get("num_bytes"), 1)
        or not isinstance(entry.get("sha256"), str)
        or not re.fullmatch(r"[0-9a-f]{64}", entry["sha256"])
    ):
        raise ValueError(f"expected the entry of {file} with its size and SHA-256")
    return FileEntry(file, entry["num_bytes"], entry["sha256"])


def _shard_entry_of(entry: Any, file: str) -> ShardEntry:
    if not isinstance(entry, dict) or not _is_count(entry.get("num_images")):
        raise ValueError(f"expected the entry of {file} with its num_images")
    bad, seen = entry.get("bad_pictures"), entry.get("pictures_seen", {})
    if not isinstance(bad, list) or not all(
        isinstance(item, dict) and _is_texts([item.get("picture"), item.get("reason")])
        for item in bad
    ):
        raise ValueError(f"expected bad_pictures in the entry of {file}")
    bad_pictures = tuple(BadPicture(item["picture"], item["reason"]) for item in bad)
    if not entry["num_images"]:
        return ShardEntry(None, bad_pictures, seen)
    structure = entry.get("structure")
    if (
        not isinstance(structure, dict)
        or not isinstance(structure.get("sha256"), str)
        or not _are_spans(structure.get("large_data"), entry.get("num_bytes"))
    ):
        raise ValueError(f"expected the structure of {file} with its large_data and SHA-256")
    spans = tuple((offset, size) for offset, size in structure["large_data"])
    named, structure = _file_entry_of(entry, file), Structure(spans, structure["sha256"])
    return ShardEntry(
        ShardFile(**vars(named), num_images=entry["num_images"], structure=structure),
        bad_pictures,
        seen,
    )


def _are_spans(spans: Any, end: Any) -> bool:
    """Whether these are [offset, size] that follow one another in a file of `end` bytes."""
    at = 0
    if not isinstance(spans, list):
        return False
    for span in spans:
        if not isinstance(span, list) or len(span) != 2 or not all(map(_is_count, span)):
            return False
        if span[0] < at:
            return False
        at = sum(span)
    return _is_count(end, at)
