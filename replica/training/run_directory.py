"""A run's directory: where it is, its lock, its metrics (metrics.jsonl)."""

import importlib.util
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path

from data_prep.errors import UserError, command_for
from data_prep.files import locked, part_of
from data_prep.manifest_json import strict_json
from data_prep.progress import write_line
from replica.training.options import Say
from replica.training.run_record import RUN_FILE, read_fields, read_run_json

RUNS_DIR = Path("runs")
METRICS_FILE = "metrics.jsonl"
DAMAGED_METRICS_FILE = "metrics-damaged.jsonl"
LOCK_FILE = "run.lock"
LOG_FILE = "control.jsonl"  # of changes by hand
# What a run may leave that failed before it had its record.
_LEFT = (LOG_FILE, *(part_of(Path(name)).name for name in (LOG_FILE, RUN_FILE)))


def newest_run(*, purpose: str) -> Path:
    """The run below `runs/` that was begun last.

    Raises:
        UserError: there is none.
    """
    begun = {}
    for path in sorted(RUNS_DIR.glob(f"*/{RUN_FILE}")):
        try:
            begun[path.parent] = float(read_run_json(path.parent)["begun"])
        except UserError as error:
            write_line(f"passed over {error}")
    if not begun:
        raise UserError(
            f"{RUNS_DIR}/: expected a run there to {purpose}, found none: train with "
            f"`{command_for('replica.train')} --gpus 2`, or name one"
        )
    return max(begun, key=begun.__getitem__)


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

    A new run removes what one has left there that failed before it had its record.

    Raises:
        UserError: the directory is in use, or holds other files although this is a new run.
    """
    if not resume:
        _check_is_free(run_dir)  # before a lock file stands among them
    when_held = "in use by another process: wait for it, or choose another one"
    with locked(run_dir / LOCK_FILE, title=f"--out {run_dir}", when_held=when_held):
        if not resume:
            _check_is_free(run_dir)  # another run may have begun and ended in between
            for name in _LEFT:
                (run_dir / name).unlink(missing_ok=True)
        yield


def _check_is_free(run_dir: Path) -> None:
    names = {path.name for path in run_dir.iterdir()} if run_dir.exists() else set()
    if not names <= {LOCK_FILE, *_LEFT}:
        raise UserError(
            f"--out {run_dir}: in use: expected an empty or a new directory: choose another one, "
            "or continue the run in it with --resume"
        )


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
    `feed_share` is the fraction of rank 0's CPU seconds in a step that feed threads spent, 0..1.
    """

    loss: float = math.nan
    top1_error: float = math.nan
    top5_error: float = math.nan
    learning_rate: float = math.nan
    images_per_second: float = math.nan
    feed_share: float = math.nan


@dataclass(frozen=True, kw_only=True)
class MetricsLine(Measures):
    """A line of metrics.jsonl (null stands for NaN), of kind `step`, `val` or `resume`."""

    kind: str
    step: int
    epoch: int


KINDS = ("step", "val", "resume")
_MEASURES = attrgetter(*(field.name for field in fields(Measures)))


def metrics_line(text: bytes) -> MetricsLine:
    """Reads a line of metrics.jsonl.

    Raises:
        ValueError: it is no such line.
    """
    content = strict_json(text)
    if isinstance(content, dict):
        content = {k: v for k, v in content.items() if v is not None}
    line = read_fields(MetricsLine, content)
    counts, measures = (line.step, line.epoch), _MEASURES(line)
    if line.kind not in KINDS or not all(type(x) is int and x >= 0 for x in counts):
        raise ValueError(f"expected a kind, a step and an epoch, got {text[:60]!r}")
    if not all(type(x) in (int, float) for x in measures):
        raise ValueError(f"expected numbers, got {text[:60]!r}")
    return line


def read_metrics(run_dir: Path) -> list[MetricsLine]:
    """All lines of metrics.jsonl, but for a last one that is still being written.

    Raises:
        UserError: a line is damaged.
    """
    path, lines = run_dir / METRICS_FILE, []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            lines.append(metrics_line(text))
        except ValueError as error:
            raise UserError(
                f"{path}: line {number}: damaged: {error}: remove it, or resume the run, which "
                "puts it aside"
            ) from None
    return lines


def can_write_events(run_dir: Path, say: Say) -> bool:
    """Whether TensorBoard is installed, which writes the event files, and takes the directory."""
    is_installed = importlib.util.find_spec("tensorboard") is not None
    if not is_installed:
        install = "pip install 'replica-alexnet[tensorboard]'"
        say(f"tensorboard: no event files (tensorboard is not installed: {install})")
        return False
    try:
        str(run_dir).encode()
    except UnicodeEncodeError:
        say("tensorboard: no event files (it writes only where the path is UTF-8)")
        return False
    return True
