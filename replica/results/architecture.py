"""The network of a recipe as a drawing (paper, Figure 2).

Of each convolution a block, as high as its maps and as wide as its channels, both by their square
roots, else the image would hide the rest. On its right face stands the window of the next layer's
kernels, with lines to that layer. Where a layer reads both towers, lines cross.
"""

import math
from dataclasses import dataclass
from typing import Any

from replica.recipes import Recipe
from replica.recipes.geometry import IMAGE_CHANNELS, LayerGeometry, geometry
from replica.recipes.recipe import Conv, Layer
from replica.results.style import (
    BLUE,
    DARK_GRAY,
    PAGE_WIDTH,
    SMALL_POINTS,
    VERMILION,
    new_figure,
    set_title,
    styled,
)

COLUMN_INCHES = PAGE_WIDTH / 9  # the paper's network fills the page
# In units of the drawing, of which a column has so many.
COLUMN = 10.0
HIGHEST, WIDEST, UNITS_WIDE = 8.5, 4.5, 0.8
SLANT = 0.3  # of the edges that go back, to the height
BETWEEN = 3.5  # tower and tower, for a line of text
LINE = 1.5  # of text
FILLS = ("#DCEAF5", "#FBE6D8")  # of towers
NAMES = {"relu": "ReLU", "lrn": "LRN", "same-map": "same-map norm", "batch": "batch norm"}
Point = tuple[float, float]


@dataclass(frozen=True)
class _Block:
    """What a layer gives in one tower; (x, y) is the lower left corner of its front."""

    x: float
    y: float
    width: float
    height: float
    slant: float
    fill: str

    def face(self, low: float = 0, high: float = 1) -> list[Point]:
        """Of its right face the middle part, from and to a fraction of both edges."""
        x, y = self.x + self.width, self.y
        return [
            (x + back * self.slant, y + up * self.height + back * self.slant)
            for back, up in ((low, low), (low, high), (high, high), (high, low))
        ]

    @property
    def entry(self) -> Point:
        """Where lines from a window end."""
        return self.x, self.y + 0.5 * self.height

    def draw(self, axes: Any) -> None:
        x, y, width, height, slant = self.x, self.y, self.width, self.height, self.slant
        front = [(x, y), (x, y + height), (x + width, y + height), (x + width, y)]
        above = [front[1], front[2], *((x + w + slant, y + height + slant) for w in (width, 0))]
        for corners in (front, above, self.face()):
            _draw_polygon(axes, corners, facecolor=self.fill, edgecolor=DARK_GRAY, linewidth=0.6)


@styled
def architecture_figure(recipe: Recipe, *, num_classes: int | None = None, title: str) -> Any:
    """The figure: the image, and of each layer what each tower computes.

    Args:
        recipe: of the network.
        num_classes: by default, as many as the recipe says.
        title: above all.

    Raises:
        UserError: matplotlib is not installed.
    """
    rows = geometry(recipe, num_classes=num_classes)
    columns = 1 + len(rows)
    image = _image(recipe)
    blocks = [[image], *([*_blocks(recipe, row, place)] for place, row in enumerate(rows, start=1))]
    top = 1 + max(block.face()[2][1] for column in blocks for block in column)
    notes = [_notes(recipe, *pair) for pair in zip(recipe.layers, rows, strict=True)]
    bottom = -LINE * (2 + max(map(len, notes)))
    inches = COLUMN_INCHES / COLUMN
    figure = new_figure(columns * COLUMN_INCHES, (top - bottom) * inches)
    if recipe.towers > 1:
        title += "\nabove tower 0, below tower 1; dashed: what a layer reads of the other tower"
    set_title(figure, title)
    axes = figure.subplots()
    axes.set(xlim=(-1, columns * COLUMN - 1), ylim=(bottom, top), aspect="equal")
    axes.set_axis_off()
    size = recipe.crop_size
    image.draw(axes)
    _write(axes, image.x, image.y - LINE, f"{size} x {size} x {IMAGE_CHANNELS}")
    _write(axes, 0, -2 * LINE, "image", weight="bold")
    for place, (layer, row, lines) in enumerate(zip(recipe.layers, rows, notes, strict=True)):
        before, here = blocks[place], blocks[place + 1]
        for tower, block in enumerate(here):
            for other, source in enumerate(before):
                is_own = len(before) == 1 or len(here) == 1 or tower == other
                if is_own or row.reads == "both towers":
                    _draw_lines(axes, row, source, block, is_own=is_own)
            block.draw(axes)
            _write(axes, block.x, block.y - LINE, _size(row, len(here)))
        x = (place + 1) * COLUMN
        _write(axes, x, -2 * LINE, layer.name, weight="bold")
        for number, line in enumerate(lines, start=3):
            _write(axes, x, -number * LINE, line)
    return figure


def _image(recipe: Recipe) -> _Block:
    middle = (recipe.towers - 1) / 2 * (HIGHEST + BETWEEN)
    return _Block(0, middle, UNITS_WIDE, HIGHEST, SLANT * HIGHEST, "white")


def _blocks(recipe: Recipe, row: LayerGeometry, place: int) -> list[_Block]:
    """Of a layer, tower 0 above; the logits are one block, as each needs both towers."""
    is_last = row.name == recipe.layers[-1].name
    towers = 1 if is_last else recipe.towers
    channels, *sides = row.output_shape
    widest = max(conv.num_kernels for conv in recipe.convs)
    width, height, slant = UNITS_WIDE, 0.8 * HIGHEST, 0.0
    if sides:
        width = max(UNITS_WIDE, WIDEST * math.sqrt(channels / widest))
        height = HIGHEST * math.sqrt(sides[0] / recipe.crop_size)
        slant = SLANT * height
    distance = HIGHEST + BETWEEN
    lowest = (recipe.towers - towers) / 2 * distance
    return [
        _Block(
            place * COLUMN,
            lowest + (towers - 1 - tower) * distance + (HIGHEST - height) / 2,
            width,
            height,
            slant,
            "white" if is_last else FILLS[tower],
        )
        for tower in range(towers)
    ]


def _draw_lines(
    axes: Any, row: LayerGeometry, source: _Block, block: _Block, *, is_own: bool
) -> None:
    """From what a layer reads to the layer: a window of its kernels, or all."""
    low, high = 0.0, 1.0
    if row.kernel_size:
        share = min(1.0, row.kernel_size / row.input_shape[1])
        low, high = (1 - share) / 2, (1 + share) / 2
    window = source.face(low, high)
    color, style = (BLUE, "-") if is_own else (VERMILION, "--")
    if row.kernel_size:
        _draw_polygon(axes, window, facecolor="none", edgecolor=BLUE, linewidth=0.7)
        ends = [block.entry] * len(window)
    else:
        window = [window[2], window[3]] if source.slant else [window[1], window[0]]
        ends = [(block.x, block.y + block.height), (block.x, block.y)]
    for (x, y), (to_x, to_y) in zip(window, ends, strict=True):
        axes.plot([x, to_x], [y, to_y], style, color=color, linewidth=0.6)


def _draw_polygon(axes: Any, corners: list[Point], **look: Any) -> None:
    from matplotlib.patches import Polygon

    axes.add_patch(Polygon(corners, closed=True, **look))


def _write(axes: Any, x: float, y: float, text: str, **look: Any) -> None:
    # On white, as lines cross behind it.
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    axes.text(x, y, text, va="center", fontsize=SMALL_POINTS, zorder=3, bbox=behind, **look)


def _size(row: LayerGeometry, towers: int) -> str:
    channels, *sides = row.output_shape
    return " x ".join(map(str, (*sides, channels // towers)))


def _notes(recipe: Recipe, layer: Layer, row: LayerGeometry) -> list[str]:
    """What stands below a layer, in the order in which it is done."""
    activation = recipe.activation_of(layer)
    after = {
        "activation": [] if activation == "linear" else [NAMES.get(activation, activation)],
        "normalization": [NAMES[kind] for kind in layer.normalization],
        "pooling": [],
    }
    if not isinstance(layer, Conv):
        of_units = [*after["normalization"], *after["activation"]]
        return [f"{row.output_shape[0]} units", *of_units, *["dropout"] * layer.dropout]
    side = layer.kernel_size
    lines = [f"{layer.num_kernels} kernels", f"{side} x {side} x {row.weight_shape[1]}"]
    lines += [f"stride {layer.stride}"] * (layer.stride > 1) + ["local"] * layer.is_local
    if layer.pooling != "none":
        window, stride = recipe.pooling_of(layer)
        after["pooling"] = [f"{layer.pooling} pooling", f"{window} x {window}, stride {stride}"]
    for following in recipe.order_of(layer):
        lines += after[following]
    return [*lines, *["dropout"] * layer.dropout]
