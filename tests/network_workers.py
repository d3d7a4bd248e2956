"""What the processes of some tests run; spawned processes import this module."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from runs import large_weights

from replica.distributed.gradients import bucket_layout, summed_gradients
from replica.distributed.mesh import Mesh, Rank
from replica.network.alexnet import AlexNet, whole_shapes
from replica.recipes import PAPER
from replica.training.run import Run
from replica.training.state import begin
from replica.training.step import train_step_

SEED, STEP = 11, 5
NUM_CLASSES = 7  # odd: the towers' halves of the logits differ
NUM_IMAGES = 6

# Only widths and the image differ from `paper`. Windows of five channels are cut at both ends of
# a tower, and the last maps are 2 x 2, so that the order of fc6's inputs shows.
_KERNELS = {"conv1": 16, "conv2": 20, "conv3": 12, "conv4": 16, "conv5": 12}
_UNITS = {"fc6": 20, "fc7": 12, "fc8": NUM_CLASSES}
NARROW = dataclasses.replace(
    PAPER,
    convs=tuple(dataclasses.replace(c, num_kernels=_KERNELS[c.name]) for c in PAPER.convs),
    fully_connected=tuple(
        dataclasses.replace(f, num_units=_UNITS[f.name]) for f in PAPER.fully_connected
    ),
    crop_size=96,
    num_classes=NUM_CLASSES,
)


def inputs_of(recipe):
    """Large weights, images of 0..255 minus a mean, and labels."""
    shapes = whole_shapes(recipe, num_classes=NUM_CLASSES)
    weights = {
        name: torch.from_numpy(weight) for name, weight in large_weights(shapes, seed=0).items()
    }
    rng = np.random.default_rng(0)
    side = recipe.crop_size
    images = torch.from_numpy(rng.normal(0, 60, (NUM_IMAGES, 3, side, side)))
    return weights, images, torch.from_numpy(rng.integers(0, NUM_CLASSES, NUM_IMAGES))


def gather_files(value, path, rank):
    """One value of every rank, in their order, through files beside `path`."""
    torch.save(value, f"{path}.{rank.index}")
    if rank.devices.num_processes > 1:
        dist.barrier()
    return [torch.load(f"{path}.{i}") for i in range(rank.devices.num_processes)]


def compute(rank: Rank, path: str, stop) -> None:
    """Logits, in training and at test, and gradients of one step; rank 0 writes the whole ones."""
    mesh = Mesh(rank)
    weights, images, labels = inputs_of(NARROW)
    placement = rank.placement(NARROW.towers)
    model = AlexNet(NARROW, num_classes=NUM_CLASSES, placement=placement).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name][placement.own(len(weights[name]))])
    rows = torch.arange(NUM_IMAGES).chunk(rank.devices.num_copies)[rank.copy]
    logits = model(images[rows], masks=model.dropout_masks(rows, seed=SEED, step=STEP))
    loss = F.cross_entropy(logits, labels[rows], reduction="sum") / NUM_IMAGES
    parameters = dict(model.named_parameters())
    if mesh.copies is None:
        gradients = list(torch.autograd.grad(loss, list(parameters.values())))
    else:
        buckets = bucket_layout(parameters, num_copies=rank.devices.num_copies)
        gradients = summed_gradients(loss, parameters, buckets=buckets, group=mesh.copies)
    with torch.no_grad():
        tested = model.eval()(images[rows])
    computed = {"logits": logits.detach(), "tested": tested}
    computed |= dict(zip(weights, gradients, strict=True))
    parts = gather_files(computed, path, rank)
    if rank.index == 0:
        torch.save(_whole(parts, rank), Path(path))
    if mesh.is_distributed:
        dist.barrier()


def _whole(parts, rank):
    """Puts parts of the batch, or towers' halves of the gradients, together."""
    if rank.devices.num_processes == 1:
        return parts[0]
    is_cut = rank.devices.split == 2
    return {
        name: torch.cat([part[name] for part in parts])
        if (name in ("logits", "tested")) != is_cut
        else parts[0][name]
        for name in parts[0]
    }


def count_traffic(rank: Rank, argument: tuple[Run, str], stop) -> None:
    """One training step; rank 0 writes the bytes that each process sent, by layer and direction."""
    run, path = argument
    state = begin(run, rank)
    for batch in state.feed.batches(0, 1):
        train_step_(state, batch, settings=state.settings(1))
    sent = gather_files(dict(state.model.placement.sent), path, rank)
    if rank.index == 0:
        torch.save(sent, Path(path))
