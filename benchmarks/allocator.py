"""What keeping the memory of large tensors changes: `clone` of a large tensor, and a training step.

Each side runs in a process of its own, several times in turn; the step is forward, backward and
update of the whole `paper` network on random pictures.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from benchmarks.measure import Row, say
from cuda_ext import momentum_sgd_
from replica.network.alexnet import AlexNet
from replica.network.initialization import initialize_
from replica.recipes import RECIPES
from replica.training.allocator import SETTINGS, SWITCH, keep_large_blocks

LARGE = (128, 96, 55, 55)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=6, help="in each process (%(default)s)")
    parser.add_argument("--processes", type=int, default=3, help="of each side (%(default)s)")
    parser.add_argument("--recipe", choices=RECIPES, default="paper", help="default: %(default)s")
    parser.add_argument("--side", choices=SETTINGS, help=argparse.SUPPRESS)


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows; with --side the work of one process."""
    if arguments.side:
        print(json.dumps(_one_process(arguments)))
        sys.exit()
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SETTINGS}
    for i in range(arguments.processes):
        for side in SETTINGS:
            say(f"process {i + 1} of {arguments.processes}, {side}")
            results[side].append(_run_side(arguments, side))
    rows = []
    for name in results["keep"][0]:
        medians = {
            side: statistics.median(result[name] for result in results[side]) for side in SETTINGS
        }
        for side in reversed(SETTINGS):
            ratio = medians[side] / medians["stock"] if side != "stock" else None
            baseline = f"{name}, stock" if side != "stock" else None
            rows.append(Row(f"{name}, {side}", medians[side] * 1e3, "ms", baseline, ratio))
    return rows


def _run_side(arguments: argparse.Namespace, side: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks", "allocator", "--side", side]
    for name in ("batch-size", "steps", "recipe"):
        command += [f"--{name}", str(getattr(arguments, name.replace("-", "_")))]
    environment = {**os.environ, SWITCH: side}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    medians: dict[str, float] = json.loads(result.stdout)
    return medians


def _one_process(arguments: argparse.Namespace) -> dict[str, float]:
    keep_large_blocks()
    recipe = RECIPES[arguments.recipe]
    model = AlexNet(recipe, num_classes=1000)
    initialize_(model, seed=1)
    weights: list[torch.Tensor] = list(model.parameters())
    velocities = [torch.zeros_like(w) for w in weights]
    images = torch.randn(arguments.batch_size, 3, recipe.crop_size, recipe.crop_size)
    labels = torch.arange(arguments.batch_size) % 1000

    def step() -> None:
        loss = F.cross_entropy(model(images), labels)
        gradients = list(torch.autograd.grad(loss, weights))
        momentum_sgd_(
            weights,
            velocities,
            gradients,
            learning_rates=[recipe.learning_rate] * len(weights),
            momentum=recipe.momentum,
            weight_decays=[recipe.weight_decay] * len(weights),
        )

    large = torch.randn(LARGE)
    medians = {}
    for name, call, times in (
        (f"training step of {arguments.batch_size}", step, arguments.steps),
        (f"clone of {'x'.join(map(str, LARGE))}", large.clone, 4 * arguments.steps),
    ):
        call()
        durations = []
        for _ in range(times):
            start = time.perf_counter()
            call()
            durations.append(time.perf_counter() - start)
        medians[name] = statistics.median(durations)
    return medians
