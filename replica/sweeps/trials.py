"""A sweep, and one trial of it: a run of `replica.train` in a directory of its own."""

import importlib.util
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.shards import DataSet
from replica.recipes import Recipe, find_recipe, with_changes
from replica.results import followed_run
from replica.results.followed_run import Curve, last_line, run_followed
from replica.sweeps.space import Axis, changes_of
from replica.sweeps.study import DIVERGED, FINISHED, PRUNED, Asked, Study
from replica.training.run_directory import MetricsLine, is_live
from replica.training.run_record import RUN_FILE

BEST_TAG = "hparam"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep is.

    Attributes:
        data: what is trained on; its val part chooses.
        recipe: the name of one.
        fixed: changes of it that hold for all trials, as `--set` takes them.
        space: what is varied.
        sampler, pruner: of `study.SAMPLERS` and `study.PRUNERS`.
        seed: of every run, and of the sampler.
        num_trials: how many there are to be.
        precision: of `replica.train`; None for its own.
        devices: options of `replica.train`, such as `--gpus 2`.
        tensorboard: whether event files are written where TensorBoard is installed.
        out: its directory, with a directory for each trial.
        storage: Optuna's file.
    """

    data: DataSet
    recipe: str
    fixed: Sequence[str]
    space: Sequence[Axis]
    sampler: str
    pruner: str
    seed: int
    num_trials: int
    precision: str | None
    devices: Sequence[str]
    tensorboard: bool
    out: Path
    storage: Path

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the sweep, so that another one is told from it; more trials do not."""
        return {
            "recipe": self.recipe,
            "set": list(self.fixed),
            "grid": {axis.field: str(axis) for axis in self.space},
            "sampler": self.sampler,
            "pruner": self.pruner,
            "seed": self.seed,
            "precision": self.precision,
            "data": self.data.manifest_sha256,
        }

    @property
    def lock(self) -> Path:
        """Held while a process asks for a trial, and while one finishes the sweep."""
        return self.out / "sweep.lock"

    def run_dir(self, trial: Asked) -> Path:
        """Where a trial's run is."""
        return self.out / trial.name

    def recipe_of(self, values: Mapping[str, str]) -> Recipe:
        """The recipe of a trial."""
        return with_changes(find_recipe(self.recipe), [*self.fixed, *changes_of(values)])

    def train_options(self, values: Mapping[str, str]) -> list[str]:
        """What `replica.train` is given, but for the run's directory and the event files."""
        changes = [*self.fixed, *changes_of(values)]
        named = ["--data", str(self.data.directory), "--recipe", self.recipe]
        named += [word for change in changes for word in ("--set", change)]
        precision = ["--precision", self.precision] if self.precision else []
        return [*named, "--seed", str(self.seed), "--keep", "1", *precision, *self.devices]

    def curve_of(self, trial: Asked) -> Curve:
        """What a trial's metrics.jsonl says so far."""
        batch_size = self.recipe_of(trial.values).batch_size
        curve = Curve(num_images=len(self.data.train), batch_size=batch_size)
        curve.read(self.run_dir(trial))
        return curve

    def num_images(self, trial: Asked | None) -> int:
        """How many images a trial sees; of None, one that nobody has asked for yet."""
        first = {axis.field: axis.ends[0] for axis in self.space}
        return self.recipe_of(trial.values if trial else first).epochs * len(self.data.train)


@dataclass(frozen=True)
class Measured:
    """What a trial has shown, at its best epoch: the first with the lowest validation error.

    Attributes:
        epochs: that were validated; the rest is None where there is none, and a loss where it is
            not finite.
        best_epoch: counted from 1.
        train_loss, train_top1_error: means over the steps of that epoch, with dropout and crops.
        val_loss, val_top1_error, val_top5_error: after it, on the central crop.
        seconds: of all steps and validations.
    """

    epochs: int
    best_epoch: int | None
    train_loss: float | None
    train_top1_error: float | None
    val_loss: float | None
    val_top1_error: float | None
    val_top5_error: float | None
    seconds: float


def measured(curve: Curve, *, val_images: int) -> Measured:
    """What a trial's curve shows; `val_images` are those of a validation."""
    validations = curve.validations
    seconds = math.fsum(curve.size(x.step) / x.images_per_second for x in curve.steps)
    seconds += math.fsum(val_images / x.images_per_second for x in validations)
    seconds = round(seconds, 1)
    if not validations:
        return Measured(0, None, None, None, None, None, None, seconds)
    best: MetricsLine = min(validations, key=lambda line: line.top1_error)
    steps = curve.epochs()[best.epoch - 1]
    return Measured(
        epochs=len(validations),
        best_epoch=best.epoch,
        train_loss=finite(curve.mean(steps, "loss")),
        train_top1_error=curve.mean(steps, "top1_error"),
        val_loss=finite(best.loss),
        val_top1_error=best.top1_error,
        val_top5_error=best.top5_error,
        seconds=seconds,
    )


def finite(value: float) -> float | None:
    """A number that JSON has, or None."""
    return value if math.isfinite(value) else None


def images_seen(curve: Curve) -> int:
    """How many images the steps of a run had."""
    epochs, steps = divmod(len(curve.steps), len(curve.sizes))
    return epochs * sum(curve.sizes) + sum(curve.sizes[:steps])


def run_trial(
    sweep: Sweep, study: Study, trial: Asked, *, on_images: Callable[[int], object]
) -> tuple[str, Measured]:
    """Runs a trial, or goes on with it; returns what it came to, of `study`'s words.

    Args:
        sweep, study, trial: which one.
        on_images: called now and then with the number of images that it has seen.

    Raises:
        RuntimeError: `replica.train` failed; the message holds what it said last.
        UserError: it refused.
    """
    run_dir, curve = sweep.run_dir(trial), sweep.curve_of(trial)
    val_images = len(sweep.data.val)
    num_reported, is_cut = 0, False

    def look() -> bool:
        nonlocal num_reported, is_cut
        curve.read(run_dir)
        on_images(images_seen(curve))
        if len(curve.validations) > num_reported:
            num_reported = len(curve.validations)
            is_cut = study.report(trial.number, [x.top1_error for x in curve.validations])
        return is_cut

    while is_live(run_dir):  # its sweep was killed, and it goes on alone
        time.sleep(followed_run.POLL_SECONDS)
        look()
    status, is_lost = 0, any(run_dir.glob("lost-loss-*.json"))
    if not is_lost:
        options = sweep.train_options(trial.values)
        if (run_dir / RUN_FILE).exists():
            options = ["--data", str(sweep.data.directory), "--resume", *sweep.devices]
        events = [] if sweep.tensorboard else ["--no-tensorboard"]
        command = ["-m", "replica.train", "--out", str(run_dir), *options, *events]
        status = run_followed(command, run_dir, until=look)
        look()
        is_lost = any(run_dir.glob("lost-loss-*.json"))
    outcome = DIVERGED if is_lost else FINISHED if status == 0 else PRUNED
    if outcome == PRUNED and not is_cut:
        line = f"{trial.name}: replica.train ended with {status}: {last_line(run_dir)}"
        raise UserError(line) if status == 2 else RuntimeError(line)
    found = measured(curve, val_images=val_images)
    if sweep.tensorboard and found.epochs and importlib.util.find_spec("tensorboard"):
        write_hyper_parameters(run_dir, trial, found)
    return outcome, found


def write_hyper_parameters(run_dir: Path, trial: Asked, found: Measured) -> None:
    """Adds a trial's values and what it reached to its event files, for the tab HPARAMS."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    names = ("best_epoch", "train_loss", "train_top1_error", "val_loss", "val_top1_error")
    known = {name: x for name in names if (x := getattr(found, name)) is not None}
    reached = {f"{BEST_TAG}/{name}": float(x) for name, x in known.items()}
    values = {field: _number_or_text(text) for field, text in trial.values.items()}
    writer = SummaryWriter(str(run_dir))
    file_writer: Any = writer.file_writer  # open until `close`
    # `add_hparams` would make a directory of its own, a second run beside the curves.
    for summary in hparams(values, reached):
        file_writer.add_summary(summary)
    for name, value in reached.items():
        writer.add_scalar(name, value)
    writer.close()


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
