"""Training, step by step (paper 5): what one rank of a run does from its start to its end."""

import dataclasses
import json
import math
import shlex
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

import torch
import torch.nn.functional as F

from data_prep.errors import command_for, print_line, printable
from data_prep.files import write_whole
from data_prep.progress import progress_bar, write_line
from replica.distributed.heartbeat import beat
from replica.distributed.mesh import Rank
from replica.distributed.worker import StopRequest
from replica.feed.augment import center_crop
from replica.feed.feed import Batch
from replica.training.allocator import keep_large_blocks
from replica.training.checkpoint import checkpoints_of, save_checkpoint
from replica.training.control_log import Request, log_requests, pending_requests
from replica.training.evaluation import Counts, count, evaluate
from replica.training.numerics import compute_precision, parameter_dtype, set_numerics
from replica.training.optimizer import sgd_step_
from replica.training.run import Run
from replica.training.run_log import RunLog
from replica.training.schedule import HandChange, Settings
from replica.training.state import RunState, begin, describe, whole_checkpoint

# How many images the message of a lost loss names.
NAMES_SHOWN = 5


def train_step_(state: RunState, batch: Batch, *, settings: Settings) -> Counts:
    """One step of stochastic gradient descent (paper 5), in place; counts this rank's images."""
    run, recipe = state.run, state.run.recipe
    device, dtype = state.rank.device, parameter_dtype(run.numerics.precision)
    images = batch.images.to(device, dtype, non_blocking=True)
    images = images.contiguous(memory_format=run.numerics.torch_memory_format)
    labels = batch.labels.to(device, non_blocking=True)
    masks = state.model.dropout_masks(batch.rows, seed=run.seed, step=batch.step)
    # A frozen tensor has no gradient: neither it nor its velocity moves.
    trained = {name: w for name, w in state.weights.items() if settings.rates[name]}
    names, weights = list(trained), list(trained.values())

    with compute_precision(run.numerics.precision, kind=device.type):
        logits = state.forward(images, masks=masks).to(dtype)
    losses = F.cross_entropy(logits, labels, reduction="none")
    loss = losses.sum() / batch.batch_size
    gradients = list(torch.autograd.grad(loss, weights)) if weights else []
    gradients = state.mesh.sum_over_copies(gradients)
    sgd_step_(
        weights,
        [state.velocities[name] for name in names],
        gradients,
        learning_rates=[settings.rates[name] for name in names],
        momentum=recipe.momentum,
        weight_decays=[settings.weight_decays[name] for name in names],
    )
    state.step += 1
    state.losses = losses.detach()
    counts = count(logits.detach().softmax(dim=1), labels)
    # Not from the probabilities, which end at the smallest number that is not zero.
    return dataclasses.replace(counts, loss=float(state.losses.double().sum()))


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
    )
    began = time.perf_counter()
    for batch in batches:
        feeding = time.perf_counter() - began
        if state.is_validation_due:
            if _validate_and_record(state, log, stop):
                return True
            began = time.perf_counter() - feeding  # the step's own time
        beat(f"step {state.step + 1}")
        epoch, settings = state.epoch, state.settings(state.step + 1)
        counts = train_step_(state, batch, settings=settings)
        requests = [] if log is None else pending_requests(run.run_dir, run.recipe)
        flags = (stop.is_set(), bool(requests), not math.isfinite(counts.loss))
        counts, (stopped, has_requests, is_lost) = add_up(counts, state=state, flags=flags)
        counts.check(batch.batch_size)
        now = time.perf_counter()
        if log is not None:
            log.step(epoch, counts, settings, seconds=now - began, feeding=feeding)
        if is_lost:
            _stop_at_lost_loss(state, batch, settings)
        began = now
        actions = apply_requests(state, requests) if has_requests else []
        if stopped or "stop" in actions:
            return True
        is_at_step = run.checkpoint_steps and state.step % run.checkpoint_steps == 0
        # The checkpoint that follows a validation knows its error: a step is written once.
        is_saved_later = state.is_validation_due or state.step == state.last_step
        if (is_at_step or "checkpoint" in actions) and not is_saved_later:
            _save(state, log)
            began = time.perf_counter()
    return _validate_and_record(state, log, stop)


def _stop_at_lost_loss(state: RunState, batch: Batch, settings: Settings) -> NoReturn:
    """Ends a run whose loss is not a number, in every rank, naming the images of the batch."""
    run, train = state.run, state.data.train
    assert state.losses is not None
    finite = torch.isfinite(state.losses).tolist()
    rows = state.feed.image_rows(batch.step)[batch.rows.numpy()]
    own = [(train.picture(int(row)), ok) for row, ok in zip(rows, finite, strict=True)]
    # Both towers of a copy have the same images.
    gathered = state.mesh.gather(own if state.rank.tower == 0 else [])
    pictures = [picture for of_rank in gathered for picture in of_rank]
    lost = [name for name, ok in pictures if not ok]
    path = run.run_dir / f"lost-loss-{state.step:08d}.json"
    if state.rank.index == 0:
        record = {
            "step": state.step,
            "rates": settings.rates,
            "images_without_a_finite_loss": lost,
            "images": [name for name, _ in pictures],
        }
        write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
    good = checkpoints_of(run.run_dir)
    more = f" and {len(lost) - NAMES_SHOWN} more" if len(lost) > NAMES_SHOWN else ""
    line = (
        f"the loss is not finite at step {state.step}, for {len(lost)} of {len(pictures)} images "
        f"({', '.join(lost[:NAMES_SHOWN])}{more}; all are in {path}): the learning rate "
        f"{settings.learning_rate:g} is too high for this recipe, or the data is damaged; the last "
        f"good checkpoint is {good[-1] if good else 'none: the run had saved nothing yet'}"
    )
    raise RuntimeError(printable(line))


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
    counts: Counts, *, state: RunState, flags: tuple[bool, ...] = ()
) -> tuple[Counts, list[bool]]:
    """Sums over the copies, and of each flag whether any rank set it; every rank must call it."""
    # Both towers of a copy have the same counts: one of them counts.
    counted = 1.0 if state.rank.tower == 0 else 0.0
    numbers = [*(counted * x for x in vars(counts).values()), *map(float, flags)]
    local = torch.tensor(numbers, dtype=torch.float64, device=state.rank.device)
    num_images, *sums = state.mesh.sum_over_all_(local).tolist()
    return Counts(round(num_images), *sums[:3]), [flag > 0 for flag in sums[3:]]


def validate(state: RunState, stop: StopRequest) -> tuple[Counts, bool]:
    """Counts the errors on the held-out part, on the center crop; every rank must call it.

    Also returns whether a stop request cut it short.
    """
    run, recipe, data = state.run, state.run.recipe, state.data
    device, dtype = state.rank.device, parameter_dtype(run.numerics.precision)
    mean_image = data.statistics.mean_image
    num_copies = state.rank.devices.num_copies
    images = data.part(data.held_out)
    rows = range(len(images))[state.rank.copy :: num_copies]

    def predict(crops: torch.Tensor) -> torch.Tensor:
        crops = crops.to(device, dtype)
        with compute_precision(run.numerics.precision, kind=device.type):
            crops = crops.contiguous(memory_format=run.numerics.torch_memory_format)
            logits: torch.Tensor = state.model(crops)
        return logits.to(dtype)

    is_shown = state.rank.index == 0 and sys.stderr.isatty()
    progress = progress_bar(
        len(rows), " images", desc="validation", leave=False, disable=not is_shown
    )
    # All copies go through the same number of batches, for the question before each.
    most_rows = math.ceil(len(images) / num_copies)
    counts = Counts()
    with progress:
        for first in range(0, most_rows, recipe.batch_size):
            beat("validation")
            _, (stopped,) = add_up(Counts(), state=state, flags=(stop.is_set(),))
            if stopped:
                return counts, True
            counts += evaluate(
                images,
                rows[first : first + recipe.batch_size],
                views=lambda image: center_crop(image - mean_image, crop_size=recipe.crop_size),
                predict=predict,
                images_per_batch=recipe.batch_size,
                on_progress=progress.update,
            )
    counts, _ = add_up(counts, state=state)
    counts.check(len(images))
    return counts, False
