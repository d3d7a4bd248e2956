"""How all figures look: one style for screens, print and color-blind readers.

Sizes are those of a printed page: a figure of `PAGE_WIDTH` inches needs no scaling, and no letters
are smaller than `SMALL_POINTS`.
"""

import textwrap
import unicodedata
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from data_prep.errors import UserError, print_aside, printable
from data_prep.files import check_can_write, whole_file

Given = ParamSpec("Given")
Made = TypeVar("Made")

PAGE_WIDTH = 7.0
SMALL_POINTS = 6.5
LETTERS_PER_INCH, TITLE_LINE_INCHES = 14, 0.16  # of a title
# Colors that color-blind people tell apart (Okabe and Ito); in gray, line styles and marks do.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY, BLACK = "#CC79A7", "#E69F00", "#56B4E9", "#000000"
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
LINE_STYLES = ("-", "--", "-.", ":")
DARK_GRAY, LIGHT_GRAY = "#555555", "#DDDDDD"
PALE_BLUE, PALE_ORANGE = "#A9CBE8", "#F4B183"  # of bars with letters on them
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 9,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
    "legend.frameon": False,
    "image.interpolation": "none",  # each value is a square, in vector files, too
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # letters that can be searched; many publishers refuse the default
}
# For names that DejaVu Sans, which comes with matplotlib, has no letters of; those that are there.
OTHER_FONTS = (
    *("Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Unifont"),
    *("Microsoft YaHei", "Hiragino Sans", "PingFang SC", "Arial Unicode MS"),
)


def styled(draw: Callable[Given, Made]) -> Callable[Given, Made]:
    """Makes a function draw in the one style, whatever the user's own matplotlib settings."""

    @wraps(draw)
    def draw_styled(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        try:
            from matplotlib import font_manager, style
        except ImportError:
            raise _no_matplotlib() from None
        there = set(font_manager.get_font_names())
        fonts = ["DejaVu Sans", *(name for name in OTHER_FONTS if name in there)]
        with style.context(["default", STYLE, {"font.family": fonts}]):
            return draw(*args, **kwargs)

    return draw_styled


def new_figure(width: float = 1, height: float = 1) -> Any:
    """An empty figure of a size in inches.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise _no_matplotlib() from None
    return Figure(figsize=(width, height), layout="constrained")


def _no_matplotlib() -> UserError:
    return UserError("figures need matplotlib: `pip install 'replica-alexnet[figures]'`")


def check_picture(picture: Path) -> None:
    """Refuses a file that no figure can be written to, with a UserError."""
    check_can_write(picture, f"--picture {picture}")
    formats = sorted(new_figure().canvas.get_supported_filetypes())
    if picture.suffix[1:].lower() not in formats:
        raise UserError(
            f"--picture {picture}: expected a file that ends in one of .{', .'.join(formats)}"
        )


@styled
def save(figure: Any, path: Path) -> None:
    """Writes a figure in the format that the name says, whole or not at all.

    Letters that no font here has are drawn as boxes, and a line says so.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with whole_file(path) as file:
            figure.savefig(file, format=path.suffix[1:].lower())
    lacking = {str(one.message) for one in caught if "missing from" in str(one.message)}
    for one in caught:
        if str(one.message) not in lacking:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if lacking:
        print_aside(
            f"{path}: {len(lacking)} letters are boxes, as no font here has them: install one, "
            f"such as {OTHER_FONTS[1]}"
        )


def set_title(figure: Any, text: str) -> None:
    """Writes a title above all of a figure, which becomes higher by the lines that this takes."""
    letters = int(LETTERS_PER_INCH * figure.get_figwidth())
    wrap = textwrap.TextWrapper(letters, break_on_hyphens=False).wrap
    lines = [x for line in text.split("\n") for x in wrap(line)]
    figure.suptitle("\n".join(map(shown, lines)))
    figure.set_figheight(figure.get_figheight() + TITLE_LINE_INCHES * len(lines))


def shown(text: str) -> str:
    """A text as matplotlib draws it: without formulas and controls."""
    return printable(text).replace("$", r"\$")


def shortened(text: str, letters: int) -> str:
    """A text of one line, cut where it is wider than so many letters, as matplotlib draws it.

    Letters of Chinese, Japanese and Korean count as two.
    """
    text, width = " ".join(text.split()), 0
    for place, letter in enumerate(text):
        width += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if width > letters:
            return shown(text[: max(1, place - 1)].rstrip()) + "\N{HORIZONTAL ELLIPSIS}"
    return shown(text)
