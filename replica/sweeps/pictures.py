"""The curves of all trials of a sweep, with the best in bold."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from replica.results.style import (
    COLORS,
    LETTERS_PER_INCH,
    LINE_STYLES,
    PAGE_WIDTH,
    new_figure,
    shortened,
    styled,
)
from replica.sweeps.outcome import Shown

THIN, BOLD = 0.7, 2.6
# In the legend; of more trials only the best is named. Letters of a value, where it has more.
MOST_NAMED, LETTERS = 24, 8
# Losses are shown up to so many times the highest one of the best trial: others may be infinite.
MOST_TIMES = 2
PANELS = (
    ("training loss (nats)", "validation loss (nats)"),
    ("training top-1 error (%)", "validation top-1 error (%)"),
)


@styled
def curves_figure(trials: Sequence[Shown], best: Shown) -> Any:
    """The figure: loss and error of training and validation over epochs, a line for each trial.

    Raises:
        UserError: matplotlib is not installed.
    """
    named = trials if len(trials) <= MOST_NAMED else [best]
    labels = {one.trial.number: _label(one, is_best=one is best) for one in named}
    letters = (PAGE_WIDTH - 1) * LETTERS_PER_INCH
    columns = 2 if max(map(len, labels.values())) <= letters / 2 else 1
    figure = new_figure(PAGE_WIDTH, PAGE_WIDTH * 0.75 + 0.16 * math.ceil(len(named) / columns))
    panels = figure.subplots(2, 2)
    for row, titles in zip(panels, PANELS, strict=True):
        for axes, title in zip(row, titles, strict=True):
            axes.set(xlabel="epoch", ylabel=title)
            axes.xaxis.get_major_locator().set_params(integer=True)
    for one in trials:
        turn, place = divmod(one.trial.number, len(COLORS))
        look = {"color": COLORS[place], "linestyle": LINE_STYLES[turn % len(LINE_STYLES)]}
        width, order = (BOLD, 3) if one is best else (THIN, 2)
        curve, epochs = one.curve, one.curve.epochs()
        # The mean over an epoch stands at its middle.
        middles = [number + 0.5 for number in range(len(epochs))]
        ends = [line.epoch for line in curve.validations]
        for row, field, scale in zip(panels, ("loss", "top1_error"), (1, 100), strict=True):
            means = [scale * curve.mean(lines, field) for lines in epochs]
            after = [scale * getattr(line, field) for line in curve.validations]
            for axes, at, values in zip(row, (middles, ends), (means, after), strict=True):
                mark = "." if len(values) == 1 else ""  # a point has no line
                (line,) = axes.plot(at, values, marker=mark, linewidth=width, zorder=order, **look)
        if one.trial.number in labels:
            line.set_label(shortened(labels[one.trial.number], int(letters)))
    for axes in panels[0]:
        known = filter(math.isfinite, axes.lines[trials.index(best)].get_ydata())
        axes.set_ylim(0, min(axes.get_ylim()[1], MOST_TIMES * max(known, default=math.inf)))
    most = max(line.epoch for one in trials for line in one.curve.validations)
    for axes in panels.flat:
        axes.set_xlim(0, 1.03 * most)
    for axes in panels[1]:
        axes.set_ylim(top=min(axes.get_ylim()[1], 100))
    figure.legend(loc="outside lower center", ncols=columns)
    return figure


def _label(one: Shown, *, is_best: bool) -> str:
    values = ", ".join(f"{name}={_value(text)}" for name, text in one.trial.values.items())
    return f"{one.trial.name}: {values}{' (best)' if is_best else ''}"


def _value(text: str) -> str:
    """A value as it was given; a number that was drawn, with three digits."""
    if len(text) > LETTERS:
        with contextlib.suppress(ValueError):
            return f"{float(text):.3g}"
    return text
