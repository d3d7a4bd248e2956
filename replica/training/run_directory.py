"""A run's directory: where it is, its lock, its metrics (metrics.jsonl)."""

import json
import math
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import UserError, command_for
from data_prep.files import locked
from replica.training.run_record import RUN_FILE, read_fields

RUNS_DIR = Path("runs")
METRICS_FILE = "metrics.jsonl"
LOCK_FILE = "run.lock"


def newest_run(*, purpose: str) -> Path:
    """The run below `runs/` that was begun last.

    Raises:
        UserError: there is none.
    """
    runs = sorted(path.parent for path in RUNS_DIR.glob(f"*/{RUN_FILE}"))
    if not runs:
        raise UserError(
            f"{RUNS_DIR}/: expected a run there to {purpose}, found none: train with "
            f"`{command_for('replica.train')} --gpus 2`, or name one"
        )
    # What every version of the project has written.
    return max(runs, key=lambda run: float(json.loads((run / RUN_FILE).read_bytes())["begun"]))


def new_run_dir() -> Path:
    """A directory below `runs/` named after the time."""
    base = time.strftime("%Y-%m-%dT%H-%M-%S")
    path, number = RUNS_DIR / base, 1
    while path.exists():
        number += 1
        path = RUNS_DIR / f"{base}-{number}"
    return path


def locked_run(run_dir: Path, *, resume: bool) -> AbstractContextManager[None]:
    """Holds a run's directory for this process alone; the lock ends with the process.

    A directory that is in use, or holds files although this is a new run, is refused.

    Raises:
        UserError: the directory is in use, or holds files although this is a new run.
    """
    if not resume and run_dir.exists() and any(run_dir.iterdir()):
        raise UserError(
            f"--out {run_dir}: in use: expected an empty or a new directory: choose another one, "
            "or continue the run in it with --resume"
        )
    when_held = "in use by another process: wait for it, or choose another one"
    return locked(run_dir / LOCK_FILE, title=f"--out {run_dir}", when_held=when_held)


def is_live(run_dir: Path) -> bool:
    """Whether a process holds the run's lock."""
    lock = run_dir / LOCK_FILE
    if not lock.exists():
        return False
    try:
        with locked(lock, title=str(run_dir), when_held="is live"):
            return False
    except UserError:
        return True


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured of a step or a validation; NaN is what is not, or has no finite value.

    The loss is a mean over images, the learning rate the common one, the speed that of all ranks.
    """

    loss: float = math.nan
    top1_error: float = math.nan
    top5_error: float = math.nan
    learning_rate: float = math.nan
    images_per_second: float = math.nan


@dataclass(frozen=True, kw_only=True)
class MetricsLine(Measures):
    """A line of metrics.jsonl (null stands for NaN), of kind `step`, `val` or `resume`."""

    kind: str
    step: int
    epoch: int


def read_metrics(run_dir: Path) -> list[MetricsLine]:
    """All lines of metrics.jsonl, but for a last one that is still being written."""
    lines = (run_dir / METRICS_FILE).read_text().split("\n")[:-1]
    known = [{k: v for k, v in json.loads(line).items() if v is not None} for line in lines]
    return [read_fields(MetricsLine, content) for content in known]
