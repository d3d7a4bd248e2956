"""What `python -m replica.figures` draws of a network: bars, maps and captions by the oracle."""

import json
import os
import shutil

import golden_values as golden
import numpy as np
import oracles
import pytest
import torch
from conftest import assert_user_error, run_here
from PIL import Image
from runs import CROP_SIZE
from test_kernels import share_by_loops

from data_prep.errors import UserError
from data_prep.files import check_can_write
from data_prep.shards import open_data_set
from replica import figures

RED, GREEN = "#D55E00", "#009E73"  # that color-blind people tell apart


@pytest.fixture(autouse=True)
def needs_matplotlib():
    pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def names(tiny_shards):
    return open_data_set(tiny_shards).class_names


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Runs the command in an empty directory; the figures are kept instead of written."""
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append((figure, path)))

    def draw(*words):
        result = run_here("-m", "replica.figures", *map(str, words), cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return (*kept.pop(), result)

    return draw


def changed(checkpoint, path, **fields):
    torch.save({**torch.load(checkpoint, weights_only=True), **fields}, path)
    return path


def said(weights, shards, *, ten, rows=slice(None)):
    """Of held-out images by the oracle: probabilities (N, K), labels, images."""
    raw = oracles.read_data(shards)
    images, labels = raw["val"]
    views = oracles.views_of(raw, images[rows], crop_size=CROP_SIZE, ten=ten)
    logits = oracles.network(weights, views.reshape(-1, *views.shape[2:]))[0]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    return probabilities.reshape(*views.shape[:2], -1).mean(axis=1), labels[rows], images[rows]


# --- Figure 3


def test_kernels_stand_tower_by_tower_with_their_color(checkpoint, weights, drawn):
    figure, path, result = drawn("kernels", "--checkpoint", checkpoint)
    values = weights["conv1.weight"]
    low, high = values.min(), values.max()
    side = values.shape[-1] * 8
    assert str(path) == "kernels.png"
    color = [share_by_loops(kernel) for kernel in values]
    lines = result.stdout.splitlines()
    for tower, (axes, line) in enumerate(zip(figure.axes, lines[:2], strict=True)):
        mean = np.mean(color[8 * tower : 8 * tower + 8])
        assert axes.get_title("left") == f"tower {tower}: color energy {mean:.2f}"
        assert line.startswith(f"conv1, tower {tower}: color energy {mean:.3f} on average")
        mosaic = axes.images[0].get_array()
        assert mosaic.shape == (side + 4, 8 * (side + 2) + 2, 3)
        for place in range(8):
            left = 2 + place * (side + 2)
            kernel = values[8 * tower + place].astype(np.float64).transpose(1, 2, 0)
            expected = np.round(255 * (kernel - low) / (high - low)).astype(np.uint8)
            tile = mosaic[2 : 2 + side, left : left + side]
            np.testing.assert_array_equal(tile, expected.repeat(8, axis=0).repeat(8, axis=1))
            assert (mosaic[:, left - 1] == 255).all()
    assert lines[2:] == ["wrote kernels.png"]


def test_color_energy_is_printed_as_json_alone(checkpoint, weights, drawn):
    _, _, result = drawn("kernels", "--checkpoint", checkpoint, "--json")
    got = json.loads(result.stdout)
    color = [share_by_loops(kernel) for kernel in weights["conv1.weight"].astype(np.float64)]
    assert (got["checkpoint"], got["layer"]) == (str(checkpoint), "conv1")
    assert [x["tower"] for x in got["towers"]] == [0, 1]
    for one, own in zip(got["towers"], (color[:8], color[8:]), strict=True):
        assert one["kernels"] == pytest.approx(own, rel=1e-6)
        assert one["color_energy"] == pytest.approx(np.mean(own), rel=1e-6)


def test_gray_kernels_are_the_mean_of_their_colors(checkpoint, weights, drawn):
    figure, path, _ = drawn("kernels", "--checkpoint", checkpoint, "--gray")
    assert path.name == "kernels-gray.png"  # beside kernels.png
    values = weights["conv1.weight"].astype(np.float64).mean(axis=1)
    mosaic = figure.axes[1].images[0].get_array()
    assert (mosaic == mosaic[..., :1]).all()
    expected = 255 * (values[8] - values.min()) / (values.max() - values.min())
    tile = mosaic[2 : 2 + 88, 2 : 2 + 88, 0]
    np.testing.assert_allclose(tile[4::8, 4::8], expected, atol=0.51)


# --- Figure 2


def texts_of(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_papers_network_is_drawn_as_figure_2_says(drawn):
    figure, path, _ = drawn("architecture")
    assert str(path) == "architecture.png"
    texts = texts_of(figure)
    sizes = {
        "224 x 224 x 3": 1,
        "55 x 55 x 48": 2,
        "27 x 27 x 128": 2,
        "13 x 13 x 192": 4,
        "13 x 13 x 128": 2,
        "2048": 4,
        "1000": 1,
    }
    assert {text: texts.count(text) for text in sizes} == sizes
    reads = ["11 x 11 x 3", "5 x 5 x 48", "3 x 3 x 256", "3 x 3 x 192"]
    assert [texts.count(text) for text in reads] == [1, 1, 1, 2]
    layers = [text for text in texts if text.startswith(("conv", "fc"))]
    assert layers == [f"conv{i}" for i in range(1, 6)] + ["fc6", "fc7", "fc8"]
    assert (texts.count("LRN"), texts.count("max pooling"), texts.count("dropout")) == (2, 3, 2)
    assert texts.count("3 x 3, stride 2") == 3
    assert texts.count("ReLU") == 7


def columns_of(figure, style):
    """Where lines of a style end: from the image, 0, to the last layer."""
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() == style]
    return sorted({round(max(line.get_xdata()) / 10) for line in lines})


@pytest.mark.parametrize(
    ("words", "crossed"),
    [
        ((), [3, 6, 7]),
        (("--recipe", "source-2012-no-communication"), []),
        (("--set", "towers=1"), []),
        (("--set", "without=conv3"), [5, 6]),
    ],
    ids=["paper", "no-communication", "one-tower", "without-conv3"],
)
def test_dashed_lines_cross_where_a_layer_reads_both_towers(words, crossed, drawn):
    figure, _, _ = drawn("architecture", *words)
    assert columns_of(figure, "--") == crossed
    texts = texts_of(figure)
    num_layers = len([text for text in texts if text.startswith(("conv", "fc"))])
    assert columns_of(figure, "-") == list(range(1, num_layers + 1))
    title = figure.get_suptitle()
    assert ("tower 1" in title) == ("towers=1" not in words)


def test_a_checkpoints_network_has_its_own_classes(checkpoint, drawn):
    figure, _, _ = drawn("architecture", "--checkpoint", checkpoint)
    assert {"96 x 96 x 3", "23 x 23 x 8", "128", "10", "10 units"} <= set(texts_of(figure))
    figure, _, _ = drawn("architecture", "--recipe", "cifar10-11pct")
    texts = texts_of(figure)
    assert texts.count("local") == 2
    assert "24 x 24 x 64" in texts


# --- Activations


def test_each_layers_outputs_are_drawn_tower_by_tower(
    checkpoint, weights, names, tiny_shards, tmp_path, drawn
):
    raw = oracles.read_data(tiny_shards)
    image = raw["val"][0][3]
    Image.fromarray(image).save(tmp_path / "a.png")
    figure, _, _ = drawn("activations", "a.png", "--checkpoint", checkpoint)
    crop, bars, *layers = figure.axes
    np.testing.assert_array_equal(crop.images[0].get_array(), image[4:100, 4:100])
    view = oracles.views_of(raw, image[None], crop_size=CROP_SIZE)[0]
    logits = oracles.network(weights, view)[0][0]
    powers = np.exp(logits - logits.max())
    order = np.argsort(-powers)[:5]
    widths = [patch.get_width() for patch in bars.patches]
    np.testing.assert_allclose(widths, (powers / powers.sum())[order], rtol=1e-3, atol=1e-6)
    for text, label in zip(bars.texts, order, strict=True):
        assert text.get_text().startswith(names[label])
    titles = [axes.get_title("left").split(";")[0] for axes in layers]
    assert titles == [
        f"{what}, tower 0 above tower 1"
        for what in (
            "conv1: 16 maps of 23 x 23",
            "conv2: 32 maps of 11 x 11",
            "conv3: 48 maps of 5 x 5",
            "conv4: 48 maps of 5 x 5",
            "conv5: 32 maps of 5 x 5",
            "fc6: 256 units",
            "fc7: 256 units",
        )
    ]
    # fc7, by a last layer that hands on what it reads: rows of 64 and an empty one, twice.
    copied = {**weights, "fc8.weight": np.eye(256), "fc8.bias": np.zeros(256)}
    units = 2 * oracles.network(copied, view)[0][0]
    picture = layers[-1].images[0].get_array()
    for tower, rows in enumerate((picture[0:2], picture[3:5])):
        own = units[128 * tower : 128 * tower + 128]
        np.testing.assert_allclose(rows.ravel(), own, rtol=1e-3, atol=1e-3 * units.max())
    assert np.ma.getmaskarray(picture[[2, 5]]).all()
    # conv1, map by map; each value is a square of 2 x 2.
    weight, bias = (torch.from_numpy(weights[f"conv1.{x}"]).double() for x in ("weight", "bias"))
    padding = oracles.PADDING["conv1"]
    padded = torch.nn.functional.pad(torch.from_numpy(view), [*padding, *padding])
    maps = torch.nn.functional.conv2d(padded, weight, bias, stride=4)[0].relu().numpy()
    picture = layers[0].images[0].get_array()
    for number in (0, 7, 8, 13):
        tower, place = divmod(number, 8)
        top, left = 2 + tower * (46 + 4 + 2), 2 + place * 48
        tile = picture[top : top + 46, left : left + 46]
        expected = maps[number].repeat(2, axis=0).repeat(2, axis=1)
        np.testing.assert_allclose(tile, expected, rtol=1e-3, atol=1e-3 * maps.max())


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "0 bytes"), (b"\xff\xd8\xff\xe0garbage", "cannot be decoded"), (None, "cannot be read")],
    ids=["empty", "corrupt", "absent"],
)
def test_a_bad_picture_is_one_line(content, message, checkpoint, tmp_path):
    if content is not None:
        (tmp_path / "a.jpg").write_bytes(content)
    words = ("activations", "a.jpg", "--checkpoint", str(checkpoint))
    result = run_here("-m", "replica.figures", *words, cwd=tmp_path)
    assert_user_error(result, "a.jpg: ", message)
    assert len([*tmp_path.iterdir()]) == (content is not None)


def test_a_picture_of_one_pixel_has_activations(checkpoint, tmp_path, drawn):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "a.png")
    figure, _, _ = drawn("activations", "a.png", "--checkpoint", checkpoint)
    assert len(figure.axes) == 2 + 7


# --- Held-out images


def test_predictions_are_the_oracles_over_ten_crops(checkpoint, weights, names, tiny_shards, drawn):
    words = ("--checkpoint", checkpoint, "--data", tiny_shards, "--images", 4)
    figure, path, _ = drawn("predictions", *words)
    assert str(path) == "predictions.png"
    rows = [2, 7, 12, 17]  # of 20, in the middle of each fourth
    probabilities, labels, images = said(weights, tiny_shards, ten=True, rows=rows)
    panels = [axes for axes in figure.axes if axes.patches]
    pictures = [axes for axes in figure.axes if axes.images]
    for axes, picture, each, label, image in zip(
        panels, pictures, probabilities, labels, images, strict=True
    ):
        np.testing.assert_array_equal(picture.images[0].get_array(), image)
        order = np.argsort(-each)[:5]
        widths = [patch.get_width() for patch in axes.patches]
        np.testing.assert_allclose(widths, each[order], rtol=1e-3, atol=1e-6)
        assert axes.get_title() == names[label]
        colors = [patch.get_facecolor() for patch in axes.patches]
        others = {color for color, x in zip(colors, order, strict=True) if x != label}
        right = {color for color, x in zip(colors, order, strict=True) if x == label}
        assert len(others) == 1
        assert not others & right


def cut(name):
    return name if len(name) <= 18 else name[:17].rstrip() + "…"


def test_a_grid_marks_right_and_wrong(checkpoint, weights, names, tiny_shards, drawn):
    words = ("--checkpoint", checkpoint, "--data", tiny_shards, "--images", 10)
    figure, _, _ = drawn("grid", *words)
    probabilities, labels, _ = said(weights, tiny_shards, ten=True, rows=range(1, 20, 2))
    best = probabilities.argmax(axis=1)
    shown = [axes.title for axes in figure.axes if axes.images]
    for title, label, chosen in zip(shown, labels, best, strict=True):
        first, *second = title.get_text().splitlines()
        assert first == f"{'✓' if chosen == label else '✗'} {cut(names[chosen])}"
        assert second == ([] if chosen == label else [cut(names[label])])
        assert title.get_color() == (GREEN if chosen == label else RED)
    num_right = (best == labels).sum()
    assert 0 < num_right < 10
    assert figure.get_suptitle().startswith(f"{num_right} of 10 right")


@pytest.mark.parametrize("what", ["predictions", "grid", "classes", "confusion"])
def test_classes_that_cannot_be_known_are_one_line(what, checkpoint, tiny_shards, tmp_path):
    nameless = changed(checkpoint, tmp_path / "x.pt", class_names=[], wnids=[])
    words = ("--checkpoint", str(nameless), "--data", str(tiny_shards))
    result = run_here("-m", "replica.figures", what, *words, cwd=tmp_path)
    assert result.returncode == 2
    assert "has 0 class" in result.stderr.splitlines()[-1]
    result = run_here("-m", "replica.figures", what, *words[:2], cwd=tmp_path)
    assert "no data at shards" in result.stderr or "has 0 class" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_images_of_another_side_are_refused(checkpoint, shards_dir, tmp_path):
    words = ("grid", "--checkpoint", str(checkpoint), "--data", str(shards_dir))
    result = run_here("-m", "replica.figures", *words, cwd=tmp_path)
    assert_user_error(result, "has images of 256 pixels, but the network was trained on 104")


def test_a_network_of_no_numbers_is_one_line(checkpoint, tiny_shards, tmp_path):
    model = torch.load(checkpoint, weights_only=True)["model"]
    model["fc8.bias"][0] = model["conv1.weight"][0, 0, 0, 0] = float("nan")
    broken = str(changed(checkpoint, tmp_path / "x.pt", model=model))
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    for words in (["kernels"], ["activations", "a.png"], ["grid", "--data", str(tiny_shards)]):
        command = ("-m", "replica.figures", *words, "--checkpoint", broken)
        assert_user_error(run_here(*command, cwd=tmp_path), "use another checkpoint")


# --- Where it goes


OUTPUTS = {
    "figures": ["replica.figures", "kernels", "--picture", "a.png", "--checkpoint", "x.pt"],
    "out": ["replica.figures", "--out", "file.md", "classes", "--checkpoint", "x.pt"],
    "out in a file": ["replica.figures", "--out", "file.md/new", "kernels", "--checkpoint", "x.pt"],
    "out of a run": ["replica.figures", "--out", "file.md", "--run", "no run"],
    "directory": ["replica.figures", "--out", "here", "kernels", "--checkpoint", "x.pt"],
    "predict": ["replica.predict", "b.png", "--picture", "a.png", "--checkpoint", "x.pt"],
    "test": ["replica.test", "--save-probabilities", "a.npz", "--checkpoint", "x.pt"],
}


@pytest.mark.parametrize("words", OUTPUTS.values(), ids=OUTPUTS)
def test_what_cannot_be_written_is_refused_before_the_work(words, tmp_path):
    """The checkpoint is none: who opened it would say so."""
    for name in ("a.png", "a.npz", "here/kernels.png", "no run"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("file.md", "x.pt"):
        (tmp_path / name).write_text("x")
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    before = sorted(tmp_path.rglob("*"))
    place = next(x for x in words if x in ("a.png", "a.npz", "file.md", "file.md/new", "here"))
    option = words[words.index(place) - 1]
    result = run_here("-m", *words, cwd=tmp_path)
    assert_user_error(result, f"{option} {place}: expected a ")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_is_none_or_has_no_step_is_one_line(checkpoint, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    shutil.copy(golden.OLD_RUN / "run.json", run_dir)
    (run_dir / "metrics.jsonl").touch()
    shutil.copy(checkpoint, run_dir / "checkpoint-00000001.pt")
    before = sorted(tmp_path.rglob("*"))
    for run, line in (("run", "the run has made no step"), ("none", "no such directory")):
        words = ("--run", str(tmp_path / run))
        assert_user_error(run_here("-m", "replica.figures", *words), str(tmp_path / run), line)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_where_the_user_may_not_write_is_named(monkeypatch, tmp_path):
    """Root may write anywhere, so the system's answer is made up."""
    asked = []
    monkeypatch.setattr("os.access", lambda *what: asked.append(what))
    with pytest.raises(UserError, match=f"--x: cannot be written: you may not write in {tmp_path}"):
        check_can_write(tmp_path / "new" / "x", "--x", makes_directories=True)
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]
    with pytest.raises(UserError, match="--x: expected a file in a directory that exists"):
        check_can_write(tmp_path / "new" / "x", "--x")


# --- Classes


def test_bars_of_classes_are_the_oracles_errors(checkpoint, weights, names, tiny_shards, drawn):
    figure, _, _ = drawn("classes", "--checkpoint", checkpoint, "--data", tiny_shards)
    probabilities, labels, _ = said(weights, tiny_shards, ten=False)
    errors = []
    for label in range(10):
        of_class = np.argsort(-probabilities[labels == label], axis=1)
        top1, top5 = ((of_class[:, :k] != label).all(axis=1).mean() for k in (1, 5))
        errors.append((100 * top1, names[label], 100 * top5))
    errors.sort()
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([x for x, _, _ in errors])
    assert list(axes.lines[0].get_xdata()) == pytest.approx([x for _, _, x in errors])
    ticks = [text.get_text() for text in axes.get_yticklabels()]
    assert ticks == [f"{name} (2)" for _, name, _ in errors]
    bottom, top = axes.get_ylim()
    assert bottom > top  # the first is above
    wrong = sum(probabilities.argmax(axis=1) != labels)
    title = " ".join(figure.get_suptitle().split())
    assert f"20 val images, center crop, top-1 error {wrong / 20:.1%}" in title


def test_a_row_of_the_confusion_matrix_is_a_class(checkpoint, weights, names, tiny_shards, drawn):
    figure, _, _ = drawn("confusion", "--checkpoint", checkpoint, "--data", tiny_shards)
    probabilities, labels, _ = said(weights, tiny_shards, ten=False)
    expected = np.zeros((10, 10))
    for label, chosen in zip(labels, probabilities.argmax(axis=1), strict=True):
        expected[label, chosen] += 1
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), 50 * expected)  # two images of each
    assert [int(text.get_text()) for text in axes.texts] == expected.ravel().tolist()
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [text.get_text() for text in ticks] == names
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("taken for", "class")
