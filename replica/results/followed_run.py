"""A run of `replica.train` in a process of its own, which is started, followed and ended."""

import contextlib
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from replica.training.run_directory import METRICS_FILE, MetricsLine, metrics_line

POLL_SECONDS = 1.0


class Curve:
    """The steps of a run as they come; `num_images` are those of an epoch, in `batch_size`s."""

    def __init__(self, *, num_images: int, batch_size: int) -> None:
        batch_size = min(batch_size, num_images)
        self.sizes = [
            min(batch_size, num_images - first) for first in range(0, num_images, batch_size)
        ]
        self.steps: list[MetricsLine] = []
        self.validations: list[MetricsLine] = []
        self._sums = [0.0]  # of wrong images, before each step
        self._offset = 0

    def size(self, step: int) -> int:
        """Images of a step, counted from 1."""
        return self.sizes[(step - 1) % len(self.sizes)]

    def read(self, run_dir: Path) -> int:
        """Takes the lines that came since the last call; returns how many steps there are."""
        path = run_dir / METRICS_FILE
        if not path.exists():
            return 0
        with path.open("rb") as file:
            if path.stat().st_size < self._offset:  # a resumed run was cut back
                self._offset, self.steps, self.validations, self._sums = 0, [], [], [0.0]
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for text in whole.splitlines():
            with contextlib.suppress(ValueError):
                line = metrics_line(text)
                if line.kind == "step":
                    self.steps.append(line)
                    self._sums.append(self._sums[-1] + line.top1_error * self.size(line.step))
                elif line.kind == "val":
                    self.validations.append(line)
        return len(self.steps)

    def reached_at(self, error: float) -> float | None:
        """Epochs after which the mean over the last steps, as many as an epoch has, was so low."""
        length, images = len(self.sizes), sum(self.sizes)
        for last in range(length, len(self._sums)):
            if self._sums[last] - self._sums[last - length] <= error * images:
                return last / length
        return None

    def epochs(self) -> list[list[MetricsLine]]:
        """The steps of each whole epoch."""
        length = len(self.sizes)
        return [self.steps[i : i + length] for i in range(0, len(self.steps) - length + 1, length)]

    def mean(self, lines: list[MetricsLine], field: str) -> float:
        """Over the images of some steps."""
        sizes = [self.size(line.step) for line in lines]
        values = [getattr(line, field) for line in lines]
        return math.fsum(s * v for s, v in zip(sizes, values, strict=True)) / sum(sizes)


def run_followed(command: list[str], run_dir: Path, *, until: Callable[[], bool]) -> int:
    """Runs Python with a command, and asks it to end once `until` says so; returns its status.

    What it prints goes to `log_of(run_dir)`. A run that is asked to end saves a checkpoint first.

    Args:
        command: what follows `python`, such as `-m replica.train --out DIR`.
        run_dir: its directory.
        until: asked each `POLL_SECONDS`.
    """
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with log_of(run_dir).open("ab") as log:
        # In a session of its own: a terminal's Ctrl-C would be its second signal, which ends it at
        # once, without a checkpoint.
        process = subprocess.Popen(
            [sys.executable, *command], stdout=log, stderr=log, start_new_session=True
        )
        try:
            is_asked = False
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                if until() and not is_asked:
                    process.send_signal(signal.SIGTERM)
                    is_asked = True
        except BaseException:
            process.terminate()
            process.wait()
            raise
    return process.returncode


def log_of(run_dir: Path) -> Path:
    """What a run prints, beside its directory."""
    return run_dir.with_name(f"{run_dir.name}.log")


def last_line(run_dir: Path) -> str:
    """What a run said last."""
    return " ".join(log_of(run_dir).read_text().strip().splitlines()[-1:])
