"""A run's directory: where it is, its lock, its metrics (metrics.jsonl)."""

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import locked, write_whole
from replica.training.run_record import RUN_FILE, begun, read_fields

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
            "`python -m replica.train --gpus 2`, or name one"
        )
    return max(runs, key=begun)


def new_run_dir() -> Path:
    """A directory below `runs/` named after the time."""
    base = time.strftime("%Y-%m-%dT%H-%M-%S")
    path, number = RUNS_DIR / base, 1
    while path.exists():
        number += 1
        path = RUNS_DIR / f"{base}-{number}"
    return path


@contextmanager
def locked_run(run_dir: Path, *, resume: bool) -> Iterator[None]:
    """Holds a run's directory for this process alone; the lock ends with the process.

    Raises:
        UserError: the directory is in use, or holds files although this is a new run.
    """
    if not resume and run_dir.exists() and any(run_dir.iterdir()):
        raise UserError(
            f"--out {run_dir}: in use: expected an empty or a new directory: choose another one, "
            "or continue the run in it with --resume"
        )
    when_held = "in use by another process: wait for it, or choose another one"
    with locked(run_dir / LOCK_FILE, title=f"--out {run_dir}", when_held=when_held):
        yield


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

    Attributes:
        loss: mean over images.
        top1_error, top5_error: fractions.
        learning_rate: the common one.
        images_per_second: of the whole run.
    """

    loss: float = math.nan
    top1_error: float = math.nan
    top5_error: float = math.nan
    learning_rate: float = math.nan
    images_per_second: float = math.nan


@dataclass(frozen=True, kw_only=True)
class MetricsLine(Measures):
    """A line of metrics.jsonl, in which null stands for NaN.

    Attributes:
        kind: `step`, `val` or `resume`.
        step: how many steps were done.
        epoch: counted from 1.
    """

    kind: str
    step: int
    epoch: int


class Metrics:
    """metrics.jsonl: one object per line, exactly one of kind `step` per training step."""

    def __init__(self, run_dir: Path, *, resumed_step: int | None = None) -> None:
        self.path = run_dir / METRICS_FILE
        if resumed_step is not None:
            self._cut_back(resumed_step)
        self._file = self.path.open("a")

    def _cut_back(self, step: int) -> None:
        """Drops what an interrupted run wrote after the checkpoint: those steps come again."""
        kept = []
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        for line in lines:
            try:
                is_kept = json.loads(line)["step"] <= step
            except ValueError:
                break  # The last line, cut short by a crash.
            if is_kept and line.endswith(b"\n"):
                kept.append(line)
        write_whole(self.path, b"".join(kept))

    def write(self, kind: str, *, step: int, epoch: int, measures: Measures) -> None:
        """Appends one line."""
        values = {name: x if math.isfinite(x) else None for name, x in vars(measures).items()}
        line = {"kind": kind, "step": step, "epoch": epoch, **values}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


def read_metrics(run_dir: Path) -> list[MetricsLine]:
    """All lines of metrics.jsonl, but for a last one that is still being written."""
    contents = map(json.loads, (run_dir / METRICS_FILE).read_text().split("\n")[:-1])
    return [
        read_fields(MetricsLine, {k: v for k, v in content.items() if v is not None})
        for content in contents
    ]


def command_line() -> list[str]:
    """The command as it was typed, for the record."""
    return list(sys.orig_argv)
