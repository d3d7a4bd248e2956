"""One training of an experiment, as `replica.train` makes it, and the record that it leaves."""

import dataclasses
import json
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_plain_file, write_whole
from data_prep.manifest_json import strict_json
from data_prep.shards import DataSet
from replica.network.kernels import color_energy, rgb_kernels
from replica.recipes import Recipe, find_recipe, with_changes
from replica.results.followed_run import Curve, last_line, run_followed
from replica.training.checkpoint import checkpoints_of, load_checkpoint
from replica.training.run_record import RUN_FILE, read_fields, read_run_json

VERSION = 1
# Of a run's losses, so many are kept: another revision must repeat them.
LOSSES_KEPT = 10
MAX_RECORD_BYTES = 1 << 20
OUTCOMES = ("finished", "reached", "diverged")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training that an experiment asks for.

    Attributes:
        arm: which of the experiment's variants, and `changes` of the recipe that make it one.
        epochs: how long it goes on at most.
        until: the training error, 0..1, mean over the steps of an epoch, at which it may end.
        ten_crop: whether the trained network is also tested on ten crops.
        colors: whether the color of its first kernels is kept.
        further: options of `replica.train` beyond the recipe, such as `--init FILE --new-head`.
    """

    experiment: str
    arm: str
    recipe: str
    changes: tuple[str, ...] = ()
    seed: int
    epochs: int
    until: float | None = None
    ten_crop: bool = False
    colors: bool = False
    further: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """That of its record and of its run's directory."""
        return f"{self.arm}-seed-{self.seed}"

    def trained(self) -> Recipe:
        """The recipe with its changes."""
        return with_changes(find_recipe(self.recipe), [*self.changes, f"epochs={self.epochs}"])

    def options(self) -> list[str]:
        """What `replica.train` is given, but for the places and the devices."""
        changes = [word for change in self.changes for word in ("--set", change)]
        named = ["--recipe", self.recipe, *changes, "--epochs", str(self.epochs)]
        return [*named, "--seed", str(self.seed), *self.further]


def seed_by_seed(
    experiment: str,
    recipe: Recipe,
    arms: Mapping[str, tuple[str, ...]],
    *,
    seeds: Sequence[int],
    colors: bool = False,
) -> list[Trial]:
    """Of each seed all arms, by their changes of a recipe and for its epochs."""
    return [
        Trial(
            experiment=experiment,
            arm=arm,
            recipe=recipe.name,
            changes=changes,
            seed=seed,
            epochs=recipe.epochs,
            colors=colors,
        )
        for seed in seeds
        for arm, changes in arms.items()
    ]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trial came to. Errors are fractions; lists have an entry per epoch, None if not known.

    Attributes:
        outcome: of `OUTCOMES`; diverged is a loss that was not finite.
        reached_at: epochs after which the training error, a mean over as many steps as an epoch
            has, was down to `until`; None where it never was.
        first_losses: of the first steps.
        train_losses, train_errors: means over the steps of each whole epoch.
        val_losses, val_top1, val_top5: after each epoch, on the held-out part, central crop.
        ten_crop: top-1 and top-5 error of the last weights on ten crops, where they were asked for.
        color_energy: of each kernel of the first layer, a list for each tower, where it was asked
            for.
        seconds, cpu_seconds: of the steps, and of all processes with their start and their end.
        code: `queue.code_digest` of the revision.
    """

    trial: Trial
    outcome: str
    reached_at: float | None
    steps: int
    steps_per_epoch: int
    first_losses: Sequence[float | None]
    train_losses: Sequence[float | None]
    train_errors: Sequence[float]
    val_losses: Sequence[float | None]
    val_top1: Sequence[float]
    val_top5: Sequence[float]
    ten_crop: Sequence[float] | None = None
    color_energy: Sequence[Sequence[float]] | None = None
    seconds: float
    cpu_seconds: float
    code: str
    command: Sequence[str]
    manifest_sha256: str
    num_classes: int
    train_images: int
    held_out_images: int
    git_revision: str | None
    hardware: dict[str, Any]
    versions: dict[str, str]
    operators: dict[str, Any]


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Leaves the record of a trial, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": VERSION, **asdict(outcome)}
    write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_outcome(path: Path) -> Outcome:
    """Reads the record of a trial.

    Raises:
        UserError: it is damaged, or a later version of the project wrote it.
    """
    try:
        content = strict_json(read_plain_file(path, at_most=MAX_RECORD_BYTES))
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise ValueError(f"expected version {VERSION}")
        trial = read_fields(Trial, content["trial"])
        trial = dataclasses.replace(
            trial, changes=tuple(trial.changes), further=tuple(trial.further)
        )
        outcome = read_fields(Outcome, {**content, "trial": trial})
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path}: damaged: expected the record of a trial ({error}): remove it, and the trial "
            "runs again"
        ) from None
    if outcome.outcome not in OUTCOMES:
        raise UserError(f"{path}: damaged: expected an outcome of {', '.join(OUTCOMES)}")
    return outcome


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


# --- Running one


def run_trial(
    trial: Trial,
    *,
    data: DataSet,
    work: Path,
    code: str,
    devices: Sequence[str] = (),
    on_steps: Callable[[int], object] = lambda _: None,
    deadline: float = float("inf"),
) -> Outcome | None:
    """Runs or continues a trial in `work/EXPERIMENT/NAME`; None where the deadline came first.

    Args:
        trial: what to run.
        data: on which images.
        work: where runs and their logs are.
        code: for the record.
        devices: options of `replica.train`, such as `--gpus 2`.
        on_steps: called now and then with the number of steps done.
        deadline: of `time.monotonic`.

    Raises:
        RuntimeError: `replica.train` failed; the message holds what it said last.
        UserError: it refused.
    """
    run_dir = work / trial.experiment / trial.name
    curve = Curve(num_images=len(data.train), batch_size=trial.trained().batch_size)
    curve.read(run_dir)
    places = ["--data", str(data.directory), "--out", str(run_dir)]
    began = (run_dir / RUN_FILE).exists()
    status = 0
    if not (trial.until and curve.reached_at(trial.until)):
        options = ["--resume"] if began else trial.options()
        command = ["-m", "replica.train", *places, *options, *devices, "--no-tensorboard"]
        status = _run(command, run_dir, curve, trial.until, on_steps, deadline)
    curve.read(run_dir)
    has_diverged = any(run_dir.glob("lost-loss-*.json"))
    reached_at = curve.reached_at(trial.until) if trial.until else None
    if status in (-signal.SIGTERM, 128 + signal.SIGTERM) and reached_at is None:
        return None
    if status == 0 or reached_at is not None or has_diverged:
        kind = "diverged" if has_diverged else "finished" if reached_at is None else "reached"
        outcome = _outcome(trial, kind, reached_at, curve, run_dir, data, code)
        if has_diverged:
            return outcome
        return dataclasses.replace(
            outcome,
            ten_crop=_ten_crop(run_dir, devices) if trial.ten_crop else None,
            color_energy=_color_energy(run_dir) if trial.colors else None,
        )
    line = f"{shlex.join(command)}: ended with {status}: {last_line(run_dir)}"
    if status == 2:
        raise UserError(line)
    raise RuntimeError(line)


def _cpu_file(run_dir: Path) -> Path:
    return run_dir.with_name(f"{run_dir.name}.cpu-seconds")


def _run(
    command: list[str],
    run_dir: Path,
    curve: Curve,
    until: float | None,
    on_steps: Callable[[int], object],
    deadline: float,
) -> int:
    """Runs `replica.train`, and ends it at the target or the deadline; returns its status."""

    def look() -> bool:
        on_steps(curve.read(run_dir))
        is_done = until is not None and curve.reached_at(until) is not None
        return is_done or time.monotonic() > deadline

    before = _children_cpu_seconds()
    try:
        return run_followed(command, run_dir, until=look)
    finally:
        path = _cpu_file(run_dir)
        earlier = float(path.read_text()) if path.exists() else 0.0
        path.write_text(f"{earlier + _children_cpu_seconds() - before:.3f}\n")


def _children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _ten_crop(run_dir: Path, devices: Sequence[str]) -> list[float]:
    """Top-1 and top-5 error of a run's last weights on ten crops."""
    checkpoint = str(checkpoints_of(run_dir)[-1])
    command = ["-m", "replica.test", "--checkpoint", checkpoint, "--ten-crop", "--json"]
    if "--device" in devices:
        command += ["--device", devices[devices.index("--device") + 1]]
    result = subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE)
    tested = json.loads(result.stdout)
    return [tested["top1_error"], tested["top5_error"]]


def _color_energy(run_dir: Path) -> list[list[float]]:
    """The color of each kernel of the first layer, tower by tower, in a run's last weights."""
    checkpoint = load_checkpoint(checkpoints_of(run_dir)[-1])
    recipe = checkpoint.recipe
    weights = rgb_kernels(checkpoint.model[f"{recipe.convs[0].name}.weight"], recipe)
    energies = color_energy(weights).tolist()
    length = len(energies) // recipe.towers
    return [energies[first : first + length] for first in range(0, len(energies), length)]


def _outcome(
    trial: Trial,
    kind: str,
    reached_at: float | None,
    curve: Curve,
    run_dir: Path,
    data: DataSet,
    code: str,
) -> Outcome:
    record, epochs = read_run_json(run_dir), curve.epochs()
    if record["data"]["manifest_sha256"] != data.manifest_sha256:
        raise UserError(
            f"{run_dir}: is a run on other data than {data.directory}: remove it, or choose "
            "another --work"
        )
    validations = curve.validations
    return Outcome(
        trial=trial,
        outcome=kind,
        reached_at=reached_at,
        steps=len(curve.steps),
        steps_per_epoch=len(curve.sizes),
        first_losses=[_finite(line.loss) for line in curve.steps[:LOSSES_KEPT]],
        train_losses=[_finite(curve.mean(lines, "loss")) for lines in epochs],
        train_errors=[curve.mean(lines, "top1_error") for lines in epochs],
        val_losses=[_finite(line.loss) for line in validations],
        val_top1=[line.top1_error for line in validations],
        val_top5=[line.top5_error for line in validations],
        seconds=round(sum(curve.size(x.step) / x.images_per_second for x in curve.steps), 1),
        cpu_seconds=float(_cpu_file(run_dir).read_text()),
        code=code,
        command=["python", "-m", "replica.train", *trial.options()],
        manifest_sha256=data.manifest_sha256,
        num_classes=len(data.wnids),
        train_images=len(data.train),
        held_out_images=len(data.part(data.held_out)),
        **{name: record[name] for name in ("git_revision", "hardware", "versions", "operators")},
    )
