"""Builds and verifies every real set in a directory with the documented commands.

The archives are read in place. Each set leaves a contact sheet beside the shards, to be looked at.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import Row, say
from data_prep.errors import UserError
from data_prep.manifest import PARTS
from data_prep.shards import open_data_set

# Archive, and the options that go with it.
SETS = {
    "imagenet_a.tar": [],
    "imagenette224_a.tar": [],
    "tinyimagenet10_a.tar.xz": [],
    "tinyimagenet190_a.tar.xz": ["--size", "64"],
    "cifar10_jpeg_a.tar.xz": ["--size", "32"],
    "cifar10_lossless_a.tar.xz": ["--size", "32", "--per-class", "200,50,20"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new directory")
    parser.add_argument("--only", choices=SETS, nargs="+", help="default: all")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Rows for each set: images, bad files, size, and the seconds of building and verifying."""
    real = os.environ.get("REPLICA_REAL_DATA")
    if not real:
        return [Row("real sets", None, "", note="REPLICA_REAL_DATA is not set")]
    if arguments.output.exists():
        raise UserError(f"--output {arguments.output}: expected a directory that is not there yet")
    arguments.output.mkdir(parents=True)
    rows = []
    for name in arguments.only or SETS:
        out = arguments.output / name.split("_a.")[0]
        options = SETS[name]
        build = ["data_prep/build_shards.py", "--input", f"{real}/{name}", "--output", str(out)]
        seconds, _ = _run(name, [*build, *options])
        checked, said = _run(name, ["data_prep/verify_shards.py", str(out)])
        # The line about images that are there twice, and those that name them.
        twice = " ".join(line.strip() for line in said if " = " in line or "same pixels" in line)
        sheet = arguments.output / f"{out.name}.png"
        _run(name, ["data_prep/verify_shards.py", str(out), "--contact-sheet", str(sheet),
                    "--seed", "1"])  # fmt: skip
        data = open_data_set(out)
        entries = [entry for part in PARTS for entry in data.manifest.parts[part] if entry]
        title = " ".join([name, *options])
        note = f"manifest {data.manifest_sha256}"
        for part in PARTS:
            if len(data.part(part)):
                rows.append(Row(f"{title}: {part}", len(data.part(part)), "images"))
        bad = sum(len(entry.bad_pictures) for entry in entries)
        rows.append(Row(f"{title}: bad files", bad, "files"))
        num_bytes = sum(path.stat().st_size for path in out.iterdir())
        rows.append(Row(f"{title}: size", num_bytes / 1e6, "MB", note=note))
        rows.append(Row(f"{title}: build", seconds, "s"))
        rows.append(Row(f"{title}: verify", checked, "s", note=twice))
    return rows


def _run(name: str, command: list[str]) -> tuple[float, list[str]]:
    """Runs a documented command; returns its seconds and what it said, which is also logged."""
    say(f"{name}: {' '.join(Path(word).name for word in command)}")
    start = time.perf_counter()
    result = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    for line in result.stdout.splitlines():
        say(f"  {line}")
    if result.returncode:
        raise UserError(f"{name}: {json.dumps(command[0])} ended with {result.returncode}")
    return seconds, result.stdout.splitlines()
