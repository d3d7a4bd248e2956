"""The averaged weights of `--ema`: who uses them, and that the last ones can be had, too."""

import dataclasses
import json

import numpy as np
import oracles
import pytest
import torch
from conftest import assert_user_error, run_here
from runs import (
    CROP_SIZE,
    NARROW,
    large_weights,
    mini_shapes_and_deviations,
    train_tiny,
    write_checkpoint,
)

import replica
from data_prep.errors import UserError
from data_prep.shards import open_data_set
from replica import test
from replica.recipes import MINI, PAPER, from_record, to_record, with_changes
from replica.training.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def sets():
    """Two sets of weights that see pictures differently."""
    shapes = mini_shapes_and_deviations()[0]
    return {name: large_weights(shapes, seed=seed) for name, seed in (("last", 7), ("averaged", 8))}


@pytest.fixture(scope="module")
def both(sets, tiny_shards, tmp_path_factory):
    """A checkpoint with both."""
    path = tmp_path_factory.mktemp("averages") / "both.pt"
    write_checkpoint(path, sets["last"], open_data_set(tiny_shards))
    content = torch.load(path, weights_only=True)
    content["recipe"]["ema"] = 0.999
    content["averages"] = {name: torch.from_numpy(x) for name, x in sets["averaged"].items()}
    torch.save(content, path)
    return path


@pytest.mark.parametrize("asked", [None, "averaged", "last"])
def test_the_test_command_tests_the_averages_unless_the_last_are_asked_for(
    asked, both, sets, tiny_shards, capsys
):
    arguments = ["--checkpoint", str(both), "--data", str(tiny_shards), "--json"]
    arguments += ["--device", "cpu", "--precision", "float64"]
    arguments += [] if asked is None else ["--weights", asked]
    assert test.main(arguments) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["weights"] == (asked or "averaged")
    assert ("weights: averaged, as the checkpoint has them" in said.err) == (asked is None)
    data = oracles.read_data(tiny_shards)
    scores, labels = oracles.evaluate(sets[result["weights"]], data, crop_size=CROP_SIZE)
    losses = -np.log(scores[np.arange(len(labels)), labels])
    assert result["loss"] == pytest.approx(losses.mean(), rel=1e-9)
    assert result["top1_error"] == 1 - oracles.correct(scores, labels, 1) / len(labels)
    assert test.main(arguments[:4] + arguments[5:]) == 0
    assert ("step 0, averaged weights" in capsys.readouterr().out) == (asked != "last")


def test_load_takes_the_averages_unless_the_last_are_asked_for(both, sets):
    for asked, expected in ((None, "averaged"), ("averaged", "averaged"), ("last", "last")):
        module = replica.load(both, device="cpu", weights=asked).module
        for name, tensor in module.named_parameters():
            assert np.array_equal(tensor.detach().numpy(), sets[expected][name]), name


def test_what_a_checkpoint_does_not_have_is_refused(sets, tiny_shards, tmp_path):
    path = write_checkpoint(tmp_path / "one.pt", sets["last"], open_data_set(tiny_shards))
    command = ("-m", "replica.test", "--checkpoint", str(path), "--data", str(tiny_shards))
    result = run_here(*command, "--weights", "averaged")
    assert_user_error(result, "weights averaged: expected a checkpoint of a run with --ema, ")
    with pytest.raises(UserError, match="weights ema: expected averaged or last"):
        replica.load(path, weights="ema")
    module = replica.load(path, device="cpu").module
    assert np.array_equal(module.fc8.bias.detach().numpy(), sets["last"]["fc8.bias"])


def test_init_takes_the_averages(both, sets, tiny_shards, tmp_path):
    options = ("--init", str(both), "--steps", "1", "--lr", "0", "--ema", "0.5")
    (checkpoint,) = train_tiny(tmp_path / "run", *options, shards=tiny_shards, seed=1).values()
    for name, weight in sets["averaged"].items():
        for kind in ("model", "averages"):
            assert np.array_equal(checkpoint[kind][name].numpy(), weight.astype(np.float32)), name


@pytest.mark.parametrize("problem", ["none", "lacks", "unknown", "shape", "shape, without ema"])
def test_averages_that_do_not_fit_the_recipe_are_named(problem, both, tmp_path):
    content = torch.load(both, weights_only=True)
    averages = content["averages"]
    if problem == "none":
        del content["averages"]
    elif problem == "lacks":
        del averages["conv1.bias"]
    elif problem == "unknown":
        averages["conv9.bias"] = torch.zeros(1)
    else:
        averages["conv1.bias"] = torch.zeros(1)
    if "without ema" in problem:
        content["recipe"]["ema"] = None
    torch.save(content, tmp_path / "other.pt")
    words = {"none": "lacks conv1.weight", "lacks": "lacks conv1.bias"}
    words |= {"unknown": "has an unknown conv9.bias", "shape": r"has conv1.bias of shape \(1,\)"}
    with pytest.raises(UserError, match=f"averages {words[problem.split(',')[0]]}"):
        load_checkpoint(tmp_path / "other.pt")


def test_a_recipe_of_an_older_version_keeps_no_average():
    record = to_record(PAPER)
    assert record.pop("ema") is None
    assert from_record(record) == PAPER
    averaged = with_changes(MINI, [*NARROW, "ema=0.999"])
    assert averaged.ema == 0.999
    assert from_record(to_record(averaged)) == averaged
    assert dataclasses.replace(averaged, ema=None) == with_changes(MINI, NARROW)


def test_the_dry_run_counts_the_averages(tiny_shards):
    command = ("-m", "replica.train", "--data", str(tiny_shards), "--recipe", "mini", "--dry-run")
    command = (*command, "--set", "crop_size=96", "--device", "cpu", "--gpus", "1")
    result = run_here(*command, "--ema", "0.9")
    assert result.returncode == 0, result.stderr
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines() if ": " in line)
    weights, velocities, averages = (
        lines["memory per process"].split(f"{word} ")[1].split(" MB")[0]
        for word in ("weights", "velocities", "averages")
    )
    assert weights == velocities == averages
    number = int(lines["parameters"].replace(",", ""))
    assert lines["checkpoint"].startswith(f"{12 * number / 1e6:,.0f} MB each")
