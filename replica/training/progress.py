"""The one line that shows how a run goes, with what is left of the epoch and of the run."""

import sys
import time
from collections import deque

from tqdm import tqdm

from replica.training.run_directory import Measures

# The rates that are shown are means over so many steps: long enough to be steady.
STEPS_IN_MEAN = 50
# A log file gets a line each so many seconds, a terminal two a second.
LOG_SECONDS = 30


class StepProgress:
    """Loss, errors, images/s, the share of the time spent on feeding, learning rate, times left."""

    def __init__(
        self, *, first_step: int, last_step: int, steps_per_epoch: int, epochs: int
    ) -> None:
        self._steps_per_epoch, self._epochs = steps_per_epoch, epochs
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=STEPS_IN_MEAN)
        self._began = time.monotonic()
        self._done_first = first_step
        self._bar = tqdm(
            total=last_step,
            initial=first_step,
            desc=f"epoch {first_step // steps_per_epoch + 1}/{epochs}",
            unit=" steps",
            mininterval=0.5 if sys.stderr.isatty() else LOG_SECONDS,
            bar_format="{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt}{postfix}",
            dynamic_ncols=True,
        )

    def step(
        self,
        epoch: int,
        measures: Measures,
        *,
        images: int,
        seconds: float,
        feeding: float,
    ) -> None:
        """One more step: what was measured, its images, and what of its seconds feeding took."""
        self._recent.append((seconds, images, feeding))
        self._bar.set_description_str(f"epoch {epoch}/{self._epochs}", refresh=False)
        self._bar.set_postfix_str(self._text(measures), refresh=False)
        self._bar.update()

    def _text(self, measures: Measures) -> str:
        seconds, images, feeding = (sum(column) for column in zip(*self._recent, strict=True))
        done = self._bar.n + 1
        # With validations and checkpoints, which the steps' own times leave out.
        a_step = (time.monotonic() - self._began) / (done - self._done_first)
        of_epoch = -done % self._steps_per_epoch * seconds / len(self._recent)
        of_run = (self._bar.total - done) * a_step
        return (
            f"loss {measures.loss:.3f}, top-1 {measures.top1_error:.0%}, "
            f"top-5 {measures.top5_error:.0%}, {images / seconds:.0f} images/s "
            f"(feeding {feeding / seconds:.0%}), rate {measures.learning_rate:g}, "
            f"left: epoch {duration(of_epoch)}, run {duration(of_run)}"
        )

    def close(self) -> None:
        """Ends the line."""
        self._bar.close()


def duration(seconds: float) -> str:
    """Days, hours, minutes and seconds as `2d 03:04:05`, leading zeros left out."""
    days, rest = divmod(int(seconds), 86400)
    clock: str = tqdm.format_interval(rest)
    return f"{days}d {clock}" if days else clock
