"""The manifests of a build in progress: of one machine, or of each machine of a job array."""

import re
from pathlib import Path
from typing import Any

from data_prep.color_statistics import color_statistics
from data_prep.errors import UserError
from data_prep.manifest import (
    LABELS_FILE,
    MANIFEST_FILE,
    PARTS,
    STATISTICS_FILE,
    read_manifest,
    shard_entries,
    shard_file,
    write_manifest,
)
from data_prep.shard_writer import write_labels, write_statistics
from data_prep.shards import label_rows, shard_problem, shards_of


def share_file(share: tuple[int, int]) -> str:
    """The manifest of one machine of a job array."""
    return f"manifest-{share[0]}-of-{share[1]}.json"


def start_manifest(
    output: Path, plan: dict[str, Any], num_shards: dict[str, int], name: str
) -> dict[str, Any]:
    """The manifest to go on with: a fresh one, or that of an interrupted build of this plan.

    Raises:
        UserError: the directory holds another data set or other files.
    """
    for there in sorted(output.glob("manifest*.json")):
        manifest = read_manifest(output, there.name)
        differing = [key for key, value in plan.items() if manifest.get(key) != value]
        if differing:
            raise UserError(
                f"{output}: holds another data set (differs in {', '.join(differing)}): choose "
                "another --output, or remove this directory"
            )
        if there.name == name:
            listed = {part: len(manifest["parts"][part]["shards"]) for part in PARTS}
            if listed != num_shards:
                raise UserError(
                    f"{there}: expected {num_shards} shards, got {listed}: it was changed; "
                    "choose another --output, or remove this directory"
                )
            return manifest
        if MANIFEST_FILE in (there.name, name):
            raise UserError(
                f"{output}: holds {there.name}, of a build "
                f"{'by one machine' if there.name == MANIFEST_FILE else 'by several machines'}: "
                "go on in the same way, or choose another --output"
            )
    names = [path.name for path in output.iterdir()]
    known = r".*\.(part|lock)"
    # Other machines of a job array may be at work; each writes its manifest before its shards.
    shares = r"manifest-\d+-of-\d+\.json"
    if any(re.fullmatch(shares, one) for one in names):
        known += rf"|{shares}|(train|val|test)-\d{{5,}}\.h5"
    foreign = [one for one in names if not re.fullmatch(known, one)]
    if foreign:
        raise UserError(
            f"{output}: is in use: expected an empty directory or an unfinished build, found "
            f"{len(foreign)} other entries (such as {sorted(foreign)[0]}): choose another --output"
        )
    manifest = {
        **plan,
        "parts": {part: {"shards": [None] * num_shards[part]} for part in PARTS},
        "complete": False,
    }
    # Written before the first shard: an interrupted build is recognized by it.
    write_manifest(output, manifest, name)
    return manifest


def is_complete(manifest: dict[str, Any], output: Path) -> bool:
    """Whether a build has ended, and its smaller files are there."""
    return manifest["complete"] and all(
        shard_problem(output / manifest[key]["file"], manifest[key]) is None
        for key in ("statistics", "labels")
    )


def complete(manifest: dict[str, Any], output: Path) -> None:
    """Writes the statistics and the labels of the finished shards, then the whole manifest.

    Raises:
        UserError: no picture of a part could be read, or a shard was damaged meanwhile.
    """
    for part in PARTS:
        listed, entries = manifest["parts"][part]["shards"], shard_entries(manifest, part)
        if listed and not entries:
            raise UserError(f"{output}: none of the {part} pictures could be read")
        for entry in entries:
            problem = shard_problem(output / entry["file"], entry)
            if problem:
                raise UserError(
                    f"{output}: {problem}: run the same command again; it builds that shard anew"
                )
    shards = shards_of(output, manifest, "train")
    total = shards[0].sums()
    for shard in shards[1:]:
        total = total + shard.sums()
    statistics = color_statistics(total)
    manifest["statistics"] = write_statistics(output / STATISTICS_FILE, statistics)
    manifest["labels"] = write_labels(output / LABELS_FILE, label_rows(manifest, output))
    manifest["complete"] = True
    write_manifest(output, manifest)


def join(output: Path) -> dict[str, Any]:
    """Joins the manifests of a job array into one.

    Raises:
        UserError: machines are missing or not ready, or their plans differ.
    """
    found = {
        (int(match[1]), int(match[2])): path
        for path in output.glob("manifest-*-of-*.json")
        if (match := re.fullmatch(r"manifest-(\d+)-of-(\d+)\.json", path.name))
    }
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
    absent = [i for i in range(1, num_shares + 1) if (i, num_shares) not in found]
    manifests = {share: read_manifest(output, path.name) for share, path in sorted(found.items())}
    first = next(iter(manifests.values()))
    joined = {**first, "parts": {part: {"shards": []} for part in PARTS}}
    lacking = [f"{i}/{num_shares} has not begun" for i in absent]
    for part in PARTS:
        for number in range(len(first["parts"][part]["shards"])):
            share = (share_of(number, num_shares), num_shares)
            if share not in manifests:
                continue
            shards = manifests[share]["parts"][part]["shards"]
            entry = shards[number] if number < len(shards) else None
            if entry is None or (
                entry["num_images"]
                and shard_problem(output / shard_file(part, number), entry) is not None
            ):
                text = f"{share[0]}/{num_shares} is not ready"
                lacking += [text] if text not in lacking else []
            joined["parts"][part]["shards"].append(entry)
    for share, manifest in manifests.items():
        differing = [k for k in first if k != "parts" and manifest.get(k) != first[k]]
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
    complete(joined, output)
    for share in manifests:
        (output / share_file(share)).unlink()
    for path in output.glob("*.part"):
        path.unlink()
    return joined


def share_of(number: int, num_shares: int) -> int:
    """Which share a shard belongs to; neighbors go to different machines."""
    return number % num_shares + 1
