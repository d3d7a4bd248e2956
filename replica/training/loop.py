"""Training, step by step (paper 5): what one rank of a run does from its start to its end."""

import json
import math
import shlex
import sys
import time
from collections import deque
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NoReturn

import torch
from torch.func import functional_call

from data_prep.errors import command_for, print_line, printable
from data_prep.files import write_whole
from data_prep.progress import progress_bar, write_line
from replica.distributed.heartbeat import beat
from replica.distributed.mesh import Rank
from replica.distributed.worker import StopRequest
from replica.feed.augment import view_places
from replica.feed.feed import Batch, Batches
from replica.feed.images import mean_image_of
from replica.feed.views import view_batches
from replica.training.allocator import keep_large_blocks
from replica.training.checkpoint import checkpoints_of, save_checkpoint
from replica.training.control_log import Request, log_requests, pending_requests
from replica.training.evaluation import Counts, evaluate
from replica.training.loss_scale import LEAST_SCALE
from replica.training.numerics import compute_precision, parameter_dtype, set_numerics
from replica.training.run import Run
from replica.training.run_log import RunLog
from replica.training.schedule import HandChange, Settings, last_epoch
from replica.training.state import RunState, begin, describe, whole_checkpoint
from replica.training.step import Later, Measured, to_device, train_step_

# How many images the message of a lost loss names.
NAMES_SHOWN = 5
# How many steps the processor is ahead of the last one whose loss it knows.
STEPS_LATE = {"cpu": 0, "cuda": 4}


@dataclass(frozen=True)
class _Moment:
    """A moment on three clocks, in seconds: the wall's, and CPU time of process and feed."""

    wall: float
    process: float
    feed: float

    @classmethod
    def now(cls, batches: Batches) -> "_Moment":
        """This one."""
        return cls(time.perf_counter(), time.process_time(), batches.cpu_seconds())


@dataclass
class _Step:
    """A step that is done or under way; its seconds of the loop end with the next one's begin."""

    step: int
    epoch: int
    batch: Batch
    settings: Settings
    losses: torch.Tensor
    began: _Moment
    feeding: float
    scaling: Later | None = None
    ended: _Moment | None = None


class _Late:
    """Steps that are not reported yet: a GPU computes them while the processor is ahead."""

    def __init__(
        self, state: RunState, log: RunLog | None, stop: StopRequest, batches: Batches
    ) -> None:
        self._state, self._log, self._stop, self._batches = state, log, stop, batches
        self._most = STEPS_LATE[state.rank.device.type]
        self._queue: deque[tuple[_Step, Later]] = deque()

    def add(self, step: _Step, measured: Measured) -> None:
        """One more step, just begun; every rank must call it."""
        if self._queue:
            self._queue[-1][0].ended = step.began
        if measured.scaling is not None:
            step.scaling = Later(measured.scaling)
        run = self._state.run
        has_requests = self._log is not None and pending_requests(run.run_dir, run.recipe)
        flags = (self._stop.is_set(), bool(has_requests))
        self._queue.append(
            (
                step,
                Later(add_up(measured.num_images, measured.sums, state=self._state, flags=flags)),
            )
        )

    def report(self, *, all_of_them: bool) -> set[str]:
        """Reports steps: all, or those so late that the device may wait; every rank must call it.

        Returns:
            What was asked for, "stop" or "checkpoint"; then all steps have been reported.

        Raises:
            RuntimeError: the loss of a step is not finite, or its gradients whatever the scale.
        """
        actions: set[str] = set()
        while len(self._queue) > (0 if all_of_them or actions else self._most):
            actions.update(self._report_one(*self._queue.popleft()))
        return actions

    def _report_one(self, step: _Step, total: Later) -> list[str]:
        num_images, *sums, stopped, has_requests, is_lost = total.values()
        counts = Counts(round(num_images), *sums)
        counts.check(step.batch.batch_size)
        state, log = self._state, self._log
        if log is not None:
            began, ended = step.began, step.ended or _Moment.now(self._batches)
            share = (ended.feed - began.feed) / max(ended.process - began.process, 1e-9)
            log.step(
                step.step,
                step.epoch,
                counts,
                step.settings,
                seconds=ended.wall - began.wall,
                feeding=step.feeding,
                feed_share=min(1.0, max(0.0, share)),
            )
        if is_lost:
            _stop_at_lost_loss(state, step)
        if step.scaling is not None:
            _say_if_skipped(step, *step.scaling.values(), log=log)
        actions = ["stop"] if stopped else []
        if has_requests:
            requests = pending_requests(state.run.run_dir, state.run.recipe) if log else []
            actions += apply_requests(state, requests)
        return actions


def run_rank(rank: Rank, run: Run, stop: StopRequest) -> None:
    """One rank of a run, from its start to its end."""
    keep_large_blocks()
    numerics = set_numerics(run.numerics)
    state = begin(run, rank)
    record = describe(state, numerics)
    with RunLog(state, record) if rank.index == 0 else nullcontext() as log:
        _run(state, log, stop)


def _run(state: RunState, log: RunLog | None, stop: StopRequest) -> None:
    """What is left of a run, and what rank 0 says of it."""
    run = state.run
    is_complete = state.step >= state.last_step and not state.is_validation_due
    if run.resume_from is not None and is_complete:
        if log is not None:
            log.progress.close()
            print(f"the run is complete at step {state.step}; nothing to do")
        return
    stopped = _train(state, log, stop)
    path = _save(state, log)
    if log is not None:
        log.progress.close()
        print_line(f"saved {path}")
        if (epoch := last_epoch(run.recipe, val_errors=state.val_errors)) is not None:
            print_line(
                f"ended after epoch {epoch} of {run.recipe.epochs}: no new best top-1 error in "
                f"{run.recipe.stop_patience} epochs (stop_patience)"
            )
        if state.loss_scale is not None:
            skipped, scale = int(state.loss_scale.skipped_steps), float(state.loss_scale.scale)
            print_line(
                f"fp16: {skipped} of {state.step} steps were skipped, as a gradient was not "
                f"finite; the loss scale is {scale:g}"
            )
        if stopped:
            again = f"{command_for('replica.train')} --resume --out {shlex.quote(str(run.run_dir))}"
            print_line(f"stopped at step {state.step}; continue with `{again}`")


def _train(state: RunState, log: RunLog | None, stop: StopRequest) -> bool:
    """The steps and the validations of a run; returns whether a request ended it."""
    run = state.run
    batches = state.feed.batches(
        state.step,
        state.last_step,
        color_noise=lambda step: state.settings(step + 1).color_noise,
        threads=run.loader_threads,
        device=state.rank.device,
        memory_format=run.numerics.torch_memory_format,
    )
    late = _Late(state, log, stop, batches)
    began = _Moment.now(batches)
    for batch in batches:
        feeding = time.perf_counter() - began.wall
        if state.is_validation_due:
            if _validate_and_record(state, log, stop):
                return True
            if state.step == state.last_step:  # by `stop_patience`
                return False
            began = _Moment.now(batches)
            began = replace(began, wall=began.wall - feeding)  # the step's own time
        beat(f"step {state.step + 1}")
        epoch, settings = state.epoch, state.settings(state.step + 1)
        measured = train_step_(state, batch, settings=settings)
        step = _Step(state.step, epoch, batch, settings, measured.losses, began, feeding)
        late.add(step, measured)
        is_at_step = bool(run.checkpoint_steps) and state.step % (run.checkpoint_steps or 1) == 0
        # The checkpoint that follows a validation knows its error: a step is written once.
        is_saved_later = state.is_validation_due or state.step == state.last_step
        # What is saved comes of steps whose losses are known.
        actions = late.report(all_of_them=is_at_step or is_saved_later)
        began = _Moment.now(batches)
        if "stop" in actions:
            return True
        if (is_at_step or "checkpoint" in actions) and not is_saved_later:
            _save(state, log)
            began = _Moment.now(batches)
    return _validate_and_record(state, log, stop)


def _stop_at_lost_loss(state: RunState, step: _Step) -> NoReturn:
    """Ends a run whose loss is not a number, in every rank, naming the images of the batch."""
    run, train, batch = state.run, state.data.train, step.batch
    finite = torch.isfinite(step.losses).tolist()
    rows = state.feed.image_rows(batch.step)[batch.rows.numpy()]
    own = [(train.picture(int(row)), ok) for row, ok in zip(rows, finite, strict=True)]
    # Both towers of a copy have the same images.
    gathered = state.mesh.gather(own if state.rank.tower == 0 else [])
    pictures = [picture for of_rank in gathered for picture in of_rank]
    lost = [name for name, ok in pictures if not ok]
    path = run.run_dir / f"lost-loss-{step.step:08d}.json"
    if state.rank.index == 0:
        record = {
            "step": step.step,
            "rates": step.settings.rates,
            "images_without_a_finite_loss": lost,
            "images": [name for name, _ in pictures],
        }
        write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
    good = checkpoints_of(run.run_dir)
    more = f" and {len(lost) - NAMES_SHOWN} more" if len(lost) > NAMES_SHOWN else ""
    is_half = run.numerics.precision == "fp16"  # no scale of the loss helps against these
    half = ", an activation is too large for float16 (bf16 has float32's range)" if is_half else ""
    line = (
        f"the loss is not finite at step {step.step}, for {len(lost)} of {len(pictures)} images "
        f"({', '.join(lost[:NAMES_SHOWN])}{more}; all are in {path}): the learning rate "
        f"{step.settings.learning_rate:g} is too high for this recipe{half}, or the data is "
        "damaged; the last good checkpoint is "
        f"{good[-1] if good else 'none: the run had saved nothing yet'}"
    )
    raise RuntimeError(printable(line))


def _say_if_skipped(step: _Step, skipped: float, scale: float, *, log: RunLog | None) -> None:
    """Says that a step was skipped; raises a RuntimeError, in every rank, where no scale helps."""
    if skipped and log is not None:
        write_line(
            f"step {step.step}: skipped, a gradient was not finite; the loss scale is {scale:g} now"
        )
    if scale < LEAST_SCALE:
        raise RuntimeError(
            f"the gradients are not finite at step {step.step}, with a loss scale of {scale:g}: "
            "expected them to be from some scale on: use --precision bf16 or float32; the last "
            "checkpoint is kept"
        )


def apply_requests(state: RunState, requests: list[Request]) -> list[str]:
    """Takes over from the next step on what rank 0 has read, in every rank; returns the actions."""
    step, epoch = state.step + 1, state.epoch
    if state.rank.index == 0:
        log_requests(state.run.run_dir, requests, step=step, epoch=epoch)
    contents = state.mesh.of_rank_0([vars(request) for request in requests])
    requests = [Request(**content) for content in contents]
    for request in requests:
        state.by_hand += [HandChange(step, *change) for change in request.changes.items()]
        if state.rank.index == 0:
            why = f" ({request.reason})" if request.reason else ""
            write_line(f"by hand, from step {step}: {request}{why}")
    return [action for request in requests for action in request.actions]


def _validate_and_record(state: RunState, log: RunLog | None, stop: StopRequest) -> bool:
    """Validates, and saves at the end of an epoch; returns whether a stop request cut it short."""
    began = time.perf_counter()
    state.model.eval()
    counts, stopped = validate(state, stop)
    state.model.train()
    if stopped:
        return True
    # The epoch that these weights come from, also where a run ends in the middle of one.
    epoch = math.ceil(state.step / state.feed.steps_per_epoch)
    rate = state.settings(max(1, state.step)).learning_rate
    if log is not None:
        log.validation(epoch, counts, rate=rate, seconds=time.perf_counter() - began)
    if state.is_validation_due:
        state.val_errors.append(counts.top1_error)
        if state.step < state.last_step:
            _save(state, log)
    else:
        state.end_error = counts.top1_error
    return False


def _save(state: RunState, log: RunLog | None) -> Path | None:
    """Writes a checkpoint in rank 0; every rank must call it."""
    checkpoint = whole_checkpoint(state)
    if checkpoint is None:
        return None
    beat("writing a checkpoint")
    path = save_checkpoint(state.run.run_dir, checkpoint, keep=state.run.keep)
    if log is not None:
        log.weights(checkpoint)
    return path


# --- Counts over all ranks


def add_up(
    num_images: int, sums: torch.Tensor, *, state: RunState, flags: tuple[bool, ...] = ()
) -> torch.Tensor:
    """Sums over the copies, and how many ranks set each flag; every rank must call it.

    Args:
        num_images, sums: of this rank, as `Measured` has them.
        state: of this rank.
        flags: what this rank tells the others.

    Returns:
        float64 on the device: images, top-1 and top-5 hits, losses, flags, and in how many ranks
        the loss is not finite.
    """
    device = state.rank.device
    # Both towers of a copy have the same counts: one of them counts.
    counted = 1.0 if state.rank.tower == 0 else 0.0
    own = to_device([counted * num_images, *map(float, flags)], device, torch.float64)
    is_lost = torch.isfinite(sums[2:]).logical_not().double()
    total = torch.cat([own[:1], counted * sums, own[1:], is_lost])
    return state.mesh.sum_over_all_(total)


def validate(state: RunState, stop: StopRequest) -> tuple[Counts, bool]:
    """Counts the errors on the held-out part, on the center crop; every rank must call it.

    With `--ema`, those of the averaged weights. Also returns whether a stop request cut it short.
    """
    run, recipe, data = state.run, state.run.recipe, state.data
    device, dtype = state.rank.device, parameter_dtype(run.numerics.precision)
    mean_image = mean_image_of(recipe, data.statistics.mean_image)
    num_copies = state.rank.devices.num_copies
    images = data.part(data.held_out)
    rows = range(len(images))[state.rank.copy :: num_copies]

    def predict(crops: torch.Tensor) -> torch.Tensor:
        crops = crops.to(device, dtype)
        with compute_precision(run.numerics.precision, kind=device.type):
            crops = crops.contiguous(memory_format=run.numerics.torch_memory_format)
            logits: torch.Tensor = functional_call(state.model, state.averages, (crops,))
        return logits.to(dtype)

    is_shown = state.rank.index == 0 and sys.stderr.isatty()
    progress = progress_bar(
        len(rows), " images", desc="validation", leave=False, disable=not is_shown
    )
    # All copies go through the same number of batches, for the question before each.
    most_rows = math.ceil(len(images) / num_copies)
    counts = Counts()
    batches = view_batches(
        images,
        rows,
        views=view_places("center", mean_image.shape[:2], crop_size=recipe.crop_size),
        mean_image=mean_image,
        crop_size=recipe.crop_size,
        images_per_batch=recipe.batch_size,
        threads=run.loader_threads,
        device=device,
        memory_format=run.numerics.torch_memory_format,
    )
    with progress, closing(iter(batches)) as made:
        for _ in range(0, most_rows, recipe.batch_size):
            beat("validation")
            nothing = torch.zeros(3, dtype=torch.float64, device=device)
            if add_up(0, nothing, state=state, flags=(stop.is_set(),))[4] > 0:
                return counts, True
            one = islice(made, 1)
            counts += evaluate(one, predict=predict, on_progress=progress.update)
    num_images, *own = (float(x) for x in vars(counts).values())
    total = add_up(round(num_images), to_device(own, device, torch.float64), state=state)
    num_images, *sums, _ = total.tolist()
    counts = Counts(round(num_images), *sums)
    counts.check(len(images))
    return counts, False
