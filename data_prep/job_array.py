"""The shares of a job array: each of several machines builds some shards, and one joins them."""

import re
from dataclasses import replace
from pathlib import Path

from data_prep.builder import complete
from data_prep.errors import UserError
from data_prep.manifest import PARTS, Manifest, ShardEntry
from data_prep.manifest_json import read_manifest


def share_file(share: tuple[int, int]) -> str:
    """The manifest of one machine."""
    return f"manifest-{share[0]}-of-{share[1]}.json"


def share_of(number: int, num_shares: int) -> int:
    """Which share a shard belongs to; neighbors go to different machines."""
    return number % num_shares + 1


def join(output: Path) -> Manifest:
    """Joins the manifests of all machines, if they are ready, and completes the data set.

    Raises:
        UserError: machines are missing or not ready, or their plans differ.
    """
    names = (path.name for path in output.glob("manifest-*-of-*.json"))
    matches = (re.fullmatch(r"manifest-(\d+)-of-(\d+)\.json", name) for name in names)
    found = {(int(match[1]), int(match[2])) for match in matches if match}
    if not found:
        raise UserError(
            f"--finish: expected the manifests of a job array (manifest-1-of-n.json, ...) in "
            f"{output}, found none: build with --shard 1/n to n/n first"
        )
    counts = {n for _, n in found}
    if len(counts) > 1:
        raise UserError(
            f"--finish: expected shares of one number of machines in {output}, found "
            f"{' and '.join(map(str, sorted(counts)))}"
        )
    num_shares = counts.pop()
    manifests = {share: read_manifest(output, share_file(share)) for share in sorted(found)}
    first = next(iter(manifests.values()))
    parts: dict[str, list[ShardEntry | None]] = {part: [] for part in PARTS}
    shares = {(i, num_shares) for i in range(1, num_shares + 1)}
    lacking = [f"{i}/{n} has not begun" for i, n in sorted(shares - found)]
    for part in PARTS:
        for number in range(len(first.parts[part])):
            share = (share_of(number, num_shares), num_shares)
            if share not in manifests:
                continue
            shards = manifests[share].parts[part]
            entry = shards[number] if number < len(shards) else None
            if entry is None or (entry.file and entry.file.problem(output)):
                lacking.append(f"{share[0]}/{num_shares} is not ready")
            parts[part].append(entry)
    lacking = list(dict.fromkeys(lacking))
    for share, manifest in manifests.items():
        differing = sorted(first.plan.differing(manifest.plan))
        if differing:
            raise UserError(
                f"--finish: expected shares of one data set in {output}, but "
                f"{share_file(share)} differs in {', '.join(differing)}"
            )
    if lacking:
        raise UserError(
            f"--finish: expected all {num_shares} shares in {output}, but {', '.join(lacking[:5])}"
            f"{', ...' if len(lacking) > 5 else ''}: run them with --shard i/{num_shares}"
        )
    whole = {part: tuple(entries) for part, entries in parts.items()}
    joined = complete(replace(first, parts=whole), output)
    for share in manifests:
        (output / share_file(share)).unlink()
    for path in output.glob("*.part"):
        path.unlink()
    return joined
