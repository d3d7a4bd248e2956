"""The error that the demo reaches with several seeds, in one process and two, in both layouts.

Each finished run leaves a small JSON file, and is not repeated: a series that was stopped goes on.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Row, say
from data_prep.files import write_whole
from replica.training.numerics import MEMORY_FORMATS
from replica.training.run_record import RUN_FILE

SEEDS = (2012, 1, 2, 3, 4)
PROCESSES = (2, 1)
KEPT_OF_RESULT = ("num_images", "top1_error", "top5_error", "loss", "seconds")
KEPT_OF_RUN = ("git_revision", "hardware", "versions", "operators")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    here = Path("benchmarks") / "results" / "demo"
    parser.add_argument("--records", type=Path, default=here, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="default: %(default)s")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """The ten-crop top-1 error of each run, and the seconds of the whole demo."""
    runs = list(itertools.product(SEEDS, PROCESSES, MEMORY_FORMATS))
    rows = []
    for done, (seed, processes, layout) in enumerate(runs):
        name = f"seed-{seed}-gpus-{processes}-{layout}"
        path = arguments.records / f"{name}.json"
        if not path.exists():
            say(f"{name}: {done} of {len(runs)} done")
            options = ["--seed", seed, "--gpus", processes, "--memory-format", layout]
            write_whole(
                path, f"{json.dumps(run_once(arguments.out, options), indent=1)}\n".encode()
            )
        record = json.loads(path.read_text())
        error, seconds = record["top1_error"], record["seconds"]
        rows.append(Row(name, error, "top-1 error", note=f"{seconds} s"))
    return rows


def run_once(out: Path, options: list[object]) -> dict[str, object]:
    """Runs the demo, and returns what is kept of its result and its run."""
    command = [sys.executable, "-m", "replica.demo", "--out", str(out), *map(str, options)]
    (out / "result.json").unlink(missing_ok=True)
    # Its exit status says whether the error is in the expected range; here it is a measurement.
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    result = json.loads((out / "result.json").read_text())
    run = json.loads((out / "run" / RUN_FILE).read_text())
    return {
        "command": ["python", "-m", "replica.demo", *map(str, options)],
        **{name: result[name] for name in KEPT_OF_RESULT},
        **{name: run[name] for name in KEPT_OF_RUN},
    }
