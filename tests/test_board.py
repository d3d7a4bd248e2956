"""What TensorBoard and the picture of several curves show of a run."""

import importlib.util
import json
import shutil
import sys

import pytest
from conftest import assert_user_error, run_here
from PIL import Image
from runs import lines_of, train_command

from replica.training.run import can_write_events


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
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(shown), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    for name in ("loss", "top1_error", "top5_error", "learning_rate", "images_per_second"):
        assert {f"train/{name}", f"val/{name}"} <= set(tags["scalars"])
    assert {"rate/conv1.weight", "rate/fc8.bias"} <= set(tags["scalars"])
    assert {"model/conv1.weight", "velocities/fc8.bias"} <= set(tags["histograms"])
    assert tags["images"] == ["conv1"]
    for kind, tag in (("step", "train"), ("val", "val")):
        written = {line["step"]: line["loss"] for line in lines_of(shown, kind)}
        seen = {event.step: event.value for event in events.Scalars(f"{tag}/loss")}
        assert seen == pytest.approx(written, rel=1e-6)


def test_without_tensorboard_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    said = []
    assert not can_write_events(said.append)
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
    # One color a run, of matplotlib's own.
    colors = {color for _, color in image.getcolors(maxcolors=1 << 24)}
    assert {(31, 119, 180), (255, 127, 14)} <= colors
    assert_user_error(
        run_here("-m", "replica.figures", "curves", str(tmp_path)), "run.json of a run"
    )
    nowhere = str(tmp_path / "none" / "c.png")
    result = run_here("-m", "replica.figures", "curves", str(shown), "--picture", nowhere)
    assert_user_error(result, "--picture", "a directory that exists")
