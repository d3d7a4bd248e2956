"""Curves of runs as pictures."""

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.errors import UserError, print_line, printable
from data_prep.files import whole_file
from replica.network.kernels import kernel_picture, rgb_kernels
from replica.results.style import (
    BLUE,
    COLORS,
    DARK_GRAY,
    LINE_STYLES,
    PAGE_WIDTH,
    PALE_BLUE,
    VERMILION,
    check_picture,
    new_figure,
    save,
    set_title,
    shown,
    styled,
)
from replica.training.checkpoint import last_whole_checkpoint
from replica.training.control_log import read_log
from replica.training.run_directory import MetricsLine, read_metrics
from replica.training.run_record import read_run_record

# What happens to a run: a line at the first step that it acts on, a triangle at a resume.
MARKS = {
    "scheduled rate drop": {"linestyle": ":"},
    "scheduled rate rise": {"linestyle": "-."},
    "change by hand": {"linestyle": "--"},
    "resumed": {"linestyle": "none", "marker": "^"},
}
MARK_COLOR = DARK_GRAY
PER_ROW = 2  # panels
RUN_PICTURES = ("loss.png", "conv1.png")


@dataclass(frozen=True)
class History:
    """What the records of a run say.

    Attributes:
        title: its recipe and number of classes.
        steps, validations: lines of metrics.jsonl.
        marks: names of `MARKS` with their steps.
        steps_per_epoch: or all steps, where there is no whole epoch.
    """

    title: str
    steps: list[MetricsLine]
    validations: list[MetricsLine]
    marks: list[tuple[str, int]]
    steps_per_epoch: int

    @property
    def window(self) -> int:
        """How many steps a smoothed loss is a mean of.

        An epoch, as its order is the same each time; a quarter of what is shorter than two.
        """
        num_steps = len(self.steps)
        is_long = num_steps >= 2 * self.steps_per_epoch
        return self.steps_per_epoch if is_long else max(1, num_steps // 4)

    def smooth_losses(self) -> tuple[np.ndarray, np.ndarray]:
        """Means of the training loss over `window` steps in a row, each at the middle of them."""
        finite = [(line.step, line.loss) for line in self.steps if not math.isnan(line.loss)]
        sums = np.cumsum([(0, 0), *finite], axis=0, dtype=np.float64)
        at, means = ((sums[self.window :] - sums[: -self.window]) / self.window).T
        return at, means


def read_history(run_dir: Path) -> History:
    """Reads run.json, metrics.jsonl and control.jsonl.

    Raises:
        UserError: a directory holds no run, or its control.jsonl is damaged.
    """
    record, lines = read_run_record(run_dir), read_metrics(run_dir)
    steps = [line for line in lines if line.kind == "step"]
    changes = {request.step: request.changes for request in read_log(run_dir) if request.changes}
    marks = [("resumed", line.step) for line in lines if line.kind == "resume"]
    marks += [("change by hand", line.step) for line in steps if line.step in changes]
    for before, after in itertools.pairwise(steps):
        is_by_hand = "learning_rate" in changes.get(after.step, {})
        if after.learning_rate != before.learning_rate and not is_by_hand:
            way = "drop" if after.learning_rate < before.learning_rate else "rise"
            marks.append((f"scheduled rate {way}", after.step))
    return History(
        f"{record.recipe_record['name']}, {record.num_classes} classes",
        steps,
        [line for line in lines if line.kind == "val"],
        marks,
        max(Counter(line.epoch for line in steps).values(), default=1),
    )


def draw_run(run_dir: Path, out_dir: Path) -> list[Path]:
    """Draws a run: loss and errors over steps, and conv1's kernels; returns the files.

    Raises:
        UserError: there is no run, or it has no step or no whole checkpoint yet.
    """
    if not read_history(run_dir).steps:
        raise UserError(f"{run_dir}: the run has made no step: draw it when it has")
    _, checkpoint, _ = last_whole_checkpoint(run_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    curve, kernels = (out_dir / name for name in RUN_PICTURES)
    save(run_figure(run_dir), curve)
    recipe = checkpoint.recipe
    if checkpoint.model_file is not None:
        print_line(f"no kernels: the network is that of a file, {checkpoint.model_file}")
        return [curve]
    title = printable(f"conv1 of {recipe.name} after step {checkpoint.step}, {run_dir}")
    weights = rgb_kernels(checkpoint.model["conv1.weight"], recipe)
    with whole_file(kernels) as file:
        kernel_picture(weights, towers=recipe.towers, title=title).save(file, "PNG")
    return [curve, kernels]


@styled
def run_figure(run_dir: Path) -> Any:
    """The figure of one run, with its name above."""
    history = read_history(run_dir)
    figure = history_figure(history)
    set_title(figure, f"{run_dir}: {history.title}")
    return figure


@styled
def history_figure(history: History) -> Any:
    """Losses of training and validation over steps, and errors of validation."""
    figure, (losses, errors) = _figure([history], 2)
    steps = [line.step for line in history.steps]
    raw = [line.loss for line in history.steps]
    losses.plot(steps, raw, color=PALE_BLUE, linewidth=0.5, label="training batch")
    label = f"training, mean of {history.window} steps"
    losses.plot(*history.smooth_losses(), color=BLUE, label=label)
    at = [line.step for line in history.validations]
    values = [line.loss for line in history.validations]
    losses.plot(at, values, color=VERMILION, marker=".", label="validation")
    losses.set(ylabel="loss (nats)")
    for name, label, style in (("top1_error", "top-1", "-"), ("top5_error", "top-5", "--")):
        values = [100 * getattr(line, name) for line in history.validations]
        label = f"validation {label}"
        errors.plot(at, values, style, color=VERMILION, marker=".", label=label)
    errors.set(ylabel="error, center crop (%)", ylim=(0, 100))
    _draw_marks(history, (losses, errors), color=MARK_COLOR)
    _draw_legend(figure)
    return figure


def draw_curves(run_dirs: list[Path], picture: Path) -> None:
    """Draws several runs into one picture.

    Raises:
        UserError: a directory holds no run, or the picture cannot be written there.
    """
    check_picture(picture)
    save(curves_figure(run_dirs), picture)


@styled
def curves_figure(run_dirs: list[Path]) -> Any:
    """The figure of several runs: smoothed training loss, validation loss, top-1 error."""
    names = [run_dir.name for run_dir in run_dirs]
    histories = [read_history(run_dir) for run_dir in run_dirs]
    figure, panels = _figure(histories, 3)
    titles = ("training loss (nats)", "validation loss (nats)", "validation top-1 error (%)")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(ylabel=title)
    for number, (run_dir, history) in enumerate(zip(run_dirs, histories, strict=True)):
        color = COLORS[number % len(COLORS)]
        style = LINE_STYLES[number % len(LINE_STYLES)]
        name = run_dir.name if names.count(run_dir.name) == 1 else str(run_dir)
        label = shown(f"{name} ({history.title}; training: mean of {history.window} steps)")
        panels[0].plot(*history.smooth_losses(), style, color=color, label=label)
        at = [line.step for line in history.validations]
        values = [line.loss for line in history.validations]
        panels[1].plot(at, values, style, color=color, marker=".")
        values = [100 * line.top1_error for line in history.validations]
        panels[2].plot(at, values, style, color=color, marker=".")
        _draw_marks(history, panels, color=color)
    _draw_legend(figure)
    return figure


def _figure(histories: list[History], num_panels: int) -> Any:
    """A figure and its panels over steps, and over epochs where all have some of one length."""
    rows = math.ceil(num_panels / PER_ROW)
    figure = new_figure(PAGE_WIDTH, 0.6 + 2.4 * rows)
    grid = figure.add_gridspec(rows, PER_ROW)
    panels = [figure.add_subplot(grid[divmod(i, PER_ROW)]) for i in range(num_panels)]
    length = histories[0].steps_per_epoch
    scales = (lambda step: step / length, lambda epoch: epoch * length)
    has_epochs = all(h.steps_per_epoch == length < len(h.steps) for h in histories)
    for axes in panels:
        axes.set(xlabel="step")
        if has_epochs:
            axes.secondary_xaxis("top", functions=scales).set_xlabel("epochs")
    return figure, panels


def _draw_marks(history: History, panels: Any, *, color: str) -> None:
    for axes, (name, step) in itertools.product(panels, history.marks):
        across = {"transform": axes.get_xaxis_transform(), "markevery": [0], "linewidth": 1}
        axes.plot([step, step], [0.03, 1], color=color, label=name, **across, **MARKS[name])


def _draw_legend(figure: Any) -> None:
    """Names each line and each mark once, below the panels."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, line)
    named = {label: named[label] for label in sorted(named, key=MARKS.__contains__)}
    # As many columns as fit: an inch holds about 13 letters, and a line's mark takes a half.
    inches = 0.6 + max(map(len, named)) / 13
    columns = max(1, min(4, int(figure.get_figwidth() / inches)))
    legend = figure.legend(named.values(), named, loc="outside lower center", ncols=columns)
    for handle, label in zip(legend.legend_handles, named, strict=True):
        if label in MARKS:
            handle.set_color(MARK_COLOR)  # that of no run
