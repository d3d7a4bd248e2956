"""Markup that no name can break, figures as part of it, and the page around all of it.

Texts become `Html` in one place, where they are escaped; what is `Html` already is taken as it is.
"""

import base64
import colorsys
import hashlib
import html
import io
import math
import re
import warnings
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from data_prep.errors import printable
from replica.results.report_style import STYLE

# Elements that have no end.
_VOID = ("meta", "img", "br")
JPEG_QUALITY = 88
# Lines of more points are drawn as pixels: a browser has trouble with a path of a million points.
MOST_POINTS = 20_000
_RASTER_DPI = 200


class Html(str):
    """Text that is markup."""

    __slots__ = ()


def markup(*parts: object) -> Html:
    """Parts one after the other: what is no `Html` is shown as it is, with escapes."""
    return Html("".join(x if isinstance(x, Html) else _escaped(x) for x in parts))


def _escaped(text: object) -> str:
    return html.escape(printable(str(text)))


def tag(name: str, /, *parts: object, **attributes: object) -> Html:
    """An element.

    Args:
        name: of the element.
        parts: what it holds, as for `markup`.
        attributes: values of any text; None leaves one out; of `class_` the underscore is left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(
        f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{markup(*parts)}</{name}>"
    )


def table(head: list[object], rows: list[list[object]], **attributes: object) -> Html:
    """A table whose first column names its rows."""
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = (
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in cells))
        for first, *cells in rows
    )
    whole = tag("table", tag("thead", top), tag("tbody", *body), **attributes)
    return tag("div", whole, class_="wide")


def bar(share: float) -> Html:
    """A bar of a length of 0..1, for the eye alone: the number stands beside it."""
    length = min(max(share, 0.0), 1.0) if share == share else 0.0
    track = Html('<rect class="track" width="100" height="6" rx="1"/>')
    value = Html(f'<rect class="value" width="{100 * length:.2f}" height="6" rx="1"/>')
    shape = {"viewBox": "0 0 100 6", "preserveAspectRatio": "none", "aria_hidden": "true"}
    return tag("svg", track, value, class_="bar", **shape)


def picture(data: bytes, kind: str, **attributes: object) -> Html:
    """An image within the page; `kind` is `png` or `jpeg`, and `alt` says what it shows."""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return tag("img", src=source, **attributes)


def jpeg(image: np.ndarray, *, side: int, alt: str) -> Html:
    """uint8 (H, W, 3) as a JPEG file within the page, of at most `side` pixels in height."""
    shown = Image.fromarray(np.ascontiguousarray(image))
    shown.thumbnail((side, side))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=JPEG_QUALITY)
    size = {"width": shown.width, "height": shown.height}
    return picture(buffer.getvalue(), "jpeg", alt=alt, **size)


def not_shown(why: str) -> Html:
    """Says in place of a part of the page why it is not there."""
    return tag("p", tag("b", "Not shown. "), why, class_="missing")


def percent(fraction: float) -> str:
    """A fraction in percent; a dash for what is no number."""
    return f"{100 * fraction:.1f}\u00a0%" if math.isfinite(fraction) else "\u2013"


# --- Figures


def vector_figure(figure: Any, *, name: str, label: str) -> Html:
    """A figure of matplotlib as SVG that needs no styles but the page's.

    Args:
        figure: of matplotlib.
        name: of the page's figures alone: it stands before every name in the figure.
        label: what it shows, for those who do not see it.
    """
    import matplotlib  # which has drawn the figure

    for axes in figure.axes:
        for line in axes.lines:
            line.set_rasterized(len(line.get_xdata()) > MOST_POINTS)
    buffer = io.BytesIO()
    fixed: dict[Any, str] = {"svg.hashsalt": name, "svg.fonttype": "path"}
    with matplotlib.rc_context(fixed), warnings.catch_warnings():
        # Of a name in letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(
            buffer, format="svg", transparent=True, dpi=_RASTER_DPI, metadata={"Date": None}
        )
    root = ElementTree.fromstring(buffer.getvalue())
    parents = {child: parent for parent in root.iter() for child in parent}
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        if element.tag in ("metadata", "style"):
            parents[element].remove(element)
            continue
        _without_style(element)
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            if key == "id":
                value = f"{name}-{value}"
            value = value.replace("url(#", f"url(#{name}-")
            key = key.rpartition("}")[2]
            if key == "href" and value.startswith("#"):
                value = f"#{name}-{value[1:]}"
            element.set(key, value)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    # What matplotlib says in a style sheet; an attribute holds for all within it.
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt", "class": "plot"}
    root.attrib |= {"role": "img", "aria-label": printable(label)}
    return tag("div", Html(ElementTree.tostring(root, encoding="unicode")), class_="wide")


def _without_style(element: ElementTree.Element) -> None:
    """Styles of an element become attributes, which the page's policy lets be."""
    for entry in element.attrib.pop("style", "").split(";"):
        key, _, value = entry.partition(":")
        if key.strip():
            element.set(key.strip(), value.strip())


def dark_rules(content: str) -> str:
    """Rules that give the figures of a page other colors on a dark ground.

    What is dark becomes light and the other way round, the hue stays; black and white are the
    page's own ink and paper, by its style sheet.
    """
    found = set(re.findall(r'(?:fill|stroke)="(#[0-9a-f]{6})"', content))
    rules = []
    for color in sorted(found - {"#000000", "#ffffff"}):
        red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
        lit = colorsys.hls_to_rgb(hue, 0.22 + 0.7 * (1 - lightness), saturation)
        other = "#" + "".join(f"{round(255 * x):02x}" for x in lit)
        rules += [f'.plot [{key}="{color}"]{{{key}:{other}}}' for key in ("fill", "stroke")]
    return "".join(rules)


# --- The page


def page(title: str, body: Html) -> str:
    """A whole page, which asks nobody for anything.

    Its policy allows the one style sheet that it holds, by its digest, and images that it holds; no
    script, no style of an element, no request.
    """
    style = f"{STYLE}@media screen and (prefers-color-scheme:dark){{{dark_rules(body)}}}"
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    head = markup(
        tag("meta", charset="utf-8"),
        # Its quotes stay as they are: the digest and these words hold nothing else.
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Html(style)),
    )
    whole = tag("html", tag("head", head), Html("\n"), tag("body", body), lang="en")
    return f"<!doctype html>\n{whole}\n"
