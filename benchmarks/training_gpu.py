"""Whole training steps of `paper` on a GPU: images/s, 90 epochs, the share of an H200's roofline.

Each precision and batch size: our step as it stands, compiled, and with CUDA graphs, and the same
for torchvision's AlexNet (the network of "One weird trick", without normalization, one tower). With
`--data` the same step is fed from shards. Without a GPU the rows say "not measured"; `--device cpu`
tries the script itself.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measure import Row, say
from benchmarks.training import NUM_CLASSES, our_step, random_batch
from data_prep.errors import UserError
from data_prep.shards import open_data_set
from replica import paper
from replica.distributed.devices import Devices
from replica.distributed.mesh import Rank
from replica.feed.feed import TrainFeed
from replica.recipes import RECIPES
from replica.training.numerics import Numerics, set_numerics

BATCH_SIZES = (128, 256, 1024)
GPU_PRECISIONS = ("float32", "tf32", "bf16")
# Multiply-adds are two operations; backward computes two products a layer, but for the gradient of
# the images, which nobody needs (see `python -m replica.info`).
OPERATIONS_AN_IMAGE = 4.136e9
# Of an H200, dense, as measured with large matrix products (bf16) or taken from that (the others).
ROOFLINE = {"float32": 60e12, "tf32": 395e12, "bf16": 790e12}
TRAIN_IMAGES_2012 = 1_281_167
COMPILED = {"": "off", ", compiled": "default", ", CUDA graphs": "cuda-graphs"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--recipe", choices=RECIPES, default="paper", help="default: %(default)s")
    parser.add_argument(
        "--batch-size", type=int, action="append", help=f"one or more; default: {BATCH_SIZES}"
    )
    parser.add_argument(
        "--precision",
        choices=GPU_PRECISIONS,
        action="append",
        help=f"one or more; default: {GPU_PRECISIONS}",
    )
    parser.add_argument("--steps", type=int, default=30, help="timed; default: %(default)s")
    parser.add_argument("--data", type=Path, metavar="DIR", help="shards to feed from, too")
    parser.add_argument("--loader-threads", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows."""
    kind = arguments.device
    is_here = kind == "cpu" or torch.cuda.is_available()
    rows = []
    for batch_size in arguments.batch_size or BATCH_SIZES:
        for precision in arguments.precision or GPU_PRECISIONS:
            prefix = f"{precision}, batch {batch_size}: "
            if not is_here or (kind == "cpu" and precision == "tf32"):
                why = "the CPU has no TF32" if is_here else "PyTorch sees no CUDA device"
                names = [f"replica{how}" for how in COMPILED] + ["torchvision's AlexNet"]
                rows += [Row(prefix + name, None, "images/s", note=why) for name in names]
                continue
            say(prefix)
            rows += _rows(arguments, prefix, precision, batch_size)
    return rows


def _rows(arguments: argparse.Namespace, prefix: str, precision: str, batch_size: int) -> list[Row]:
    rank = Rank(0, Devices(arguments.device, 1, 1))
    recipe = dataclasses.replace(RECIPES[arguments.recipe], batch_size=batch_size)
    numerics = Numerics(precision=precision, deterministic=False)
    set_numerics(numerics)
    steps: dict[str, Callable[[], Any]] = {
        "torchvision's AlexNet": _torchvisions_step(numerics, batch_size, rank.device)
    }
    for how, mode in COMPILED.items():
        if mode != "off" and rank.device.type != "cuda":
            continue  # minutes of compiling that say nothing of a GPU
        chosen = dataclasses.replace(numerics, compile=mode)
        steps[f"replica{how}"] = our_step(recipe, chosen, batch_size, rank)
    if arguments.data is not None:
        feed = TrainFeed(open_data_set(arguments.data), recipe, seed=1)
        if feed.data.image_size < recipe.crop_size:
            raise UserError(f"--data {arguments.data}: its images are smaller than a crop")
        first, last = 0, 10 * feed.steps_per_epoch
        batches = _for_ever(feed, first, last, arguments.loader_threads, rank.device)
        steps["replica, fed from shards"] = our_step(
            recipe, numerics, batch_size, rank, batches=batches
        )
    rows = []
    speeds = {}
    for name, step in steps.items():
        seconds = _seconds_a_step(step, arguments.steps, rank.device)
        speed = speeds[name] = batch_size / seconds
        if not name.startswith("replica"):
            rows.append(Row(prefix + name, speed, "images/s"))
        else:
            theirs = "torchvision's AlexNet"
            hours = paper.NUM_EPOCHS * TRAIN_IMAGES_2012 / speed / 3600
            note = f"90 epochs of ImageNet would take {hours:.2f} h"
            if arguments.recipe == "paper" and _is_h200(rank.device):
                share = speed * OPERATIONS_AN_IMAGE / ROOFLINE[precision]
                note += f"; {share:.1%} of the roofline"
            rows.append(
                Row(prefix + name, speed, "images/s", prefix + theirs, speed / speeds[theirs], note)
            )
    return rows


def _is_h200(device: torch.device) -> bool:
    return device.type == "cuda" and "H200" in torch.cuda.get_device_name(device)


def _for_ever(
    feed: TrainFeed, first: int, last: int, threads: int, device: torch.device
) -> Iterator[Any]:
    while True:
        for batch in feed.batches(first, last, threads=threads, device=device):
            if len(batch.rows) == feed.recipe.batch_size:
                yield batch


def _seconds_a_step(step: Callable[[], Any], steps: int, device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(max(1, min(5, steps))):
        step()
    wait()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return (time.perf_counter() - began) / steps


def torchvisions_alexnet() -> nn.Sequential:
    """The network that torchvision calls AlexNet: 61,100,840 parameters with 1,000 classes."""
    layers: list[nn.Module] = []
    channels = 3
    for kernels, size, stride, padding, is_pooled in (
        (64, 11, 4, 2, True),
        (192, 5, 1, 2, True),
        (384, 3, 1, 1, False),
        (256, 3, 1, 1, False),
        (256, 3, 1, 1, True),
    ):
        layers += [nn.Conv2d(channels, kernels, size, stride, padding), nn.ReLU(inplace=True)]
        if is_pooled:
            layers.append(nn.MaxPool2d(3, 2))
        channels = kernels
    layers.append(nn.Flatten())
    width = 256 * 6 * 6
    for units in paper.FC_UNITS:
        layers += [nn.Dropout(), nn.Linear(width, units), nn.ReLU(inplace=True)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, NUM_CLASSES))


def _torchvisions_step(
    numerics: Numerics, batch_size: int, device: torch.device
) -> Callable[[], Any]:
    model = torchvisions_alexnet().to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = random_batch(paper.CROP_SIZE, batch_size)
    images, labels = images.to(device), labels.to(device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=paper.LEARNING_RATE,
        momentum=paper.MOMENTUM,
        weight_decay=paper.WEIGHT_DECAY,
    )
    is_bf16 = numerics.precision == "bf16"

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step
