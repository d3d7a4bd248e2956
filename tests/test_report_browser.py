"""A report in a real browser: nothing is asked of anybody, nothing is refused, all is there."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass

import numpy as np
import pytest
import reports
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# A page that does what a report must not: else nobody knows that this test would see it.
GUILTY = """<!doctype html><html><head><meta http-equiv="Content-Security-Policy"
content="default-src 'none'; img-src data:"></head><body style="margin:9px">
<script>document.title = "owned"</script><img src="http://example.invalid/policy.png"></body></html>
"""
# One without a policy, which asks somebody.
ASKING = """<!doctype html><html><body><img src="http://example.invalid/x.png">
<script>nothing()</script></body></html>"""
LIGHT, DARK = 1, 0


@dataclass
class Seen:
    """What a browser made of a page.

    Attributes:
        console: its lines on standard error: what it refused, errors of scripts.
        requests: addresses that it asked for on behalf of a page, other than the file and its data.
        elements: the document, as it was after it was loaded.
        pixels: uint8 (H, W, 3).
    """

    console: list[str]
    requests: set[str]
    elements: str
    pixels: np.ndarray


def opened(page, place, *, scheme=LIGHT, size="1100,1600"):
    """Opens a file in a browser without a window and without a network."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)}")
    place.mkdir()
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    result = subprocess.run(
        [
            browser,
            *("--headless=new", *sandbox, "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={place / 'profile'}"),
            *("--enable-logging=stderr", f"--log-net-log={place / 'net.json'}", "--dump-dom"),
            *(f"--screenshot={place / 'page.png'}", f"--window-size={size}"),
            f"--blink-settings=preferredColorScheme={scheme}",
            page.as_uri(),
        ],
        capture_output=True,
        timeout=120,
        check=True,
    )
    log = (place / "net.json").read_text()
    log = log if log.rstrip().endswith("}") else log.rstrip().rstrip(",") + "]}"
    events = json.loads(log)["events"]
    addresses = {str((event.get("params") or {}).get("url", "")) for event in events}
    # What the browser wants for itself goes to its makers.
    own = ("google.com", "googleapis.com", "gvt1.com")
    others = {x for x in addresses if x.startswith(("http:", "https:", "ws:", "wss:"))}
    with Image.open(place / "page.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    return Seen(
        [x for x in result.stderr.decode(errors="replace").splitlines() if "CONSOLE" in x],
        {x for x in others if not any(f"{name}/" in x for name in own)},
        result.stdout.decode(),
        pixels,
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of two runs with hostile names."""
    pytest.importorskip("matplotlib")
    place = tmp_path_factory.mktemp("browser")
    weights, shards = reports.own_weights(), reports.build_shards(place)
    runs = [reports.write_run(place / name, shards, weights) for name in ("<b>one", "two")]
    result = reports.make(*runs, "--output", place / "x.html")
    assert result.returncode == 0, result.stderr
    return place / "x.html"


def test_a_browser_shows_the_report_refuses_nothing_and_asks_nobody(page, tmp_path):
    seen = opened(page, tmp_path / "light")
    assert not seen.console
    assert not seen.requests
    # As many elements as were written: nothing became one by its name.
    for tag in ("section", "article", "img", "table", "svg", "figure", "path"):
        assert seen.elements.count(f"<{tag}") == page.read_text().count(f"<{tag}"), tag
    assert "<script" not in seen.elements
    assert "<title>Report of 2 runs</title>" in seen.elements
    # A white page with dark letters, and with colors: the figure's lines are there.
    assert (seen.pixels == 255).all(axis=2).mean() > 0.5
    assert (seen.pixels.max(axis=2) < 80).mean() > 0.005
    colors = seen.pixels.max(axis=2).astype(int) - seen.pixels.min(axis=2)
    assert (colors > 100).sum() > 300
    rows = (seen.pixels < 128).any(axis=(1, 2))
    assert rows[: len(rows) // 2].any()
    assert rows[len(rows) // 2 :].any()


def test_in_the_dark_the_page_is_dark_and_its_letters_are_light(page, tmp_path):
    seen = opened(page, tmp_path / "dark", scheme=DARK)
    assert not seen.console
    assert (seen.pixels.max(axis=2) < 40).mean() > 0.5
    assert (seen.pixels.min(axis=2) > 180).mean() > 0.005


def test_the_browser_would_say_what_a_page_must_not_do(tmp_path):
    (tmp_path / "guilty.html").write_text(GUILTY)
    said = "\n".join(opened(tmp_path / "guilty.html", tmp_path / "guilty").console)
    for word in ("inline style", "inline script", "policy.png"):
        assert word in said, said
    (tmp_path / "asking.html").write_text(ASKING)
    seen = opened(tmp_path / "asking.html", tmp_path / "asking")
    assert "http://example.invalid/x.png" in seen.requests
    assert "nothing is not defined" in "\n".join(seen.console)
