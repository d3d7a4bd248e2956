"""What a run would be, before it is: parameters, memory, steps, and a time from a few steps.

The steps are tried in this process on the first batches, with the whole network; several processes
are not started, so for them the time is that of one process with the share that each would have.
"""

import dataclasses
import time

import torch

from data_prep.progress import duration
from data_prep.shards import open_data_set
from replica.distributed.costs import exchanged_values, training_memory
from replica.distributed.devices import Devices
from replica.distributed.mesh import Rank
from replica.feed.feed import TrainFeed
from replica.network.alexnet import whole_shapes
from replica.training.numerics import set_numerics
from replica.training.run import Run
from replica.training.state import begin
from replica.training.step import train_step_
from replica.training.torch_optimizers import has_second_moments

STEPS_TRIED = 3


def dry_run(run: Run) -> str:
    """The report as text."""
    recipe, devices = run.recipe, run.devices
    data = open_data_set(run.data_dir)
    feed = TrainFeed(data, recipe, run.seed)
    steps = recipe.epochs * feed.steps_per_epoch
    steps = steps if run.steps is None else min(steps, run.steps)
    shapes = whole_shapes(recipe, num_classes=run.num_classes)
    parameters = sum(shape.numel() for shape in shapes.values())
    batch_size = min(recipe.batch_size, len(data.train))
    images = -(-batch_size // devices.num_copies)
    memory = training_memory(
        recipe,
        num_classes=run.num_classes,
        images=images,
        towers_here=recipe.towers // devices.split,
        precision=run.numerics.precision,
    )
    halves = f", {parameters // 2:,} in each of two towers" if devices.split == 2 else ""
    averages = memory.weights if recipe.ema is not None else 0
    moments = memory.weights if has_second_moments(recipe) else 0
    of_average = f" + averages {_megabytes(averages)}" if averages else ""
    of_average += f" + second moments {_megabytes(moments)}" if moments else ""
    saved = (8 + 4 * bool(averages) + 4 * bool(moments)) * parameters
    lines = [
        f"recipe {recipe.name}: {recipe.claim}",
        f"data: {len(data.train):,} images to train on, {len(data.part(data.held_out)):,} to "
        f"validate on, {run.num_classes:,} classes",
        f"parameters: {parameters:,}{halves}",
        f"processes: {devices.num_processes} on {devices.kind}, each with {images} images of the "
        f"{batch_size} of a batch",
        f"memory per process: {_megabytes(memory.total + averages + moments)} = weights "
        f"{_megabytes(memory.weights)} + velocities {_megabytes(memory.velocities)}{of_average} + "
        f"gradients {_megabytes(memory.gradients)} + "
        f"activations {_megabytes(memory.activations)}; buffers of the libraries come on top",
        f"checkpoint: {_megabytes(saved)} each, the newest {run.keep} and the best stay",
        f"steps: {steps:,} ({recipe.epochs} epochs of {feed.steps_per_epoch:,})",
    ]
    if devices.split == 2:
        sent = exchanged_values(recipe, num_classes=run.num_classes, images=images, tower=1)
        value_bytes = {"float64": 8, "bf16": 2, "fp16": 2}.get(run.numerics.precision, 4)
        size = _megabytes(value_bytes * sum(sent.values()))
        lines.append(f"exchange: a tower sends {size} per step")
    step_seconds = _step_seconds(run, images)
    lines.append(
        f"time: {duration(step_seconds * steps)} without validation, from {STEPS_TRIED} steps of "
        f"{step_seconds:.2f} s ({images / step_seconds:.0f} images/s) tried in one process"
    )
    if devices.num_processes > 1:
        many = f"{devices.num_processes} processes share the work and the cores"
        lines[-1] += f"; {many}, and exchange: not tried"
    return "\n".join(lines)


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"


def _step_seconds(run: Run, images: int) -> float:
    """Seconds of a training step with the whole network, the first one left out."""
    set_numerics(run.numerics)
    alone = dataclasses.replace(
        run,
        devices=Devices(run.devices.kind, 1, 1),
        recipe=dataclasses.replace(run.recipe, batch_size=images),
    )
    state = begin(alone, Rank(0, alone.devices))
    settings = state.settings(1)
    began = time.perf_counter()
    for batch in state.feed.batches(0, 1 + STEPS_TRIED, device=state.rank.device):
        train_step_(state, batch, settings=settings)
        if state.rank.device.type == "cuda":
            torch.cuda.synchronize()
        if batch.step == 0:
            began = time.perf_counter()
    return (time.perf_counter() - began) / STEPS_TRIED
