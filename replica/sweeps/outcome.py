"""What came of a sweep: its table, the trial with the lowest validation error, and its test."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_plain_file, write_whole
from data_prep.manifest_json import strict_json
from replica.results.details import Rows, as_csv
from replica.results.ensemble import EQUAL
from replica.results.evaluation import test_network
from replica.results.followed_run import Curve
from replica.sweeps.study import FINISHED, RUNNING, Asked
from replica.sweeps.trials import Measured, Sweep, finite, measured
from replica.training.checkpoint import BEST
from replica.training.options import Say

RESULTS_FILE, BEST_FILE = "results.csv", "best.json"
VERSION = 1
MAX_RECORD_BYTES = 64 << 20


@dataclass(frozen=True)
class Shown:
    """A trial with its curve and what that shows."""

    trial: Asked
    curve: Curve
    found: Measured


def show_trials(sweep: Sweep, trials: Sequence[Asked]) -> list[Shown]:
    """Reads the curves of trials."""
    curves = [(trial, sweep.curve_of(trial)) for trial in trials]
    val_images = len(sweep.data.val)
    return [Shown(trial, curve, measured(curve, val_images=val_images)) for trial, curve in curves]


def rows_of(sweep: Sweep, shown: Sequence[Shown]) -> Rows:
    """A row for each trial: the columns of results.csv; nothing stands for what is not known."""
    rows = []
    for one in shown:
        state = "not finished" if one.trial.state == RUNNING else one.trial.state
        found = {name: "" if x is None else x for name, x in asdict(one.found).items()}
        row = {"trial": one.trial.name, **one.trial.values, "state": state, **found}
        rows.append({**row, "seed": sweep.seed})
    return rows


def write_results(sweep: Sweep, rows: Rows) -> None:
    """Writes results.csv."""
    write_whole(sweep.out / RESULTS_FILE, (as_csv(rows) + "\n").encode())


def best_of(shown: Sequence[Shown]) -> Shown | None:
    """Of the finished trials the one with the lowest validation error at its best epoch.

    Of equal ones that with the lower validation loss, then the earlier one; no test is known here.
    """
    finished = [x for x in shown if x.trial.state == FINISHED and x.found.epochs]

    def order(one: Shown) -> tuple[float | None, float, int]:
        loss = one.found.val_loss
        return one.found.val_top1_error, math.inf if loss is None else loss, one.trial.number

    return min(finished, key=order, default=None)


def best_record(sweep: Sweep, best: Shown, *, device: str, say: Say) -> dict[str, Any]:
    """What best.json says of the chosen trial; written where it is new.

    Its network, that of the best epoch, is tested once on the test part, where the data has one:
    what best.json holds of the same trial is not measured again.

    Raises:
        UserError: best.json is damaged, or the network cannot be tested.
    """
    path = sweep.out / BEST_FILE
    found = {"trial": best.trial.name, "values": best.trial.values, **asdict(best.found)}
    chosen = {
        "version": VERSION,
        "manifest_sha256": sweep.data.manifest_sha256,
        **found,
        "seed": sweep.seed,
        "checkpoint": f"{best.trial.name}/{BEST}",
    }
    if path.exists():
        record = _read(path)
        if {name: record.get(name) for name in chosen} == chosen:
            return record
    part = "test" if len(sweep.data.test) else "val"
    result, details = test_network(
        [sweep.run_dir(best.trial) / BEST],
        sweep.data.directory,
        part,
        views="center",
        device=device,
        precision="float32",
        weights=None,
        weights_of=EQUAL,
        keeps=False,
        most_images=None,
        model_source=None,
        say=say,
        share=None,
    )
    numbers = ("num_images", "loss", "top1_error", "top1_interval", "top5_error", "top5_interval")
    tested = {name: getattr(result, name) for name in numbers}
    tested["loss"] = finite(result.loss)
    record = {
        **chosen,
        "test": tested if part == "test" else None,
        "labels_of": part,
        "labels": details.rows("classes"),
    }
    write_whole(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    return record


def _read(path: Path) -> dict[str, Any]:
    try:
        content = strict_json(read_plain_file(path, at_most=MAX_RECORD_BYTES))
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise ValueError(f"expected version {VERSION}")
    except ValueError as error:
        raise UserError(
            f"{path}: damaged: expected the record of a sweep ({error}): remove it, and the test "
            "is made again"
        ) from None
    return content


def told(record: dict[str, Any]) -> list[str]:
    """Lines on the chosen trial."""
    values = ", ".join(f"{name}={text}" for name, text in record["values"].items())
    lines = [
        f"best: {record['trial']} ({values}): validation error {record['val_top1_error']:.2%} at "
        f"epoch {record['best_epoch']}, the lowest of the finished trials"
    ]
    tested = record["test"]
    if tested is None:
        lines.append(
            "test: the data has no test part; the validation error is too low by the choice"
        )
    else:
        low, high = tested["top1_interval"]
        lines.append(
            f"test, of this trial alone: top-1 error {tested['top1_error']:.2%} (95 % interval "
            f"{low:.2%} to {high:.2%}), top-5 error {tested['top5_error']:.2%} on "
            f"{tested['num_images']} images, central crop"
        )
    return lines
