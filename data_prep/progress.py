"""How far a command is, on standard error: tqdm's bar, or without tqdm a line now and then."""

import functools
import sys
import threading
import time
from typing import Any, Self

from data_prep.errors import printable

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None
else:
    # A lock within one process is all that our bars need; tqdm's own is a semaphore of the system.
    tqdm.set_lock(threading.RLock())

TERMINAL_SECONDS = 0.5
LOG_SECONDS = 30.0
ABSENT = (
    "progress: a line now and then (tqdm is not installed: pip install 'replica-alexnet[progress]')"
)


class Lines:
    """What this project uses of tqdm's bar, as lines: how much is done, and the time left."""

    def __init__(self, *, total: int, unit: str, mininterval: float, **options: Any) -> None:
        self.total, self.initial = total, options.get("initial", 0)
        self.n = self.initial
        self._unit, self._seconds = unit, mininterval
        self._before, self._after = options.get("desc", ""), ""
        # A caller with a format of its own also says the time left.
        self._says_left = "bar_format" not in options
        self._began = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """Counts some more; writes a line where the last one is old enough."""
        self.n += n
        now = time.monotonic()
        if now - self._shown < self._seconds or self.n == self.initial:
            return
        self._shown = now
        left = (self.total - self.n) * (now - self._began) / (self.n - self.initial)
        said = [f"{self._before} {self.n}/{self.total}{self._unit}".lstrip(), self._after]
        if self._says_left:
            said.insert(1, f"{duration(left)} left")
        write_line(", ".join(filter(None, said)))

    def set_description_str(self, desc: str, *, refresh: bool) -> None:
        """The words before the count."""
        self._before = desc

    def set_postfix_str(self, s: str, *, refresh: bool) -> None:
        """The words after it."""
        self._after = s

    def close(self) -> None:
        """Leaves the lines as they are."""


def progress_bar(
    total: int, unit: str, *, seconds: float = LOG_SECONDS, disable: bool = False, **options: Any
) -> Lines:
    """A line with the rate and the time left: on a terminal always new, else once in a while.

    Args:
        total: how much there is to do.
        unit: of what, such as " images".
        seconds: between two lines where standard error is no terminal.
        disable: shows nothing.
        options: others of tqdm.

    Returns:
        tqdm's bar, or where tqdm is not installed one that writes lines.
    """
    if tqdm is None:
        if not disable:
            _say_that_tqdm_is_absent()
        seconds = float("inf") if disable else seconds
        return Lines(total=total, unit=unit, mininterval=seconds, **options)
    # A smoothed rate would swing, as workers finish pictures of different sizes.
    options |= {"mininterval": TERMINAL_SECONDS if sys.stderr.isatty() else seconds}
    bar: Lines = tqdm(total=total, unit=unit, smoothing=0.05, disable=disable, **options)
    return bar


@functools.cache
def _say_that_tqdm_is_absent() -> None:
    write_line(ABSENT)


def write_line(line: str) -> None:
    """A line of its own on standard error, above a bar that is there."""
    if tqdm is None:
        print(printable(line), file=sys.stderr, flush=True)
    else:
        tqdm.write(printable(line), file=sys.stderr)


def duration(seconds: float) -> str:
    """Days, hours, minutes and seconds as `2d 3:04:05`; under an hour as `04:05`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02d}:{second:02d}" if hour or days else f"{minute:02d}:{second:02d}"
    return f"{days}d {clock}" if days else clock
