"""Figure 1 in the paper's form, and all effects with their intervals beside the paper's."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from replica import paper
from replica.claims import figure1
from replica.claims.figure1 import Figure1
from replica.claims.table import Judged
from replica.claims.trials import Outcome
from replica.results.style import (
    COLORS,
    LINE_STYLES,
    PAGE_WIDTH,
    VERMILION,
    new_figure,
    save,
    shown,
    styled,
)

# As in the paper: ReLU solid, tanh dashed.
STYLES = {"relu": "-", "tanh": "--"}
NAMES = {"relu": "ReLU", "tanh": "tanh"}


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(figure, path)


@styled
def draw_figure_1(found: Figure1, path: Path) -> None:
    """Training error over epochs, a line a run.

    Raises:
        UserError: matplotlib is not installed, or the picture cannot be written.
    """
    figure = new_figure(5, 3.5)
    axes = figure.subplots()
    for activation in figure1.ACTIVATIONS:
        runs = found.outcomes[activation]
        for number, outcome in enumerate(runs.values()):
            errors = outcome.train_errors
            # The mean over an epoch stands at its middle.
            epochs = [epoch + 0.5 for epoch in range(len(errors))]
            rate = found.rates[activation]
            label = f"{NAMES[activation]}, rate {rate:g}, {len(runs)} seeds" if not number else None
            axes.plot(epochs, errors, STYLES[activation], color="black", linewidth=0.9, label=label)
    axes.axhline(paper.FIGURE_1_TRAINING_ERROR, color="gray", linewidth=0.6)
    axes.set(xlabel="Epochs", ylabel="Training error rate", ylim=(0, 0.9), xlim=(0, None))
    axes.legend()
    _save(figure, path)


@styled
def draw_beginnings(runs: Mapping[str, Sequence[Outcome]], path: Path) -> None:
    """Training loss over epochs, a color an arm.

    Raises:
        UserError: matplotlib is not installed, or the picture cannot be written.
    """
    figure = new_figure(5, 3.5)
    axes = figure.subplots()
    for number, (arm, outcomes) in enumerate(runs.items()):
        look = {"color": COLORS[number % len(COLORS)], "linestyle": LINE_STYLES[number % 4]}
        for place, outcome in enumerate(outcomes):
            losses = [math.nan if loss is None else loss for loss in outcome.train_losses]
            epochs = [epoch + 0.5 for epoch in range(len(losses))]
            axes.plot(epochs, losses, **look, label=None if place else shown(arm))
    axes.set(xlabel="Epochs", ylabel="Training loss (nats)", xlim=(0, None))
    axes.legend()
    _save(figure, path)


@styled
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
    figure = new_figure(PAGE_WIDTH, 0.8 + 0.24 * len(rows))
    axes = figure.subplots()
    for place, finding in enumerate(reversed(list(rows.values()))):
        effect = finding.difference
        assert effect is not None
        if effect.n > 1:
            axes.plot([effect.low, effect.high], [place, place], color="black", linewidth=1.2)
        axes.plot(effect.mean, place, "o", color="black", markersize=5)
        if finding.paper is not None:
            axes.plot(finding.paper, place, "D", color=VERMILION, fillstyle="none", markersize=6)
    names = [f"{finding.what}, n = {_n(finding)}" for finding in reversed(list(rows.values()))]
    axes.set_yticks(range(len(names)), names)
    axes.axvline(0, color="gray", linewidth=0.6)
    # An interval of two pairs may be wider than everything else: it runs out of the picture.
    most = 2 * max(abs(effect.mean) for x in rows.values() if (effect := x.difference))
    axes.set_xlim(-most, most)
    axes.set_xlabel("points (dots and 95 % intervals: here; diamonds: the paper)")
    _save(figure, path)
    return len(rows)


def _n(finding: Any) -> int:
    return int(finding.difference.n)
