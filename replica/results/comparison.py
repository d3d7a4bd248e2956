"""Several runs as one table: a row for each variant, over its seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from data_prep.errors import UserError
from replica.recipes import RECIPES, Recipe
from replica.recipes.recipe import shown
from replica.recipes.record import fields_by_name
from replica.training.run_directory import METRICS_FILE, read_metrics
from replica.training.run_record import RunRecord, read_run_record
from replica.training.schedule import last_epoch


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """What one run came to, at the validation with its lowest top-1 error, the first of equal ones.

    Attributes:
        variant: the recipe's name, with the fields that were changed, or the file of its network.
        data: SHA-256 of the manifest of its data.
        seed: of the run.
        best_epoch, epochs: of that validation; how many there were.
        is_complete: whether the run came to its end.
        loss: the mean over the held-out images; None where it is not finite.
        top1_error, top5_error: fractions.
        seconds: that its steps and validations took, on the clock.
        devices: how many, and their name, such as `2 x NVIDIA H100`; of the last session.
    """

    variant: str
    data: str
    seed: int
    best_epoch: int
    epochs: int
    is_complete: bool
    loss: float | None
    top1_error: float
    top5_error: float
    seconds: float
    devices: str


def compared_run(run_dir: Path) -> ComparedRun:
    """Reads a run's record and its metrics.

    Raises:
        UserError: there is no run, it is damaged, or it has no validation yet.
    """
    record = read_run_record(run_dir)
    recipe = record.recipe
    if not (run_dir / METRICS_FILE).is_file():
        raise UserError(f"{run_dir}: expected {METRICS_FILE} there, found none")
    lines = read_metrics(run_dir)
    num_train = record.data.train_images
    batch_size = min(recipe.batch_size, num_train)
    per_epoch = math.ceil(num_train / batch_size)
    validations = [x for x in lines if x.kind == "val" and math.isfinite(x.top1_error)]
    # A session that `--steps` ends in mid-epoch validates, too.
    validations = [line for line in validations if line.step % per_epoch == 0]
    if not validations:
        raise UserError(
            f"{run_dir}: expected a validation after an epoch, found none: train for an epoch first"
        )
    best = min(validations, key=lambda line: line.top1_error)
    errors = [line.top1_error for line in validations]
    held_out = record.data.val_images or record.data.test_images
    seconds = 0.0
    for line in lines:
        # The last batch of an epoch holds what the others leave.
        is_last = line.step % per_epoch == 0
        images = num_train - (per_epoch - 1) * batch_size if is_last else batch_size
        images = held_out if line.kind == "val" else images
        if line.kind != "resume" and line.images_per_second > 0:
            seconds += images / line.images_per_second
    end = last_epoch(recipe, val_errors=errors) or recipe.epochs
    return ComparedRun(
        variant=_variant(record, recipe),
        data=record.data.manifest_sha256,
        seed=record.seed,
        best_epoch=best.epoch,
        epochs=len(validations),
        is_complete=len(validations) >= end,
        loss=best.loss if math.isfinite(best.loss) else None,
        top1_error=best.top1_error,
        top5_error=best.top5_error,
        seconds=seconds,
        devices=_devices(record),
    )


def _devices(record: RunRecord) -> str:
    hardware = record.machine.get("hardware", {})
    names = hardware.get("gpus") if record.devices.kind == "cuda" else [hardware.get("cpu")]
    return f"{record.devices.num_processes} x {names[0] if names and names[0] else 'not known'}"


def _variant(record: RunRecord, recipe: Recipe) -> str:
    """The recipe's name and, behind it, what is otherwise than in the recipe of this name."""
    usual = fields_by_name(RECIPES[recipe.name]) if recipe.name in RECIPES else {}
    here = fields_by_name(recipe)
    texts = ("claim",)  # of other versions, too
    changed = [
        f"{name}={shown(value)}"
        for name, value in here.items()
        if usual and name not in texts and usual.get(name) != value
    ]
    left_out = {name.partition(".")[0] for name in usual.keys() - here.keys()}
    changed += [f"without={name}" for name in sorted(left_out)]
    if record.model_file is not None:
        changed.insert(0, f"{record.model_file} {record.model_file.sha256[:8]}")
    return f"{recipe.name} ({', '.join(changed)})" if changed else recipe.name


def comparison(runs: Sequence[ComparedRun], names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A row for each variant on each data set, in the order of the first run of each.

    Args:
        runs: to be compared.
        names: of the runs, for a message.

    Returns:
        variant, seeds, epochs, epoch_of_best and seconds; loss and errors, fractions, as means
        over the seeds; the lowest and highest top-1 error of them; all devices. The loss is None
        where that of a seed is not finite.

    Raises:
        UserError: two runs of one variant have the same seed.
    """
    groups: dict[tuple[str, str], list[ComparedRun]] = {}
    for number, run in enumerate(runs):
        group = groups.setdefault((run.variant, run.data), [])
        for other in group:
            if run.seed == other.seed:
                first = next(i for i, x in enumerate(runs) if x is other)
                both = f" ({names[first]}, {names[number]})" if names else ""
                raise UserError(
                    f"{run.variant}: expected a run of each seed, got two of seed {run.seed}"
                    f"{both}: leave one of them out"
                )
        group.append(run)
    rows = []
    for (variant, _), group in groups.items():
        top1 = [run.top1_error for run in group]
        losses = [run.loss for run in group if run.loss is not None]
        rows.append(
            {
                "variant": variant,
                "seeds": " ".join(str(run.seed) for run in group),
                "loss": fmean(losses) if len(losses) == len(group) else None,
                "top1_error": fmean(top1),
                "lowest": min(top1),
                "highest": max(top1),
                "top5_error": fmean(run.top5_error for run in group),
                "epoch_of_best": " ".join(str(run.best_epoch) for run in group),
                "epochs": " ".join(f"{x.epochs}{'' if x.is_complete else '...'}" for x in group),
                "seconds": round(fmean(run.seconds for run in group)),
                "devices": "; ".join(dict.fromkeys(run.devices for run in group)),
            }
        )
    return rows
