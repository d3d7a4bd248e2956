"""Errors of each class as bars, and which classes are taken for which.

K classes.
"""

from typing import Any

import numpy as np

from replica.results.details import Details, Rows
from replica.results.style import (
    BLUE,
    LIGHT_GRAY,
    PAGE_WIDTH,
    SMALL_POINTS,
    VERMILION,
    new_figure,
    set_title,
    shortened,
    styled,
)

MOST_BARS = 60  # on a page; of more classes, the easiest and the hardest half as many
LETTERS = 34  # of a name
MOST_NAMED = 50  # classes with names beside the matrix
MOST_NUMBERED = 15  # classes whose counts stand in the cells


@styled
def classes_figure(rows: Rows, *, title: str) -> Any:
    """The figure: top-1 errors of the classes as bars, top-5 errors as marks, the lowest above.

    Args:
        rows: the table `classes` of a test.
        title: above all.

    Raises:
        UserError: matplotlib is not installed.
    """
    rows = sorted(rows, key=lambda row: (row["top1_error"], row["class"]))
    if len(rows) > MOST_BARS:
        half = MOST_BARS // 2
        title += f"\nthe {half} classes of {len(rows)} with the fewest errors, and with the most"
        rows = [*rows[:half], *rows[-half:]]
    figure = new_figure(PAGE_WIDTH, 0.8 + 0.135 * len(rows))
    set_title(figure, title)
    axes = figure.subplots()
    places = range(len(rows))
    top1, top5 = ([100 * row[name] for row in rows] for name in ("top1_error", "top5_error"))
    bars = axes.barh(places, top1, color=BLUE, height=0.7)
    (marks,) = axes.plot(top5, places, "D", color=VERMILION, markeredgecolor="white", clip_on=False)
    names = [f"{shortened(row['class'], LETTERS)} ({row['images']})" for row in rows]
    axes.set_yticks(places, names, fontsize=SMALL_POINTS)
    axes.set(xlim=(0, 100), ylim=(len(rows) - 0.4, -0.6))
    axes.set_xlabel("error (%); in brackets, how many images")
    axes.grid(axis="x", color=LIGHT_GRAY, linewidth=0.5)
    axes.set_axisbelow(True)
    words = ["top-1 error", "top-5 error"]
    figure.legend([bars, marks], words, loc="outside lower center", ncols=2)
    return figure


@styled
def confusion_figure(details: Details, *, title: str) -> Any:
    """The figure: a row for each class, with the shares of its images that are taken for others.

    Args:
        details: of a test.
        title: above all.

    Raises:
        UserError: matplotlib is not installed.
    """
    counts = details.confusions.numpy()
    has_images = np.flatnonzero(counts.sum(axis=1))
    num_classes = len(counts)
    shares = np.full(counts.shape, np.nan)
    shares[has_images] = 100 * counts[has_images] / counts[has_images].sum(axis=1, keepdims=True)
    figure = new_figure(PAGE_WIDTH, PAGE_WIDTH * 0.88)
    set_title(figure, title)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, pad=0.02)
    bar.set_label("share of the class's images (%)")
    by = "" if num_classes <= MOST_NAMED else " (by its number, from 0)"
    axes.set(xlabel=f"taken for{by}", ylabel=f"class{by}")
    if num_classes <= MOST_NAMED:
        letters = LETTERS if num_classes <= MOST_NUMBERED else LETTERS // 2
        names = [shortened(name, letters) for name in details.class_names]
        axes.set_xticks(range(num_classes), names, rotation=90, fontsize=SMALL_POINTS)
        axes.set_yticks(range(num_classes), names, fontsize=SMALL_POINTS)
    if num_classes <= MOST_NUMBERED:
        for row, column in np.ndindex(counts.shape):
            is_dark = shares[row, column] > 60
            axes.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                color="white" if is_dark else "black",
            )
    return figure
