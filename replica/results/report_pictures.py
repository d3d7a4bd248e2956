"""The sections of a report that show what a network learned, and where it is wrong."""

import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from textwrap import shorten
from typing import Any

import torch

from data_prep.errors import printable
from replica.network.kernels import color_energy, kernel_picture, rgb_kernels
from replica.results.details import Details
from replica.results.report_contents import Contents, Missing
from replica.results.report_html import (
    Html,
    bar,
    jpeg,
    markup,
    not_shown,
    percent,
    picture,
    table,
    tag,
)
from replica.results.report_style import NUM_DEPTHS

# In pixels: of a mistake, of a neighbor.
MISTAKE_SIDE, NEIGHBOR_SIDE = 224, 128
MOST_CLASSES, MOST_ROWS = 24, 12  # of the confusion table, of the others
LETTERS = 22  # of a name beside the confusion table


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names of classes as they are shown where there is little room.

    ImageNet's are lists of synonyms: the first one will do where no other class begins with it.
    """
    firsts = {name: name.split(",")[0].strip() for name in names}
    counts = Counter(firsts.values())
    return {name: one if one and counts[one] == 1 else name for name, one in firsts.items()}


def _shown_name(name: str, short: dict[str, str]) -> Html:
    """A class by its short name; the whole one appears when one points at it."""
    return tag("span", short.get(name, name), title=name if short.get(name, name) != name else None)


def kernels(contents: Contents) -> Html:
    """The kernels of the first layer, as in the paper's Figure 3."""
    if isinstance(contents.checkpoint, Missing):
        return not_shown(contents.checkpoint.why)
    _, checkpoint = contents.checkpoint
    recipe = checkpoint.recipe
    if checkpoint.model_file is not None:
        return not_shown(f"The network is that of a file, {checkpoint.model_file}.")
    layer = recipe.layers[0].name
    weights = checkpoint.model[f"{layer}.weight"]
    if weights.ndim != 4 or not torch.isfinite(weights).all():
        why = "each place has its own" if weights.ndim == 6 else "they are no finite numbers"
        return not_shown(f"{layer}: expected kernels of a convolution, {why}")
    drawn = kernel_picture(
        rgb_kernels(weights, recipe),
        towers=recipe.towers,
        title=f"{layer}, step {checkpoint.step}",
    )
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
    count, _, height, width = weights.shape
    what = f"The {count} kernels of {layer}, {height} x {width} x 3"
    image = picture(
        buffer.getvalue(), "png", alt=what, width=drawn.width, height=drawn.height, class_="kernels"
    )
    said = f"{what}, all on one scale: the smallest weight is black, the largest white. "
    shares = color_energy(weights).reshape(recipe.towers, -1).mean(axis=1)
    of = [f"{percent(x)} in tower {tower}" for tower, x in enumerate(shares)]
    said += f"Share of color in the energy of a kernel, the mean: {', '.join(of)}; "
    said += f"{percent(2 / 3)} is what random kernels have."
    return tag("figure", image, tag("figcaption", said))


def confusions(contents: Contents) -> Html:
    """Which classes are taken for which, and the hardest and the easiest ones."""
    if isinstance(contents.tested, Missing):
        return not_shown(contents.tested.why)
    details = contents.tested.details
    pairs = details.rows("confusion")
    if not pairs:
        return tag("p", "None: every image is right.")
    short = short_names(details.class_names)
    most: list[list[object]] = [
        [*(_shown_name(x[key], short) for key in ("class", "taken_for")), f"{x['times']:,}"]
        for x in pairs[:MOST_ROWS]
    ]
    classes = sorted(details.rows("classes"), key=lambda x: -x["top1_error"])
    lists = [tag("div", tag("h3", "Most frequent"), table(["class", "taken for", "times"], most))]
    title, half = "All classes, the hardest first", MOST_ROWS // 2
    if len(classes) > MOST_ROWS:
        title = f"The {half} hardest and the {half} easiest classes"
        classes = [*classes[:half], *classes[-half:]]
    rows: list[list[object]] = [
        [
            _shown_name(x["class"], short),
            f"{x['images']:,}",
            markup(percent(x["top1_error"]), bar(x["top1_error"])),
        ]
        for x in classes
    ]
    head: list[object] = ["class", "images", "top-1 error"]
    lists.append(tag("div", tag("h3", title), table(head, rows)))
    return markup(_matrix(details, pairs, short), tag("div", *lists, class_="pairs"))


def _matrix(details: Details, pairs: list[dict[str, Any]], short: dict[str, str]) -> Html:
    """Counts by class and first guess, of the classes that are confused most often."""
    place = {wnid: label for label, wnid in enumerate(details.wnids)}
    chosen: dict[int, None] = {}
    for pair in pairs:
        new = dict.fromkeys((place[pair["wnid"]], place[pair["taken_for_wnid"]]))
        if len(chosen | new) <= MOST_CLASSES:
            chosen |= new
    labels = sorted(chosen)
    has_rest = len(labels) < len(details.wnids)
    counts = details.confusions
    totals = counts.sum(1).tolist()

    def cell(label: int, other: int) -> Html:
        count = int(counts[label, other])
        depth = math.ceil(NUM_DEPTHS * math.sqrt(count / totals[label])) if count else 0
        kind = "r" if label == other else "w"
        names = (details.class_names[label], details.class_names[other])
        title = f"{names[0]} taken for {names[1]}: {count} of {totals[label]}" if count else None
        return tag("td", count or "", class_=f"{kind}{depth}" if depth else None, title=title)

    def named(label: int, scope: str) -> Html:
        name = details.class_names[label]
        cut = shorten(printable(short[name]), LETTERS, placeholder="\u2026")
        return tag("th", cut, scope=scope, title=name)

    head = [tag("th", "class \u2193 first guess \u2192"), *(named(x, "col") for x in labels)]
    if has_rest:
        head.append(tag("th", "any other", scope="col", class_="rest"))
    body = []
    for label in labels:
        cells = [named(label, "row"), *(cell(label, other) for other in labels)]
        if has_rest:
            rest = totals[label] - int(counts[label, labels].sum())
            cells.append(tag("td", rest or "", class_="rest"))
        body.append(tag("tr", *cells))
    whole = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body), class_="matrix")
    of = f" of the {len(labels)} of {len(details.wnids):,} classes that are confused most often"
    said = (
        f"The images{of if has_rest else ''}, by their class and by the network's first guess. "
        "Blue is right, orange is wrong; the deeper, the larger the share of the class's images."
    )
    return tag("figure", tag("div", whole, class_="wide"), tag("figcaption", said))


def mistakes(contents: Contents) -> Html:
    """The mistakes of which the network is most certain."""
    if isinstance(contents.tested, Missing):
        return not_shown(contents.tested.why)
    short = short_names(contents.tested.details.class_names)
    tiles = []
    for one in contents.tested.mistakes:
        chosen, own = map(percent, one.probabilities)
        caption = tag(
            "figcaption",
            tag("div", tag("b", _shown_name(one.chosen, short)), f" {chosen}"),
            tag("div", "is ", _shown_name(one.label, short), f", given {own}"),
            tag("div", PurePosixPath(one.picture).name, class_="file", title=one.picture),
        )
        alt = f"{one.label}, taken for {one.chosen}"
        tiles.append(tag("figure", jpeg(one.image, side=MISTAKE_SIDE, alt=alt), caption))
    if not tiles:
        return tag("p", "None: every image is right.")
    return tag("div", *tiles, class_="tiles")


def neighbors(contents: Contents) -> Html:
    """Held-out images and the training images nearest to them, as in Figure 4, right."""
    nearest = contents.nearest
    if isinstance(nearest, Missing):
        return not_shown(nearest.why)
    short = short_names(nearest.class_names)
    rows = []
    for query, found in nearest.rows:
        image = jpeg(query.image, side=NEIGHBOR_SIDE, alt=f"held out: {query.caption}")
        caption = tag("figcaption", tag("b", _shown_name(query.caption, short)))
        tiles = [tag("figure", image, caption, class_="query")]
        for one in found:
            image = jpeg(one.image, side=NEIGHBOR_SIDE, alt=f"training: {one.label}")
            name = _shown_name(one.label, short)
            distance = f"{one.distance:#.3g}" if one.distance < 1000 else f"{one.distance:,.0f}"
            caption = tag(
                "figcaption", tag("b", name) if one.is_same else name, tag("div", distance)
            )
            tiles.append(tag("figure", image, caption, class_="same" if one.is_same else None))
        rows.append(tag("div", *tiles, class_="neighbors"))
    among = f"{nearest.num_searched:,}"
    if nearest.num_searched < nearest.num_train:
        among += f" of {nearest.num_train:,}"
    said = (
        f"Left of the line an image that is held out; beside it the nearest of {among} training "
        f"images, by the Euclidean distance of the activations of {nearest.layer}, which stands "
        "below each. Those of the same class have a frame and a bold name."
    )
    return markup(tag("p", said, class_="note"), tag("div", *rows, class_="wide"))
