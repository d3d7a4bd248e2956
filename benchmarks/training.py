"""Whole training steps of `paper` on the CPU: against PyTorch's own, against no normalization.

Each candidate is a process of its own, so that each has its allocator setting and its own peak of
memory; they are interleaved, and a figure is the median over all steps but each process's first.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measure import Row, interleaved, say
from replica.distributed.costs import training_memory
from replica.distributed.devices import Devices
from replica.distributed.launch import run_processes
from replica.distributed.mesh import Mesh, Rank
from replica.distributed.worker import StopRequest
from replica.feed.feed import Batch
from replica.network.alexnet import AlexNet
from replica.recipes import RECIPES, Recipe
from replica.recipes.geometry import geometry
from replica.training.allocator import SWITCH, keep_large_blocks
from replica.training.numerics import Numerics, parameter_dtype, set_numerics
from replica.training.run import Run
from replica.training.schedule import Settings, settings_at
from replica.training.state import RunState
from replica.training.step import train_step_

NUM_CLASSES = 1000
MATRIX_SIDE = 2048
STOCK = "PyTorch: its LRN, float32, NCHW, stock allocator"
PEERS = "PyTorch: its LRN, {}, channels last"
OURS = "replica: {}, channels last"
WITHOUT = "replica without LRN: {}, channels last"
STOCK_MEMORY = "replica: {}, channels last, stock allocator"
TOWERS = "replica: {}, channels last, two processes of a tower and a thread each"
# What a candidate is: whose step, and its options.
CANDIDATES: dict[str, dict[str, Any]] = {
    STOCK: {"side": "PyTorch", "memory_format": "contiguous", "malloc": "stock"},
    "replica: float32, NCHW": {"memory_format": "contiguous"},
    "replica: float32, channels last, not deterministic": {"deterministic": False},
}
for _precision in ("float32", "bf16"):
    CANDIDATES[PEERS.format(_precision)] = {"side": "PyTorch", "precision": _precision}
    CANDIDATES[WITHOUT.format(_precision)] = {"precision": _precision, "lrn": False}
    CANDIDATES[OURS.format(_precision)] = {"precision": _precision}
    CANDIDATES[STOCK_MEMORY.format(_precision)] = {"precision": _precision, "malloc": "stock"}
    CANDIDATES[TOWERS.format(_precision)] = {"precision": _precision, "processes": 2}
BASELINES = {
    OURS.format("float32"): [PEERS.format("float32"), WITHOUT.format("float32")],
    OURS.format("bf16"): [STOCK, PEERS.format("bf16"), WITHOUT.format("bf16")],
    TOWERS.format("float32"): [OURS.format("float32")],
    TOWERS.format("bf16"): [OURS.format("bf16")],
    "replica: float32, NCHW": [OURS.format("float32")],
    "replica: float32, channels last, not deterministic": [OURS.format("float32")],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--recipe", choices=RECIPES, default="paper", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=3, help="per process; default: %(default)s")
    parser.add_argument("--only", metavar="TEXT", help="candidates whose name has this in it")
    parser.add_argument("--candidate", help=argparse.SUPPRESS)


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows."""
    if arguments.candidate:
        print(json.dumps(_one_process(arguments, CANDIDATES[arguments.candidate])))
        sys.exit()
    names = [name for name in CANDIDATES if not arguments.only or arguments.only in name]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, list[float]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        for name in names:
            say(f"round {number + 1} of {arguments.rounds}: {name}")
            result = _run(arguments, name)
            seconds[name] += result["seconds"]
            memory[name].append(result["peak_bytes"])
    speeds = {
        name: arguments.batch_size / statistics.median(values) for name, values in seconds.items()
    }
    rows = []
    for name, speed in speeds.items():
        spread = f"{min(seconds[name]):.2f} to {max(seconds[name]):.2f} s per step"
        rows.append(Row(name, speed, "images/s", note=spread))
        for baseline in BASELINES.get(name, []):
            if baseline in speeds:
                ratio = speed / speeds[baseline]
                rows.append(Row(f"{name} / {baseline}", speed, "images/s", baseline, ratio))
    return rows + _memory_rows(arguments, memory) + _product_rows(arguments)


def _product_rows(arguments: argparse.Namespace) -> list[Row]:
    """For comparison, the processor's speed in PyTorch's large matrix products."""
    # Backward computes two products per layer, except for the gradient of the images.
    table = geometry(RECIPES[arguments.recipe])
    operations = 2 * (3 * sum(layer.macs for layer in table) - table[0].macs)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(MATRIX_SIDE, MATRIX_SIDE).to(dtype) for _ in "ab")
        seconds = interleaved({"product": partial(torch.mm, a, b)}, rounds=15, seconds=20.0)
        speed = 2 * MATRIX_SIDE**3 / seconds["product"]
        name = f"matrix products: {str(dtype).removeprefix('torch.')}"
        note = f"{speed / operations:.0f} images/s at {operations / 1e9:.2f} GFLOP per image"
        rows.append(Row(name, speed / 1e9, "GFLOP/s", note=note))
    return rows


def _memory_rows(arguments: argparse.Namespace, memory: dict[str, list[float]]) -> list[Row]:
    rows = []
    for name, peaks in memory.items():
        what = CANDIDATES[name]
        if what.get("side") == "PyTorch" or what.get("processes") or what.get("lrn") is False:
            continue
        needed = training_memory(
            RECIPES[arguments.recipe],
            num_classes=NUM_CLASSES,
            images=arguments.batch_size,
            towers_here=RECIPES[arguments.recipe].towers,
            precision=what.get("precision", "float32"),
        )
        arithmetic = f"arithmetic: {name}"
        rows.append(
            Row(
                arithmetic,
                needed.total / 1e6,
                "MB",
                note=f"weights, velocities and gradients {3 * needed.weights / 1e6:.0f}, "
                f"activations {needed.activations / 1e6:.0f}",
            )
        )
        peak = max(peaks)
        note = "resident, libraries included"
        rows.append(Row(f"peak: {name}", peak / 1e6, "MB", arithmetic, peak / needed.total, note))
    return rows


def _run(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks", "training", "--candidate", name]
    for option in ("recipe", "batch-size", "steps"):
        command += [f"--{option}", str(getattr(arguments, option.replace("-", "_")))]
    environment = {**os.environ, SWITCH: CANDIDATES[name].get("malloc", "keep")}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    record: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return record


def _one_process(arguments: argparse.Namespace, what: dict[str, Any]) -> dict[str, Any]:
    keep_large_blocks()
    numerics = Numerics(
        precision=what.get("precision", "float32"),
        memory_format=what.get("memory_format", "channels_last"),
        deterministic=what.get("deterministic", True),
    )
    recipe = RECIPES[arguments.recipe]
    if what.get("processes"):
        devices = Devices("cpu", 2, 2)
        path = Path(os.environ.get("TMPDIR", "/tmp")) / f"replica-benchmark-{os.getpid()}.json"
        arguments_of_rank = (recipe, numerics, arguments.batch_size, arguments.steps, str(path))
        run_processes(_rank, arguments_of_rank, devices, timeout=600)
        seconds = json.loads(path.read_text())
        path.unlink()
    elif what.get("side") == "PyTorch":
        seconds = _timed(_pytorchs_step(recipe, numerics, arguments.batch_size), arguments.steps)
    else:
        set_numerics(numerics)
        if what.get("lrn") is False:
            recipe = replace(
                recipe, convs=tuple(replace(conv, normalization=()) for conv in recipe.convs)
            )
        rank = Rank(0, Devices("cpu", 1, 1))
        seconds = _timed(our_step(recipe, numerics, arguments.batch_size, rank), arguments.steps)
    return {
        "seconds": seconds,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def _timed(step: Callable[[], Any], steps: int) -> list[float]:
    step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def _rank(rank: Rank, argument: tuple[Any, ...], stop: StopRequest) -> None:
    recipe, numerics, batch_size, steps, path = argument
    keep_large_blocks()
    set_numerics(numerics)
    seconds = _timed(our_step(recipe, numerics, batch_size, rank), steps)
    if rank.index == 0:
        Path(path).write_text(json.dumps(seconds))


def our_step(
    recipe: Recipe,
    numerics: Numerics,
    batch_size: int,
    rank: Rank,
    *,
    batches: Iterator[Batch] | None = None,
) -> Callable[[], Any]:
    """`train_step_` as a run calls it, on random pixels that are on its device, or on `batches`."""
    state = our_state(recipe, numerics, rank)
    if batches is None:
        return random_step(state, batch_size, batch_size=batch_size)
    settings = _settings(state)
    return lambda: train_step_(state, next(batches), settings=settings)


def our_state(recipe: Recipe, numerics: Numerics, rank: Rank) -> RunState:
    """A rank of a run without data."""
    model = AlexNet(recipe, num_classes=NUM_CLASSES, placement=rank.placement(recipe.towers))
    model.to(rank.device, parameter_dtype(numerics.precision))
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.01)
    velocities = {name: torch.zeros_like(w) for name, w in model.named_parameters()}
    run = Run(
        recipe=recipe,
        num_classes=NUM_CLASSES,
        data_dir=Path(),
        run_dir=Path(),
        devices=rank.devices,
        numerics=numerics,
        seed=1,
        steps=None,
        checkpoint_steps=None,
        resume_from=None,
        command=[],
    )
    nothing: Any = None  # no data: the batch is made here
    return RunState(run, rank, Mesh(rank), nothing, nothing, model, velocities, 0, [])


def _settings(state: RunState) -> Settings:
    recipe, velocities = state.run.recipe, state.velocities
    return settings_at(recipe, velocities, step=1, steps_per_epoch=100, val_errors=[])


def random_step(state: RunState, num_images: int, *, batch_size: int) -> Callable[[], Any]:
    """A step of a rank on random pixels that are on its device, `num_images` of a whole batch."""
    device, settings = state.rank.device, _settings(state)
    images, labels = (x.to(device) for x in random_batch(state.run.recipe.crop_size, num_images))
    batch = Batch(0, images, labels, torch.arange(num_images, device=device), batch_size)
    return lambda: train_step_(state, batch, settings=settings)


def random_batch(side: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels as a feed gives them, channels last, and labels."""
    generator = torch.Generator().manual_seed(2)
    images = 60 * torch.randn(batch_size, 3, side, side, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    return images, torch.arange(batch_size) % NUM_CLASSES


class PyTorchsAlexNet(nn.Sequential):
    """The network of a recipe as PyTorch's users write it: its modules, grouped convolutions."""

    def __init__(self, recipe: Recipe) -> None:
        layers: list[nn.Module] = []
        table = {row.name: row for row in geometry(recipe)}
        for conv in recipe.convs:
            row = table[conv.name]
            before, after = conv.padding
            if before != after:
                layers.append(nn.ZeroPad2d((before, after, before, after)))
            channels = row.input_shape[0]
            groups = channels // row.weight_shape[1]
            padding = before if before == after else 0
            size, stride = conv.kernel_size, conv.stride
            layers += [
                nn.Conv2d(channels, conv.num_kernels, size, stride, padding, groups=groups),
                nn.ReLU(),
            ]
            if "lrn" in conv.normalization:
                n = recipe.lrn_n
                # torch divides alpha by n.
                layers.append(
                    nn.LocalResponseNorm(n, n * recipe.lrn_alpha, recipe.lrn_beta, recipe.lrn_k)
                )
            if conv.pooling == "max":
                layers.append(nn.MaxPool2d(recipe.pool_window, recipe.pool_stride))
        layers.append(nn.Flatten())
        for layer in recipe.fully_connected[:-1]:
            inputs = table[layer.name].num_inputs
            layers += [nn.Linear(inputs, layer.num_units), nn.ReLU(), nn.Dropout()]
        layers.append(nn.Linear(table[recipe.fully_connected[-1].name].num_inputs, NUM_CLASSES))
        super().__init__(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits; the normalization in float32, which is all that PyTorch's has on a CPU."""
        for layer in self:
            if isinstance(layer, nn.LocalResponseNorm):
                with torch.autocast(x.device.type, enabled=False):
                    x = layer(x.float()).to(x.dtype)
            else:
                x = layer(x)
        return x


def _pytorchs_step(recipe: Recipe, numerics: Numerics, batch_size: int) -> Callable[[], Any]:
    model = PyTorchsAlexNet(recipe)
    model.to(memory_format=numerics.torch_memory_format)  # type: ignore[call-overload]
    images, labels = random_batch(recipe.crop_size, batch_size)
    images = images.contiguous(memory_format=numerics.torch_memory_format)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    is_bf16 = numerics.precision == "bf16"

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step
