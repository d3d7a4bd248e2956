"""What "measured" comes to is recorded, and a resumed run keeps it on another processor."""

import dataclasses
import json
from pathlib import Path

import golden_values as golden
import pytest
import torch
from conftest import assert_user_error, run_here
from network_workers import NARROW
from runs import last_checkpoint, train_tiny
from test_operators import needs_compiled

from cuda_ext import convolution_ways, split_conv2d, split_conv2d_products
from cuda_ext.library import compiled_state
from data_prep.errors import UserError
from replica.distributed.devices import Devices
from replica.network import products as products_module
from replica.network.alexnet import AlexNet
from replica.network.placement import Placement, tower_slice
from replica.network.products import resolved_products
from replica.recipes import PAPER, with_changes
from replica.training.run_record import read_run_record, ways_to_continue

AMX, PLAIN = "GenuineIntel 6, AMX", "AuthenticAMD 25"
LIBRARY = {f"conv{i}": "library" for i in range(1, 6)}
ON_AMX = {**LIBRARY, "conv1": "own weight gradient"}
CPU = Devices("cpu", 1, 1)


@pytest.fixture
def on(monkeypatch):
    """Sets the family of the processor."""
    return lambda family: monkeypatch.setattr(convolution_ways, "processor_family", lambda: family)


@needs_compiled
def test_what_was_asked_for_comes_to_a_way_for_each_layer(on):
    for family, expected in ((AMX, ON_AMX), (PLAIN, LIBRARY)):
        on(family)
        assert resolved_products(PAPER, "measured", kind="cpu", split=1) == expected
        assert resolved_products(PAPER, "measured", kind="cuda", split=1) == LIBRARY
        assert resolved_products(PAPER, "library", kind="cpu", split=2) == LIBRARY
        own = {**LIBRARY, "conv1": "own"}
        assert resolved_products(PAPER, "own", kind="cpu", split=1) == own
        own = dict.fromkeys(LIBRARY, "own")
        assert resolved_products(PAPER, "own", kind="cuda", split=1) == own
    local = with_changes(PAPER, ["conv4.is_local=true"])
    assert "conv4" not in resolved_products(local, "measured", kind="cpu", split=1)


def test_without_compiled_code_it_is_the_library(on, monkeypatch):
    on(AMX)
    state = dataclasses.replace(compiled_state(), is_live=False)
    monkeypatch.setattr(products_module, "compiled_state", lambda: state)
    assert resolved_products(PAPER, "measured", kind="cpu", split=1) == LIBRARY


class OneTower(Placement):
    """Tower 0 alone: what the other one would send is equal to the own half."""

    def own(self, width):
        return tower_slice(width, tower=0, towers=2)

    def convolve_both(self, x, weight, bias, *, layer, **how):
        return split_conv2d(x, weight[:, : x.shape[1]], bias, **how)

    def read_both(self, x, *, layer):
        return torch.cat((x, x), dim=1)


@needs_compiled
@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        ["conv1.num_kernels=16"],
        ["conv1.num_kernels=32", "conv2.stride=2"],
        ["conv1.num_kernels=32", "conv2.stride=2", "conv2.reads_both_towers=true"],
        ["conv1.num_kernels=16", "conv2.stride=2", "conv2.reads_both_towers=true"],
        ["conv1.num_kernels=64", "conv2.stride=2", "conv2.reads_both_towers=true"],
    ],
    ids=str,
)
def test_the_way_of_a_layer_is_that_of_the_calls_of_the_operator(changes, split, on, monkeypatch):
    """With "measured" itself, which the operator looks up by what it is given."""
    on(AMX)
    recipe = with_changes(NARROW, ["crop_size=200", *changes])
    asked = []

    def recording(**layer):
        way = convolution_ways.way_of(**layer)
        asked.append((way.forward != "library", way.weight_gradient != "library"))
        return way

    monkeypatch.setattr(split_conv2d_products, "way_of", recording)
    placement = OneTower(1) if split == 2 else Placement(2)
    model = AlexNet(recipe, num_classes=7, placement=placement)
    with torch.no_grad():
        model(torch.zeros(1, 3, 200, 200))
    resolved = resolved_products(recipe, "measured", kind="cpu", split=split)
    expected = [
        (products in ("own", "own forward"), products in ("own", "own weight gradient"))
        for products in resolved.values()
    ]
    assert asked == expected


@needs_compiled
def test_a_resumed_run_goes_the_recorded_way_on_another_processor(on, tiny_shards, tmp_path):
    on(AMX)
    whole = train_tiny(tmp_path / "whole", "--steps", "2", shards=tiny_shards, seed=4)[2]
    train_tiny(tmp_path / "run", "--steps", "1", shards=tiny_shards, seed=4)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["convolution_ways"] == ON_AMX
    assert record["numerics"]["convolution"] == "measured"
    on(PLAIN)
    other = train_tiny(tmp_path / "other", "--steps", "2", shards=tiny_shards, seed=4)[2]
    assert not torch.equal(other["model"]["conv1.weight"], whole["model"]["conv1.weight"])
    options = ("--resume", "--no-tensorboard", "--steps", "2", "--device", "cpu")
    result = run_here("-m", "replica.train", "--out", str(tmp_path / "run"), *options)
    assert result.returncode == 0, result.stderr
    line = "convolution: conv1 as the run began, own weight gradient (measured here: library)"
    assert line in result.stdout
    for name, tensor in last_checkpoint(tmp_path / "run")["model"].items():
        assert torch.equal(tensor, whole["model"][name]), name
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["convolution_ways"] == ON_AMX
    record["convolution_ways"]["conv1"] = "fast"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    result = run_here("-m", "replica.train", "--out", str(tmp_path / "run"), *options)
    assert_user_error(result, "run.json: damaged", "convolution_ways", "'fast'")


@pytest.mark.parametrize("ways", [{}, {"conv1": "own"}, [], {**LIBRARY, "conv6": "own"}], ids=str)
def test_ways_that_are_not_of_the_recipes_convolutions_are_refused(ways):
    record = dataclasses.replace(read_run_record(golden.OLD_RUN), convolution_ways=ways)
    with pytest.raises(UserError, match=r"run.json: damaged: .*convolution_ways: one of measured"):
        ways_to_continue(record, PAPER, CPU, place=Path("run"), say=print)


def test_where_nobody_wrote_it_down_or_on_another_device_it_is_measured_and_said():
    record, said = read_run_record(golden.OLD_RUN), []
    here = {"place": Path("run"), "say": said.append}
    assert ways_to_continue(record, PAPER, CPU, **here) is None
    assert not said  # a run of the time when there was no choice
    measured = dataclasses.replace(record.numerics, convolution="measured")
    record = dataclasses.replace(record, numerics=measured)
    assert ways_to_continue(record, PAPER, CPU, **here) is None
    record = dataclasses.replace(record, convolution_ways=ON_AMX)
    assert ways_to_continue(record, PAPER, Devices("cuda", 1, 1), **here) is None
    assert [line.startswith("convolution: as measured on this machine") for line in said] == [
        True
    ] * 2
    assert ways_to_continue(record, PAPER, CPU, **here) == ON_AMX
