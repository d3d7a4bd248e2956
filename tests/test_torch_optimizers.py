"""`optimizer=sgd` and `adam` against programs that call PyTorch's optimizers themselves."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_user_error
from runs import NARROW_OPTIONS, last_checkpoint, train
from test_own_network import FILE, OPTIONS, crops_of, own

from data_prep.errors import UserError
from data_prep.shards import open_data_set
from replica.recipes import MINI, PAPER, from_record, to_record, with_changes
from replica.training.torch_optimizers import TorchOptimizer

EPOCHS = 4
# An epoch is one step; the rate is halved after two.
DROPS = ("--set", "drop_rule=fixed", "--set", "drop_every=2", "--set", "drop_factor=0.5")
RUN = (*OPTIONS, *DROPS, "--epochs", str(EPOCHS), "--set", "decay_biases=true")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "my_net.py"
    path.write_text(FILE)
    return ("--model", f"{path}:Net")


def optimizer_of(name, parameters):
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=0.02, momentum=0.8, weight_decay=0.01)
    return torch.optim.Adam(parameters, lr=0.02, betas=(0.8, 0.999), weight_decay=0.01)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_run_is_what_pytorchs_optimizer_makes_of_it(name, model, tiny_shards, tmp_path):
    options = (*RUN, *model, "--set", f"optimizer={name}")
    assert train(tiny_shards, tmp_path / "whole", *options).returncode == 0
    data, net = open_data_set(tiny_shards), own()
    crops, labels = crops_of(data, "train"), torch.from_numpy(data.train.labels.astype(np.int64))
    optimizer = optimizer_of(name, net.parameters())
    halves = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        F.cross_entropy(net(crops), labels).backward()
        optimizer.step()
        halves.step()
    saved = last_checkpoint(tmp_path / "whole")
    for key, weight in net.named_parameters():
        torch.testing.assert_close(saved["model"][f"own.{key}"], weight, rtol=1e-3, atol=2e-5)
    keys = {"sgd": "momentum_buffer", "adam": "exp_avg"}[name]
    head = optimizer.state[net.head.weight]
    torch.testing.assert_close(
        saved["velocities"]["own.head.weight"], head[keys], rtol=1e-3, atol=2e-5
    )
    assert ("second_moments" in saved) == (name == "adam")

    assert train(tiny_shards, tmp_path / "resumed", *options, "--steps", "3").returncode == 0
    assert train(tiny_shards, tmp_path / "resumed", *options, "--resume").returncode == 0
    resumed = last_checkpoint(tmp_path / "resumed")
    for kind in ("model", "velocities", *(["second_moments"] if name == "adam" else [])):
        for key, tensor in saved[kind].items():
            assert torch.equal(tensor, resumed[kind][key]), (kind, key)


@pytest.mark.slow
def test_a_tower_each_is_the_network_in_one_process(tiny_shards, tmp_path):
    options = ("--recipe", "mini", *NARROW_OPTIONS, "--set", "crop_size=96", "--batch-size", "5")
    options += ("--set", "optimizer=adam", "--lr", "0.0001", "--steps", "3", "--freeze", "conv1")
    saved = []
    for gpus in ("1", "2"):
        result = train(tiny_shards, tmp_path / gpus, *options, "--gpus", gpus)
        assert result.returncode == 0, result.stderr
        saved.append(last_checkpoint(tmp_path / gpus))
    for name, tensor in saved[0]["second_moments"].items():
        torch.testing.assert_close(tensor, saved[1]["second_moments"][name], rtol=0.01, atol=1e-9)
        is_frozen = name.startswith("conv1")
        assert bool((tensor == 0).all()) == is_frozen, name
    loss = [x["val_errors"] for x in saved]
    assert loss[0] == loss[1]


def test_a_frozen_tensor_and_its_moments_stay():
    recipe = with_changes(MINI, ["optimizer=adam"])
    weights = {name: torch.ones(3, requires_grad=True) for name in "ab"}
    moments = [{name: torch.zeros(3) for name in "ab"} for _ in range(2)]
    optimizer = TorchOptimizer(recipe, weights, *moments)
    gradient = torch.tensor([1.0, -2.0, 0.5])
    optimizer.step_({"a": gradient}, rates=[0.1], weight_decays=[0.0], updates=0)
    # The first update is the rate in the direction of each sign.
    torch.testing.assert_close(weights["a"].detach(), 1 - 0.1 * gradient.sign())
    assert torch.equal(weights["b"].detach(), torch.ones(3))
    assert not moments[0]["b"].any()
    assert weights["a"].grad is None


@pytest.mark.parametrize("option", [("--precision", "fp16")], ids=["fp16"])
def test_what_only_the_papers_update_can_do_is_refused(option, model, tiny_shards, tmp_path):
    result = train(tiny_shards, tmp_path / "a", *RUN, *model, "--set", "optimizer=sgd", *option)
    assert_user_error(result, f"{' '.join(option)}: expected optimizer=paper, got sgd")


def test_the_optimizer_is_a_field_whose_older_meaning_is_the_papers():
    record = to_record(PAPER)
    del record["optimizer"]
    assert from_record(record) == PAPER
    assert PAPER.optimizer == "paper"
    with pytest.raises(UserError, match="optimizer: expected paper or sgd or adam, got rmsprop"):
        with_changes(MINI, ["optimizer=rmsprop"])


def test_a_dry_run_counts_second_moments(tiny_shards):
    options = ("--set", "crop_size=96", "--dry-run")
    plain, adam = (
        train(tiny_shards, "nowhere", *options, *more).stdout
        for more in ((), ("--set", "optimizer=adam"))
    )
    assert "second moments" not in plain
    assert "+ second moments" in adam
