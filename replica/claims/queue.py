"""The queue of an experiment: what is recorded is not repeated, what was interrupted goes on."""

import hashlib
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import locked
from data_prep.progress import Lines, duration, progress_bar, write_line
from data_prep.shards import DataSet
from replica.claims.trials import (
    LOSSES_KEPT,
    Outcome,
    Trial,
    read_outcome,
    run_trial,
    write_outcome,
)
from replica.results.followed_run import Curve
from replica.training.run import check_fits_images

# Of `replica`, what a run's numbers come from.
_FOLDERS = ("recipes", "network", "feed", "distributed", "training")
# As the goldens: bit-equal on one processor with one version, so close on another.
LOSS_TOLERANCE = 1e-3
IN_USE = "in use by another process"

# Of the trials that are finished, by name, all that are to be: a later one may follow from them.
Plan = Callable[[Mapping[str, Outcome]], list[Trial]]


def code_digest() -> str:
    """Of the source files that training's numbers come from: equal ones, equal numbers."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    paths = [root / "replica" / "paper.py"]
    for folder in ("cuda_ext", "data_prep", *(f"replica/{name}" for name in _FOLDERS)):
        paths += [*(root / folder).rglob("*.py"), *(root / folder).rglob("csrc/*")]
    for path in sorted(path for path in paths if path.is_file()):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a queue works.

    Attributes:
        records: finished trials, `EXPERIMENT/NAME.json`.
        work: runs under way, and what they printed.
        devices: options of `replica.train`, such as `--gpus 2`.
    """

    records: Path
    work: Path
    devices: Sequence[str] = ()


def read_outcomes(records: Path, experiment: str) -> dict[str, Outcome]:
    """The finished trials of an experiment by their names.

    Raises:
        UserError: a record is damaged, or not of the trial that its name says.
    """
    outcomes = {}
    for path in sorted((records / experiment).glob("*-seed-*.json")):
        outcome = read_outcome(path)
        if (outcome.trial.experiment, outcome.trial.name) != (experiment, path.stem):
            raise UserError(f"{path}: holds the trial {outcome.trial.name}: remove it or rename it")
        outcomes[path.stem] = outcome
    return outcomes


def run_queue(
    experiment: str, plan: Plan, *, data: DataSet, places: Places, minutes: float = math.inf
) -> bool:
    """Runs what is missing of an experiment; returns whether everything is there.

    Several processes may work on one queue: each takes what no other has.

    Raises:
        UserError: the records are of other data, or of a revision with other numerics.
    """
    deadline, code = time.monotonic() + 60 * minutes, code_digest()
    finished = read_outcomes(places.records, experiment)
    _check_plan(experiment, plan(finished), finished, data)
    _check_revision(finished, data, places, code)
    progress = None
    left_to_others: set[str] = set()
    try:
        while True:
            finished = read_outcomes(places.records, experiment)
            trials = plan(finished)
            missing = [t for t in trials if t.name not in finished]
            own = [t for t in missing if t.name not in left_to_others]
            if not own or time.monotonic() > deadline:
                return not missing
            for trial in own:
                check_fits_images(trial.trained(), data)
            trial, steps = own[0], sum(_most_steps(t, data) for t in own)
            if progress is None:
                progress = progress_bar(steps, " steps", desc=experiment)
            progress.total = progress.n + steps
            write_line(f"{trial.name}: {len(trials) - len(missing)} of {len(trials)} runs done")
            path = places.records / experiment / f"{trial.name}.json"
            lock = places.work / experiment / f"{trial.name}.lock"
            try:
                with locked(lock, title=str(lock), when_held=IN_USE):
                    at_first = progress.n
                    outcome = run_trial(
                        trial,
                        data=data,
                        work=places.work,
                        code=code,
                        devices=places.devices,
                        on_steps=partial(_show, progress, at_first),
                        deadline=deadline,
                    )
            except UserError as error:
                if IN_USE not in str(error):
                    raise
                left_to_others.add(trial.name)
                continue
            if outcome is None:
                return False
            progress.n = at_first + _most_steps(trial, data)  # where it ended early, too
            write_outcome(path, outcome)
            write_line(f"{trial.name}: {summary(outcome)}")
    finally:
        if progress is not None:
            progress.close()


def _show(progress: Lines, at_first: int, done: int) -> None:
    """Moves the bar to so many steps of the trial that is running."""
    progress.update(at_first + done - progress.n)


def summary(outcome: Outcome) -> str:
    """A line on what a trial came to."""
    took = f"{outcome.steps} steps, {duration(outcome.cpu_seconds)} of CPU time"
    if outcome.outcome == "diverged":
        return f"diverged, {took}"
    if outcome.reached_at is not None:
        until = outcome.trial.until or 0.0
        return f"{until:.0%} training error after {outcome.reached_at:.2f} epochs, {took}"
    error = outcome.train_errors[-1] if outcome.train_errors else math.nan
    held_out = f", held-out error {outcome.val_top1[-1]:.2%}" if outcome.val_top1 else ""
    return f"training error {error:.2%}{held_out}, {took}"


def _most_steps(trial: Trial, data: DataSet) -> int:
    batch_size = min(trial.trained().batch_size, len(data.train))
    return trial.epochs * math.ceil(len(data.train) / batch_size)


def planned_images(trials: Sequence[Trial], data: DataSet) -> int:
    """How many images trials see at most."""
    return sum(trial.epochs for trial in trials) * len(data.train)


def _check_plan(
    experiment: str, trials: list[Trial], finished: Mapping[str, Outcome], data: DataSet
) -> None:
    planned = {trial.name: trial for trial in trials}
    for name, outcome in finished.items():
        if name in planned and outcome.trial != planned[name]:
            raise UserError(
                f"{experiment}/{name}.json: is of a trial with other settings, {outcome.trial}, "
                f"expected {planned[name]}: choose another --records"
            )
        if outcome.manifest_sha256 != data.manifest_sha256:
            raise UserError(
                f"{experiment}/{name}.json: is of other data than {data.directory} (the manifest "
                "differs): give that with --data, or choose another --records"
            )


def _check_revision(
    finished: Mapping[str, Outcome], data: DataSet, places: Places, code: str
) -> None:
    """Refuses records of other numerics: of each arm, a run is begun anew and compared.

    Where the code is the same, there is nothing to compare.
    """
    others = [outcome for outcome in finished.values() if outcome.code != code]
    for outcome in {outcome.trial.arm: outcome for outcome in others}.values():
        losses = first_losses(outcome.trial, data=data, places=places)
        before = outcome.first_losses
        if not _agree(losses, before):
            shown = ", ".join(f"{x:.6g}" for x in (losses[-1], before[-1]) if x is not None)
            raise UserError(
                f"{outcome.trial.experiment}/{outcome.trial.name}.json: was made at revision "
                f"{outcome.git_revision}, whose first losses this one does not repeat (step "
                f"{len(losses)}: {shown}): use that revision, or choose another --records"
            )


def _agree(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    def near(x: float | None, y: float | None) -> bool:
        return x is y if x is None or y is None else abs(x - y) <= LOSS_TOLERANCE * abs(y)

    return len(one) == len(other) and all(map(near, one, other))


def first_losses(trial: Trial, *, data: DataSet, places: Places) -> Sequence[float | None]:
    """What this revision makes of the first steps of a trial."""
    write_line(f"{trial.name}: its first {LOSSES_KEPT} steps again, as the code has changed")
    places.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=places.work) as place:
        run_dir = Path(place) / "run"
        where = ["--data", str(data.directory), "--out", str(run_dir), "--no-tensorboard"]
        options = [*trial.options(), "--steps", str(LOSSES_KEPT), *places.devices]
        command = [sys.executable, "-m", "replica.train", *where, *options]
        subprocess.run(command, check=False, capture_output=True)
        batch_size = trial.trained().batch_size
        curve = Curve(num_images=len(data.train), batch_size=batch_size)
        curve.read(run_dir)
        return [line.loss if math.isfinite(line.loss) else None for line in curve.steps]
