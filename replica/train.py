"""Trains a network: `python -m replica.train --help`."""

import argparse
import math
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import cuda_ext
from data_prep.shards import DataSet, UserError, open_data_set
from replica import runlog
from replica.allocator import keep_large_blocks
from replica.augment import center_crop
from replica.checkpoint import check_fits_classes, check_fits_recipe, last_whole_checkpoint
from replica.devices import (
    PRECISIONS,
    Devices,
    check_precision,
    choose_devices,
    compute_precision,
    parameter_dtype,
    set_numerics,
)
from replica.draws import UINT32_RANGE
from replica.evaluate import Counts, count, evaluate
from replica.feed import Batch
from replica.launch import Rank, StopRequest, run_processes
from replica.model import DropoutKeys
from replica.optimizer import sgd_step_
from replica.process import Run, RunState, begin, describe, save
from replica.recipes import ALIASES, Recipe, find_recipe, from_record, with_changes
from replica.recipes.recipe import settable_fields
from replica.schedule import learning_rate

# A lock within one process is all that our bars need; tqdm's own is a semaphore of the system.
tqdm.set_lock(threading.RLock())

DEFAULT_DATA = Path("shards")
DEFAULT_RECIPE = "paper"
DEFAULT_SEED = 2012


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m replica.train",
        description="Trains a network on shards; writes a run directory.",
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help=f"shards (default: {DEFAULT_DATA})")
    add("--recipe", metavar="NAME", help="default: the data set's own, or paper")
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help=f"change a field of the recipe; fields: {', '.join(settable_fields())}",
    )
    for option, name in ALIASES.items():
        add(option, metavar="VALUE", help=f"the same as --set {name}=VALUE")
    add("--gpus", type=int, metavar="N", help="devices; CPU processes where there is no GPU")
    add(
        "--split",
        type=int,
        choices=(1, 2),
        help="over how many devices one network is cut (default: 2 where there are two devices)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    add("--precision", choices=PRECISIONS, default="float32", help="default: %(default)s")
    add("--steps", type=int, metavar="S", help="end after S steps, counted from the run's first")
    add(
        "--checkpoint-steps",
        type=int,
        metavar="N",
        help="save each N steps, besides the end of each epoch",
    )
    add("--seed", type=int, metavar="S", help=f"default: {DEFAULT_SEED}")
    add("--out", type=Path, metavar="DIR", help="run directory (default: runs/<time>)")
    add("--resume", action="store_true", help="continue the run in --out, or the newest one")
    arguments = parser.parse_args(argv)
    for name, least in (("steps", 1), ("checkpoint_steps", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and not least <= value < UINT32_RANGE:
            parser.error(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
    return arguments


def changes_of(arguments: argparse.Namespace) -> list[str]:
    """The `field=value` changes of the recipe, aliases under their full names."""
    changes = list(arguments.set)
    for option, field in ALIASES.items():
        value = getattr(arguments, option.removeprefix("--").replace("-", "_"))
        if value is not None:
            changes.append(f"{field}={value}")
    return changes


def choose_num_classes(recipe: Recipe, data: DataSet) -> int:
    """As many classes as the data has, unless the recipe fixes their number."""
    in_data = len(data.wnids)
    if recipe.num_classes is None:
        usual = recipe.fully_connected[-1].num_units
        if in_data != usual:
            print(f"classes: {in_data}, as the data has (recipe {recipe.name}: {usual})")
        return in_data
    if recipe.num_classes < in_data:
        raise UserError(
            f"num_classes {recipe.num_classes}: the data at {data.directory} has {in_data} "
            "classes: expected at least as many, or none to take the data's number"
        )
    if recipe.num_classes > in_data:
        print(f"classes: {recipe.num_classes}, as the recipe fixes (the data has {in_data})")
    return recipe.num_classes


def prepare_run(arguments: argparse.Namespace) -> tuple[Run, bool]:
    """Checks everything that can be checked before a process starts.

    Returns:
        The run, and whether it continues an earlier one.
    """
    keep_large_blocks()  # before the first tensor is read
    if arguments.resume:
        return _prepare_resumed_run(arguments), True
    data_dir = arguments.data or DEFAULT_DATA
    if arguments.data is None:
        print(f"data: {data_dir} (no --data given)")
    data = open_data_set(data_dir)
    name = arguments.recipe or data.recipe or DEFAULT_RECIPE
    if arguments.recipe is None:
        why = f"named by the data at {data_dir}" if data.recipe else "no --recipe given"
        print(f"recipe: {name} ({why})")
    recipe = with_changes(find_recipe(name), changes_of(arguments))
    check_fits_images(recipe, data)
    if data.held_out != "val":
        print(f"validation: on the {data.held_out} images (the data has no val)")
    run_dir = arguments.out or runlog.new_run_dir()
    if arguments.out is None:
        print(f"out: {run_dir} (no --out given)")
    seed = DEFAULT_SEED if arguments.seed is None else arguments.seed
    if arguments.seed is None:
        print(f"seed: {seed} (no --seed given)")
    run = Run(
        recipe=recipe,
        num_classes=choose_num_classes(recipe, data),
        data_dir=data_dir,
        run_dir=run_dir,
        devices=_devices_of(arguments, recipe),
        precision=arguments.precision,
        seed=seed,
        steps=arguments.steps,
        checkpoint_steps=arguments.checkpoint_steps,
        resume_from=None,
        command=runlog.command_line(),
    )
    return run, False


def check_fits_images(recipe: Recipe, data: DataSet) -> None:
    """Refuses crops that are larger than the images.

    Raises:
        UserError: they are; both sizes are named.
    """
    if recipe.crop_size > data.image_size:
        raise UserError(
            f"{data.directory}: has images of {data.image_size} pixels, but recipe {recipe.name} "
            f"cuts crops of {recipe.crop_size}: build the shards with --size 256, or change the "
            "crop with --set crop_size=..."
        )


def _prepare_resumed_run(arguments: argparse.Namespace) -> Run:
    run_dir = arguments.out or runlog.newest_run(purpose="resume")
    if arguments.out is None:
        print(f"out: {run_dir} (no --out given: the newest run)")
    record = runlog.read_run_record(run_dir)
    path, content, passed_over = last_whole_checkpoint(run_dir)
    for line in passed_over:
        print(f"passed over {line}")
    recipe = from_record(content["recipe"])
    changes = changes_of(arguments)
    if arguments.recipe is not None or changes:
        base = find_recipe(arguments.recipe) if arguments.recipe else recipe
        changed = with_changes(base, changes)
        check_fits_recipe(path, content, changed)
        recipe = changed
    if arguments.seed not in (None, content["seed"]):
        raise UserError(
            f"--seed {arguments.seed}: the run in {run_dir} began with seed {content['seed']}: "
            "leave the option out to continue it"
        )
    if arguments.precision != record["numerics"]["precision"]:
        raise UserError(
            f"--precision {arguments.precision}: the run in {run_dir} began with "
            f"{record['numerics']['precision']}: give that to continue it"
        )
    data_dir = arguments.data or Path(record["data"]["directory"])
    data = open_data_set(data_dir)
    check_fits_classes(path, content, data.wnids, data_dir)
    if data.manifest_sha256 != record["data"]["manifest_sha256"]:
        raise UserError(
            f"{data_dir}: is not the data that the run in {run_dir} began with (the manifest "
            "differs): give that with --data"
        )
    print(f"resuming {path} at step {content['step']}, epoch {content['epoch']}")
    return Run(
        recipe=recipe,
        num_classes=content["num_classes"],
        data_dir=data_dir,
        run_dir=run_dir,
        devices=_devices_of(arguments, recipe),
        precision=arguments.precision,
        seed=content["seed"],
        steps=arguments.steps,
        checkpoint_steps=arguments.checkpoint_steps,
        resume_from=path,
        command=runlog.command_line(),
    )


def say_operators(say: Callable[[str], None] = print) -> None:
    """Says so in one line where the operators run in plain PyTorch.

    Raises:
        UserError: REPLICA_EXT has an unknown value.
    """
    try:
        state = cuda_ext.compiled_state()
    except ValueError as error:
        raise UserError(str(error)) from None
    if not state.is_live:
        say(f"operators: plain PyTorch, several times slower than compiled ({state.reason})")


def _devices_of(arguments: argparse.Namespace, recipe: Recipe) -> Devices:
    devices = choose_devices(
        gpus=arguments.gpus,
        num_gpus_present=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        split=arguments.split,
        device=arguments.device,
        towers=recipe.towers,
    )
    for note in devices.notes:
        print(note)
    check_precision(arguments.precision, kind=devices.kind)
    say_operators()
    print(f"memory: {keep_large_blocks().reason}")
    return devices


# --- The steps


def train_step_(state: RunState, batch: Batch, *, rate: float) -> Counts:
    """One step of stochastic gradient descent (paper 5), in place.

    Returns:
        The counts of this process's share of the batch.
    """
    run, recipe = state.run, state.run.recipe
    device, dtype = state.rank.device, parameter_dtype(run.precision)
    images = batch.images.to(device, dtype, non_blocking=True)
    labels = batch.labels.to(device, non_blocking=True)
    dropout = DropoutKeys(run.seed, batch.step, batch.rows)
    weights = state.weights

    with compute_precision(run.precision, kind=device.type):
        logits = state.model(images, dropout=dropout).to(dtype)
    loss = F.cross_entropy(logits, labels, reduction="sum") / batch.batch_size
    gradients = list(torch.autograd.grad(loss, list(weights.values())))
    state.mesh.sum_over_data_(gradients)
    sgd_step_(
        list(weights.values()),
        list(state.velocities.values()),
        gradients,
        learning_rate=rate,
        momentum=recipe.momentum,
        weight_decays=[
            recipe.weight_decay if name.endswith(".weight") or recipe.decay_biases else 0.0
            for name in weights
        ],
    )
    state.step += 1
    return count(logits.detach().softmax(dim=1), labels)


def add_up(counts: Counts, *, state: RunState, stop: bool = False) -> tuple[Counts, bool]:
    """Adds counts over the shares of a batch; every process must call it.

    Returns:
        The sums, and whether any process was asked to stop.
    """
    # Both towers of a share have the same counts: one of them counts.
    share = 1.0 if state.rank.tower == 0 else 0.0
    numbers = (counts.num_images, counts.top1_correct, counts.top5_correct, counts.loss)
    local = torch.tensor([*(share * x for x in numbers), float(stop)], dtype=torch.float64)
    total = state.mesh.sum_over_all_(local.to(state.rank.device)).tolist()
    num_images, top1_correct, top5_correct, loss, stops = total
    return Counts(round(num_images), top1_correct, top5_correct, loss), stops > 0


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
    device, dtype = state.rank.device, parameter_dtype(run.precision)
    mean_image = data.statistics.mean_image
    num_shares = state.rank.devices.num_data_shares
    images = data.part(data.held_out)
    rows = range(len(images))[state.rank.data_index :: num_shares]

    def predict(crops: torch.Tensor) -> torch.Tensor:
        with compute_precision(run.precision, kind=device.type):
            return state.model(crops.to(device, dtype))

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
            _, stopped = add_up(Counts(), state=state, stop=stop.is_set())
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


def run_rank(rank: Rank, run: Run, stop: StopRequest) -> None:
    """One process of a run, from its start to its end."""
    keep_large_blocks()
    set_numerics(run.precision)
    state = begin(run, rank)
    record = describe(state)
    metrics = None
    if rank.index == 0:
        runlog.write_run_record(run.run_dir, record)
        resumed_step = state.step if run.resume_from is not None else None
        metrics = runlog.Metrics(run.run_dir, resumed_step=resumed_step)
        if resumed_step is not None:
            metrics.write("resume", step=resumed_step, epoch=state.epoch)
    if run.resume_from is not None and state.step >= state.last_step:
        if rank.index == 0:
            print(f"the run is complete at step {state.step}; nothing to do")
        return
    stopped = _train(state, metrics, stop)
    path = save(state)
    if metrics is not None:
        metrics.close()
        print(f"saved {path}")
        if stopped:
            print(
                f"stopped at step {state.step}; continue with `python -m replica.train --resume "
                f"--out {run.run_dir}` and the options of this run"
            )


def _train(state: RunState, metrics: runlog.Metrics | None, stop: StopRequest) -> bool:
    """The steps and the validations of a run; returns whether a stop request ended it."""
    run = state.run
    progress = tqdm(
        total=state.last_step,
        initial=state.step,
        unit=" steps",
        disable=metrics is None,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    with progress:
        began = time.perf_counter()
        for batch in state.feed.batches(state.step, state.last_step):
            # An epoch may have ended whose validation error is not known yet.
            is_due = len(state.val_errors) < state.epochs_done
            if is_due and _validate_and_record(state, metrics, stop):
                return True
            epoch = state.epoch
            rate = learning_rate(run.recipe, epoch=epoch, val_errors=state.val_errors)
            counts = train_step_(state, batch, rate=rate)
            counts, stopped = add_up(counts, state=state, stop=stop.is_set())
            counts.check(batch.batch_size)
            now = time.perf_counter()
            if metrics is not None:
                measured = measures(counts, rate=rate, seconds=now - began)
                metrics.write("step", step=state.step, epoch=epoch, **measured)
            if not counts.loss < float("inf"):
                raise RuntimeError(
                    f"the loss is {counts.mean_loss} at step {state.step}: the learning rate "
                    f"{rate} is too high for this recipe, or the data is damaged; the last "
                    "checkpoint is kept"
                )
            began = now
            progress.update()
            progress.set_postfix(epoch=epoch, loss=f"{counts.mean_loss:.3f}", refresh=False)
            if stopped:
                return True
            if run.checkpoint_steps and state.step % run.checkpoint_steps == 0:
                save(state)
        return _validate_and_record(state, metrics, stop)


def _validate_and_record(
    state: RunState, metrics: runlog.Metrics | None, stop: StopRequest
) -> bool:
    """Validates, and saves at the end of an epoch; returns whether a stop request cut it short."""
    began = time.perf_counter()
    counts, stopped = validate(state, stop)
    if stopped:
        return True
    # The epoch that these weights come from, also where a run ends in the middle of one.
    epoch = math.ceil(state.step / state.feed.steps_per_epoch)
    rate = learning_rate(state.run.recipe, epoch=epoch, val_errors=state.val_errors)
    if metrics is not None:
        measured = measures(counts, rate=rate, seconds=time.perf_counter() - began)
        metrics.write("val", step=state.step, epoch=epoch, **measured)
        tqdm.write(
            f"epoch {epoch}, step {state.step}: validation loss {counts.mean_loss:.3f}, "
            f"top-1 error {counts.top1_error:.2%}, top-5 error {counts.top5_error:.2%} "
            f"(centre crop), learning rate {rate:g}",
            file=sys.stderr,
        )
    if len(state.val_errors) < state.epochs_done:
        state.val_errors.append(counts.top1_error)
        if state.step < state.last_step:
            save(state)
    return False


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    try:
        run, resume = prepare_run(parse_arguments(argv))
        sys.stdout.flush()
        with runlog.locked_run(run.run_dir, resume=resume):
            return run_processes(run_rank, run, run.devices)
    except UserError as error:
        print(f"replica.train: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"replica.train: {error.filename}: {error.strerror}: make room or mend it, then "
            "continue with --resume",
            file=sys.stderr,
        )
        return 2
    except RuntimeError as error:
        print(f"replica.train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("replica.train: stopped at once; the last checkpoint is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
