"""`python -m replica.report` against the oracle, and what it says where something is missing."""

import base64
import hashlib
import io
import json
import math
import re
import shlex
import sys
from dataclasses import replace

import numpy as np
import oracles
import pytest
import reports
import torch
from conftest import assert_user_error
from PIL import Image
from reports import CLASSES, copy_of, make, read, rows_of
from runs import CROP_SIZE

from data_prep.errors import printable
from data_prep.shards import open_data_set
from replica.results import report_contents, report_pictures
from replica.results.report_contents import gather
from replica.results.report_html import bar, dark_rules, percent, tag
from replica.results.report_pictures import confusions, short_names
from replica.results.report_records import error_rates

NUM_VAL = reports.NUM_VAL * len(CLASSES)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return reports.build_shards(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def weights():
    return reports.own_weights()


@pytest.fixture(scope="module")
def run_dir(shards, weights):
    return reports.write_run(shards.parent / "<i>run & 'co'", shards, weights)


@pytest.fixture(scope="module")
def report(run_dir):
    result = make(run_dir)
    assert result.returncode == 0, result.stderr
    size = (run_dir / "report.html").stat().st_size
    assert result.stdout.splitlines()[-1] == f"wrote {run_dir}/report.html ({size / 1e6:.1f} MB)"
    return read(run_dir / "report.html")


@pytest.fixture(scope="module")
def oracle(shards, weights):
    """Probabilities of ten crops, and labels, in float64."""
    return oracles.evaluate(weights, oracles.read_data(shards), crop_size=CROP_SIZE, ten=True)


@pytest.fixture(scope="module")
def contents(run_dir):
    def silent(_):
        return None

    return gather(run_dir, None, num_images=None, device="cpu", say=silent)


# --- What it says


def test_error_rates_are_the_oracles_and_stand_beside_the_papers(report, oracle):
    scores, labels = oracle
    rows = {row[0]: row[1:] for row in rows_of(report.section("errors"))[1:]}
    own = rows["This run, best network (step 0)"]
    for place, k in ((0, 1), (1, 5)):
        error = 1 - oracles.correct(scores, labels, k) / NUM_VAL
        assert own[place].startswith(f"{100 * error:.1f} %"), own
        assert "95 % interval" in own[place]
    assert own[2] == f"{NUM_VAL} val images, ten crops"
    lowest = rows["This run, lowest validation (step 4, epoch 1)"]
    assert lowest == ["50.0 %", "6.2 %", f"{NUM_VAL} val images, central crop"]
    assert rows["This run, last validation (step 8, epoch 2)"][:2] == ["75.0 %", "12.5 %"]
    assert rows["Chance"] == ["83.3 %", "16.7 %", "6 classes"]
    assert rows["The paper"][:2] == ["40.7 %", "18.2 %"]
    assert rows["Its source of 2012"][:2] == ["40.66 %", "18.21 %"]
    assert "for orientation and not for comparison" in report.words("errors")


def test_errors_of_2010_stand_beside_those_of_2010(contents):
    result = replace(contents.tested.result, benchmark="ILSVRC-2010")
    shown = error_rates(replace(contents, tested=replace(contents.tested, result=result)))
    assert re.search(r"The paper</th><td>37\.5\u00a0%.*17\.0\u00a0%.*Table 1", shown)
    assert re.search(r"Its source of 2012</th><td>37\.47\u00a0%", shown)
    assert "40.7" not in shown
    assert "not for comparison" not in shown


def test_confusions_are_the_oracles(report, oracle):
    scores, labels = oracle
    counts = np.zeros((6, 6), int)
    for label, chosen in zip(labels, scores.argmax(axis=1), strict=True):
        counts[label, chosen] += 1
    (matrix,) = [x for x in report.section("confusions").iter("table") if "class" in x.attrib]
    head, *rows = rows_of(matrix)
    confused = [x for x in range(6) if counts[x].sum() - counts[x, x] + counts[:, x].sum() > 0]
    assert len(rows) == len(confused) == len(head) - 1
    assert [[int(x or 0) for x in row[1:]] for row in rows] == counts.tolist()
    for row, cells in enumerate(matrix.iter("tr")):
        for column, cell in enumerate(cells[1:] if row else ()):
            count = counts[row - 1, column]
            depth = math.ceil(8 * math.sqrt(count / reports.NUM_VAL))
            kind = "r" if row - 1 == column else "w"
            assert cell.get("class") == (f"{kind}{depth}" if count else None)
    tables = [rows_of(x) for x in report.section("confusions").iter("table")]
    times = [int(row[2]) for row in tables[1][1:]]
    off_diagonal = counts[~np.eye(6, dtype=bool)]
    assert times == sorted(off_diagonal[off_diagonal > 0], reverse=True)[:12]


def test_of_many_classes_the_most_confused_are_shown_and_no_image_is_lost(contents, monkeypatch):
    monkeypatch.setattr(report_pictures, "MOST_CLASSES", 3)
    matrix = next(reports.tree_of(f"<div>{confusions(contents)}</div>").iter("table"))
    head, *rows = rows_of(matrix)
    assert head[-1] == "any other"
    assert 2 <= len(rows) <= 3
    assert [sum(int(x or 0) for x in row[1:]) for row in rows] == [reports.NUM_VAL] * len(rows)
    counts = contents.tested.details.confusions.numpy()
    most = (counts * ~np.eye(6, dtype=bool)).max()
    shown = [x.get("title", "") for x in matrix.iter("td")]
    assert any(f": {most} of {reports.NUM_VAL}" in title for title in shown)


def images_in(element):
    """What the page holds as images: (attributes, uint8 (H, W, 3))."""
    found = []
    for one in element.iter("img"):
        kind, data = re.fullmatch(
            r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", one.get("src")
        ).groups()
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.format.lower() == kind
        found.append((one.attrib, np.asarray(image)))
    return found


def close(image, other):
    return np.abs(image.astype(float) - other.astype(float)).mean() < 12


def test_mistakes_are_those_of_which_the_network_is_most_certain(report, oracle, shards):
    scores, labels = oracle
    data = open_data_set(shards)
    chosen = scores.argmax(axis=1)
    wrong = [row for row in range(NUM_VAL) if chosen[row] != labels[row]]
    wrong.sort(key=lambda row: -scores[row].max())
    section = report.section("mistakes")
    images, captions = images_in(section), list(section.iter("figcaption"))
    assert len(images) == len(captions) == min(12, len(wrong)) > 3
    for row, (attributes, image), caption in zip(wrong, images, captions, strict=False):
        first, second, third = (
            " ".join("".join(x.itertext()).split()) for x in caption if x.tag == "div"
        )
        names = [" ".join(printable(CLASSES[x]).split()) for x in (chosen[row], labels[row])]
        assert first.endswith(f"{100 * scores[row].max():.1f} %")
        assert second.endswith(f"given {100 * scores[row, labels[row]]:.1f} %")
        assert attributes["alt"] == f"{printable(CLASSES[labels[row]])}, taken for " + printable(
            CLASSES[chosen[row]]
        )
        assert names[0].startswith(first.rsplit(" ", 2)[0])
        assert data.val.picture(row).endswith(third)
        assert close(image, data.val.image(row))
        others = [x for x in range(NUM_VAL) if close(image, data.val.image(x))]
        assert others == [row]  # else the comparison would not tell


def test_neighbors_stand_beside_their_query(report, shards):
    data = open_data_set(shards)
    rows = [x for x in report.section("neighbors").iter("div") if x.get("class") == "neighbors"]
    queries = [2, 6, 10, 14, 18, 22]  # of 24, in the middle of each sixth
    for row, tiles in zip(queries, rows, strict=True):
        (_, query), *found = images_in(tiles)
        assert close(query, data.val.image(row))
        assert len(found) == 6
        distances = []
        for (_, image), tile in zip(found, list(tiles)[1:], strict=True):
            (train,) = [x for x in range(18) if close(image, data.train.image(x))]
            is_same = data.train.labels[train] == data.val.labels[row]
            assert (tile.get("class") == "same") == is_same
            distances.append(float("".join(list(tile)[1][-1].itertext())))
        assert distances == sorted(distances)
    assert "nearest of 18 training images" in report.words("neighbors")


def test_kernels_and_records_are_shown(report, weights):
    ((_, kernels),) = images_in(report.section("kernels"))
    assert kernels.std() > 20
    kernels = weights["conv1.weight"]
    gray = kernels.mean(axis=1, keepdims=True)
    color = ((kernels - gray) ** 2).sum((1, 2, 3)) / (kernels**2).sum((1, 2, 3))
    shares = [
        f"{100 * half.mean():.1f} % in tower {i}" for i, half in enumerate((color[:8], color[8:]))
    ]
    assert ", ".join(shares) in report.words("kernels")
    said = report.words("run")
    for words in (
        "mini: the demo: far below",
        "18 training, 24 validation images of 6 classes",
        "python -m replica.train --out '<u>a b</u>' --seed 7",
        "AMD EPYC, 2 cores",
        "12c56d8d9cb4c36eab48a9502aa75459a99e638a",
        "2 processes on cpu, one tower in each",
        "45 images per second",
        "5learning_rate=0.1<s>why</s>",
    ):
        assert words in said, (words, said)
    differing = {row[0]: row[1:] for row in rows_of(report.section("departures"))[1:]}
    assert differing["fc7.num_units"] == ["4096", "3.5", "256"]
    assert differing["fc8.num_units"] == ["1000", "3.5", "6"]  # the data has decided
    assert "lrn_alpha" not in differing


def test_the_commands_that_repeat_are_those_of_the_record(report, run_dir):
    lines = "".join(next(report.section("repeat").iter("code")).itertext()).splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    assert words[0] == ["git", "checkout", "12c56d8d9cb4c36eab48a9502aa75459a99e638a"]
    assert words[1] == ["make", "setup", "TORCH=2.13.0"]
    module = ["python", "-m"]
    assert words[3] == [*module, "replica.train", "--out", "<u>a b</u>", "--seed", "7"]
    best = str(run_dir / "best.pt")
    assert words[4] == [*module, "replica.test", "--checkpoint", best, "--ten-crop"]
    assert words[5] == [*module, "replica.report", str(run_dir)]


def test_of_a_costly_network_as_many_images_as_take_seconds(run_dir, weights, shards, monkeypatch):
    macs = 29_000_000  # about what `mini` takes for an image
    monkeypatch.setitem(report_contents.MOST_MACS, "cpu", int(5 * macs * (CROP_SIZE / 224) ** 2))
    found = gather(run_dir, None, num_images=None, device="cpu", say=str)
    result, details = found.tested.result, found.tested.details
    count = result.num_images
    assert 1 < count < NUM_VAL
    assert result.views == 1
    rows = [int((place + 0.5) * NUM_VAL / count) for place in range(count)]
    assert list(details.images) == rows
    scores, labels = oracles.evaluate(weights, oracles.read_data(shards), crop_size=CROP_SIZE)
    right = (scores[rows].argmax(axis=1) == labels[rows]).sum()
    assert result.top1_error == pytest.approx(1 - right / count)
    wrong = [row for row in rows if scores[row].argmax() != labels[row]]
    wrong.sort(key=lambda row: -scores[row].max())
    data = open_data_set(shards)
    assert [x.picture for x in found.tested.mistakes] == [data.val.picture(x) for x in wrong]
    assert (found.nearest.num_searched, found.nearest.num_train) == (count, 18)
    searched = [int((place + 0.5) * 18 / count) for place in range(count)]
    for _, neighbors in found.nearest.rows:
        for one in neighbors:
            assert any((one.image == data.train.image(x)).all() for x in searched)
    assert f"Tested were {count} of {NUM_VAL} held-out images" in error_rates(found)
    ten = gather(run_dir, None, num_images=3, device="cpu", say=str).tested.result
    assert (ten.num_images, ten.views) == (3, 10)


# --- What stands in it cannot break it

ELEMENTS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "nav"),
    *("section", "article", "h1", "h2", "h3", "p", "a", "b", "span", "div", "dl", "dt", "dd"),
    *("table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "img", "code", "pre"),
    *("wbr", "svg", "g", "path", "use", "rect", "defs", "clippath"),
}


def check_is_harmless(report):
    """Elements and attributes of the project's own alone, and nothing that asks anybody."""
    assert {x.tag for x in report.root.iter()} <= ELEMENTS
    ids = [x.get("id") for x in report.root.iter() if "id" in x.attrib]
    assert len(ids) == len(set(ids))
    for element in report.root.iter():
        for name, value in element.attrib.items():
            assert name != "style", element.tag
            assert not name.startswith("on"), (element.tag, name)
            if name == "src":
                assert re.match("data:image/(png|jpeg);base64,", value)
            if "href" in name:
                assert value[0] == "#", value
                assert value[1:] in ids
            for reference in re.findall(r"url\(#?([^)]*)\)", value):
                assert reference in ids
    assert {x for x in report.text if not x.isprintable()} <= {"\n", "\u00a0"}
    (policy,) = [x.get("content") for x in report.root.iter("meta") if "http-equiv" in x.attrib]
    (style,) = [x.text for x in report.root.iter("style")]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    assert "http" not in style
    assert "url(" not in style


def test_hostile_names_are_text(report, run_dir):
    check_is_harmless(report)
    (title,) = [x.text for x in report.root.iter("title")]
    assert title == f"Report of {run_dir.name}"
    shown = " ".join("".join(report.root.itertext()).split())
    assert "<s>why</s>" in shown
    names = [x.get("title") for x in report.section("confusions").iter("th") if x.get("title")]
    assert names == 2 * [printable(name) for name in CLASSES]
    files = [x for x in report.section("mistakes").iter("div") if x.get("class") == "file"]
    assert all(x.text.endswith(reports.FILE) for x in files)
    assert all(x.get("title").startswith("val/class ") for x in files)


def test_a_tag_escapes_texts_and_values_but_no_markup():
    inner = tag("b", "<&>")
    assert inner == "<b>&lt;&amp;&gt;</b>"
    assert tag("a", inner, " x", href="\"'<", class_="c", title=None) == (
        '<a href="&quot;&#x27;&lt;" class="c"><b>&lt;&amp;&gt;</b> x</a>'
    )
    assert tag("p", title=inner) == '<p title="&lt;b&gt;&amp;lt;&amp;amp;&amp;gt;&lt;/b&gt;"></p>'
    assert tag("img", alt="\x1b\n") == r'<img alt="\x1b\n">'


def test_names_of_synonyms_are_short_where_they_stay_different():
    names = ["crane, bird", "crane, machine", "hog, pig", "slug", ", x"]
    assert short_names(names) == {
        "crane, bird": "crane, bird",
        "crane, machine": "crane, machine",
        "hog, pig": "hog",
        "slug": "slug",
        ", x": ", x",
    }


def test_numbers_that_are_none_are_no_numbers():
    assert (percent(0.1234), percent(float("nan"))) == ("12.3\u00a0%", "\u2013")
    assert 'width="0.00"' in bar(float("nan"))
    assert 'width="25.00"' in bar(0.25)


def test_colors_of_figures_have_a_counterpart_in_the_dark():
    rules = dark_rules('<path stroke="#c6dbef" fill="#1f77b4"/><path fill="#000000"/>')
    found = dict(re.findall(r'\[fill="(#\w+)"\]\{fill:(#\w+)\}', rules))
    assert set(found) == {"#c6dbef", "#1f77b4"}

    def lightness(color):
        return sum(int(color[i : i + 2], 16) for i in (1, 3, 5))

    assert lightness(found["#c6dbef"]) < lightness("#777777") < lightness(found["#1f77b4"])


# --- What is missing, and what is wrong


def moved(run_dir, directory):
    """Makes the run's record say that its data are there."""
    record = json.loads((run_dir / "run.json").read_text())
    record["data"]["directory"] = str(directory)
    (run_dir / "run.json").write_text(json.dumps(record))


def test_named_data_that_are_wrong_are_refused_and_nothing_is_written(
    run_dir, shards, shards_dir, tmp_path
):
    place = copy_of(run_dir, tmp_path / "run")
    (place / "report.html").unlink(missing_ok=True)
    before = sorted(place.iterdir())
    moved(place, tmp_path / "nowhere")

    def refused(data, *words):
        result = make(place, "--data", data)
        assert result.returncode == 2
        for word in words:
            assert word in result.stderr.splitlines()[-1]
        assert sorted(place.iterdir()) == before

    refused(tmp_path / "elsewhere", f"no data at {tmp_path / 'elsewhere'}")
    refused(shards_dir, "expected images of 104 pixels", "got 256", "leave --data out")
    content = torch.load(place / "best.pt", weights_only=True)
    content["wnids"] = [f"other {x}" for x in content["wnids"]]
    torch.save(content, place / "best.pt")
    refused(shards, "expected classes of the run, such as other ")


def test_without_data_and_checkpoint_the_records_are_shown(run_dir, tmp_path):
    place = copy_of(run_dir, tmp_path / "run")
    (place / "best.pt").unlink()
    (place / "report.html").unlink(missing_ok=True)
    moved(place, tmp_path / "nowhere")
    result = make(place)
    assert result.returncode == 0, result.stderr
    report = read(place / "report.html")
    why = f"Not shown. {place}: expected a whole checkpoint there, found none"
    for name in ("kernels", "confusions", "mistakes", "neighbors"):
        assert why in report.words(name), name
    assert f"No test of the best network: {place}: expected a whole" in report.words("errors")
    assert "This run, last validation" in report.words("errors")
    assert report.section("curves").find(".//svg") is not None
    assert "test of the best network: not shown" in result.stderr


@pytest.mark.parametrize("broken", ["data", "metrics", "control", "matplotlib", "weights"])
def test_what_is_missing_is_said_with_the_reason(
    broken, run_dir, shards, weights, tmp_path, monkeypatch
):
    place = tmp_path / "run"
    if broken == "weights":
        weights = {**weights, "fc8.bias": np.full(6, np.nan)}
        weights["conv1.weight"] = weights["conv1.weight"] * np.inf
        place = reports.write_run(place, shards, weights)
    else:
        copy_of(run_dir, place)
    if broken == "data":
        moved(place, tmp_path / "nowhere")
        gone = ("errors", "confusions", "neighbors")
        reason = f"the data of the run cannot be read: no data at {tmp_path / 'nowhere'}"
    elif broken == "metrics":
        (place / "metrics.jsonl").write_text("x\n")
        gone, reason = ("curves", "errors"), "metrics.jsonl: line 1: damaged"
    elif broken == "control":
        (place / "control.jsonl").write_text("{}\n")
        gone, reason = ("run", "curves", "errors"), "control.jsonl: line 1: expected a change"
    elif broken == "matplotlib":
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        gone, reason = ("curves",), "`pip install 'replica-alexnet[figures]'`"
    else:
        gone, reason = ("kernels",), "conv1: expected kernels of a convolution"
    result = make(place, "--output", tmp_path / "x.html", "--images", "2")
    assert result.returncode == 0, result.stderr
    report = read(tmp_path / "x.html")
    sections = [x.get("id").removeprefix("run1-") for x in report.root.iter("section")]
    assert len(sections) == 9
    lacking = {name for name in sections if "Not shown." in report.words(name)}
    also = {"data": {"mistakes"}, "weights": {"neighbors"}}.get(broken, set())
    assert lacking == {*gone, *also}
    for name in gone:
        assert reason in report.words(name), report.words(name)
    check_is_harmless(report)


def test_data_that_are_not_those_of_the_run_are_named(run_dir, tmp_path):
    place = copy_of(run_dir, tmp_path / "run")
    text = (place / "run.json").read_text()
    (place / "run.json").write_text(re.sub('(manifest_sha256": ")[^"]*', r"\1other", text))
    found = gather(place, None, num_images=1, device="cpu", say=str)
    assert "are not those of the run: the SHA-256 of their manifest is" in error_rates(found)


def test_several_runs_stand_side_by_side_in_the_first_ones_report(
    run_dir, shards, weights, tmp_path
):
    other = reports.write_run(tmp_path / "other", shards, weights, changes=["momentum=0.5"])
    first = copy_of(run_dir, tmp_path / "first")
    (first / "report.html").unlink(missing_ok=True)
    result = make(first, other, "--images", "2")
    assert result.returncode == 0, result.stderr
    assert not (other / "report.html").exists()
    report = read(first / "report.html")
    check_is_harmless(report)
    (together,) = [x for x in report.root.iter("section") if x.get("id") == "runs"]
    rows = rows_of(together)
    assert [row[:5] for row in rows[1:]] == [
        ["first", "mini", "\u2013", "7", "50.0 %"],
        ["other", "mini", "momentum=0.5", "7", "50.0 %"],
    ]
    assert together.find(".//svg") is not None
    assert len(list(report.root.iter("article"))) == 2


def test_wrong_input_is_one_line_and_writes_nothing(run_dir, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    for words, said in (
        ([tmp_path], f"{tmp_path}: expected the run.json of a run there"),
        ([run_dir, tmp_path], f"{tmp_path}: expected the run.json of a run there"),
        ([run_dir, "--output", tmp_path / "x.pdf"], "expected a file that ends in .html"),
        ([run_dir, "--output", tmp_path / "no" / "x.html"], "in a directory that exists"),
        ([run_dir, "--images", "0"], "--images: expected at least 1, got 0"),
    ):
        assert_user_error(make(*words), said)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("begun", 1e300),
        ("recipe", []),
        ("num_classes", 0),
        ("num_classes", "ten"),
        ("command", "x"),
        ("versions", []),
        ("hardware", "x"),
    ],
)
def test_a_damaged_record_is_one_line(field, value, run_dir, tmp_path):
    record = json.loads((run_dir / "run.json").read_text()) | {field: value}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert_user_error(make(tmp_path), f"{tmp_path / 'run.json'}: damaged: {field}: restore the")


def test_long_lines_of_a_figure_are_pixels(monkeypatch):
    pytest.importorskip("matplotlib")
    from replica.results import report_html
    from replica.results.plots import new_figure

    monkeypatch.setattr(report_html, "MOST_POINTS", 10)
    figure = new_figure(3, 2)
    figure.subplots().plot(torch.rand(11))
    drawn = report_html.vector_figure(figure, name="x", label="y")
    assert '<image href="data:image/png;base64,' in drawn.replace("\n", "")
