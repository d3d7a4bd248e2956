"""What rank 0 writes while a run goes: its record, metrics, event files, and how far it is."""

import dataclasses
import json
import math
import time
from collections import deque
from pathlib import Path
from typing import Self

import numpy as np

from data_prep.errors import UserError
from data_prep.files import write_whole
from data_prep.progress import duration, progress_bar, write_line
from replica.network.kernels import kernel_picture, rgb_kernels
from replica.training.checkpoint import Checkpoint
from replica.training.evaluation import Counts
from replica.training.run_directory import (
    DAMAGED_METRICS_FILE,
    METRICS_FILE,
    Measures,
    metrics_line,
)
from replica.training.run_record import RunRecord, write_run_record
from replica.training.schedule import Settings
from replica.training.state import RunState

# The rates that are shown are means over so many steps: long enough to be steady.
STEPS_IN_MEAN = 50
# Of a run, an event file gets at most so many steps and states of the weights, besides changes.
STEPS_SHOWN, WEIGHTS_SHOWN = 10_000, 100
# TensorBoard draws a histogram with 30.
HISTOGRAM_BINS = 64
# How many damaged lines a message numbers.
LINES_SHOWN = 5


class RunLog:
    """Where rank 0 writes what happens; the other ranks have none of it.

    metrics.jsonl has one object per line, exactly one of kind `step` per training step, and at
    most one of every other kind, whatever interrupted the run.
    """

    def __init__(self, state: RunState, record: RunRecord) -> None:
        self._state, run = state, state.run
        write_run_record(run.run_dir, record)
        metrics = run.run_dir / METRICS_FILE
        # An interrupted session may have written a line, and not the checkpoint that follows.
        self._kinds_written = cut_back(metrics, state.step) if run.is_resumed else set()
        self._metrics = metrics.open("ab", buffering=0)  # nothing is left to write at the end
        self._events = None
        if run.tensorboard:
            self._events = EventFile(run.run_dir, step=state.step, last_step=state.last_step)
        if run.is_resumed:
            self._write("resume", state.epoch, Measures())
        self.progress = Progress(state)

    def _write(self, kind: str, epoch: int, measures: Measures, *, step: int | None = None) -> bool:
        """Writes a line, by default of the last step; whether the step had none of its kind yet."""
        step = self._state.step if step is None else step
        if kind in self._kinds_written:
            return False
        self._kinds_written.add(kind)
        values = {name: x if math.isfinite(x) else None for name, x in vars(measures).items()}
        line = {"kind": kind, "step": step, "epoch": epoch, **values}
        data = (json.dumps(line, allow_nan=False) + "\n").encode()
        try:
            while data:
                data = data[self._metrics.write(data) :]
        except OSError as error:
            raise UserError(
                f"cannot write {self._metrics.name}: {error.strerror}: make room, then continue "
                "the run with --resume"
            ) from None
        return True

    def step(
        self,
        step: int,
        epoch: int,
        counts: Counts,
        settings: Settings,
        *,
        seconds: float,
        feeding: float,
        feed_share: float,
    ) -> None:
        """One more step.

        Args:
            step, epoch: counted from 1.
            counts: over all ranks.
            settings: of the step.
            seconds: that it took, and `feeding` those of them in which it waited for its batch.
            feed_share: what making batches took of this process's CPU seconds in them, 0..1.
        """
        measures = _measures(counts, rate=settings.learning_rate, seconds=seconds)
        measures = dataclasses.replace(measures, feed_share=feed_share)
        self._kinds_written = set()
        self._write("step", epoch, measures, step=step)
        self.progress.step(epoch, measures, (seconds, counts.num_images, feeding))
        if self._events is not None:
            self._events.step(step, measures, settings.rates)

    def validation(self, epoch: int, counts: Counts, *, rate: float, seconds: float) -> None:
        """The errors on the held-out part after a step."""
        measures = _measures(counts, rate=rate, seconds=seconds)
        if self._write("val", epoch, measures) and self._events is not None:
            self._events.validation(self._state.step, measures)
        whose = "" if self._state.run.recipe.ema is None else " of the averaged weights"
        write_line(
            f"epoch {epoch}, step {self._state.step}: validation loss {counts.mean_loss:.3f}, "
            f"top-1 error {counts.top1_error:.2%}, top-5 error {counts.top5_error:.2%} "
            f"(center crop{whose}), learning rate {rate:g}"
        )

    def weights(self, saved: Checkpoint) -> None:
        """The weights that were saved, for the event file."""
        if self._events is not None:
            self._events.weights(saved)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.progress.close()
        self._metrics.close()
        # After a failure, such as a full disk, it would fail once more.
        if self._events is not None and error is None:
            self._events.close()


class EventFile:
    """TensorBoard's event file of a session: curves, conv1's kernels, histograms.

    It has every validation; every k-th step, k the smallest with which `STEPS_SHOWN` are enough for
    the planned steps, those where a rate changes, a session's first and the run's last; and of the
    weights that are saved, those at least a `WEIGHTS_SHOWN`-th of the run after the ones before,
    and the last. So the paper's 900,900 steps stay below 50 MB; metrics.jsonl has every step.

    Args:
        run_dir: where the file is.
        step: how many steps are done; what an interrupted session wrote of later ones is hidden.
        last_step: how many are planned.
    """

    def __init__(self, run_dir: Path, *, step: int, last_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir), purge_step=step + 1)
        self._interval = math.ceil(last_step / STEPS_SHOWN)
        self._weights_interval = math.ceil(last_step / WEIGHTS_SHOWN)
        self._last_step, self._weights_at = last_step, step
        self._rates: dict[str, float] = {}

    def step(self, step: int, measures: Measures, rates: dict[str, float]) -> None:
        """One more step, and the rate of each tensor at it."""
        is_change, self._rates = rates != self._rates, rates
        if is_change or step % self._interval == 0 or step == self._last_step:
            self._scalars("train", vars(measures), step)
            self._scalars("rate", rates, step)

    def validation(self, step: int, measures: Measures) -> None:
        """The errors on the held-out part."""
        of_step = ("feed_share",)
        values = {name: x for name, x in vars(measures).items() if name not in of_step}
        self._scalars("val", values, step)
        self._writer.flush()

    def weights(self, saved: Checkpoint) -> None:
        """The kernels of conv1 as a picture, and a histogram of each weight and velocity."""
        since = saved.step - self._weights_at
        if since >= self._weights_interval or (since and saved.step == self._last_step):
            self._weights_at = saved.step
            if saved.model_file is None:  # whose first layer nobody knows
                self._kernels(saved)
            for kind, tensors in (("model", saved.model), ("velocities", saved.velocities)):
                for name, tensor in tensors.items():
                    # Of millions of values a sample says as much, and takes no time.
                    values = tensor.flatten()[:: max(1, tensor.numel() // 100_000)]
                    tag = f"{kind}/{name}"
                    self._writer.add_histogram(tag, values, saved.step, bins=HISTOGRAM_BINS)
        self._writer.flush()

    def _kernels(self, saved: Checkpoint) -> None:
        recipe, title = saved.recipe, f"conv1 of {saved.recipe.name} after step {saved.step}"
        kernels = rgb_kernels(saved.model["conv1.weight"], recipe)
        picture = kernel_picture(kernels, towers=recipe.towers, title=title)
        self._writer.add_image("conv1", np.asarray(picture), saved.step, dataformats="HWC")

    def _scalars(self, kind: str, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


def cut_back(metrics: Path, step: int) -> set[str]:
    """Drops what an interrupted run wrote after the checkpoint: those steps come again.

    Damaged lines are put aside, into `metrics-damaged.jsonl`, and are named; all others stay.

    Returns:
        The kinds of which the step has a line.
    """
    kept, damaged, seen = [], [], set()
    content = metrics.read_bytes() if metrics.exists() else b""
    # A last line may have been cut short by a crash or a full disk.
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    for number, text in enumerate(lines, start=1):
        try:
            line = metrics_line(text)
        except ValueError:
            damaged.append((number, text))
            continue
        if line.step <= step and (line.kind, line.step) not in seen:
            seen.add((line.kind, line.step))
            kept.append(text)
    if damaged:
        aside = metrics.with_name(DAMAGED_METRICS_FILE)
        earlier = aside.read_bytes() if aside.exists() else b""
        write_whole(aside, earlier + b"".join(text + b"\n" for _, text in damaged))
        numbers = ", ".join(str(number) for number, _ in damaged[:LINES_SHOWN])
        more = f" and {len(damaged) - LINES_SHOWN} more" if len(damaged) > LINES_SHOWN else ""
        write_line(f"{metrics}: line {numbers}{more} damaged: put aside into {aside}")
    write_whole(metrics, b"".join(text + b"\n" for text in kept))
    return {kind for kind, at in seen if at == step}


def _measures(counts: Counts, *, rate: float, seconds: float) -> Measures:
    """What is written of counts that took some seconds."""
    return Measures(
        loss=counts.mean_loss,
        top1_error=counts.top1_error,
        top5_error=counts.top5_error,
        learning_rate=rate,
        images_per_second=counts.num_images / seconds,
    )


class Progress:
    """The line on the terminal: loss, errors, images/s, share of feeding, rate, times left."""

    def __init__(self, state: RunState) -> None:
        self._steps_per_epoch, self._epochs = state.feed.steps_per_epoch, state.run.recipe.epochs
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=STEPS_IN_MEAN)
        self._began = time.monotonic()
        self._bar = progress_bar(
            state.last_step,
            " steps",
            initial=state.step,
            desc=f"epoch {state.epoch}/{self._epochs}",
            bar_format="{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt}{postfix}",
            dynamic_ncols=True,
        )

    def step(self, epoch: int, measures: Measures, cost: tuple[float, int, float]) -> None:
        """One more step; it cost seconds, for so many images, and so many of them for feeding."""
        self._recent.append(cost)
        seconds, images, feeding = (sum(column) for column in zip(*self._recent, strict=True))
        done = self._bar.n + 1
        # With validations and checkpoints, which the steps' own times leave out.
        per_step = (time.monotonic() - self._began) / (done - self._bar.initial)
        of_epoch = -done % self._steps_per_epoch * seconds / len(self._recent)
        of_run = (self._bar.total - done) * per_step
        self._bar.set_description_str(f"epoch {epoch}/{self._epochs}", refresh=False)
        self._bar.set_postfix_str(
            f"loss {measures.loss:.3f}, top-1 {measures.top1_error:.0%}, "
            f"top-5 {measures.top5_error:.0%}, {images / seconds:.0f} images/s "
            f"(feeding {feeding / seconds:.0%}), rate {measures.learning_rate:g}, "
            f"left: epoch {duration(of_epoch)}, run {duration(of_run)}",
            refresh=False,
        )
        self._bar.update()

    def close(self) -> None:
        """Ends the line."""
        self._bar.close()
