"""What TensorBoard and the picture of several curves show of a run."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_user_error, run_here
from PIL import Image
from runs import last_checkpoint, lines_of, train_command

from replica.network.alexnet import whole_shapes
from replica.recipes import PAPER
from replica.training.checkpoint import checkpoints_of
from replica.training.run_directory import Measures, can_write_events
from replica.training.run_log import EventFile


@pytest.fixture(scope="module")
def shown(shards_dir, tmp_path_factory):
    """A run with event files, in two sessions."""
    pytest.importorskip("tensorboard")
    out = tmp_path_factory.mktemp("shown") / "run"
    command = [x for x in train_command(shards_dir, out) if x != "--no-tensorboard"]
    for more in (("--steps", "3"), ("--steps", "6", "--resume")):
        result = run_here(*command, *more)
        assert result.returncode == 0, result.stderr
    return out


def test_tensorboard_has_losses_errors_rates_kernels_and_histograms(shown):
    events = events_of(shown)
    tags = events.Tags()
    for name in ("loss", "top1_error", "top5_error", "learning_rate", "images_per_second"):
        assert {f"train/{name}", f"val/{name}"} <= set(tags["scalars"])
    assert "train/feed_share" in tags["scalars"]
    assert "val/feed_share" not in tags["scalars"]
    assert {"rate/conv1.weight", "rate/fc8.bias"} <= set(tags["scalars"])
    assert {"model/conv1.weight", "velocities/fc8.bias"} <= set(tags["histograms"])
    assert tags["images"] == ["conv1"]
    for kind, tag in (("step", "train"), ("val", "val")):
        written = [(line["step"], line["loss"]) for line in lines_of(shown, kind)]
        steps, values = zip(*written, strict=True)
        assert points(events, f"{tag}/loss") == (list(steps), pytest.approx(values, rel=1e-6))


def events_of(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kinds = ("images", "scalars", "histograms")
    events = EventAccumulator(str(run_dir), size_guidance=dict.fromkeys(kinds, 0))
    events.Reload()
    return events


def points(events, tag):
    """The steps and the values of a curve."""
    found = events.Scalars(tag)
    return [event.step for event in found], [event.value for event in found]


def num_bytes(run_dir):
    return sum(path.stat().st_size for path in run_dir.glob("events.out.*"))


# 90 epochs of 1,281,167 images in batches of 128.
PAPER_STEPS, EPOCHS = 900_900, 90


def saved_at(step, num_values=100_000):
    """A checkpoint of `paper` with so many values in each tensor; no more of any are shown."""
    keys = torch.Generator().manual_seed(step)
    names = whole_shapes(PAPER, num_classes=1000)
    tensors = {name: torch.randn(num_values, generator=keys) for name in names}
    kernels = torch.randn(96, 3, 11, 11, generator=keys)
    model = {**tensors, "conv1.weight": kernels}
    return SimpleNamespace(
        model=model, velocities=tensors, step=step, recipe=PAPER, model_file=None
    )


def test_the_event_files_of_the_papers_run_stay_below_50_mb(tmp_path):
    pytest.importorskip("tensorboard")
    # A ninetieth of the run, with a checkpoint every 1,001 steps, is a ninetieth of its records.
    events = EventFile(tmp_path, step=0, last_step=PAPER_STEPS)
    rates = dict.fromkeys(whole_shapes(PAPER, num_classes=1000), 0.01)
    for step in range(1, PAPER_STEPS // EPOCHS + 1):
        events.step(step, Measures(loss=step), rates)
        if step % 1001 == 0:
            events.weights(saved_at(step))
    events.validation(step, Measures(loss=1))
    events.close()
    assert EPOCHS * num_bytes(tmp_path) < 50e6
    written = events_of(tmp_path)
    assert points(written, "train/loss")[0] == [1, *range(91, step + 1, 91)]
    assert [image.step for image in written.Images("conv1")] == [9009]
    assert points(written, "val/loss") == ([step], [1])


def test_changes_of_a_rate_and_the_last_step_are_always_shown(tmp_path):
    pytest.importorskip("tensorboard")
    events = EventFile(tmp_path, step=0, last_step=100_005)  # every eleventh
    for step in [*range(1, 36), *range(99_990, 100_006)]:
        rates = {"conv1.weight": 0.01, "fc8.weight": 0.01 if step < 30 else 0.001}
        events.step(step, Measures(loss=step, learning_rate=0.01), rates)
    events.close()
    expected = [1, 11, 22, 30, 33, 99_990, 100_001, 100_005]
    assert points(events_of(tmp_path), "train/loss") == (expected, expected)
    assert points(events_of(tmp_path), "rate/fc8.weight")[0] == expected


def test_a_resumed_session_hides_the_points_that_it_draws_again(tmp_path):
    pytest.importorskip("tensorboard")
    for first, last, value in ((0, 6, 1.0), (4, 8, 2.0)):
        events = EventFile(tmp_path, step=first, last_step=8)
        # A run saves before a validation and after it, and a resumed one may validate first.
        events.weights(saved_at(first, num_values=9))
        for step in range(first + 1, last + 1):
            events.step(step, Measures(loss=value), {})
            events.weights(saved_at(step, num_values=9))
            events.validation(step, Measures(loss=value))
            events.weights(saved_at(step, num_values=9))
        events.close()
    written = events_of(tmp_path)
    for tag in ("train/loss", "val/loss"):
        assert points(written, tag) == (list(range(1, 9)), 4 * [1] + 4 * [2])
    assert [image.step for image in written.Images("conv1")] == list(range(1, 9))
    assert [x.step for x in written.Histograms("model/fc8.weight")] == list(range(1, 9))


def test_a_validation_whose_checkpoint_was_lost_is_not_written_again(shards_dir, tmp_path):
    pytest.importorskip("tensorboard")
    command = [x for x in train_command(shards_dir, tmp_path) if x != "--no-tensorboard"]
    assert run_here(*command, "--epochs", "1", "--checkpoint-steps", "1").returncode == 0
    # As if it had ended between the validation and the checkpoint that knows its error.
    saved = last_checkpoint(tmp_path)
    torch.save({**saved, "val_errors": []}, checkpoints_of(tmp_path)[-1])
    checkpoints_of(tmp_path)[-1].with_suffix(".pt.sha256").unlink()
    result = run_here(*command, "--resume", "--steps", str(saved["step"] + 1), "--epochs", "2")
    assert result.returncode == 0, result.stderr
    for steps in (
        points(events_of(tmp_path), "val/loss")[0],
        [x["step"] for x in lines_of(tmp_path, "val")],
    ):
        assert steps == [saved["step"], saved["step"] + 1]


def test_without_tensorboard_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    said = []
    assert not can_write_events(Path("run"), said.append)
    assert said == [
        "tensorboard: no event files (tensorboard is not installed: pip install "
        "'replica-alexnet[tensorboard]')"
    ]


def test_curves_of_several_runs_are_drawn_into_one_picture(shown, tmp_path):
    picture, other = tmp_path / "curves.png", tmp_path / "run"  # a second run of that name
    other.mkdir()
    shutil.copy(shown / "run.json", other)
    lines = [{**line, "loss": 0.5 * line["loss"]} for line in lines_of(shown, "step")]
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = (str(shown), str(other))
    result = run_here("-m", "replica.figures", "curves", *runs, "--picture", str(picture))
    assert result.returncode == 0, result.stderr
    image = Image.open(picture).convert("RGB")
    # One color a run, of the one style.
    colors = {color for _, color in image.getcolors(maxcolors=1 << 24)}
    assert {(0, 114, 178), (213, 94, 0)} <= colors
    assert_user_error(
        run_here("-m", "replica.figures", "curves", str(tmp_path)), "run.json of a run"
    )
    nowhere = str(tmp_path / "none" / "c.png")
    result = run_here("-m", "replica.figures", "curves", str(shown), "--picture", nowhere)
    assert_user_error(result, "--picture", "a directory that exists")
