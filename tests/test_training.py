"""Runs of `python -m replica.train` against the oracle, step by step (paper 4.1, 4.2, 5)."""

import json
import shutil

import numpy as np
import oracles
import pytest
import torch
from runs import (
    BATCH_SIZE,
    CROP_SIZE,
    STEPS,
    large_weights,
    lines_of,
    mini_shapes_and_deviations,
    train_tiny,
    write_checkpoint,
)

from data_prep.shards import open_data_set

# Name -> seed, seed of large weights (None: drawn as in 5), options, fields, and what the oracle
# is told.
RUNS = {
    # The rate drops, a layer is frozen, another has its own rate, color noise ends; no flips.
    "one device": (
        5,
        None,
        ("--gpus", "1", "--lr", "0.02"),
        (
            "random_flips=false",
            "drop_rule=epochs",
            "drop_epochs=2,3",
            "changes=2:conv4=0,2:fc6.weight=0.007,3:color_noise=0",
        ),
        {
            "learning_rate": 0.02,
            "drop_epochs": (2, 3),
            "frozen": ("conv4", 2),
            "own_rate": ("fc6.weight", 2, 0.007),
            "noise_off": 3,
            "flips": False,
        },
    ),
    # An odd number of classes: the towers' halves of the logits differ.
    "two towers": (
        6,
        15,
        ("--gpus", "2", "--lr", "0.0001", "--classes", "11"),
        ("drop_rule=plateau", "plateau_patience=1", "plateau_improvement=0.02"),
        {"learning_rate": 0.0001, "plateau_patience": 1, "plateau_improvement": 0.02},
    ),
    # Central crops, flips all the same; batches of nine and of one, with an empty second share.
    "two copies": (
        6,
        22,
        (
            *("--gpus", "2", "--split", "1", "--loader-threads", "2"),
            *("--lr", "0.0001", "--batch-size", "9"),
        ),
        (
            "random_crops=false",
            "drop_rule=plateau",
            "plateau_patience=1",
            "plateau_improvement=0.02",
        ),
        {
            "learning_rate": 0.0001,
            "plateau_patience": 1,
            "plateau_improvement": 0.02,
            "crops": False,
            "batch_size": 9,
        },
    ),
    # A new order in each epoch, and the images as in the source: its noise ends with epoch 2.
    "images of the source": (
        7,
        15,
        (
            *("--gpus", "2", "--split", "1", "--loader-threads", "2"),
            *("--lr", "0.0001", "--batch-size", "7"),
        ),
        (
            *("image_order=reshuffle", "shared_crops=3", "mean=center"),
            *("color_scale=standard-deviations", "color_division=true"),
            *("drop_epochs=3", "drop_rule=epochs", "changes=3:color_noise=0"),
        ),
        {
            "learning_rate": 0.0001,
            "drop_epochs": (3,),
            "batch_size": 7,
            "noise_off": 3,
            "image_order": "reshuffle",
            "source": {
                "shared_crops": 3,
                "color_scale": "standard-deviations",
                "color_division": True,
                "mean": "center",
            },
        },
    ),
    # Validation is of the averages; a layer is frozen, and its average with it.
    "averages": (
        6,
        15,
        ("--gpus", "2", "--lr", "0.0001", "--ema", "0.9"),
        ("drop_epochs=3", "changes=3:conv2=0"),
        {"learning_rate": 0.0001, "drop_epochs": (3,), "frozen": ("conv2", 3), "ema": 0.9},
    ),
    "two pairs": (3, 2, ("--gpus", "4"), ("drop_epochs=2",), {"drop_epochs": (2,)}),
    "four copies": (
        3,
        2,
        ("--gpus", "4", "--split", "1", "--ema", "0.4"),
        ("drop_epochs=2",),
        {"drop_epochs": (2,), "ema": 0.4},
    ),
}
SLOW = ("two pairs", "four copies")


@pytest.fixture(scope="module")
def runs(tiny_shards, tmp_path_factory):
    """Each run, made once: its directory, its checkpoints, and what the oracle says of it."""
    known = {}

    def of(name):
        if name in known:
            return known[name]
        seed, seed_of_large, options, changes, told = RUNS[name]
        out = tmp_path_factory.mktemp("oracle") / "run"
        shapes, deviations = mini_shapes_and_deviations(11 if "--classes" in options else 10)
        weights = oracles.initial_weights(shapes, deviations, seed=seed)
        if seed_of_large is not None:
            weights = large_weights(shapes, seed=seed_of_large)
            data = open_data_set(tiny_shards)
            num_classes = len(weights["fc8.bias"])
            start = out.with_name("start.pt")
            write_checkpoint(start, weights, data, num_classes=num_classes)
            options = (*options, "--init", str(start))
        sets = [word for change in changes for word in ("--set", change)]
        options = (*options, *sets, "--precision", "float64")
        checkpoints = train_tiny(out, *options, shards=tiny_shards, seed=seed)
        told = {"learning_rate": 0.005, "batch_size": BATCH_SIZE, **told}
        told |= {"seed": seed, "steps": STEPS, "crop_size": CROP_SIZE}
        expected = oracles.train(oracles.read_data(tiny_shards), weights, told)
        known[name] = out, checkpoints, list(expected)
        return known[name]

    return of


def assert_same_measures(line, expected):
    for name in ("loss", "top1_error", "top5_error"):
        assert line[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-12), name


def assert_same_tensors(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        distance = np.linalg.norm(got[name].numpy() - value)
        assert distance <= 1e-9 * np.linalg.norm(value), name


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in RUNS]
)
def test_every_step_of_a_run_is_the_oracles(name, runs):
    out, checkpoints, expected = runs(name)
    steps, vals = lines_of(out, "step"), lines_of(out, "val")
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6] == list(checkpoints)
    assert [line["epoch"] for line in steps] == [1, 1, 2, 2, 3, 3]
    for line, right in zip(steps, expected, strict=True):
        assert_same_measures(line, right)
        assert line["learning_rate"] == pytest.approx(right["learning_rate"], rel=1e-12)
        checkpoint = checkpoints[line["step"]]
        assert_same_tensors(checkpoint["model"], right["weights"])
        assert_same_tensors(checkpoint["velocities"], right["velocities"])
        assert ("averages" in checkpoint) == ("ema" in RUNS[name][-1])
        assert_same_tensors(checkpoint.get("averages", checkpoint["model"]), right["averages"])
    assert [(line["step"], line["epoch"]) for line in vals] == [(2, 1), (4, 2), (6, 3)]
    for line, right in zip(vals, expected[1::2], strict=True):
        assert_same_measures(line, right["val"])


def test_a_run_with_the_rules_of_the_source_goes_on_in_mid_epoch_bit_for_bit(runs, tiny_shards):
    """From the middle of the second epoch, with the order, draws and noise of its place."""
    out, checkpoints, _ = runs("images of the source")
    cut = out.with_name("cut")
    shutil.copytree(out, cut, symlinks=True)
    for step in (4, 5, 6):
        for path in cut.glob(f"checkpoint-{step:08d}.pt*"):
            path.unlink()
    again = train_tiny(cut, "--gpus", "2", "--split", "1", "--loader-threads", "0")
    assert json.loads((cut / "run.json").read_text())["started_at_step"] == 3
    for name, tensor in checkpoints[6]["model"].items():
        assert torch.equal(again[6]["model"][name], tensor), name


def test_a_checkpoint_holds_what_a_test_needs(runs, tiny_shards):
    checkpoint = runs("two towers")[1][3]
    data = oracles.read_data(tiny_shards)
    for name in ("mean_image", "eigenvalues", "eigenvectors"):
        assert np.array_equal(checkpoint[name].numpy(), data[name]), name
    manifest = json.loads((tiny_shards / "manifest.json").read_text())
    assert checkpoint["wnids"] == manifest["wnids"]
    assert checkpoint["class_names"] == manifest["class_names"]
    assert (checkpoint["step"], checkpoint["epoch"], checkpoint["num_classes"]) == (3, 2, 11)
    assert (checkpoint["recipe"]["name"], checkpoint["seed"]) == ("mini", 6)


@pytest.mark.parametrize(("name", "best_step"), [("two towers", 6), ("two copies", 4)])
def test_the_best_checkpoint_is_that_of_the_lowest_validation_error(name, best_step, runs):
    out, checkpoints, expected = runs(name)
    errors = [step["val"]["top1_error"] for step in expected[1::2]]
    assert 2 * (errors.index(min(errors)) + 1) == best_step
    assert checkpoints[6]["val_errors"] == pytest.approx(errors)
    assert checkpoints[6]["best_step"] == best_step
    assert (out / "best.pt").readlink().name == f"checkpoint-{best_step:08d}.pt"


@pytest.mark.parametrize(("name", "drops"), [("two towers", 1), ("two copies", 0)])
def test_top5_errors_would_have_dropped_the_rate_at_another_time(name, drops, runs):
    """Else the runs would not show which error the plateau rule reads."""
    expected = runs(name)[2]
    for kind, number in (("top1_error", drops), ("top5_error", 1 - drops)):
        errors = [step["val"][kind] for step in expected[1:4:2]]
        rate = oracles.rates_at(3, errors, RUNS[name][-1])
        assert rate == pytest.approx(0.0001 * 0.1**number), kind
