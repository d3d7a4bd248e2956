"""Training, step by step (paper 5): what one process of a run does from its start to its end."""

import dataclasses
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from data_prep.files import write_whole
from replica.distributed.heartbeat import beat
from replica.distributed.launch import (
    StopRequest,
)
from replica.distributed.mesh import Rank
from replica.feed.augment import center_crop
from replica.feed.feed import Batch
from replica.network.dropout_masks import DropoutKeys
from replica.training import control_log, run_directory
from replica.training.allocator import keep_large_blocks
from replica.training.board import Board
from replica.training.checkpoint import checkpoints_of
from replica.training.evaluation import Counts, count, evaluate
from replica.training.numerics import compute_precision, parameter_dtype, set_numerics
from replica.training.optimizer import sgd_step_
from replica.training.options import how_to_continue
from replica.training.progress import StepProgress
from replica.training.schedule import HandChange, Settings
from replica.training.state import Run, RunState, begin, describe, save, whole_tensors

# How many images a message names.
NAMES_SHOWN = 5


def train_step_(state: RunState, batch: Batch, *, settings: Settings) -> Counts:
    """One step of stochastic gradient descent (paper 5), in place.

    Returns:
        The counts of this process's share of the batch.
    """
    run, recipe = state.run, state.run.recipe
    device, dtype = state.rank.device, parameter_dtype(run.numerics.precision)
    images = batch.images.to(device, dtype, non_blocking=True)
    images = images.contiguous(memory_format=run.numerics.torch_memory_format)
    labels = batch.labels.to(device, non_blocking=True)
    masks = state.model.dropout_masks(DropoutKeys(run.seed, batch.step, batch.rows))
    # A frozen tensor has no gradient: neither it nor its velocity moves.
    trained = {name: w for name, w in state.weights.items() if settings.rates[name]}
    names, weights = list(trained), list(trained.values())

    with compute_precision(run.numerics.precision, kind=device.type):
        logits = state.forward(images, masks=masks).to(dtype)
    losses = F.cross_entropy(logits, labels, reduction="none")
    loss = losses.sum() / batch.batch_size
    gradients = list(torch.autograd.grad(loss, weights)) if weights else []
    gradients = state.mesh.sum_over_data(gradients)
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


def add_up(
    counts: Counts, *, state: RunState, flags: tuple[bool, ...] = ()
) -> tuple[Counts, list[bool]]:
    """Adds counts over the shares of a batch; every process must call it.

    Returns:
        The sums, and of each flag whether any process set it.
    """
    # Both towers of a share have the same counts: one of them counts.
    share = 1.0 if state.rank.tower == 0 else 0.0
    numbers = (counts.num_images, counts.top1_correct, counts.top5_correct, counts.loss)
    local = torch.tensor([*(share * x for x in numbers), *map(float, flags)], dtype=torch.float64)
    total = state.mesh.sum_over_all_(local.to(state.rank.device)).tolist()
    num_images, top1_correct, top5_correct, loss = total[:4]
    sums = Counts(round(num_images), top1_correct, top5_correct, loss)
    return sums, [flag > 0 for flag in total[4:]]


def measures(counts: Counts, *, rate: float, seconds: float) -> dict[str, float]:
    """What a line of metrics.jsonl says of counts that took some seconds."""
    return {
        "loss": counts.mean_loss,
        "top1_error": counts.top1_error,
        "top5_error": counts.top5_error,
        "learning_rate": rate,
        "images_per_second": counts.num_images / seconds,
    }


def validate(state: RunState, stop: StopRequest) -> tuple[Counts, bool]:
    """Counts the errors on the held-out part, on the central crop; every process must call it.

    Returns:
        The counts, and whether a stop request cut them short.
    """
    run, recipe, data = state.run, state.run.recipe, state.data
    device, dtype = state.rank.device, parameter_dtype(run.numerics.precision)
    mean_image = data.statistics.mean_image
    num_shares = state.rank.devices.num_data_shares
    images = data.part(data.held_out)
    rows = range(len(images))[state.rank.data_index :: num_shares]

    def predict(crops: torch.Tensor) -> torch.Tensor:
        crops = crops.to(device, dtype)
        with compute_precision(run.numerics.precision, kind=device.type):
            crops = crops.contiguous(memory_format=run.numerics.torch_memory_format)
            return state.model(crops).to(dtype)

    progress = tqdm(
        total=len(rows),
        desc="validation",
        unit=" images",
        leave=False,
        disable=state.rank.index != 0 or not sys.stderr.isatty(),
    )
    # All shares go through the same number of batches, for the question before each.
    largest_share = math.ceil(len(images) / num_shares)
    counts = Counts()
    with progress:
        for first in range(0, largest_share, recipe.batch_size):
            beat("validation")
            _, (stopped,) = add_up(Counts(), state=state, flags=(stop.is_set(),))
            if stopped:
                return counts, True
            counts += evaluate(
                images,
                rows[first : first + recipe.batch_size],
                prepare=lambda image: image - mean_image,
                views=lambda image: center_crop(image, crop_size=recipe.crop_size),
                predict=predict,
                images_per_batch=recipe.batch_size,
                on_progress=progress.update,
            )
    counts, _ = add_up(counts, state=state)
    counts.check(len(images))
    return counts, False


@dataclasses.dataclass
class Log:
    """Where rank 0 writes what happens; the other processes have none of it."""

    metrics: run_directory.Metrics
    board: Board | None
    progress: StepProgress


def run_rank(rank: Rank, run: Run, stop: StopRequest) -> None:
    """One process of a run, from its start to its end."""
    keep_large_blocks()
    set_numerics(run.numerics)
    state = begin(run, rank)
    record = describe(state)
    log = _open_log(state, record) if rank.index == 0 else None
    if run.resume_from is not None and state.step >= state.last_step:
        if log is not None:
            log.progress.close()
            print(f"the run is complete at step {state.step}; nothing to do")
        return
    try:
        stopped = _train(state, log, stop)
    finally:
        if log is not None:
            log.progress.close()
    path = _save(state, log)
    if log is not None:
        log.metrics.close()
        if log.board is not None:
            log.board.close()
        print(f"saved {path}")
        if stopped:
            print(f"stopped at step {state.step}; continue with `{how_to_continue(run)}`")


def _open_log(state: RunState, record: dict[str, object]) -> Log:
    run = state.run
    run_directory.write_run_record(run.run_dir, record)
    metrics = run_directory.Metrics(
        run.run_dir, resumed_step=state.step if run.is_resumed else None
    )
    if run.is_resumed:
        metrics.write("resume", step=state.step, epoch=state.epoch)
    board = None
    if run.tensorboard:
        board = Board(run.run_dir, first_step=state.step, towers=run.recipe.towers)
    progress = StepProgress(
        first_step=state.step,
        last_step=state.last_step,
        steps_per_epoch=state.feed.steps_per_epoch,
        epochs=run.recipe.epochs,
    )
    return Log(metrics, board, progress)


def _train(state: RunState, log: Log | None, stop: StopRequest) -> bool:
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
        # An epoch may have ended whose validation error is not known yet.
        if len(state.val_errors) < state.epochs_done:
            if _validate_and_record(state, log, stop):
                return True
            began = time.perf_counter() - feeding  # the step's own time
        beat(f"step {state.step + 1}")
        epoch, settings = state.epoch, state.settings(state.step + 1)
        counts = train_step_(state, batch, settings=settings)
        requests = []
        if log is not None:
            requests = control_log.pending_requests(run.run_dir, run.recipe)
        flags = (stop.is_set(), bool(requests), not _is_finite(counts))
        counts, (stopped, has_requests, is_lost) = add_up(counts, state=state, flags=flags)
        counts.check(batch.batch_size)
        now = time.perf_counter()
        if log is not None:
            measured = measures(counts, rate=settings.learning_rate, seconds=now - began)
            log.metrics.write("step", step=state.step, epoch=epoch, **measured)
            log.progress.step(
                epoch, measured, images=counts.num_images, seconds=now - began, feeding=feeding
            )
            if log.board is not None:
                log.board.scalars("train", state.step, measured)
                log.board.rates(state.step, settings.rates)
        if is_lost:
            _stop_at_lost_loss(state, batch, settings)
        began = now
        actions = _obey(state, requests) if has_requests else []
        if stopped or "stop" in actions:
            return True
        is_at_step = run.checkpoint_steps and state.step % run.checkpoint_steps == 0
        if is_at_step or "checkpoint" in actions:
            _save(state, log)
            began = time.perf_counter()
    return _validate_and_record(state, log, stop)


def _is_finite(counts: Counts) -> bool:
    return counts.loss < float("inf")  # false for NaN, too


def _obey(state: RunState, requests: list[control_log.Request]) -> list[str]:
    """Takes over what was asked for by hand, in every process; returns the actions asked for."""
    step, epoch = state.step + 1, state.epoch
    if state.rank.index == 0:
        control_log.log_requests(state.run.run_dir, requests, step=step, epoch=epoch)
    requests = state.mesh.of_rank_0(requests)
    for request in requests:
        changes = request.changes.items()
        state.by_hand += [HandChange(step, target, value) for target, value in changes]
        if state.rank.index == 0:
            what = [f"{target}={value:g}" for target, value in changes] + request.actions
            why = f" ({request.reason})" if request.reason else ""
            tqdm.write(f"by hand, from step {step}: {', '.join(what)}{why}", file=sys.stderr)
    return [action for request in requests for action in request.actions]


def _stop_at_lost_loss(state: RunState, batch: Batch, settings: Settings) -> None:
    """Ends a run whose loss is not a number, naming the images of the batch.

    Raises:
        RuntimeError: always, in every process.
    """
    run, train = state.run, state.data.train
    assert state.losses is not None
    finite = torch.isfinite(state.losses).tolist()
    rows = state.feed.image_rows(batch.step)[batch.rows.numpy()]
    mine = [(train.picture(int(row)), ok) for row, ok in zip(rows, finite, strict=True)]
    # Both towers of a share have the same images.
    shares = state.mesh.gather_objects(mine if state.rank.tower == 0 else [])
    pictures = [picture for share in shares for picture in share]
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
    raise RuntimeError(
        f"the loss is not finite at step {state.step}, for {len(lost)} of {len(pictures)} images "
        f"({', '.join(lost[:NAMES_SHOWN])}{more}; all are in {path}): the learning rate "
        f"{settings.learning_rate:g} is too high for this recipe, or the data is damaged; the last "
        f"good checkpoint is {good[-1] if good else 'none: the run had saved nothing yet'}"
    )


def _validate_and_record(state: RunState, log: Log | None, stop: StopRequest) -> bool:
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
        measured = measures(counts, rate=rate, seconds=time.perf_counter() - began)
        log.metrics.write("val", step=state.step, epoch=epoch, **measured)
        if log.board is not None:
            log.board.scalars("val", state.step, measured)
        tqdm.write(
            f"epoch {epoch}, step {state.step}: validation loss {counts.mean_loss:.3f}, "
            f"top-1 error {counts.top1_error:.2%}, top-5 error {counts.top5_error:.2%} "
            f"(centre crop), learning rate {rate:g}",
            file=sys.stderr,
        )
    if len(state.val_errors) < state.epochs_done:
        state.val_errors.append(counts.top1_error)
        if state.step < state.last_step:
            _save(state, log)
    return False


def _save(state: RunState, log: Log | None) -> Path | None:
    """Writes a checkpoint in rank 0; every process must call it."""
    whole = whole_tensors(state)
    if whole is None:
        return None
    path = save(state, whole)
    if log is not None and log.board is not None:
        log.board.weights(state.step, whole)
    return path
