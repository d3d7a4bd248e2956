"""Pictures with their most probable classes (paper, Figure 4, left), and grids of right and wrong.

H rows, W columns.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from replica.results.style import (
    GREEN,
    PAGE_WIDTH,
    PALE_BLUE,
    PALE_ORANGE,
    SMALL_POINTS,
    VERMILION,
    new_figure,
    set_title,
    shortened,
    styled,
)

MOST_PICTURES = 8  # as in the paper
PER_ROW = 4
LETTERS = 24  # of a name
# In gray, the bold letters of the right class tell it apart.
RIGHT_COLOR, OTHER_COLOR = PALE_ORANGE, PALE_BLUE
PER_GRID_ROW, GRID_LETTERS = 6, 18
RIGHT_MARK, WRONG_MARK = "\N{CHECK MARK}", "\N{BALLOT X}"


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


@styled
def prediction_figure(predicted: list[Predicted]) -> Any:
    """The figure: each picture above its caption and the bars of its classes.

    Raises:
        UserError: matplotlib is not installed.
    """
    columns = min(PER_ROW, len(predicted))
    rows = math.ceil(len(predicted) / columns)
    num_bars = max(len(one.top) for one in predicted)
    bars_height = 0.4 + 0.16 * num_bars
    figure = new_figure(PAGE_WIDTH / PER_ROW * columns, rows * (1.75 + bars_height))
    panels = figure.subplots(
        2 * rows, columns, squeeze=False, height_ratios=[1.65, bars_height] * rows
    )
    for axes in panels.flat:
        axes.set_axis_off()
    for number, one in enumerate(predicted):
        row, column = divmod(number, columns)
        picture, bars = panels[2 * row][column], panels[2 * row + 1][column]
        picture.imshow(one.image)
        # In place of the frame's title, which would stand above: the paper writes it below.
        bars.set_title(shortened(one.caption, LETTERS), fontsize=7, weight="bold")
        for place, (name, probability) in enumerate(one.top):
            is_right = name == one.label
            bars.barh(place, probability, color=RIGHT_COLOR if is_right else OTHER_COLOR)
            text = shortened(name, LETTERS)
            weight = "bold" if is_right else "normal"
            bars.text(
                0.01,
                place,
                text,
                va="center",
                fontsize=SMALL_POINTS,
                weight=weight,
                clip_on=True,
                in_layout=False,
            )
        bars.set(xlim=(0, 1), ylim=(num_bars - 0.4, -0.6))
        bars.set_axis_on()
        bars.set(xticks=[], yticks=[])
    return figure


@styled
def grid_figure(predicted: list[Predicted]) -> Any:
    """The figure: pictures below what the network takes them for.

    A right answer is green and has a check mark; a wrong one is red and has a cross, and the right
    class stands below it.

    Raises:
        UserError: matplotlib is not installed.
    """
    columns = min(PER_GRID_ROW, len(predicted))
    rows = math.ceil(len(predicted) / columns)
    width = PAGE_WIDTH / PER_GRID_ROW * max(columns, 3)  # the title has so many words
    figure = new_figure(width, 1.45 * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, one in zip(panels.flat, predicted, strict=False):
        axes.imshow(one.image)
        (best, _), label = one.top[0], one.label or ""
        is_right = best == label
        caption = f"{RIGHT_MARK if is_right else WRONG_MARK} {shortened(best, GRID_LETTERS)}"
        if not is_right:
            caption += f"\n{shortened(label, GRID_LETTERS)}"
        color = GREEN if is_right else VERMILION
        axes.set_title(caption, fontsize=SMALL_POINTS, color=color, pad=2)
    num_right = sum(one.top[0][0] == one.label for one in predicted)
    set_title(
        figure,
        f"{num_right} of {len(predicted)} right ({RIGHT_MARK}); below a wrong answer "
        f"({WRONG_MARK}) stands the right class",
    )
    return figure
