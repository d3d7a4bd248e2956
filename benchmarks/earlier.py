"""The experiments of earlier projects at small scale, trained here with their narrow recipes.

A queue as of `replica.reproduce`: each finished run leaves a small JSON file and is not repeated,
several processes share what is left, and `--work` keeps the runs for tests and pictures. The grid
of ten classes is `replica.sweep`'s own. docs/from-other-projects.md has the tables.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import earlier_plans as plans
from benchmarks.earlier_tables import DOCUMENT, tables, with_tables
from benchmarks.measure import Row
from data_prep.errors import UserError
from data_prep.files import write_whole
from data_prep.shards import open_data_set
from replica.claims.queue import Places, Plan, read_outcomes, run_queue
from replica.training.checkpoint import checkpoints_of

RECORDS = Path("benchmarks") / "results" / "earlier"
WORK = Path("runs") / "earlier"


@dataclass(frozen=True)
class Evaluation:
    """Error rates of networks that were trained here; of several, of their mean.

    Attributes:
        experiment: whose runs they are, and `runs` their names.
        is_last: whether they are those after the last epoch, and not the best on val.
        part: of the data.
    """

    experiment: str
    runs: Sequence[str]
    is_last: bool
    part: str


# What validation chose is not tested on val.
EVALUATIONS = {
    **{
        f"one-gpu-{seed}": Evaluation(plans.ONE_GPU, [f"network-seed-{seed}"], True, "val")
        for seed in plans.TWO_SEEDS
    },
    "one-gpu-both": Evaluation(
        plans.ONE_GPU, [f"network-seed-{seed}" for seed in plans.TWO_SEEDS], True, "val"
    ),
    **{
        f"cifar10-{arm}-{seed}": Evaluation(plans.CIFAR10, [f"{arm}-seed-{seed}"], False, "test")
        for arm in (plans.SCRATCH, plans.NEW_HEAD)
        for seed in plans.SEEDS
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    add = parser.add_argument
    add("--many-classes", type=Path, metavar="DIR", help="shards for the variants and two networks")
    add("--ten-classes", type=Path, metavar="DIR", help="shards for optimizers and epochs")
    add("--cifar10", type=Path, metavar="DIR", help="shards for what is from scratch, then not")
    add("--records", type=Path, default=RECORDS, help="default: %(default)s")
    add("--tables", action="store_true", help=f"write those of {DOCUMENT} anew")
    add("--work", type=Path, default=WORK, help="the runs (default: %(default)s)")


def plans_of(arguments: argparse.Namespace) -> dict[str, tuple[Plan, Path | None]]:
    """The experiments by name, each with the shards that were given for it."""
    many, ten = arguments.many_classes, arguments.ten_classes
    return {
        plans.VARIANTS: (plans.variants, many),
        plans.ONE_GPU: (plans.one_gpu, many),
        plans.OPTIMIZERS: (plans.optimizers, ten),
        plans.EPOCHS: (plans.epochs, ten),
        plans.CIFAR10: (partial(plans.cifar10, work=arguments.work), arguments.cifar10),
        plans.NINETY: (plans.ninety, ten),
    }


def measure(arguments: argparse.Namespace) -> list[Row]:
    """What shards are given for runs where it is missing; then a row for each run on record."""
    experiments = plans_of(arguments)
    places = Places(records=arguments.records, work=arguments.work, devices=("--device", "cpu"))
    for name, (plan, directory) in experiments.items():
        if directory is not None:
            run_queue(name, plan, data=open_data_set(directory), places=places)
            for of, evaluation in EVALUATIONS.items():
                if evaluation.experiment == name:
                    evaluate(of, evaluation, places)
    rows = [
        Row(
            f"{name}/{run}",
            min(outcome.val_top1, default=None),
            "top-1 error",
            note=f"lowest on val, {outcome.cpu_seconds:.0f} s of CPU time",
        )
        for name in experiments
        for run, outcome in read_outcomes(places.records, name).items()
    ]
    if not rows:
        raise UserError(f"{places.records}: expected records of runs, found none: give shards")
    if arguments.tables:
        text = with_tables(DOCUMENT.read_text(), tables(places.records))
        write_whole(DOCUMENT, text.encode())
    return rows


def evaluate(name: str, evaluation: Evaluation, places: Places) -> None:
    """Leaves the error rates of networks whose runs are there, once."""
    path = places.records / "tests" / f"{name}.json"
    finished = read_outcomes(places.records, evaluation.experiment)
    if path.exists() or not set(evaluation.runs) <= finished.keys():
        return
    runs = [places.work / evaluation.experiment / run for run in evaluation.runs]
    networks = [checkpoints_of(run)[-1] if evaluation.is_last else run / "best.pt" for run in runs]
    named = [word for network in networks for word in ("--checkpoint", str(network))]
    command = ["-m", "replica.test", *named, "--part", evaluation.part, "--json"]
    result = subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE)
    content = {"command": ["python", *command], **json.loads(result.stdout)}
    del content["data"]  # a path of this machine; the manifest's SHA-256 says which data
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
