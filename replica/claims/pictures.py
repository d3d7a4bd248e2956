"""Figure 1 in the paper's form, and all effects with their intervals beside the paper's."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import whole_file
from replica import paper
from replica.claims import figure1
from replica.claims.figure1 import Figure1
from replica.claims.table import Judged
from replica.claims.trials import Outcome

DOTS_PER_INCH = 110
NAME_POINTS = 8
# As in the paper: ReLU solid, tanh dashed.
STYLES = {"relu": "-", "tanh": "--"}
SHOWN = {"relu": "ReLU", "tanh": "tanh"}


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "the pictures need matplotlib: `pip install 'replica-alexnet[figures]'`"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)


def draw_figure_1(found: Figure1, path: Path) -> None:
    """Training error over epochs, a line a run.

    Raises:
        UserError: matplotlib is not installed, or the picture cannot be written.
    """
    figure = _figure(6, 4.2)
    axes = figure.subplots()
    for activation in figure1.ACTIVATIONS:
        runs = found.outcomes[activation]
        for number, outcome in enumerate(runs.values()):
            errors = outcome.train_errors
            # The mean over an epoch stands at its middle.
            epochs = [epoch + 0.5 for epoch in range(len(errors))]
            rate = found.rates[activation]
            label = f"{SHOWN[activation]}, rate {rate:g}, {len(runs)} seeds" if not number else None
            axes.plot(epochs, errors, STYLES[activation], color="black", linewidth=0.9, label=label)
    axes.axhline(paper.FIGURE_1_TRAINING_ERROR, color="gray", linewidth=0.6)
    axes.set(xlabel="Epochs", ylabel="Training error rate", ylim=(0, 0.9), xlim=(0, None))
    axes.legend(frameon=False)
    _save(figure, path)


def draw_beginnings(runs: Mapping[str, Sequence[Outcome]], path: Path) -> None:
    """Training loss over epochs, a color an arm.

    Raises:
        UserError: matplotlib is not installed, or the picture cannot be written.
    """
    figure = _figure(6.5, 4.2)
    axes = figure.subplots()
    for number, (arm, outcomes) in enumerate(runs.items()):
        for place, outcome in enumerate(outcomes):
            losses = [math.nan if loss is None else loss for loss in outcome.train_losses]
            epochs = [epoch + 0.5 for epoch in range(len(losses))]
            axes.plot(epochs, losses, color=f"C{number}", label=None if place else arm)
    axes.set(xlabel="Epochs", ylabel="Training loss (nats)", xlim=(0, None))
    axes.legend(frameon=False)
    _save(figure, path)


def draw_effects(judged: Sequence[Judged], path: Path) -> int:
    """The forest plot: differences in points with their intervals, the paper's as a diamond.

    Returns:
        How many there are; with none, nothing is drawn.

    Raises:
        UserError: matplotlib is not installed, or the picture cannot be written.
    """
    rows = {
        finding.what: finding
        for one in judged
        for finding in one.findings
        if finding.difference is not None
    }
    if not rows:
        return 0
    figure = _figure(9, 1.2 + 0.36 * len(rows))
    axes = figure.subplots()
    for place, finding in enumerate(reversed(list(rows.values()))):
        effect = finding.difference
        assert effect is not None
        if effect.n > 1:
            axes.plot([effect.low, effect.high], [place, place], color="black", linewidth=1.2)
        axes.plot(effect.mean, place, "o", color="black", markersize=5)
        if finding.paper is not None:
            axes.plot(finding.paper, place, "D", color="C3", fillstyle="none", markersize=6)
    names = [f"{finding.what}, n = {_n(finding)}" for finding in reversed(list(rows.values()))]
    axes.set_yticks(range(len(names)), names, fontsize=NAME_POINTS)
    axes.axvline(0, color="gray", linewidth=0.6)
    # An interval of two pairs may be wider than everything else: it runs out of the picture.
    most = 2 * max(abs(effect.mean) for x in rows.values() if (effect := x.difference))
    axes.set_xlim(-most, most)
    axes.set_xlabel(
        "points (dots and 95 % intervals: here; diamonds: the paper)", fontsize=NAME_POINTS
    )
    _save(figure, path)
    return len(rows)


def _n(finding: Any) -> int:
    return int(finding.difference.n)
