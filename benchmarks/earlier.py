"""The experiments of earlier projects at small scale, trained here with their narrow recipes.

A queue as of `replica.reproduce`: each finished run leaves a small JSON file and is not repeated,
several processes share what is left, and `--work` keeps the runs for tests and pictures. The grid
of ten classes is `replica.sweep`'s own. docs/from-other-projects.md has the tables.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.measure import Row
from data_prep.errors import UserError
from data_prep.files import write_whole
from data_prep.shards import open_data_set
from replica.claims.queue import Places, Plan, read_outcomes, run_queue
from replica.claims.trials import Outcome, Trial, seed_by_seed
from replica.recipes import find_recipe, with_changes
from replica.recipes.earlier_projects import NARROW, TINY_VARIANTS
from replica.recipes.recipe import layer_names
from replica.training.checkpoint import checkpoints_of

RECORDS = Path("benchmarks") / "results" / "earlier"
WORK = Path("runs") / "earlier"
SEEDS = (1, 2)

ONE_GPU, VARIANTS = "one-gpu", "variants"
OPTIMIZERS, EPOCHS = "optimizers", "epochs"
CIFAR10, NINETY = "cifar10", "ninety"
SCRATCH, NEW_HEAD = "scratch", "new-head"
CIFAR10_EPOCHS = 10
FEW_EPOCHS = (50, 100)
# The rate is the grid's best for the first two; Adam's steps do not shrink with the gradient.
OPTIMIZER_ARMS = {
    "paper": (),
    "sgd": ("optimizer=sgd",),
    "adam": ("optimizer=adam",),
    "adam-slow": ("optimizer=adam", "learning_rate=0.0001"),
}


def one_gpu(finished: Mapping[str, Outcome]) -> list[Trial]:
    """The first project: the same network from two seeds, to be averaged."""
    recipe = find_recipe(f"imagenet-one-gpu{NARROW}")
    return seed_by_seed(ONE_GPU, recipe, {"network": ()}, seeds=SEEDS)


def variants(finished: Mapping[str, Outcome]) -> list[Trial]:
    """The third project: the eight variants, each from every seed."""
    narrow = [recipe for recipe in TINY_VARIANTS if recipe.name.endswith(NARROW)]
    return [
        trial
        for seed in SEEDS
        for recipe in narrow
        for trial in seed_by_seed(
            VARIANTS,
            recipe,
            {recipe.name.removeprefix("tiny-").removesuffix(NARROW): ()},
            seeds=[seed],
        )
    ]


def optimizers(finished: Mapping[str, Outcome]) -> list[Trial]:
    """The second project: the paper's update, PyTorch's SGD, and Adam at two rates."""
    recipe = find_recipe(f"tiny10{NARROW}")
    return seed_by_seed(OPTIMIZERS, recipe, OPTIMIZER_ARMS, seeds=SEEDS[:1])


def epochs(finished: Mapping[str, Outcome]) -> list[Trial]:
    """The second project: 50 epochs against 100."""
    return [
        trial
        for number in FEW_EPOCHS
        for trial in seed_by_seed(
            EPOCHS,
            with_changes(find_recipe(f"tiny10{NARROW}"), [f"epochs={number}"]),
            {f"epochs-{number}": ()},
            seeds=SEEDS[:1],
        )
    ]


def cifar10(finished: Mapping[str, Outcome], *, work: Path) -> list[Trial]:
    """The fifth project: from scratch; then, from the best of that, the last layer alone."""
    changes = (f"epochs={CIFAR10_EPOCHS}", f"drop_epochs={CIFAR10_EPOCHS - 1}")
    recipe = with_changes(find_recipe(f"cifar10-transfer{NARROW}"), list(changes))
    scratch = seed_by_seed(CIFAR10, recipe, {SCRATCH: changes[1:]}, seeds=SEEDS)
    frozen = ",".join(layer_names(recipe)[:-1])
    return scratch + [
        Trial(
            experiment=CIFAR10,
            arm=NEW_HEAD,
            recipe=recipe.name,
            changes=changes[1:],
            seed=trial.seed,
            epochs=recipe.epochs,
            further=(
                *("--init", str(work / CIFAR10 / trial.name / "best.pt")),
                *("--new-head", "--freeze", frozen),
            ),
        )
        for trial in scratch
        if trial.name in finished
    ]


def ninety(finished: Mapping[str, Outcome]) -> list[Trial]:
    """The fourth project: ninety epochs of the paper's own layers, narrow."""
    recipe = with_changes(find_recipe("mini64"), ["epochs=90"])
    return seed_by_seed(NINETY, recipe, {"paper-narrow": ()}, seeds=SEEDS[:1])


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
        f"one-gpu-{seed}": Evaluation(ONE_GPU, [f"network-seed-{seed}"], True, "val")
        for seed in SEEDS
    },
    "one-gpu-both": Evaluation(ONE_GPU, [f"network-seed-{seed}" for seed in SEEDS], True, "val"),
    **{
        f"cifar10-{arm}-{seed}": Evaluation(CIFAR10, [f"{arm}-seed-{seed}"], False, "test")
        for arm in (SCRATCH, NEW_HEAD)
        for seed in SEEDS
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    add = parser.add_argument
    add("--many-classes", type=Path, metavar="DIR", help="shards for the variants and two networks")
    add("--ten-classes", type=Path, metavar="DIR", help="shards for optimizers and epochs")
    add("--cifar10", type=Path, metavar="DIR", help="shards for what is from scratch, then not")
    add("--records", type=Path, default=RECORDS, help="default: %(default)s")
    add("--work", type=Path, default=WORK, help="the runs (default: %(default)s)")


def plans_of(arguments: argparse.Namespace) -> dict[str, tuple[Plan, Path | None]]:
    """The experiments by name, each with the shards that were given for it."""
    many, ten = arguments.many_classes, arguments.ten_classes
    return {
        VARIANTS: (variants, many),
        ONE_GPU: (one_gpu, many),
        OPTIMIZERS: (optimizers, ten),
        EPOCHS: (epochs, ten),
        CIFAR10: (partial(cifar10, work=arguments.work), arguments.cifar10),
        NINETY: (ninety, ten),
    }


def measure(arguments: argparse.Namespace) -> list[Row]:
    """What shards are given for runs where it is missing; then a row for each run on record."""
    plans = plans_of(arguments)
    places = Places(records=arguments.records, work=arguments.work, devices=("--device", "cpu"))
    for name, (plan, directory) in plans.items():
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
        for name in plans
        for run, outcome in read_outcomes(places.records, name).items()
    ]
    if not rows:
        raise UserError(f"{places.records}: expected records of runs, found none: give shards")
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
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
