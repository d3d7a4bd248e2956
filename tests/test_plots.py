"""What the pictures of runs show: smoothed losses, marks with their names, conv1's kernels."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import PROJECT_DIR
from PIL import Image
from runs import large_weights, mini_shapes_and_deviations, write_checkpoint

from data_prep.shards import open_data_set
from replica.network.kernels import GAP, LINE_HEIGHT, PIXELS_PER_WEIGHT, kernel_picture
from replica.results.plots import MARKS, curves_figure, draw_run, run_figure

STEPS_PER_EPOCH = 10


def make_run(run_dir, *, num_steps=30, steps_per_epoch=STEPS_PER_EPOCH, rates=None):
    """A run whose loss is a slope and the saw-tooth of a fixed order."""
    rates, lines = rates or {}, []
    rate = 0.01
    for step in range(1, num_steps + 1):
        place = (step - 1) % steps_per_epoch
        line = {"step": step, "epoch": (step - 1) // steps_per_epoch + 1}
        rate = rates.get(step, rate)
        loss = step + 100 * place
        lines.append({"kind": "step", **line, "loss": loss, "learning_rate": rate})
        if place == steps_per_epoch - 1:
            errors = {"top1_error": 0.5, "top5_error": 0.25}
            lines.append({"kind": "val", **line, "loss": 7 * step, "learning_rate": rate, **errors})
        if step == 15:
            lines.append({"kind": "resume", **line})
    run_dir.mkdir()
    shutil.copy(PROJECT_DIR / "benchmarks" / "results" / "imagenette" / "run.json", run_dir)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run_dir


def lines_in(axes):
    """Name -> the points of its lines; names that begin with _ are matplotlib's own."""
    found = {}
    for line in axes.lines:
        found.setdefault(line.get_label(), []).extend(zip(*line.get_data(), strict=True))
    return found


def legend_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_the_training_loss_is_a_mean_over_an_epoch_at_its_middle(tmp_path):
    pytest.importorskip("matplotlib")
    run_dir = make_run(tmp_path / "run")
    losses = run_figure(run_dir).axes[0]
    smoothed = lines_in(losses)["training, mean of 10 steps"]
    # Where the window is an epoch, the saw-tooth is gone: its mean is 450.
    assert smoothed == [pytest.approx((x, x + 450)) for x in np.arange(5.5, 26)]
    assert len(lines_in(losses)["training batch"]) == 30
    assert lines_in(losses)["validation"] == [(10, 70), (20, 140), (30, 210)]
    (label,) = [name for name in legend_of(curves_figure([run_dir])) if "training" in name]
    assert label == "run (paper, 10 classes; training: mean of 10 steps)"
    assert lines_in(curves_figure([run_dir]).axes[0])[label] == smoothed


def test_validations_are_points(tmp_path):
    pytest.importorskip("matplotlib")
    run_dir = make_run(tmp_path / "run")
    shown = [*run_figure(run_dir).axes[1].lines, *curves_figure([run_dir]).axes[2].lines]
    shown = [line for line in shown if line.get_label() not in MARKS]
    assert [(list(line.get_ydata()), line.get_marker()) for line in shown] == [
        ([50, 50, 50], "."),
        ([25, 25, 25], "."),
        ([50, 50, 50], "."),
    ]


def test_a_run_of_less_than_two_epochs_is_smoothed_over_a_quarter(tmp_path):
    pytest.importorskip("matplotlib")
    figure = run_figure(make_run(tmp_path / "run", num_steps=9))
    assert "training, mean of 2 steps" in legend_of(figure)
    assert not figure.axes[0].child_axes  # no whole epoch: nobody knows how long one is


def test_each_mark_stands_at_its_step_and_once_in_the_legend(tmp_path):
    pytest.importorskip("matplotlib")
    rates = {11: 0.001, 18: 0.0001, 21: 0.00001, 26: 0.01, 28: 0.001}
    run_dir = make_run(tmp_path / "run", rates=rates)
    by_hand = [
        {"step": 18, "changes": {"learning_rate": 0.0001}},
        {"step": 20, "changes": {"learning_rate": 0.0001}},  # as it was
        {"step": 23, "changes": {}, "actions": ["checkpoint"]},
        {"step": 28, "changes": {"conv1": 0.0}},
        {"step": 31, "changes": {"color_noise": 0.0}},  # not reached
    ]
    lines = [{"name": f"{x['step']}.json", **x} for x in by_hand]
    (run_dir / "control.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = {
        "scheduled rate drop": [11, 21, 28],
        "scheduled rate rise": [26],
        "change by hand": [18, 20, 28],
        "resumed": [15],
    }
    for figure in (run_figure(run_dir), curves_figure([run_dir, run_dir])):
        for axes in figure.axes:
            found = {name: x for name, x in lines_in(axes).items() if name in MARKS}
            steps = {name: sorted({x for x, _ in points}) for name, points in found.items()}
            assert steps == expected
        named = legend_of(figure)
        assert len(named) == len(set(named))
        assert set(named[-4:]) == set(expected)
        marks = figure.legends[0].legend_handles[-4:]
        assert len({(mark.get_linestyle(), mark.get_marker()) for mark in marks}) == 4
        assert {mark.get_color() for mark in marks} == {"#555555"}


def test_marks_that_did_not_happen_are_not_named(tmp_path):
    pytest.importorskip("matplotlib")
    figure = run_figure(make_run(tmp_path / "run", num_steps=12))
    assert not set(MARKS) & set(legend_of(figure))


def test_epochs_stand_above_where_all_runs_have_the_same(tmp_path):
    pytest.importorskip("matplotlib")
    run_dir = make_run(tmp_path / "run")
    other = make_run(tmp_path / "other", steps_per_epoch=5)
    figure = curves_figure([run_dir, run_dir])
    figure.draw_without_rendering()
    for axes in figure.axes:
        (above,) = axes.child_axes
        assert above.get_xlabel() == "epochs"
        assert above.get_xlim() == pytest.approx([x / STEPS_PER_EPOCH for x in axes.get_xlim()])
    assert not any(axes.child_axes for axes in curves_figure([run_dir, other]).axes)


def test_a_legend_of_long_names_stays_inside_the_figure(tmp_path):
    pytest.importorskip("matplotlib")
    runs = [make_run(tmp_path / f"a run with a long name, number {i}") for i in range(3)]
    figure = curves_figure(runs)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


# Twenty kernels of 11 x 11 a tower: rows of 16 and of 4.
TILE = 11 * PIXELS_PER_WEIGHT
ROWS_OF_TEXT = {
    0: "the title",
    LINE_HEIGHT: "tower 0",
    2 * LINE_HEIGHT + 2 * (TILE + GAP): "tower 1",
}


def kernels():
    return torch.randn(40, 3, 11, 11, generator=torch.Generator().manual_seed(1))


def test_each_weight_of_conv1_is_a_square_of_the_picture():
    weights = kernels()
    picture = np.asarray(kernel_picture(weights, towers=2, title="a title"))
    low, high = weights.min().item(), weights.max().item()
    tower_1 = max(ROWS_OF_TEXT) + LINE_HEIGHT
    tops = {0: 2 * LINE_HEIGHT, 15: 2 * LINE_HEIGHT, 16: 2 * LINE_HEIGHT + TILE + GAP}
    tops |= {20: tower_1, 35: tower_1, 39: tower_1 + TILE + GAP}
    assert PIXELS_PER_WEIGHT == 8
    for kernel, column in {0: 0, 15: 15, 16: 0, 20: 0, 35: 15, 39: 3}.items():
        left = GAP + column * (TILE + GAP)
        tile = picture[tops[kernel] : tops[kernel] + TILE, left : left + TILE]
        values = 255 * (weights[kernel].double().numpy().transpose(1, 2, 0) - low) / (high - low)
        expected = np.round(values).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        assert np.array_equal(tile, expected), kernel


def test_the_picture_of_conv1_names_itself_and_its_towers():
    picture = np.asarray(kernel_picture(kernels(), towers=2, title="a title"))
    other = np.asarray(kernel_picture(kernels(), towers=2, title="another"))
    assert np.array_equal(picture[LINE_HEIGHT:], other[LINE_HEIGHT:])
    names = [picture[top : top + LINE_HEIGHT] for top in ROWS_OF_TEXT]
    assert all((name < 128).sum() > 100 for name in names)
    # The towers' names differ in their last character alone.
    differing = np.nonzero((names[1] != names[2]).any(axis=(0, 2)))[0]
    assert 0 < np.ptp(differing) < 10 < differing.min()
    assert not np.array_equal(names[0], other[:LINE_HEIGHT])
    one, same = (kernel_picture(kernels(), towers=1, title=title) for title in ("é", "\\xe9"))
    assert one.tobytes() == same.tobytes()


def test_a_title_longer_than_the_kernels_is_shown_whole():
    few = kernels()[:2]
    short, long = (kernel_picture(few, towers=2, title=title) for title in ("x", 40 * "x"))
    assert (np.asarray(long)[:LINE_HEIGHT, -20:] < 128).any()
    assert short.width == TILE + 2 * GAP < long.width


def test_the_pictures_of_a_run_are_of_its_last_checkpoint(tiny_shards, tmp_path):
    pytest.importorskip("matplotlib")
    run_dir = make_run(tmp_path / "run")
    shapes, _ = mini_shapes_and_deviations()
    weights, data = large_weights(shapes, seed=1), open_data_set(tiny_shards)
    write_checkpoint(run_dir / "checkpoint-00000000.pt", weights, data)
    drawn = draw_run(run_dir, tmp_path / "figures")
    assert [path.name for path in drawn] == ["loss.png", "conv1.png"]
    title = f"conv1 of mini after step 0, {run_dir}"
    expected = kernel_picture(torch.from_numpy(weights["conv1.weight"]), towers=2, title=title)
    with Image.open(drawn[1]) as picture:
        assert picture.tobytes() == expected.tobytes()
    with Image.open(drawn[0]) as picture:
        assert picture.width == 7 * 200  # a page's text, at 200 dots per inch
