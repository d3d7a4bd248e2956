"""The tables of docs/from-other-projects.md, of the records of `python -m benchmarks earlier`.

Beside them what the projects published, as errors: 100 less their accuracies.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks import earlier_plans as plans
from data_prep.errors import UserError
from replica import paper
from replica.claims.queue import read_outcomes
from replica.claims.trials import Outcome
from replica.recipes.expected import EXPECTED, Expected
from replica.results.details import as_markdown

DOCUMENT = Path("docs") / "from-other-projects.md"
# ellaelu/alexnet-implementation, results.csv: accuracies on train, val and test, by learning rate,
# momentum and factor of a drop.
PUBLISHED_GRID = {
    ("0.0001", "0.5", "0.01"): (0.10325, 0.098, 0.098),
    ("0.0001", "0.5", "0.1"): (0.1065, 0.110, 0.112),
    ("0.0001", "0.9", "0.01"): (0.160, 0.154, 0.154),
    ("0.0001", "0.9", "0.1"): (0.1655, 0.164, 0.166),
    ("0.001", "0.5", "0.01"): (0.3265, 0.316, 0.304),
    ("0.001", "0.5", "0.1"): (0.31725, 0.314, 0.276),
    ("0.001", "0.9", "0.01"): (0.728, 0.518, 0.534),
    ("0.001", "0.9", "0.1"): (0.7785, 0.538, 0.546),
    ("0.005", "0.5", "0.01"): (0.7375, 0.552, 0.534),
    ("0.005", "0.5", "0.1"): (0.728, 0.520, 0.502),
    ("0.005", "0.9", "0.01"): (0.70275, 0.508, 0.518),
    ("0.005", "0.9", "0.1"): (0.685, 0.526, 0.534),
}
ARMS = {
    "paper": "the paper's update, rate 0.001",
    "sgd": "`optimizer=sgd`, rate 0.001",
    "adam": "`optimizer=adam`, rate 0.001",
    "adam-slow": "`optimizer=adam`, rate 0.0001",
    "epochs-50": "50 epochs",
    "epochs-100": "100 epochs",
    "paper-narrow": "`mini64` with its own rate, 0.005",
    "paper-narrow-slow": "`mini64`, rate 0.001, drops before epochs 25, 51 and 79",
}
Rows = list[dict[str, object]]


def percent(error: float) -> str:
    """An error or accuracy of 0..1 as the tables have it."""
    return f"{100 * error:.1f}"


def _all(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _minutes(outcomes: Sequence[Outcome]) -> str:
    return _all([f"{outcome.cpu_seconds / 60:.1f}" for outcome in outcomes])


def _best(outcome: Outcome) -> int:
    """The index of the epoch with the lowest top-1 error, the first of equal ones."""
    return outcome.val_top1.index(min(outcome.val_top1))


def _arms(records: Path, experiment: str) -> dict[str, list[Outcome]]:
    arms: dict[str, list[Outcome]] = {}
    for outcome in read_outcomes(records, experiment).values():
        arms.setdefault(outcome.trial.arm, []).append(outcome)
    return arms


def _errors(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Of each seed: val errors at the best epoch, which val chose, and after the last one."""
    at_best = [(outcome, _best(outcome)) for outcome in outcomes]
    return {
        "val loss, best": _all([f"{x.val_losses[i]:.3f}" for x, i in at_best]),
        "top-1 error, best": _all([percent(x.val_top1[i]) for x, i in at_best]),
        "top-5 error, best": _all([percent(x.val_top5[i]) for x, i in at_best]),
        "best epoch": _all([i + 1 for _, i in at_best]),
        "top-1 error, last": _all([percent(x.val_top1[-1]) for x, _ in at_best]),
        "training error, last": _all([percent(x.train_errors[-1]) for x, _ in at_best]),
        "CPU minutes": _minutes(outcomes),
    }


def variants(records: Path) -> Rows:
    """The third project's eight, each over its seeds, in the order in which they are recipes."""
    arms = _arms(records, plans.VARIANTS)
    order = list(dict.fromkeys(trial.arm for trial in plans.variants({})))
    return [
        {
            "recipe": f"`tiny-{arm}-64`",
            "published error, wide": percent(EXPECTED[f"tiny-{arm}"].top1_error),
            "seeds": _all([outcome.trial.seed for outcome in arms[arm]]),
            "mean top-1 error, best": percent(
                fmean(min(outcome.val_top1) for outcome in arms[arm])
            ),
            **_errors(arms[arm]),
        }
        for arm in order
        if arm in arms
    ]


def several(records: Path, experiment: str) -> Rows:
    """An experiment's arms in the order in which they have names, each over its seeds."""
    return [
        {"run": ARMS[arm], **_errors(outcomes)}
        for arm, outcomes in sorted(
            _arms(records, experiment).items(), key=lambda item: list(ARMS).index(item[0])
        )
    ]


def one_gpu(records: Path) -> Rows:
    """The paper's line, the first project's two, and what two seeds and their mean reach here."""

    def row(network: str, errors: Expected | Mapping[str, float], **more: str) -> dict[str, object]:
        values = vars(errors) if isinstance(errors, Expected) else errors
        return {
            "network": network,
            "top-1 error": percent(values["top1_error"]),
            "top-5 error": percent(values["top5_error"]),
            **more,
        }

    runs = [outcome for arm in _arms(records, plans.ONE_GPU).values() for outcome in arm]
    rows = [
        row(
            "the paper's, one network",
            EXPECTED["paper"],
            devices=paper.TRAINING_DEVICES,
            time=paper.TRAINING_TIME,
            epochs=str(paper.NUM_EPOCHS),
        ),
        row(
            "published, one network",
            EXPECTED["imagenet-one-gpu"],
            devices="1 GPU",
            time="58.6 h",
            epochs="22",
        ),
        row(
            "published, two networks",
            {"top1_error": 0.544, "top5_error": 0.293},  # its README.md
            devices="1 GPU",
            time="not said",
            epochs="not said",
        ),
    ]
    tests = records / "tests"
    for outcome in runs:
        rows.append(
            row(
                f"here, narrow, seed {outcome.trial.seed}",
                json.loads((tests / f"one-gpu-{outcome.trial.seed}.json").read_text()),
                devices="1 CPU process",
                time=f"{outcome.cpu_seconds / 60:.1f} CPU minutes",
                epochs=str(len(outcome.val_top1)),
            )
        )
    rows.append(
        row(
            "here, narrow, both",
            json.loads((tests / "one-gpu-both.json").read_text()),
            devices="1 CPU process",
            time=f"{sum(outcome.cpu_seconds for outcome in runs) / 60:.1f} CPU minutes",
            epochs=str(len(runs[0].val_top1)),
        )
    )
    return rows


def grid(records: Path) -> Rows:
    """The grid's trials from the best on, beside the accuracies that the project published."""
    with (records / "grid" / "results.csv").open(newline="") as file:
        trials = list(csv.DictReader(file))
    rows: Rows = []
    for trial in sorted(trials, key=lambda x: (float(x["val_top1_error"]), float(x["val_loss"]))):
        values = trial["learning_rate"], trial["momentum"], trial["drop_factor"]
        published = PUBLISHED_GRID[values]
        rows.append(
            {
                **dict(zip(("rate", "momentum", "factor"), values, strict=True)),
                **{
                    f"published {part} error": percent(1 - accuracy)
                    for part, accuracy in zip(("train", "val", "test"), published, strict=True)
                },
                "train error here": percent(float(trial["train_top1_error"])),
                "val error here": percent(float(trial["val_top1_error"])),
                "best epoch": trial["best_epoch"],
            }
        )
    return rows


def cifar10(records: Path) -> Rows:
    """Both networks of each seed on the test part, at the epoch that val chose."""
    published = {
        plans.SCRATCH: percent(EXPECTED["cifar10-transfer"].top1_error),
        plans.NEW_HEAD: percent(1 - 0.8718),  # its README.md
    }
    names = {plans.SCRATCH: "from scratch", plans.NEW_HEAD: "then a new head, the rest frozen"}
    arms = _arms(records, plans.CIFAR10)
    rows: Rows = []
    for arm, name in names.items():
        tests = [
            json.loads((records / "tests" / f"cifar10-{arm}-{x.trial.seed}.json").read_text())
            for x in arms[arm]
        ]
        rows.append(
            {
                "network": name,
                "published error, wide": published[arm],
                "seeds": _all([x.trial.seed for x in arms[arm]]),
                "test error": _all([percent(x["top1_error"]) for x in tests]),
                "test accuracy": _all([percent(1 - x["top1_error"]) for x in tests]),
                "best epoch": _all([_best(x) + 1 for x in arms[arm]]),
                "CPU minutes": _minutes(arms[arm]),
            }
        )
    return rows


def tables(records: Path) -> dict[str, str]:
    """Each table as Markdown, by the name that its place in the document has."""
    return {
        name: as_markdown(rows)
        for name, rows in {
            plans.ONE_GPU: one_gpu(records),
            "grid": grid(records),
            plans.OPTIMIZERS: several(records, plans.OPTIMIZERS),
            plans.EPOCHS: several(records, plans.EPOCHS),
            plans.VARIANTS: variants(records),
            plans.NINETY: several(records, plans.NINETY),
            plans.CIFAR10: cifar10(records),
        }.items()
    }


def with_tables(text: str, made: Mapping[str, str]) -> str:
    """The document with its tables made anew, each between `<!-- table NAME -->` and the end.

    Raises:
        UserError: a table has no place in it.
    """
    for name, table in made.items():
        begin, end = f"<!-- table {name} -->\n", "<!-- end of table -->"
        before, begun, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not (begun and ended):
            raise UserError(f"{DOCUMENT}: expected a place for the table {name}, found none")
        text = f"{before}{begin}\n{table}\n\n{end}{after}"
    return text
