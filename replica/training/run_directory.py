"""A run's directory: its record (run.json), its metrics (metrics.jsonl), its lock."""

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import cuda_ext
from data_prep.errors import UserError
from data_prep.files import locked, write_whole
from replica import __version__

RUNS_DIR = Path("runs")
RUN_FILE = "run.json"
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
    return max(runs, key=lambda run: json.loads((run / RUN_FILE).read_bytes())["begun"])


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


def describe_machine(kind: str) -> dict[str, Any]:
    """Versions and hardware, for the record of a run."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "versions": {
            "replica": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "git_revision": git_revision(),
        "hardware": {
            "cpu": cpu,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            if kind == "cuda"
            else [],
        },
        "operators": cuda_ext.implementations(),
    }


def git_revision() -> str | None:
    """The commit of this checkout, with `+changes` where files differ from it; None outside git."""
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--exclude=*"]
        revision = subprocess.run(command, capture_output=True, text=True, check=True)
        status = ["git", "-C", str(here), "status", "--porcelain", "--untracked-files=no"]
        changes = subprocess.run(status, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def write_run_record(run_dir: Path, record: dict[str, Any]) -> None:
    """Writes run.json; what it held of earlier sessions is kept in `earlier_sessions`."""
    path = run_dir / RUN_FILE
    record = {"begun": time.time(), "earlier_sessions": [], **record}
    if path.exists():
        earlier = json.loads(path.read_bytes())
        record["begun"] = earlier["begun"]
        sessions = earlier.pop("earlier_sessions")
        record["earlier_sessions"] = [*sessions, earlier]
    write_whole(path, (json.dumps(record, indent=1) + "\n").encode())


def read_run_record(run_dir: Path) -> dict[str, Any]:
    """Reads run.json.

    Raises:
        UserError: there is none.
    """
    path = run_dir / RUN_FILE
    if not path.is_file():
        raise UserError(f"{run_dir}: expected the {RUN_FILE} of a run there, found none")
    return json.loads(path.read_bytes())


class Metrics:
    """metrics.jsonl: one object a line, exactly one of kind `step` a training step.

    Each line has `kind` (`step`, `val`, `resume`), `step` (steps done), `epoch` (counted from 1),
    `loss` (mean over images), `top1_error`, `top5_error` (fractions), `learning_rate` and
    `images_per_second`; what a kind does not measure, or what is no finite number, is null.
    """

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

    def write(self, kind: str, *, step: int, epoch: int, **values: float | None) -> None:
        """Appends one line."""
        measured = ("loss", "top1_error", "top5_error", "learning_rate", "images_per_second")
        finite = {k: v for k, v in values.items() if v is not None and math.isfinite(v)}
        line = {"kind": kind, "step": step, "epoch": epoch, **dict.fromkeys(measured), **finite}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl, but for a last one that is still being written."""
    lines = (run_dir / METRICS_FILE).read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def command_line() -> list[str]:
    """The command as it was typed, for the record."""
    return list(sys.orig_argv)
