"""Batch normalization: statistics of the whole batch in every placement, kept in checkpoints."""

import dataclasses
import json

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from network_workers import gather_files
from runs import last_checkpoint, train_tiny
from test_layers import images

from replica.distributed.devices import Devices
from replica.distributed.launch import run_processes
from replica.distributed.mesh import Mesh, Rank
from replica.network.alexnet import AlexNet
from replica.network.initialization import initialize_
from replica.network.layers import BatchNorm
from replica.network.placement import Placement
from replica.recipes import MINI, with_changes

CHANGES = ["conv2.normalization=batch", "fc6.normalization=batch", "crop_size=96"]
# Beside them layers that `paper` does not have, so that every module meets two devices.
CHANGES += ["conv3.is_local=true", "conv4.is_local=true", "fc7.reads_both_towers=false"]
RECIPE = dataclasses.replace(with_changes(MINI, CHANGES), dropout_keep=1.0)
NUM_IMAGES = 5  # the copies have three and two
LABELS = torch.tensor([0, 1, 2, 3, 4])


def compute(rank: Rank, path: str, stop) -> None:
    """Logits, gradients and running statistics after one forward pass; rank 0 writes them."""
    mesh = Mesh(rank)
    placement = rank.placement(RECIPE.towers, add_over_copies=mesh.add_over_copies)
    model = AlexNet(RECIPE, num_classes=10, placement=placement)
    initialize_(model, seed=3)
    model.double()
    rows = torch.arange(NUM_IMAGES).chunk(rank.devices.num_copies)[rank.copy]
    logits = model(images(96, num=NUM_IMAGES)[rows])
    loss = F.cross_entropy(logits, LABELS[rows], reduction="sum") / NUM_IMAGES
    names = [name for name, _ in model.named_parameters()]
    gradients = mesh.sum_over_copies(list(torch.autograd.grad(loss, list(model.parameters()))))
    found = dict(zip(names, gradients, strict=True)) | dict(model.named_buffers())
    parts = gather_files({"logits": logits.detach(), **found}, path, rank)
    if rank.index == 0:
        is_cut = rank.devices.split == 2
        whole = {
            name: torch.cat([part[name] for part in parts])
            if (name == "logits") != is_cut
            else parts[0][name]
            for name in parts[0]
        }
        torch.save(whole, path)
    if mesh.is_distributed:
        dist.barrier()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "whole.pt"
    compute(Rank(0, Devices("cpu", 1, 1)), str(path), None)
    return torch.load(path)


@pytest.mark.parametrize("split", [2, 1], ids=["two towers", "two copies"])
def test_every_placement_has_the_statistics_of_the_whole_batch(split, alone, tmp_path):
    path = tmp_path / "whole.pt"
    assert run_processes(compute, str(path), Devices("cpu", 2, split), timeout=120) == 0
    got = torch.load(path)
    assert got.keys() == alone.keys()
    for name, expected in alone.items():
        torch.testing.assert_close(got[name], expected, rtol=1e-9, atol=1e-12, msg=name)


def test_a_mean_of_the_copies_means_would_be_seen(alone):
    """Three and two images: the mean of two means is another one."""
    model = AlexNet(RECIPE, num_classes=10)
    initialize_(model, seed=3)
    model.double()
    means = []
    for rows in torch.arange(NUM_IMAGES).chunk(2):
        model.conv2_batch.running_mean.zero_()
        model(images(96, num=NUM_IMAGES)[rows])
        means.append(model.conv2_batch.running_mean.clone())
    wrong = (means[0] + means[1]) / 2
    right = alone["conv2_batch.running_mean"]
    assert (wrong - right).abs().max() > 1e-3 * right.abs().max()


def test_one_value_has_no_variance_and_leaves_the_running_one_finite():
    layer = BatchNorm(2, num_dimensions=2, placement=Placement(1))
    layer(torch.tensor([[3.0, -1.0]]))
    torch.testing.assert_close(layer.running_var, torch.full((2,), 0.9))


def test_running_statistics_are_in_the_checkpoint_and_come_back(tiny_shards, tmp_path):
    options = ("--set", "conv2.normalization=batch", "--set", "drop_rule=epochs")
    whole = train_tiny(tmp_path / "whole", *options, shards=tiny_shards, seed=4)
    train_tiny(tmp_path / "cut", *options, "--steps", "3", shards=tiny_shards, seed=4)
    train_tiny(tmp_path / "cut")
    saved = last_checkpoint(tmp_path / "cut")
    last = whole[max(whole)]
    assert saved["model"].keys() == last["model"].keys()
    assert "conv2_batch.running_mean" not in saved["velocities"]
    assert saved["model"]["conv2_batch.running_mean"].abs().max() > 0
    for kind in ("model", "velocities"):
        for name, tensor in last[kind].items():
            assert torch.equal(saved[kind][name], tensor), (kind, name)


def test_two_copies_of_a_run_train_as_one(tiny_shards, tmp_path):
    options = ("--set", "conv2.normalization=batch", "--precision", "float64", "--steps", "2")
    runs = [
        train_tiny(tmp_path / name, *options, *more, shards=tiny_shards, seed=4)[2]["model"]
        for name, more in (("one", ()), ("two", ("--gpus", "2", "--split", "1")))
    ]
    records = [json.loads((tmp_path / x / "run.json").read_text()) for x in ("one", "two")]
    assert records[0]["gradient_buckets"] is None
    sent = [name for names in records[1]["gradient_buckets"] for name in names]
    assert sorted(sent) == sorted(name for name in runs[1] if "running" not in name)
    for name, tensor in runs[0].items():
        torch.testing.assert_close(runs[1][name], tensor, rtol=1e-9, atol=1e-12, msg=name)
