"""The trials of a sweep, one after the other; what was interrupted goes on.

Several processes may work on one sweep: each takes what no other has.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import locked
from data_prep.progress import Lines, duration, progress_bar, write_line
from replica.sweeps.study import FINISHED, RUNNING, Asked, Study
from replica.sweeps.trials import Measured, Sweep, images_seen, run_trial

IN_USE = "in use by another process"
WAIT_SECONDS = 0.1
AGAIN = "the same command goes on"


@contextmanager
def held(sweep: Sweep) -> Iterator[None]:
    """Waits for the lock of a sweep, and holds it."""
    with ExitStack() as stack:
        while not _takes(sweep.lock, f"--out {sweep.out}", stack):
            time.sleep(WAIT_SECONDS)
        yield


def _takes(lock: Path, title: str, stack: ExitStack) -> bool:
    """Whether a lock was free; then the stack holds it."""
    try:
        stack.enter_context(locked(lock, title=title, when_held=IN_USE))
    except UserError as error:
        if IN_USE not in str(error):
            raise
        return False
    return True


def open_study(sweep: Sweep) -> Study:
    """Optuna's record of a sweep, begun where there is none.

    Raises:
        UserError: Optuna is not installed, the record is of something else, or the directory of a
            new sweep is in use.
    """
    if not sweep.storage.exists():
        check_is_free(sweep)
    with held(sweep):
        return Study(
            sweep.storage,
            sweep.out,
            sweep.settings,
            sweep.space,
            sampler=sweep.sampler,
            pruner=sweep.pruner,
            seed=sweep.seed,
            num_trials=sweep.num_trials,
        )


def check_is_free(sweep: Sweep) -> None:
    """Refuses a directory for a new sweep that has anything but what its processes begin with."""
    known = (sweep.lock.name, sweep.storage.name)
    found = sorted(x.name for x in sweep.out.glob("*") if not x.name.startswith(known))
    # Of the trials of another sweep, `Study` says more.
    if found and not any(name.startswith("trial-") for name in found):
        raise UserError(
            f"--out {sweep.out}: in use (it has {found[0]}): expected an empty or a new directory"
        )


def run_trials(sweep: Sweep, study: Study) -> dict[int, str]:
    """Runs what no other process has; returns by number a line for each trial that failed here.

    A trial that failed is not finished: the same command tries it again.

    Raises:
        UserError: `replica.train` refuses a trial.
    """
    failed: dict[int, str] = {}
    progress: Lines | None = None
    try:
        while True:
            with ExitStack() as stack:
                trial = _take(sweep, study, failed, stack)
                if trial is None:
                    return failed
                others = [x for x in study.trials() if x.number != trial.number]
                done = sum(sweep.num_images(x) for x in others if x.state != RUNNING)
                left = sum(sweep.num_images(x) for x in others if x.state == RUNNING)
                left += sweep.num_images(trial)
                new = max(0, sweep.num_trials - len(others) - 1)
                left += new * sweep.num_images(None)
                if progress is None:
                    at_first = done + images_seen(sweep.curve_of(trial))
                    progress = progress_bar(done + left, " images", desc="sweep", initial=at_first)
                progress.total = done + left
                finished = sum(x.state != RUNNING for x in others)
                write_line(f"{_told(trial)}: {finished} of {sweep.num_trials} trials done")
                try:
                    outcome, found = run_trial(
                        sweep, study, trial, on_images=partial(_show, progress, done)
                    )
                except RuntimeError as error:
                    failed[trial.number] = str(error)
                    write_line(str(error))
                    continue
                study.finish(trial.number, outcome, found.val_top1_error)
                _lock_of(sweep, trial).unlink(missing_ok=True)
                write_line(f"{trial.name}: {_summary(outcome, found)}")
    finally:
        if progress is not None:
            progress.close()


def _show(progress: Lines, done: int, images: int) -> None:
    """Moves the bar to so many images of the trial that is running."""
    progress.update(done + images - progress.n)


def _take(sweep: Sweep, study: Study, failed: dict[int, str], stack: ExitStack) -> Asked | None:
    """A trial that was interrupted, else a new one, else None; the stack holds its lock."""

    def is_left(number: int) -> bool:
        return study.trials()[number].state == RUNNING

    with held(sweep):
        for trial in study.trials():
            if trial.state == RUNNING and trial.number not in failed:
                with ExitStack() as own:
                    # Its process may have finished it before this one had the lock.
                    if _takes(_lock_of(sweep, trial), trial.name, own) and is_left(trial.number):
                        stack.push(own.pop_all())
                        return study.values_of(trial.number)
        new = study.ask()
        if new is not None:
            _takes(_lock_of(sweep, new), new.name, stack)
        return new


def _lock_of(sweep: Sweep, trial: Asked) -> Path:
    return sweep.out / f"{trial.name}.lock"


def _told(trial: Asked) -> str:
    return f"{trial.name} ({', '.join(f'{x}={y}' for x, y in trial.values.items())})"


def _summary(outcome: str, found: Measured) -> str:
    """A line on what a trial came to."""
    error = ""
    if found.val_top1_error is not None:
        error = f", validation error {found.val_top1_error:.2%} at epoch {found.best_epoch}"
    cut = "" if outcome == FINISHED else f" after {found.epochs} epochs"
    return f"{outcome}{cut}{error}, {duration(found.seconds)}"
