"""`python -m replica.predict`: the oracle's ten crops of any picture, and what is no picture."""

import io
import json
import os
import shutil
import sys
import weakref
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from conftest import assert_user_error, run_here
from PIL import Image
from runs import CROP_SIZE

from data_prep.shards import open_data_set
from replica import predict
from replica.results import pictures
from replica.results.pictures import Found, NamedPictures, read_ahead


@pytest.fixture(scope="module")
def held_out(tiny_shards, tmp_path_factory):
    """The val images as files, in folders named after their classes: names in their order."""
    images, labels = oracles.read_data(tiny_shards)["val"]
    wnids = open_data_set(tiny_shards).wnids
    directory = tmp_path_factory.mktemp("pictures")
    paths = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        paths.append(directory / wnids[label] / f"{number:02}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(paths[-1])
    return directory, paths


def predicted(*words, checkpoint):
    return run_here("-m", "replica.predict", *words, "--checkpoint", str(checkpoint))


def test_a_folder_is_answered_by_the_oracle_and_its_bad_files_are_listed(
    checkpoint, weights, held_out, tiny_shards, tmp_path
):
    shutil.copytree(held_out[0], tmp_path / "in")
    paths = sorted((tmp_path / "in").rglob("*.png"))
    order = [int(path.stem) for path in paths]
    first = paths[0].parent
    (first / "005.JPG").write_bytes(b"no picture")
    os.mkfifo(first / "006.jpg")  # nobody writes to it
    (first / "007.jpg").symlink_to(tmp_path / "nowhere")
    Image.new("1", (30_000, 30_000)).save(first / "008.png")
    (first / "notes.txt").write_text("x")
    (first / ".hidden.png").write_bytes(b"x")
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    result = predicted(str(tmp_path / "in"), "--json", "--top", "3", checkpoint=checkpoint)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "2 files of folders passed over: their names are no pictures'",
        "4 of 24 pictures failed",
    ]
    rows = json.loads(result.stdout)
    assert all(row.keys() == {"file", "top", "error"} for row in rows)
    names = [row["file"] for row in rows]
    assert names == sorted(names)
    errors = {Path(row["file"]).name: row["error"] for row in rows if row["error"]}
    assert errors == {
        "005.JPG": "neither JPEG, PNG, WEBP, GIF, TIFF, BMP nor AVIF (10 bytes)",
        "006.jpg": "expected a plain file",
        "007.jpg": "cannot be read: No such file or directory",
        "008.png": "larger than 89478485 pixels, refused before it is decoded",
    }
    assert all(row["top"] == [] for row in rows if row["error"])
    raw = oracles.read_data(tiny_shards)
    scores = oracles.evaluate(weights, raw, crop_size=CROP_SIZE, ten=True)[0][order]
    classes = open_data_set(tiny_shards).class_names
    good = [row for row in rows if not row["error"]]
    assert [row["file"] for row in good] == [str(path) for path in paths]
    for row, expected in zip(good, scores, strict=True):
        assert [name for name, _ in row["top"]] == [classes[i] for i in np.argsort(-expected)[:3]]
        np.testing.assert_allclose([p for _, p in row["top"]], np.sort(expected)[:-4:-1], rtol=1e-3)


def test_text_has_a_bar_per_class_and_a_picture_of_any_size(checkpoint, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    Image.new("L", (50, 700)).save(tmp_path / "b.gif")
    result = predicted(str(tmp_path), checkpoint=checkpoint)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        str(tmp_path / "a.png"),
        str(tmp_path / "b.gif"),
    ]
    assert len(lines) == 12
    assert all("%" in line for line in lines if line.startswith(" "))


@pytest.mark.parametrize(
    ("probability", "plain", "letters"),
    [
        (0, "", ""),
        (1, "#" * 20, "█" * 20),
        (0.5, "#" * 10, "█" * 10),
        (0.52, "#" * 10, "█" * 10 + "▍"),
    ],
)
def test_a_bar_is_as_long_as_the_probability(probability, plain, letters):
    assert predict.bar(probability, is_plain=True) == plain.ljust(20)
    assert predict.bar(probability, is_plain=False) == letters.ljust(20)


def test_standard_input_names_pictures_and_folders(checkpoint, held_out, monkeypatch):
    paths = held_out[1]
    text = f"{paths[3]}\n\n{paths[0]}\r\nnowhere\n{paths[5].parent}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    result = predicted("-", "--json", "--top", "1", checkpoint=checkpoint)
    rows = json.loads(result.stdout)
    of_folder = [str(path) for path in sorted(paths[5].parent.iterdir())]
    assert [row["file"] for row in rows] == [str(paths[3]), str(paths[0]), "nowhere", *of_folder]
    assert [row["error"] for row in rows if row["error"]] == ["expected a picture or a folder"]
    assert result.returncode == 1


def test_where_there_is_no_picture_at_all_one_line_says_so_before_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    for paths, said in (
        (["nowhere"], "nowhere: expected a picture or a folder"),
        (["nowhere", "empty"], "(and 1 more)"),
        (["empty"], "empty: expected pictures (.jpeg .jpg .jpe .jfif .png ...) in the folder"),
        (["texts"], "found none among 1 files: name those that are"),
        (["-"], "standard input: expected the path of a picture on each line, got none"),
    ):
        result = run_here("-m", "replica.predict", *paths, "--checkpoint", "none.pt", cwd=tmp_path)
        assert_user_error(result, said)
        assert result.stdout == ""


def test_the_rest_is_done_where_one_folder_is_empty(checkpoint, held_out, tmp_path):
    (tmp_path / "empty").mkdir()
    paths = (str(tmp_path / "empty"), str(held_out[1][0]))
    result = predicted(*paths, checkpoint=checkpoint)
    assert result.returncode == 1
    assert str(held_out[1][0]) in result.stdout
    assert f"{tmp_path / 'empty'}: expected pictures" in result.stderr
    assert "1 of 2 pictures failed" in result.stderr


def test_thousands_of_pictures_are_read_a_few_at_a_time(monkeypatch):
    made, alive, most = [], weakref.WeakSet(), 0

    class Image:
        pass

    def read(path, side):
        image = Image()
        alive.add(image)
        made.append(path)
        return image

    monkeypatch.setattr(pictures, "read_picture", read)
    listed = []

    def found():
        for number in range(500):
            listed.append(number)
            yield Found(Path(str(number)))

    for number, (one, image) in enumerate(read_ahead(found(), 8)):
        assert one.path == Path(str(number))
        assert len(listed) <= number + 1 + pictures.AHEAD
        del image
        most = max(most, len(alive))
    assert len(made) == 500
    assert most <= pictures.AHEAD + 1


def test_a_folder_is_listed_by_name_and_deeper_folders_after_it(tmp_path):
    for name in ("b/2.png", "b/10.PNG", "a/x.jpeg", "z.tiff", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    named = NamedPictures([str(tmp_path), str(tmp_path / "c.txt")])
    got = [str(one.path.relative_to(tmp_path)) for one in named]
    # A file that is named itself is tried, whatever its name.
    assert got == ["z.tiff", "a/x.jpeg", "b/10.PNG", "b/2.png", "c.txt"]
    assert named.passed_over == 1


def changed(checkpoint, path, **fields):
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, **fields}, path)
    return path


def test_classes_of_one_name_are_told_apart(checkpoint, held_out, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    names = ["crane", "crane", *content["class_names"][2:]]
    other = changed(checkpoint, tmp_path / "x.pt", class_names=names)
    result = predicted(str(held_out[1][0]), "--top", "10", "--json", checkpoint=other)
    (row,) = json.loads(result.stdout)
    assert sorted(name for name, _ in row["top"]) == sorted(
        [f"crane ({wnid})" for wnid in content["wnids"][:2]] + names[2:]
    )


def test_a_checkpoint_without_names_shows_numbers_and_one_with_others_is_refused(
    checkpoint, held_out, tmp_path
):
    picture = str(held_out[1][0])
    nameless = changed(checkpoint, tmp_path / "x.pt", class_names=[], wnids=[])
    result = predicted(picture, "--top", "10", "--json", checkpoint=nameless)
    (row,) = json.loads(result.stdout)
    assert sorted(name for name, _ in row["top"]) == sorted(f"class {i}" for i in range(10))
    assert "has no class names: classes are shown by their numbers" in result.stderr
    wrong = changed(checkpoint, tmp_path / "y.pt", class_names=["a"] * 9)
    result = predicted(picture, checkpoint=wrong)
    assert_user_error(result, "y.pt: has 9 class names for 10 classes")


def test_an_output_that_is_no_number_is_an_error_of_each_picture(checkpoint, held_out, tmp_path):
    model = torch.load(checkpoint, weights_only=True)["model"]
    model["fc8.bias"][0] = float("nan")
    broken = changed(checkpoint, tmp_path / "x.pt", model=model)
    result = predicted(str(held_out[1][0]), "--json", checkpoint=broken)
    assert result.returncode == 1
    assert "no number" in json.loads(result.stdout)[0]["error"]


def test_the_figure_has_bars_of_the_probabilities_and_the_right_class_in_its_color(
    checkpoint, held_out, tmp_path, monkeypatch
):
    pytest.importorskip("matplotlib")
    from replica.results import prediction_figure, style

    figures, save = [], style.save

    def keep(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(style, "save", keep)
    paths = held_out[1]
    picture = tmp_path / "figure.svg"
    words = [*map(str, paths[:9]), "--json", "--top", "10", "--picture", str(picture)]
    result = predicted(*words, checkpoint=checkpoint)
    assert f"wrote {picture} (8 of 9 pictures)" in result.stderr
    assert picture.read_bytes().startswith(b"<?xml")
    rows = json.loads(result.stdout)
    (figure,) = figures
    panels = [axes for axes in figure.axes if axes.patches]
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(panels) == len(images) == 8
    network = predict_names(checkpoint)
    for axes, row in zip(panels, rows, strict=False):
        widths = [patch.get_width() for patch in axes.patches]
        np.testing.assert_array_equal(widths, [p for _, p in row["top"]])
        label = network[Path(row["file"]).parent.name]
        letters = prediction_figure.LETTERS
        is_cut = len(label) > letters
        assert axes.get_title() == (label[: letters - 1].rstrip() + "…" if is_cut else label)
        colors = [patch.get_facecolor() for patch in axes.patches]
        from matplotlib.colors import to_rgba

        right = to_rgba(prediction_figure.RIGHT_COLOR)
        assert [color == right for color in colors] == [name == label for name, _ in row["top"]]
    for image, path in zip(images, paths, strict=False):
        np.testing.assert_array_equal(image, np.asarray(Image.open(path)))


def predict_names(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    return dict(zip(content["wnids"], content["class_names"], strict=True))


def test_a_picture_that_cannot_be_written_is_refused_before_anything(checkpoint, held_out):
    for name in ("x.xyz", "nowhere/x.png"):
        result = predicted(str(held_out[1][0]), "--picture", name, checkpoint=checkpoint)
        assert_user_error(result, f"--picture {name}: expected a file")
        assert result.stdout == ""
