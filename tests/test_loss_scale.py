"""Float16 with a loss scale: against the oracle's step, and by the rule of the scale."""

import json

import numpy as np
import oracles
import pytest
import torch
from conftest import assert_user_error, run_here
from runs import (
    BATCH_SIZE,
    CROP_SIZE,
    all_lines_of,
    assert_same_state,
    large_weights,
    mini_shapes_and_deviations,
    train,
    train_tiny,
    with_loss_scale,
    write_checkpoint,
)

from data_prep.errors import UserError
from data_prep.shards import open_data_set
from replica.training.checkpoint import checkpoint_path, load_checkpoint
from replica.training.loop import _say_if_skipped, _Step
from replica.training.loss_scale import LossScale

SMALL = ("--set", f"crop_size={CROP_SIZE}", "--steps", "10")
SEED, RATE = 4, 1e-4
LARGEST_FLOAT16 = 65504.0
CPU = torch.device("cpu")


def weights_with_large_gradients_in_tower_0():
    """Weights with which a gradient of tower 0 is above 1, and none of tower 1.

    What a layer reads of tower 1 hardly counts, so nothing much goes back to it; what fc8 reads is
    small, so its own gradients are.
    """
    weights = large_weights(mini_shapes_and_deviations()[0], seed=9)
    weights["fc7.weight"] *= 1e-3
    weights["fc7.bias"][:] = 0.1
    for layer in ("conv3", "fc6", "fc7", "fc8"):
        weight = weights[f"{layer}.weight"]
        weight[:, weight.shape[1] // 2 :] *= 1e-4
    return weights


@pytest.fixture(scope="module")
def skipped(tiny_shards, tmp_path_factory):
    """A run over two towers whose first gradient is too large in one of them."""
    weights = weights_with_large_gradients_in_tower_0()
    start = tmp_path_factory.mktemp("fp16") / "start.pt"
    float32 = {name: weight.astype(np.float32) for name, weight in weights.items()}
    write_checkpoint(start, float32, open_data_set(tiny_shards))
    out = start.with_name("run")
    options = ("--gpus", "2", "--precision", "fp16", "--ema", "0.9", "--lr", str(RATE))
    options = (*options, "--steps", "2", "--init", str(start))
    return weights, out, train_tiny(out, *options, shards=tiny_shards, seed=SEED)


def test_a_gradient_that_overflows_in_one_tower_skips_the_step_in_both(skipped, tiny_shards):
    weights, out, checkpoints = skipped
    told = {"seed": SEED, "crop_size": CROP_SIZE, "batch_size": BATCH_SIZE, "steps": 1}
    told |= {"learning_rate": RATE, "drop_epochs": (28,)}
    (right,) = oracles.train(oracles.read_data(tiny_shards), weights, told)
    largest = [0.0, 0.0]
    for name, velocity in right["velocities"].items():
        decay = oracles.WEIGHT_DECAY if name.endswith("weight") else 0.0
        gradient = np.abs(-velocity / RATE - decay * weights[name])
        for tower, half in enumerate(np.array_split(gradient, 2)):
            largest[tower] = max(largest[tower], half.max())
    assert largest[0] * 65536 > 1.2 * LARGEST_FLOAT16
    assert largest[1] * 65536 < 0.8 * LARGEST_FLOAT16
    first = checkpoints[1]
    for name, weight in weights.items():
        assert np.array_equal(first["model"][name].numpy(), weight.astype(np.float32)), name
        assert torch.equal(first["averages"][name], first["model"][name]), name
        assert not first["velocities"][name].any(), name
    assert first["loss_scale"] == {"scale": 32768, "good_steps": 0, "skipped_steps": 1}
    line = all_lines_of(out)[0]
    assert line["loss"] == pytest.approx(right["loss"], rel=0.01)


def test_the_scale_follows_the_rule_until_steps_are_done(skipped, capfd):
    """And each skipped step is said, by one process."""
    out = skipped[1]
    command = ("-m", "replica.train", "--resume", "--out", str(out), "--device", "cpu")
    result = run_here(*command, "--keep", "99", "--checkpoint-steps", "1", "--steps", "5")
    assert result.returncode == 0, result.stderr
    checkpoints = [torch.load(checkpoint_path(out, k), weights_only=True) for k in range(1, 6)]
    are_finite, before = [False], checkpoints[0]
    for after in checkpoints[1:]:
        moved = [
            not torch.equal(new, old)
            for name, x in before["velocities"].items()
            if name.endswith("weight")  # which decays, however small its gradient is
            for new, old in zip(after["velocities"][name].chunk(2), x.chunk(2), strict=True)
        ]
        assert all(moved) == any(moved)
        are_finite.append(moved[0])
        for kind in ("model", "velocities", "averages"):
            for name, x in before[kind].items():
                assert moved[0] or torch.equal(after[kind][name], x), name
        before = after
    assert are_finite[-1]
    for (scale, good_steps), checkpoint in zip(
        oracles.loss_scales(are_finite), checkpoints, strict=True
    ):
        assert checkpoint["loss_scale"]["scale"] == scale
        assert checkpoint["loss_scale"]["good_steps"] == good_steps
    number = are_finite.count(False)
    assert checkpoints[-1]["loss_scale"]["skipped_steps"] == number
    said = "".join(capfd.readouterr())  # of the processes
    assert said.count(f"fp16: {number} of 5 steps were skipped") == 1
    for step in range(3, 6):
        assert said.count(f"step {step}: skipped") == (0 if are_finite[step - 1] else 1)
    # It doubles after 2000 good steps, and a later overflow leaves the averages, too.
    with_loss_scale(out, 5, scale=0.5, good_steps=1999)
    checkpoint = train_tiny(out, "--steps", "6")[6]
    (expected,) = oracles.loss_scales([True], scale=0.5, good_steps=1999)
    assert expected == (1, 0)
    values = {"scale": 1, "good_steps": 0, "skipped_steps": number}
    assert checkpoint["loss_scale"] == values
    with_loss_scale(out, 6, scale=2.0**40)
    after = train_tiny(out, "--epochs", "4", "--steps", "7")[7]
    assert after["loss_scale"]["skipped_steps"] == number + 1
    for name, weight in checkpoint["model"].items():
        assert torch.equal(after["model"][name], weight), name
        assert torch.equal(after["averages"][name], checkpoint["averages"][name]), name
    assert not torch.equal(checkpoint["averages"]["fc8.weight"], checkpoint["model"]["fc8.weight"])


def test_the_scale_doubles_after_2000_good_steps():
    scale = LossScale.first(CPU)
    scale.good_steps.fill_(1998)
    assert scale.unscale_([torch.ones(2)], sum_over_all_=lambda x: x) == 1
    assert scale.values() == {"scale": 65536, "good_steps": 1999, "skipped_steps": 0}
    assert scale.unscale_([torch.ones(2)], sum_over_all_=lambda x: x) == 1
    assert scale.values() == {"scale": 2 * 65536, "good_steps": 0, "skipped_steps": 0}


def test_gradients_are_divided_and_an_overflow_elsewhere_counts():
    for value, elsewhere, applied in (
        (3.0, 0, 1),
        (3.0, 1, 0),
        (torch.inf, 0, 0),
        (torch.nan, 2, 0),
    ):
        scale, gradient = LossScale.first(CPU), torch.tensor([value, 65536.0])
        got = scale.unscale_([gradient], sum_over_all_=lambda x, y=elsewhere: x.add_(y))
        assert got == applied
        assert gradient[1] == 1
        assert scale.scale == 65536 * (1 if applied else 0.5)
        assert scale.skipped_steps == 1 - applied
    scale = LossScale.first(CPU)
    assert scale.unscale_([], sum_over_all_=lambda x: x) == 1


def test_a_run_whose_gradients_no_scale_makes_finite_ends():
    step = _Step(7, 1, None, None, None, 0.0, 0.0)
    _say_if_skipped(step, 1.0, 2.0**-14, log=None)
    with pytest.raises(
        RuntimeError, match=r"at step 7, with a loss scale of 3.05176e-05: expected"
    ):
        _say_if_skipped(step, 1.0, 2.0**-15, log=None)


@pytest.mark.parametrize(
    "devices",
    [("--gpus", "1"), ("--gpus", "2"), ("--gpus", "2", "--split", "1")],
    ids=["one device", "two towers", "two copies"],
)
def test_a_resumed_run_is_the_uninterrupted_one(devices, tiny_shards, tmp_path):
    """In the middle of an epoch, and with a step that is skipped after it."""
    options = (*devices, "--precision", "fp16", "--ema", "0.9")
    whole = train_tiny(tmp_path / "whole", *options, "--steps", "3", shards=tiny_shards, seed=SEED)
    out = tmp_path / "again"
    train_tiny(out, *options, "--steps", "1", shards=tiny_shards, seed=SEED)
    again = train_tiny(out, "--steps", "3")
    for step in (1, 2, 3):
        assert_same_state(again[step], whole[step])
    assert whole[3]["averages"].keys() == whole[3]["model"].keys()
    assert whole[3]["loss_scale"]["good_steps"] > 0
    record = json.loads((out / "run.json").read_text())
    assert record["numerics"]["precision"] == "fp16"
    assert record["recipe"]["ema"] == 0.9
    command = ("-m", "replica.train", "--resume", "--out", str(out), "--device", "cpu")
    assert_user_error(run_here(*command, "--ema", "0.8"), "ema: 0.9 against 0.8", "continue it")


def test_a_loss_that_is_not_finite_stops_the_run_all_the_same(tiny_shards, tmp_path, capfd):
    result = train(tiny_shards, tmp_path / "run", "--precision", "fp16", "--lr", "1e6", *SMALL)
    assert result.returncode == 1
    said = result.stderr + "".join(capfd.readouterr())
    assert "the loss is not finite at step" in said
    assert "too high for this recipe, an activation is too large for float16" in said


def test_a_damaged_loss_scale_is_named(skipped):
    out = skipped[1]
    for name, value in (("scale", torch.nan), ("scale", -1.0), ("good_steps", -1)):
        content = torch.load(checkpoint_path(out, 1), weights_only=True)
        content["loss_scale"][name].fill_(value)
        path = out.with_name("damaged.pt")
        torch.save(content, path)
        with pytest.raises(UserError, match=f"does not fit its own recipe: loss_scale has {name}"):
            load_checkpoint(path)
    content["loss_scale"] = {"scale": torch.ones(2), "other": torch.ones(())}
    torch.save(content, path)
    with pytest.raises(UserError, match=r"unknown other; loss_scale lacks scale as a single torch"):
        load_checkpoint(path)
