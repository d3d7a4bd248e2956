"""What rank 0 writes while a run goes: its record, metrics, event files, and how far it is."""

import json
import math
import time
from collections import deque
from pathlib import Path

import numpy as np

from data_prep.files import write_whole
from data_prep.progress import duration, progress_bar, write_line
from replica.network.kernels import kernel_picture
from replica.training.checkpoint import Checkpoint
from replica.training.evaluation import Counts
from replica.training.run_directory import METRICS_FILE, Measures
from replica.training.run_record import RunRecord, write_run_record
from replica.training.schedule import Settings
from replica.training.state import RunState

# The rates that are shown are means over so many steps: long enough to be steady.
STEPS_IN_MEAN = 50


class RunLog:
    """Where rank 0 writes what happens; the other ranks have none of it.

    metrics.jsonl has one object per line, exactly one of kind `step` per training step.
    """

    def __init__(self, state: RunState, record: RunRecord) -> None:
        self._state, run = state, state.run
        write_run_record(run.run_dir, record)
        metrics = run.run_dir / METRICS_FILE
        if run.is_resumed:
            is_validated = len(state.val_errors) == state.epochs_done
            _cut_back(metrics, state.step, is_validated=is_validated)
        self._metrics = metrics.open("a")
        self._board = None
        if run.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # What an interrupted session wrote of later steps is hidden.
            self._board = SummaryWriter(str(run.run_dir), purge_step=state.step + 1)
        if run.is_resumed:
            self._write("resume", state.epoch, Measures())
        self.progress = Progress(state)

    def _write(self, kind: str, epoch: int, measures: Measures) -> None:
        step = self._state.step
        values = {name: x if math.isfinite(x) else None for name, x in vars(measures).items()}
        line = {"kind": kind, "step": step, "epoch": epoch, **values}
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
        self._metrics.flush()
        if self._board is not None and kind != "resume":
            for name, value in vars(measures).items():
                self._board.add_scalar(f"{'train' if kind == 'step' else kind}/{name}", value, step)

    def step(
        self, epoch: int, counts: Counts, settings: Settings, *, seconds: float, feeding: float
    ) -> None:
        """One more step, with what of its seconds feeding took."""
        measures = _measures(counts, rate=settings.learning_rate, seconds=seconds)
        self._write("step", epoch, measures)
        self.progress.step(epoch, measures, (seconds, counts.num_images, feeding))
        if self._board is not None:
            for name, rate in settings.rates.items():
                self._board.add_scalar(f"rate/{name}", rate, self._state.step)

    def validation(self, epoch: int, counts: Counts, *, rate: float, seconds: float) -> None:
        """The errors on the held-out part after a step."""
        self._write("val", epoch, _measures(counts, rate=rate, seconds=seconds))
        write_line(
            f"epoch {epoch}, step {self._state.step}: validation loss {counts.mean_loss:.3f}, "
            f"top-1 error {counts.top1_error:.2%}, top-5 error {counts.top5_error:.2%} "
            f"(center crop), learning rate {rate:g}"
        )

    def weights(self, saved: Checkpoint) -> None:
        """The kernels of conv1 as a picture, and a histogram of each weight and velocity."""
        if self._board is None:
            return
        picture = kernel_picture(saved.model["conv1.weight"], towers=saved.recipe.towers)
        self._board.add_image("conv1", np.asarray(picture), saved.step, dataformats="HWC")
        for kind, tensors in (("model", saved.model), ("velocities", saved.velocities)):
            for name, tensor in tensors.items():
                # Of millions of values a sample says as much, and takes no time.
                values = tensor.flatten()
                stride = max(1, values.numel() // 100_000)
                self._board.add_histogram(f"{kind}/{name}", values[::stride], saved.step)
        self._board.flush()

    def close(self) -> None:
        """Ends the files."""
        self._metrics.close()
        if self._board is not None:
            self._board.close()


def _cut_back(metrics: Path, step: int, *, is_validated: bool) -> None:
    """Drops what an interrupted run wrote after the checkpoint: those steps come again.

    So does the validation after its last step, where the checkpoint does not know of it.
    """
    kept = []
    for line in metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else []:
        try:
            written = json.loads(line)
            is_kept = written["step"] <= step - (written["kind"] == "val" and not is_validated)
        except ValueError:
            break  # The last line, cut short by a crash.
        if is_kept and line.endswith(b"\n"):
            kept.append(line)
    write_whole(metrics, b"".join(kept))


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
