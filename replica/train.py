"""Trains a network: `python -m replica.train --help`."""

import argparse
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

import cuda_ext
from data_prep.shards import DataSet, UserError, open_data_set
from replica import runlog
from replica.augment import center_crop
from replica.checkpoint import (
    check_fits_classes,
    check_fits_recipe,
    last_whole_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
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
from replica.feed import Batch, TrainFeed
from replica.launch import Mesh, Rank, StopRequest, run_processes
from replica.model import AlexNet, DropoutKeys, initialise_, whole_shapes
from replica.optimizer import sgd_step_
from replica.recipes import ALIASES, Recipe, find_recipe, from_record, to_record, with_changes
from replica.recipes.recipe import settable_fields
from replica.schedule import learning_rate

# A lock within one process is all that our bars need; tqdm's own is a semaphore of the system.
tqdm.set_lock(threading.RLock())

DEFAULT_DATA = Path("shards")
DEFAULT_RECIPE = "paper"
DEFAULT_SEED = 2012


@dataclass(frozen=True)
class Run:
    """What every process of a run is told."""

    recipe: Recipe
    num_classes: int
    data_dir: Path
    run_dir: Path
    devices: Devices
    precision: str
    seed: int
    steps: int | None  # stop after this many, counted from the beginning of the run
    checkpoint_steps: int | None
    resume_from: Path | None
    command: list[str]


@dataclass
class Progress:
    """How far a run is; with the weights and velocities, all that resuming needs."""

    step: int
    val_errors: list[float]  # top-1 error after each epoch, which the schedule reads


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


def say_operators() -> None:
    """Says so in one line where the operators run in plain PyTorch."""
    try:
        state = cuda_ext.compiled_state()
    except ValueError as error:
        raise UserError(str(error)) from None
    if not state.is_live:
        print(f"operators: plain PyTorch, several times slower than compiled ({state.reason})")


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
    return devices


# --- One process of a run


class Trainer:
    """The state of one process: its part of the network, the velocities, how far the run is."""

    def __init__(self, run: Run, rank: Rank) -> None:
        self.run, self.rank, self.recipe = run, rank, run.recipe
        self.numerics = set_numerics(run.precision)
        self.mesh = Mesh(rank)
        self.data = open_data_set(run.data_dir)
        placement = rank.placement(run.recipe.towers)
        model = AlexNet(run.recipe, num_classes=run.num_classes, placement=placement)
        self.progress = Progress(0, [])
        self.velocities: dict[str, torch.Tensor] = {}
        if run.resume_from is None:
            initialise_(model, seed=run.seed)
        self.model = model.to(rank.device, parameter_dtype(run.precision))
        self.weights = dict(self.model.named_parameters())
        self.velocities = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        if run.resume_from is not None:
            self._restore(load_checkpoint(run.resume_from))
        self.feed = TrainFeed(
            self.data, run.recipe, run.seed, rank.data_index, rank.devices.num_data_shares
        )
        self.weight_decays = [
            run.recipe.weight_decay if name.endswith(".weight") or run.recipe.decay_biases else 0.0
            for name in self.weights
        ]

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the training images."""
        return self.feed.steps_per_epoch

    @property
    def last_step(self) -> int:
        """How many steps the whole run has."""
        steps = self.recipe.epochs * self.steps_per_epoch
        return steps if self.run.steps is None else min(steps, self.run.steps)

    @property
    def epoch(self) -> int:
        """The epoch of the next step, counted from 1."""
        return self.progress.step // self.steps_per_epoch + 1

    def train_step(self, batch: Batch, *, rate: float, stop: bool) -> tuple[Counts, bool]:
        """One step of stochastic gradient descent (paper 5).

        Returns:
            The counts of the whole batch, and whether any process was asked to stop.
        """
        device, dtype = self.rank.device, parameter_dtype(self.run.precision)
        x = batch.images.to(device, dtype, non_blocking=True)
        labels = batch.labels.to(device, non_blocking=True)
        keys = DropoutKeys(self.run.seed, batch.step, batch.rows)
        with compute_precision(self.run.precision, kind=device.type):
            logits = self.model(x, dropout=keys).to(dtype if dtype.itemsize > 4 else torch.float32)
        loss = F.cross_entropy(logits, labels, reduction="sum") / batch.batch_size
        gradients = list(torch.autograd.grad(loss, list(self.weights.values())))
        self.mesh.sum_over_data_(gradients)
        sgd_step_(
            list(self.weights.values()),
            list(self.velocities.values()),
            gradients,
            learning_rate=rate,
            momentum=self.recipe.momentum,
            weight_decays=self.weight_decays,
        )
        self.progress.step += 1
        counts = count(logits.detach().softmax(dim=1), labels)
        return self._add_up(counts, stop=stop)

    def _add_up(self, counts: Counts, *, stop: bool) -> tuple[Counts, bool]:
        """Adds the counts over the shares of the batch; both towers of a share have the same."""
        share = 1.0 if self.rank.tower == 0 else 0.0
        numbers = [
            counts.num_images * share,
            counts.top1_correct * share,
            counts.top5_correct * share,
            counts.loss * share,
            float(stop),
        ]
        total = torch.tensor(numbers, dtype=torch.float64, device=self.rank.device)
        num_images, top1, top5, loss, stops = self.mesh.sum_over_all_(total).tolist()
        return Counts(round(num_images), top1, top5, loss), stops > 0

    def validate(self, should_stop: Callable[[], bool]) -> tuple[Counts, bool]:
        """Counts the errors on the validation part, on the central crop of each image.

        Returns:
            The counts, and whether a stop request cut them short.
        """
        mean_image = self.data.statistics.mean_image
        shares = self.rank.devices.num_data_shares
        rows = range(len(self.data.val))[self.rank.data_index :: shares]
        progress = tqdm(
            total=len(rows),
            desc="validation",
            unit=" images",
            leave=False,
            disable=self.rank.index != 0 or not sys.stderr.isatty(),
        )

        def predict(crops: torch.Tensor) -> torch.Tensor:
            device, dtype = self.rank.device, parameter_dtype(self.run.precision)
            with compute_precision(self.run.precision, kind=device.type):
                return self.model(crops.to(device, dtype))

        def agreed_stop() -> bool:
            # The two towers of a share go through the same batches, so they must stop together.
            if not self.mesh.is_distributed:
                return should_stop()
            flag = torch.tensor([float(should_stop())], device=self.rank.device)
            return bool(self.mesh.sum_over_all_(flag).item())

        # All shares make the same number of batches, for the question before each.
        per_batch = self.recipe.batch_size
        largest_share = math.ceil(len(self.data.val) / shares)
        num_batches = math.ceil(largest_share / per_batch)
        counts, stopped = Counts(), False
        for i in range(num_batches):
            stopped = agreed_stop()
            if stopped:
                break
            counts += evaluate(
                self.data.val,
                rows[i * per_batch : (i + 1) * per_batch],
                prepare=lambda image: image - mean_image,
                views=lambda image: center_crop(image, crop_size=self.recipe.crop_size),
                predict=predict,
                images_per_batch=per_batch,
                on_progress=progress.update,
            )
        progress.close()
        counts, _ = self._add_up(counts, stop=False)
        if not stopped:
            counts.check(len(self.data.val))
        return counts, stopped

    def whole_tensors(self) -> dict[str, dict[str, torch.Tensor]] | None:
        """Weights and velocities of the whole network in rank 0, None elsewhere.

        Every process must call it. The second tower of the first share sends its halves.
        """
        whole: dict[str, dict[str, torch.Tensor]] = {"model": {}, "velocities": {}}
        for kind, tensors in (("model", self.weights), ("velocities", self.velocities)):
            for name, tensor in tensors.items():
                own = tensor.detach()
                if self.rank.devices.split == 2 and self.rank.data_index == 0:
                    own = self._join_halves(name, own)
                whole[kind][name] = own.cpu().clone()
        return whole if self.rank.index == 0 else None

    def _join_halves(self, name: str, own: torch.Tensor) -> torch.Tensor:
        if self.rank.tower == 1:
            dist.send(own.contiguous(), dst=0)
            return own
        rows = self._whole_shapes()[name][0]
        other = own.new_empty((rows - own.shape[0], *own.shape[1:]))
        dist.recv(other, src=1)
        return torch.cat((own, other))

    def _whole_shapes(self) -> dict[str, torch.Size]:
        return whole_shapes(self.recipe, num_classes=self.run.num_classes)

    @torch.no_grad()
    def _restore(self, content: dict[str, Any]) -> None:
        """Takes this process's half of a checkpoint's tensors, and how far the run was."""
        for kind, tensors in (("model", self.weights), ("velocities", self.velocities)):
            for name, tensor in tensors.items():
                stored = content[kind][name]
                if stored.dtype != tensor.dtype:
                    raise UserError(
                        f"{self.run.resume_from}: {name} is {stored.dtype}, this run needs "
                        f"{tensor.dtype}: give the --precision that it was trained with"
                    )
                tensor.copy_(stored[self.model.placement.own(len(stored))])
        self.progress = Progress(content["step"], list(content["val_errors"]))

    def save(self) -> Path | None:
        """Writes a checkpoint; every process must call it."""
        whole = self.whole_tensors()
        if whole is None:
            return None
        statistics = self.data.statistics
        return save_checkpoint(
            self.run.run_dir,
            {
                **whole,
                "step": self.progress.step,
                "epoch": self.epoch,
                "val_errors": self.progress.val_errors,
                "recipe": to_record(self.recipe),
                "num_classes": self.run.num_classes,
                "seed": self.run.seed,
                "wnids": self.data.wnids,
                "class_names": self.data.class_names,
                "mean_image": torch.from_numpy(statistics.mean_image),
                "eigenvalues": torch.from_numpy(statistics.eigenvalues.copy()),
                "eigenvectors": torch.from_numpy(statistics.eigenvectors.copy()),
            },
        )

    def describe_run(self) -> dict[str, Any]:
        """What run.json says; every process must call it."""
        ranks = self.mesh.gather_objects(
            {
                "rank": self.rank.index,
                "pid": os.getpid(),
                "device": str(self.rank.device),
                "data_index": self.rank.data_index,
                "tower": self.rank.tower if self.rank.devices.split == 2 else None,
                "parameters": sum(w.numel() for w in self.weights.values()),
                "threads": torch.get_num_threads(),
            }
        )
        return {
            "recipe": to_record(self.recipe),
            "num_classes": self.run.num_classes,
            "seed": self.run.seed,
            "command": self.run.command,
            "started_at_step": self.progress.step,
            "data": {
                "directory": str(self.run.data_dir.resolve()),
                "manifest_sha256": self.data.manifest_sha256,
                "train_images": len(self.data.train),
                "val_images": len(self.data.val),
            },
            "numerics": self.numerics,
            "ranks": ranks,
            **runlog.describe_machine(self.rank.devices.kind),
        }


def run_rank(rank: Rank, run: Run, stop: StopRequest) -> None:
    """One process of a run, from its start to its end."""
    trainer = Trainer(run, rank)
    record = trainer.describe_run()
    metrics = None
    if rank.index == 0:
        runlog.write_run_record(run.run_dir, record)
        resumed_step = trainer.progress.step if run.resume_from is not None else None
        metrics = runlog.Metrics(run.run_dir, resumed_step=resumed_step)
        if resumed_step is not None:
            metrics.write("resume", step=resumed_step, epoch=trainer.epoch)
    if run.resume_from is not None and trainer.progress.step >= trainer.last_step:
        if rank.index == 0:
            print(f"the run is complete at step {trainer.progress.step}; nothing to do")
        return
    stopped = _train(trainer, metrics, stop)
    path = trainer.save()
    if metrics is not None:
        metrics.close()
        print(f"saved {path}")
        if stopped:
            out = run.run_dir
            print(
                f"stopped at step {trainer.progress.step}; continue with "
                f"`python -m replica.train --resume --out {out}` and the options of this run"
            )


def _train(trainer: Trainer, metrics: runlog.Metrics | None, stop: StopRequest) -> bool:
    """The steps and the validations of a run; returns whether a stop request ended it."""
    run, progress = trainer.run, trainer.progress
    shown = tqdm(
        total=trainer.last_step,
        initial=progress.step,
        unit=" steps",
        disable=metrics is None,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    with shown:
        batches = trainer.feed.batches(progress.step, trainer.last_step)
        began = time.perf_counter()
        for batch in batches:
            if _validation_is_due(trainer) and _validate(trainer, metrics, stop):
                return True
            rate = learning_rate(run.recipe, epoch=trainer.epoch, val_errors=progress.val_errors)
            epoch = trainer.epoch
            counts, stopped = trainer.train_step(batch, rate=rate, stop=stop.is_set())
            counts.check(batch.batch_size)
            now = time.perf_counter()
            if metrics is not None:
                metrics.write(
                    "step",
                    step=progress.step,
                    epoch=epoch,
                    loss=counts.mean_loss,
                    top1_error=counts.top1_error,
                    top5_error=counts.top5_error,
                    learning_rate=rate,
                    images_per_second=batch.batch_size / (now - began),
                )
            if not counts.loss < float("inf"):
                raise RuntimeError(
                    f"the loss is {counts.mean_loss} at step {progress.step}: the learning rate "
                    f"{rate} is too high for this recipe, or the data is damaged; the last "
                    "checkpoint is kept"
                )
            began = now
            shown.update()
            shown.set_postfix(epoch=epoch, loss=f"{counts.mean_loss:.3f}", refresh=False)
            if stopped:
                return True
            if run.checkpoint_steps and progress.step % run.checkpoint_steps == 0:
                trainer.save()
        return _validate(trainer, metrics, stop)


def _validation_is_due(trainer: Trainer) -> bool:
    """Whether an epoch has ended whose validation error is not known yet."""
    epochs_done = trainer.progress.step // trainer.steps_per_epoch
    return len(trainer.progress.val_errors) < epochs_done


def _validate(trainer: Trainer, metrics: runlog.Metrics | None, stop: StopRequest) -> bool:
    """Validates, and saves at the end of an epoch; returns whether a stop request cut it short."""
    progress = trainer.progress
    began = time.perf_counter()
    counts, stopped = trainer.validate(stop.is_set)
    if stopped:
        return True
    epochs_done = progress.step // trainer.steps_per_epoch
    # The epoch that these weights come from, also where a run ends in the middle of one.
    epoch = -(-progress.step // trainer.steps_per_epoch)
    rate = learning_rate(trainer.recipe, epoch=epoch, val_errors=progress.val_errors)
    if metrics is not None:
        metrics.write(
            "val",
            step=progress.step,
            epoch=epoch,
            loss=counts.mean_loss,
            top1_error=counts.top1_error,
            top5_error=counts.top5_error,
            learning_rate=rate,
            images_per_second=counts.num_images / (time.perf_counter() - began),
        )
        tqdm.write(
            f"epoch {epoch}, step {progress.step}: validation loss {counts.mean_loss:.3f}, "
            f"top-1 error {counts.top1_error:.2%}, top-5 error {counts.top5_error:.2%} "
            f"(centre crop), learning rate {rate:g}",
            file=sys.stderr,
        )
    if len(progress.val_errors) < epochs_done:
        progress.val_errors.append(counts.top1_error)
        if progress.step < trainer.last_step:
            trainer.save()
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
