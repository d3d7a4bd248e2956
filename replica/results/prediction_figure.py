"""Pictures with their most probable classes, in the style of the paper's Figure 4, left."""

import math
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import numpy as np

from replica.results.plots import new_figure, shown

MOST_PICTURES = 8  # as in the paper
PER_ROW = 4
LETTERS = 30  # of a name
# Colors that color-blind people tell apart; in gray, the bold letters of the right class do.
RIGHT_COLOR, OTHER_COLOR = "#f4b183", "#a9cbe8"


@dataclass(frozen=True)
class Predicted:
    """A picture and what a network says of it.

    Attributes:
        image: uint8 (H, W, 3).
        caption: what stands below it.
        top: (class, probability), the most probable first.
        label: the right class, where it is known.
    """

    image: np.ndarray
    caption: str
    top: list[tuple[str, float]]
    label: str | None = None


def prediction_figure(predicted: list[Predicted]) -> Any:
    """The figure: each picture above its caption and the bars of its classes.

    Raises:
        UserError: matplotlib is not installed.
    """
    columns = min(PER_ROW, len(predicted))
    rows = math.ceil(len(predicted) / columns)
    num_bars = max(len(one.top) for one in predicted)
    bars_height = 0.5 + 0.22 * num_bars
    figure = new_figure(2.4 * columns, rows * (2.5 + bars_height))
    panels = figure.subplots(
        2 * rows, columns, squeeze=False, height_ratios=[2.3, bars_height] * rows
    )
    for axes in panels.flat:
        axes.set_axis_off()
    for number, one in enumerate(predicted):
        row, column = divmod(number, columns)
        picture, bars = panels[2 * row][column], panels[2 * row + 1][column]
        picture.imshow(one.image)
        # In place of the frame's title, which would stand above: the paper writes it below.
        caption = shown(shorten(one.caption, LETTERS, placeholder="..."))
        bars.set_title(caption, fontsize=8, weight="bold")
        for place, (name, probability) in enumerate(one.top):
            is_right = name == one.label
            bars.barh(place, probability, color=RIGHT_COLOR if is_right else OTHER_COLOR)
            text = shown(shorten(name, LETTERS, placeholder="..."))
            weight = "bold" if is_right else "normal"
            bars.text(0.01, place, text, va="center", fontsize=7, weight=weight)
        bars.set(xlim=(0, 1), ylim=(num_bars - 0.4, -0.6))
        bars.set_axis_on()
        bars.set(xticks=[], yticks=[])
    return figure
