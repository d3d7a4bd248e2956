"""Reads and writes `manifest.json`, which FORMAT.md describes."""

import json
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
        content = json.loads(
            path.read_bytes(), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except RecursionError:
        raise UserError(f"{path}: expected JSON, got too many brackets: build it again") from None
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
    problems = list(_manifest_problems(content))
    if problems:
        raise UserError(
            f"{path}: {'; '.join(problems[:5])}: it was changed; build the shards again"
        )
    return _manifest_of(content)


def _manifest_of(content: dict[str, Any]) -> Manifest:
    """What a file of the right form says."""
    outcome = ("parts", "complete", "statistics", "labels")
    plan: dict[str, Any] = {field.name: content.get(field.name) for field in fields(Plan)}
    plan["wnids"], plan["class_names"] = tuple(plan["wnids"]), tuple(plan["class_names"])
    plan["storage"] = Storage(*(plan["storage"].get(field.name) for field in fields(Storage)))
    return Manifest(
        Plan(**plan),
        plan_sha256({key: value for key, value in content.items() if key not in outcome}),
        {
            part: tuple(
                entry and _shard_entry_of(entry) for entry in content["parts"][part]["shards"]
            )
            for part in PARTS
        },
        content["complete"],
        _file_entry_of(content.get("statistics"), STATISTICS_FILE),
        _file_entry_of(content.get("labels"), LABELS_FILE),
    )


def _file_entry_of(entry: Any, file: str) -> FileEntry | None:
    if _entry_problem(entry, file):
        return None
    return FileEntry(entry["file"], entry["num_bytes"], entry["sha256"])


def _shard_entry_of(entry: dict[str, Any]) -> ShardEntry:
    bad = tuple(BadPicture(bad["picture"], bad["reason"]) for bad in entry["bad_pictures"])
    file = None
    if entry["num_images"]:
        spans = tuple((offset, size) for offset, size in entry["structure"]["large_data"])
        structure = Structure(spans, entry["structure"]["sha256"])
        named = (entry["file"], entry["num_bytes"], entry["sha256"])
        file = ShardFile(*named, entry["num_images"], structure)
    return ShardEntry(file, bad, entry.get("pictures_seen", {}))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key that stands there twice")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 2**53


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _manifest_problems(manifest: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the form of a manifest, each with its rule."""
    wnids, names = manifest.get("wnids"), manifest.get("class_names")
    if not isinstance(wnids, list) or not wnids or not _is_texts(wnids):
        yield "expected wnids, a list of texts"
    elif len(set(wnids)) != len(wnids):
        yield "expected wnids that all differ"
    elif not isinstance(names, list) or not _is_texts(names) or len(names) != len(wnids):
        yield "expected class_names, one a wnid"
    size = manifest.get("image_size")
    if not isinstance(size, int) or not _is_count(size, 1) or size > MAX_IMAGE_SIZE:
        yield f"expected an image_size of 1 to {MAX_IMAGE_SIZE}, got {str(size)[:20]}"
    if not _is_count(manifest.get("cycle_seed")):
        yield "expected a cycle_seed, a whole number"
    if not isinstance(manifest.get("complete"), bool):
        yield "expected complete to be true or false"
    if not isinstance(manifest.get("recipe"), str | None):
        yield "expected a recipe's name or null"
    storage = manifest.get("storage")
    if not isinstance(storage, dict) or storage.get("kind") not in ("raw", "jpeg"):
        yield "expected storage of the kind raw or jpeg"
    if manifest.get("complete"):
        for key, file in (("statistics", STATISTICS_FILE), ("labels", LABELS_FILE)):
            if _entry_problem(manifest.get(key), file):
                yield f"expected {key}, the entry of {file}"
    parts = manifest.get("parts")
    if not isinstance(parts, dict) or set(parts) != set(PARTS):
        yield f"expected the parts {', '.join(PARTS)}"
        return
    for part, content in parts.items():
        shards = content.get("shards") if isinstance(content, dict) else None
        if not isinstance(shards, list):
            yield f"expected a list of shards in {part}"
            continue
        for i, entry in enumerate(shards):
            if entry is None:
                if manifest.get("complete"):
                    yield f"{part} lacks shard {i}"
                continue
            problem = _shard_entry_problem(entry, shard_file(part, i))
            if problem:
                yield problem


def _entry_problem(entry: Any, file: str) -> str | None:
    if (
        not isinstance(entry, dict)
        or entry.get("file") != file
        or not _is_count(entry.get("num_bytes"), 1)
        or not isinstance(entry.get("sha256"), str)
        or not re.fullmatch(r"[0-9a-f]{64}", entry["sha256"])
    ):
        return f"expected the entry of {file} with its size and SHA-256"
    return None


def _shard_entry_problem(entry: Any, file: str) -> str | None:
    if not isinstance(entry, dict) or not _is_count(entry.get("num_images")):
        return f"expected the entry of {file} with its num_images"
    bad = entry.get("bad_pictures")
    if not isinstance(bad, list) or not all(
        isinstance(item, dict) and _is_texts([item.get("picture"), item.get("reason")])
        for item in bad
    ):
        return f"expected bad_pictures in the entry of {file}"
    if not entry["num_images"]:
        return None
    structure = entry.get("structure")
    if (
        not isinstance(structure, dict)
        or not isinstance(structure.get("sha256"), str)
        or not _are_spans(structure.get("large_data"), entry.get("num_bytes"))
    ):
        return f"expected the structure of {file} with its large_data and SHA-256"
    return _entry_problem(entry, file)


def _are_spans(spans: Any, end: Any) -> bool:
    """Whether these are [offset, size] that follow one another in a file of `end` bytes."""
    at = 0
    if not isinstance(spans, list) or not _is_count(end):
        return False
    for span in spans:
        if not isinstance(span, list) or len(span) != 2 or not all(map(_is_count, span)):
            return False
        if span[0] < at:
            return False
        at = span[0] + span[1]
    return at <= int(end)
