"""What rank 0 writes while a run goes: its record, metrics, event files, and how far it is."""

import sys

from tqdm import tqdm

from replica.training.board import Board
from replica.training.evaluation import Counts
from replica.training.progress import StepProgress
from replica.training.run_directory import Measures, Metrics
from replica.training.run_record import RunRecord, write_run_record
from replica.training.schedule import Settings
from replica.training.state import RunState


class RunLog:
    """Where rank 0 writes what happens; the other ranks have none of it."""

    def __init__(self, state: RunState, record: RunRecord) -> None:
        run = state.run
        write_run_record(run.run_dir, record)
        self.metrics = Metrics(run.run_dir, resumed_step=state.step if run.is_resumed else None)
        if run.is_resumed:
            self.metrics.write("resume", step=state.step, epoch=state.epoch, measures=Measures())
        self.board = Board(run.run_dir, first_step=state.step) if run.tensorboard else None
        self.progress = StepProgress(
            first_step=state.step,
            last_step=state.last_step,
            steps_per_epoch=state.feed.steps_per_epoch,
            epochs=run.recipe.epochs,
        )

    def step(
        self,
        step: int,
        epoch: int,
        counts: Counts,
        settings: Settings,
        *,
        seconds: float,
        feeding: float,
    ) -> None:
        """One more step, with what of its seconds feeding took."""
        measures = _measures(counts, rate=settings.learning_rate, seconds=seconds)
        self.metrics.write("step", step=step, epoch=epoch, measures=measures)
        self.progress.step(
            epoch, measures, images=counts.num_images, seconds=seconds, feeding=feeding
        )
        if self.board is not None:
            self.board.scalars("train", step, measures)
            self.board.rates(step, settings.rates)

    def validation(
        self, step: int, epoch: int, counts: Counts, *, rate: float, seconds: float
    ) -> None:
        """The errors on the held-out part after a step."""
        measures = _measures(counts, rate=rate, seconds=seconds)
        self.metrics.write("val", step=step, epoch=epoch, measures=measures)
        if self.board is not None:
            self.board.scalars("val", step, measures)
        tqdm.write(
            f"epoch {epoch}, step {step}: validation loss {counts.mean_loss:.3f}, "
            f"top-1 error {counts.top1_error:.2%}, top-5 error {counts.top5_error:.2%} "
            f"(center crop), learning rate {rate:g}",
            file=sys.stderr,
        )

    def close(self) -> None:
        """Ends the files."""
        self.metrics.close()
        if self.board is not None:
            self.board.close()


def _measures(counts: Counts, *, rate: float, seconds: float) -> Measures:
    """What is written of counts that took some seconds."""
    return Measures(
        loss=counts.mean_loss,
        top1_error=counts.top1_error,
        top5_error=counts.top5_error,
        learning_rate=rate,
        images_per_second=counts.num_images / seconds,
    )
