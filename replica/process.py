"""One process of a run: its part of the network, the velocities, and how far the run is."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_prep.shards import DataSet, UserError, open_data_set
from replica import runlog
from replica.allocator import keep_large_blocks
from replica.checkpoint import load_checkpoint, save_checkpoint
from replica.devices import Devices, parameter_dtype, set_numerics
from replica.feed import TrainFeed
from replica.launch import Mesh, Rank
from replica.model import AlexNet, initialise_, whole_shapes
from replica.recipes import Recipe, to_record


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
class RunState:
    """What a process holds between two steps.

    Attributes:
        run, rank, mesh, data, feed: what it was told, and what follows from it.
        model: the network, or the tower of this process.
        velocities: one tensor a parameter, under the parameter's name.
        step: how many steps are done.
        val_errors: top-1 error after each epoch, which the schedule reads.
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


def begin(run: Run, rank: Rank) -> RunState:
    """The state before the first step: drawn from the seed, or read from a checkpoint."""
    mesh = Mesh(rank)
    data = open_data_set(run.data_dir)
    placement = rank.placement(run.recipe.towers)
    model = AlexNet(run.recipe, num_classes=run.num_classes, placement=placement)
    if run.resume_from is None:
        initialise_(model, seed=run.seed)
    model.to(rank.device, parameter_dtype(run.precision))
    velocities = {name: torch.zeros_like(w) for name, w in model.named_parameters()}
    num_shares = rank.devices.num_data_shares
    feed = TrainFeed(data, run.recipe, run.seed, rank.data_index, num_shares)
    state = RunState(run, rank, mesh, data, feed, model, velocities, 0, [])
    if run.resume_from is not None:
        _restore_(state, load_checkpoint(run.resume_from))
    return state


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


def save(state: RunState) -> Path | None:
    """Writes a checkpoint; every process must call it."""
    whole = whole_tensors(state)
    if whole is None:
        return None
    statistics = state.data.statistics
    return save_checkpoint(
        state.run.run_dir,
        {
            **whole,
            "step": state.step,
            "epoch": state.epoch,
            "val_errors": state.val_errors,
            "recipe": to_record(state.run.recipe),
            "num_classes": state.run.num_classes,
            "seed": state.run.seed,
            "wnids": state.data.wnids,
            "class_names": state.data.class_names,
            "mean_image": torch.from_numpy(statistics.mean_image),
            "eigenvalues": torch.from_numpy(statistics.eigenvalues.copy()),
            "eigenvectors": torch.from_numpy(statistics.eigenvectors.copy()),
        },
    )


def describe(state: RunState) -> dict[str, Any]:
    """What run.json says of a run; every process must call it."""
    run, rank, data = state.run, state.rank, state.data
    ranks = state.mesh.gather_objects(
        {
            "rank": rank.index,
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
        "data": {
            "directory": str(run.data_dir.resolve()),
            "manifest_sha256": data.manifest_sha256,
            "train_images": len(data.train),
            "val_images": len(data.val),
            "test_images": len(data.test),
        },
        "numerics": set_numerics(run.precision),
        "ranks": ranks,
        **runlog.describe_machine(rank.devices.kind),
    }
