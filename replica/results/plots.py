"""Curves of runs as pictures."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.errors import UserError
from replica.network.kernels import kernel_picture
from replica.training.checkpoint import last_whole_checkpoint
from replica.training.run_directory import read_metrics
from replica.training.run_record import read_run_record

STEPS_SMOOTHED = 20


def draw_run(run_dir: Path, out_dir: Path) -> list[Path]:
    """Draws a run: loss and errors over steps, and conv1's kernels; returns the files."""
    _, checkpoint, _ = last_whole_checkpoint(run_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    curve, kernels = out_dir / "loss.png", out_dir / "conv1.png"
    recipe = checkpoint.recipe
    title = f"{recipe.name}, {checkpoint.num_classes} classes"
    metrics, pyplot = read_metrics(run_dir), _pyplot()
    steps = [line for line in metrics if line.kind == "step"]
    validations = [line for line in metrics if line.kind == "val"]
    figure, (losses, errors) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    losses.plot(
        [line.step for line in steps],
        [line.loss for line in steps],
        color="#aaaaff",
        linewidth=0.8,
        label="training batch",
    )
    at = [line.step for line in validations]
    losses.plot(at, [line.loss for line in validations], color="#aa2222", label="validation")
    losses.set(xlabel="step", ylabel="loss (nats)", title=title)
    losses.legend()
    for name, label, style in (("top1_error", "top-1", "-"), ("top5_error", "top-5", "--")):
        values = [100 * getattr(line, name) for line in validations]
        errors.plot(at, values, style, color="#aa2222", label=f"validation {label}")
    errors.set(xlabel="step", ylabel="error (%)", ylim=(0, 100), title="central crop")
    errors.legend()
    for before, after in itertools.pairwise(steps):
        if after.learning_rate < before.learning_rate:
            for axes in (losses, errors):
                axes.axvline(before.step, color="#888888", linewidth=0.8, linestyle=":")
    figure.savefig(curve, dpi=110)
    pyplot.close(figure)
    kernel_picture(checkpoint.model["conv1.weight"], towers=recipe.towers).save(kernels)
    return [curve, kernels]


def draw_curves(run_dirs: list[Path], picture: Path) -> None:
    """Draws several runs into one picture: training loss, validation loss, top-1 error.

    Training losses are means over `STEPS_SMOOTHED` steps; a dotted line marks a change of the
    learning rate, a triangle where a run was resumed.

    Raises:
        UserError: a directory holds no run, or the picture cannot be written there.
    """
    if not picture.parent.is_dir():
        raise UserError(f"--picture {picture}: expected a file in a directory that exists")
    runs, names = [], [run_dir.name for run_dir in run_dirs]
    for run_dir, name in zip(run_dirs, names, strict=True):
        recipe = read_run_record(run_dir).recipe_record["name"]
        shown = name if names.count(name) == 1 else str(run_dir)
        runs.append((f"{shown} ({recipe})", read_metrics(run_dir)))
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(1, 3, figsize=(15, 4), layout="constrained")
    titles = ("training loss (nats)", "validation loss (nats)", "validation top-1 error (%)")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(xlabel="step", title=title)
    for number, (name, lines) in enumerate(runs):
        color = f"C{number}"
        steps = [line for line in lines if line.kind == "step" and not math.isnan(line.loss)]
        validations = [line for line in lines if line.kind == "val"]
        losses = [line.loss for line in steps]
        window = max(1, min(STEPS_SMOOTHED, len(losses) // 4))
        smooth = np.convolve(losses, np.ones(window) / window, "valid") if losses else np.empty(0)
        at = [line.step for line in steps][window - 1 :]
        panels[0].plot(at, smooth, color=color, linewidth=1, label=name)
        at = [line.step for line in validations]
        panels[1].plot(at, [line.loss for line in validations], color=color, marker=".")
        errors = [100 * line.top1_error for line in validations]
        panels[2].plot(at, errors, color=color, marker=".")
        for before, after in itertools.pairwise(steps):
            if after.learning_rate != before.learning_rate:
                for axes in panels:
                    axes.axvline(before.step, color=color, linewidth=0.8, linestyle=":")
        for line in lines:
            if line.kind == "resume" and len(smooth):
                panels[0].plot(line.step, min(smooth), color=color, marker="^", markersize=5)
    panels[0].legend()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def _pyplot() -> Any:
    """matplotlib, drawing into files.

    Raises:
        UserError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError(
            "the curves need matplotlib: `pip install 'replica-alexnet[figures]'`"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
