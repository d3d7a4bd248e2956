"""Fine-tuning: weights of another run; layers drawn anew, frozen, or with their own rates."""

import json

import pytest
import torch
from conftest import assert_user_error, run_here
from runs import NARROW, last_checkpoint, train

from data_prep.errors import UserError
from data_prep.files import sha256_of_file
from replica.network.alexnet import AlexNet, whole_shapes
from replica.network.initialization import initialize_
from replica.recipes import MINI, PAPER, PAPER_CONV6, with_changes
from replica.recipes.recipe import layer_names
from replica.training.checkpoint import (
    check_fits_network,
    checkpoints_of,
    load_checkpoint,
)
from replica.training.run_record import read_run_record


@pytest.fixture(scope="module")
def pretrained(shards_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained") / "run"
    result = train(shards_dir, out, "--steps", "3", "--lr", "0.02", "--seed", "5")
    assert result.returncode == 0, result.stderr
    return checkpoints_of(out)[-1]


@pytest.fixture(scope="module")
def other_classes(tmp_path_factory):
    """Shards of two other classes."""
    from test_sources import make_folders

    base = tmp_path_factory.mktemp("two classes")
    make_folders(base / "in")
    build = ("data_prep/build_shards.py", "--input", str(base / "in"))
    assert run_here(*build, "--output", str(base / "out")).returncode == 0
    return base / "out"


@pytest.mark.parametrize("gpus", ["1", "2"])
def test_a_new_head_is_drawn_and_the_rest_is_taken_over(gpus, pretrained, other_classes, tmp_path):
    out = tmp_path / "run"
    # With every rate at zero, what is saved is what the run began with.
    options = ("--init", str(pretrained), "--new-head", "--lr", "0", "--steps", "1")
    result = train(other_classes, out, "--gpus", gpus, *options)
    assert result.returncode == 0, result.stderr
    assert f"init: {pretrained}, step 3 of recipe mini; drawn anew: fc8" in result.stdout
    before, after = load_checkpoint(pretrained).model, last_checkpoint(out)["model"]
    for name, tensor in after.items():
        if not name.startswith("fc8"):
            assert torch.equal(tensor, before[name]), name
    assert after["fc8.weight"].shape == (2, 256)
    fresh = AlexNet(with_changes(MINI, NARROW), num_classes=2)
    initialize_(fresh, seed=2012)
    assert torch.equal(after["fc8.weight"], fresh.state_dict()["fc8.weight"])
    assert not any(tensor.any() for tensor in last_checkpoint(out)["velocities"].values())
    record = read_run_record(out).initialized_from
    assert record.sha256 == sha256_of_file(pretrained)
    assert record.new_layers == ["fc8"]


def test_frozen_layers_stay_and_others_have_their_own_rates(pretrained, shards_dir, tmp_path):
    out = tmp_path / "run"
    options = ("--init", str(pretrained), "--freeze", "conv1,conv2", "--rate", "fc8=0.05")
    result = train(shards_dir, out, *options, "--rate", "fc7.bias=0", "--steps", "2")
    assert result.returncode == 0, result.stderr
    before, after = load_checkpoint(pretrained).model, last_checkpoint(out)["model"]
    frozen = {name for name in before if torch.equal(before[name], after[name])}
    assert frozen == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "fc7.bias"}
    changes = read_run_record(out).recipe.changes
    assert [str(change) for change in changes] == [
        *("1:conv1=0", "1:conv2=0"),
        *("1:fc8=0.05", "1:fc7.bias=0"),
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--freeze", "conv9"), "--freeze conv9: recipe mini has no such layer: expected one of c"),
        (("--freeze", "learning_rate"), "--freeze learning_rate: recipe mini has no such layer"),
        (("--freeze", "conv1,color_noise"), "--freeze color_noise: recipe mini has no such layer"),
        (("--freeze", "conv1.nope"), "--freeze conv1.nope: recipe mini has no such layer"),
        (("--rate", "fc9=0.1"), "--rate fc9: recipe mini has no such layer"),
        (("--freeze", ",".join(layer_names(MINI))), "--freeze: names all layers, so nothing would"),
    ],
)
def test_what_cannot_be_frozen_is_named_and_nothing_is_written(
    options, expected, shards_dir, tmp_path
):
    assert_user_error(train(shards_dir, tmp_path / "run", *options), expected)
    assert list(tmp_path.iterdir()) == []


def test_a_runs_directory_is_no_file_to_begin_with(pretrained, shards_dir, tmp_path):
    result = train(shards_dir, tmp_path / "run", "--init", str(pretrained.parent))
    way_out = f"got a directory: give a file such as {pretrained.parent / 'best.pt'}"
    assert_user_error(result, way_out)


def test_what_does_not_fit_is_refused_with_every_tensor(pretrained, other_classes, tmp_path):
    out = tmp_path / "run"
    result = train(other_classes, out, "--init", str(pretrained))
    assert_user_error(result, "has 10 classes", "has 2", "--new-head")
    result = train(other_classes, out, "--init", str(pretrained), "--new-head", "--recipe", "paper")
    assert_user_error(result, "does not fit recipe paper", "conv1.weight is (16, 3, 11, 11)", "fc7")
    result = train(other_classes, out, "--init", str(pretrained), "--new-layers", "fc8,fc9")
    assert_user_error(result, "--new-layers fc9", "expected layers of recipe mini")
    result = train(other_classes, out, "--init", str(tmp_path / "none.pt"), "--new-head")
    assert_user_error(result, "none.pt", "found no file")
    assert not out.exists()


def test_the_papers_sixth_layer_can_be_put_on_a_network_without_it(tmp_path):
    """Fall 2009 -> Fall 2011 -> 2012 in the source: each network began with the one before."""
    paper_shapes = {
        name: torch.zeros(1).expand(shape)
        for name, shape in whole_shapes(PAPER_CONV6, num_classes=1000).items()
    }
    without = {name: x for name, x in paper_shapes.items() if not name.startswith("conv6")}
    path = tmp_path / "c.pt"
    unused = check_fits_network(path, without, PAPER_CONV6, num_classes=1000, new=("conv6",))
    assert unused == []
    assert sum(x.numel() for x in paper_shapes.values()) == 61_555_304  # the source's count
    unused = check_fits_network(path, paper_shapes, PAPER, num_classes=1000, new=())
    assert unused == ["conv6"]
    with pytest.raises(UserError, match=r"conv6.weight is not in it"):
        check_fits_network(path, without, PAPER_CONV6, num_classes=1000, new=())


def test_a_dry_run_says_what_would_be_and_writes_nothing(shards_dir, tmp_path):
    result = train(shards_dir, tmp_path / "run", "--gpus", "2", "--dry-run", "--epochs", "3")
    assert result.returncode == 0, result.stderr
    assert "parameters: 407,018, 203,509 in each of two towers" in result.stdout
    assert "steps: 12 (3 epochs of 4)" in result.stdout
    assert "memory per process:" in result.stdout
    assert "exchange: a tower sends" in result.stdout
    assert "images/s) tried in one process" in result.stdout
    assert not (tmp_path / "run").exists()


def test_the_record_says_all_that_repeats_the_run(pretrained):
    record = json.loads((pretrained.parent / "run.json").read_text())
    assert record["numerics"] == {
        "precision": "float32",
        "memory_format": "channels_last",
        "compile": "off",
        "deterministic": True,
        "convolution": "measured",
        "allow_tf32": False,
        "cudnn_deterministic": True,
    }
    assert record["devices"] == {"kind": "cpu", "num_processes": 1, "split": 1}
    for name in ("seed", "steps", "keep", "loader_threads", "command", "recipe", "git_revision"):
        assert name in record
