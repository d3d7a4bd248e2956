"""One process of a run: its part of the network, the velocities, and how far the run is."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_prep.errors import UserError
from data_prep.shards import DataSet, open_data_set
from replica.distributed.devices import Devices
from replica.distributed.heartbeat import beat
from replica.distributed.mesh import Mesh, Rank
from replica.feed.feed import TrainFeed
from replica.network.alexnet import AlexNet, whole_shapes
from replica.network.initialization import initialise_
from replica.recipes import Recipe, to_record
from replica.training import control_log, run_directory
from replica.training.allocator import keep_large_blocks
from replica.training.checkpoint import load_checkpoint, save_checkpoint, sha256_beside
from replica.training.numerics import Numerics, parameter_dtype, set_numerics
from replica.training.schedule import HandChange, Settings, settings_at


@dataclass(frozen=True)
class Beginning:
    """Where the weights of a run come from that does not draw all of them (`--init`).

    Attributes:
        path: the checkpoint.
        sha256: of the file.
        new_layers: those that are drawn all the same.
    """

    path: Path
    sha256: str
    new_layers: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """What every process of a run is told."""

    recipe: Recipe
    num_classes: int
    data_dir: Path
    run_dir: Path
    devices: Devices
    numerics: Numerics
    seed: int
    steps: int | None  # stop after this many, counted from the beginning of the run
    checkpoint_steps: int | None
    resume_from: Path | None
    command: list[str]
    is_resumed: bool = False  # also where there was no checkpoint yet
    keep: int = 2  # newest checkpoints, besides the best
    loader_threads: int = 1
    init: Beginning | None = None
    tensorboard: bool = False


@dataclass
class RunState:
    """What a process holds between two steps.

    Attributes:
        run, rank, mesh, data, feed: what it was told, and what follows from it.
        model: the network, or the tower of this process.
        velocities: one tensor a parameter, under the parameter's name.
        step: how many steps are done.
        val_errors: top-1 error after each epoch, which the schedule reads.
        by_hand: what was set by hand, of steps to come too (in a resumed or replayed run).
        losses: of the images of the last step that this process had, float (N,).
    """

    run: Run
    rank: Rank
    mesh: Mesh
    data: DataSet
    feed: TrainFeed
    model: AlexNet
    velocities: dict[str, torch.Tensor]
    step: int
    val_errors: list[float]
    by_hand: list[HandChange] = field(default_factory=list)
    losses: torch.Tensor | None = None

    @cached_property
    def forward(self) -> Callable[..., torch.Tensor]:
        """The network in training: itself, or what `torch.compile` made of it."""
        mode = self.run.numerics.compile
        if mode == "off":
            return self.model
        # Masks come from outside: the words of the draws wrap around at 64 bits, which a compiled
        # graph does not do everywhere.
        return torch.compile(
            self.model, dynamic=False, mode="reduce-overhead" if mode == "cuda-graphs" else None
        )

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The parameters by name."""
        return dict(self.model.named_parameters())

    @property
    def last_step(self) -> int:
        """How many steps the whole run has."""
        steps = self.run.recipe.epochs * self.feed.steps_per_epoch
        return steps if self.run.steps is None else min(steps, self.run.steps)

    @property
    def epoch(self) -> int:
        """The epoch of the next step, counted from 1."""
        return self.step // self.feed.steps_per_epoch + 1

    @property
    def epochs_done(self) -> int:
        """How many epochs are complete."""
        return self.step // self.feed.steps_per_epoch

    @property
    def best_step(self) -> int | None:
        """After how many steps the validation error was lowest; None before the first epoch."""
        if not self.val_errors:
            return None
        best = self.val_errors.index(min(self.val_errors))
        return (best + 1) * self.feed.steps_per_epoch

    def settings(self, step: int) -> Settings:
        """Learning rates and colour noise at a step, counted from 1."""
        return settings_at(
            self.run.recipe,
            self.velocities,
            step=step,
            steps_per_epoch=self.feed.steps_per_epoch,
            val_errors=self.val_errors,
            by_hand=self.by_hand,
        )


def begin(run: Run, rank: Rank) -> RunState:
    """The state before the first step: drawn from the seed, or read from a checkpoint."""
    mesh = Mesh(rank)
    data = open_data_set(run.data_dir)
    placement = rank.placement(run.recipe.towers)
    model = AlexNet(run.recipe, num_classes=run.num_classes, placement=placement)
    if run.resume_from is None:
        initialise_(model, seed=run.seed)
    model.to(rank.device, parameter_dtype(run.numerics.precision))
    velocities = {name: torch.zeros_like(w) for name, w in model.named_parameters()}
    num_shares = rank.devices.num_data_shares
    feed = TrainFeed(data, run.recipe, run.seed, rank.data_index, num_shares)
    is_first = rank.index == 0
    by_hand = mesh.of_rank_0(
        control_log.hand_changes(run.run_dir, run.recipe) if is_first else None
    )
    state = RunState(run, rank, mesh, data, feed, model, velocities, 0, [], by_hand)
    if run.resume_from is not None:
        _restore_(state, load_checkpoint(run.resume_from))
    elif run.init is not None:
        _take_over_(state, load_checkpoint(run.init.path), run.init.new_layers)
    steps = mesh.gather_objects(state.step)
    if len(set(steps)) > 1:
        raise RuntimeError(
            f"expected every process to find the same checkpoint, got steps {steps}: does every "
            f"machine see {run.run_dir}?"
        )
    return state


@torch.no_grad()
def _take_over_(state: RunState, content: dict[str, Any], new_layers: tuple[str, ...]) -> None:
    """Takes this process's half of another network's weights, but for the new layers'."""
    for name, tensor in state.weights.items():
        if name.split(".")[0] not in new_layers:
            stored = content["model"][name]
            tensor.copy_(stored[state.model.placement.own(len(stored))])


@torch.no_grad()
def _restore_(state: RunState, content: dict[str, Any]) -> None:
    """Takes this process's half of a checkpoint's tensors, and how far the run was."""
    for kind, tensors in (("model", state.weights), ("velocities", state.velocities)):
        for name, tensor in tensors.items():
            stored = content[kind][name]
            if stored.dtype != tensor.dtype:
                raise UserError(
                    f"{state.run.resume_from}: {name} is {stored.dtype}, this run needs "
                    f"{tensor.dtype}: give the --precision that it was trained with"
                )
            tensor.copy_(stored[state.model.placement.own(len(stored))])
    state.step, state.val_errors = content["step"], list(content["val_errors"])


def whole_tensors(state: RunState) -> dict[str, dict[str, torch.Tensor]] | None:
    """Weights and velocities of the whole network in rank 0, None elsewhere.

    Every process must call it. The second tower of the first share sends its halves.
    """
    run, rank = state.run, state.rank
    is_cut_here = rank.devices.split == 2 and rank.data_index == 0
    shapes = whole_shapes(run.recipe, num_classes=run.num_classes)
    whole: dict[str, dict[str, torch.Tensor]] = {"model": {}, "velocities": {}}
    beat("gathering the network's halves")
    for kind, tensors in (("model", state.weights), ("velocities", state.velocities)):
        for name, tensor in tensors.items():
            own = tensor.detach()
            if is_cut_here and rank.tower == 1:
                dist.send(own.contiguous(), dst=0)
            elif is_cut_here:
                other = own.new_empty((shapes[name][0] - len(own), *own.shape[1:]))
                dist.recv(other, src=1)
                own = torch.cat((own, other))
            whole[kind][name] = own.cpu().clone()
    return whole if rank.index == 0 else None


def save(state: RunState, whole: dict[str, dict[str, torch.Tensor]]) -> Path:
    """Writes a checkpoint of what `whole_tensors` gave in rank 0.

    Raises:
        RuntimeError: a weight is not finite; the earlier checkpoints stay.
    """
    for name, tensor in whole["model"].items():
        if not torch.isfinite(tensor.sum()):
            raise RuntimeError(
                f"{name} is not finite after step {state.step}: the learning rate is too high for "
                "this recipe, or the data is damaged; the last checkpoint is kept"
            )
    statistics = state.data.statistics
    beat("writing a checkpoint")
    return save_checkpoint(
        state.run.run_dir,
        {
            **whole,
            "step": state.step,
            "epoch": state.epoch,
            "val_errors": state.val_errors,
            "best_step": state.best_step,
            "recipe": to_record(state.run.recipe),
            "num_classes": state.run.num_classes,
            "seed": state.run.seed,
            "wnids": state.data.wnids,
            "class_names": state.data.class_names,
            "mean_image": torch.from_numpy(statistics.mean_image),
            "eigenvalues": torch.from_numpy(statistics.eigenvalues.copy()),
            "eigenvectors": torch.from_numpy(statistics.eigenvectors.copy()),
        },
        keep=state.run.keep,
    )


def describe(state: RunState) -> dict[str, Any]:
    """What run.json says of a run; every process must call it."""
    run, rank, data = state.run, state.rank, state.data
    ranks = state.mesh.gather_objects(
        {
            "rank": rank.index,
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "device": str(rank.device),
            "data_index": rank.data_index,
            "tower": rank.tower if rank.devices.split == 2 else None,
            "parameters": sum(w.numel() for w in state.weights.values()),
            "threads": torch.get_num_threads(),
            "memory": keep_large_blocks().reason,
        }
    )
    return {
        "recipe": to_record(run.recipe),
        "num_classes": run.num_classes,
        "seed": run.seed,
        "command": run.command,
        "started_at_step": state.step,
        "resumed_from": checkpoint_record(run.resume_from),
        "initialised_from": run.init
        and {
            "checkpoint": str(run.init.path),
            "sha256": run.init.sha256,
            "new_layers": list(run.init.new_layers),
        },
        "steps": run.steps,
        "checkpoint_steps": run.checkpoint_steps,
        "keep": run.keep,
        "loader_threads": run.loader_threads,
        "data": {
            "directory": str(run.data_dir.resolve()),
            "manifest_sha256": data.manifest_sha256,
            "train_images": len(data.train),
            "val_images": len(data.val),
            "test_images": len(data.test),
        },
        "devices": {
            "kind": rank.devices.kind,
            "num_processes": rank.devices.num_processes,
            "split": rank.devices.split,
        },
        "numerics": set_numerics(run.numerics),
        "ranks": ranks,
        **run_directory.describe_machine(rank.devices.kind),
    }


def checkpoint_record(path: Path | None) -> dict[str, str | None] | None:
    """A checkpoint's name and SHA-256, for a record."""
    return {"checkpoint": path.name, "sha256": sha256_beside(path)} if path else None
