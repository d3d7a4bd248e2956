"""The one style of all figures: whatever the user's settings, names of any length and letters."""

import numpy as np
import pytest
import torch
from PIL import Image

from replica.results.class_figures import classes_figure, confusion_figure
from replica.results.details import Details
from replica.results.style import new_figure, save, set_title, shortened, styled


@pytest.fixture(autouse=True)
def needs_matplotlib():
    pytest.importorskip("matplotlib")


def test_the_users_settings_change_nothing_and_stay(tmp_path):
    import matplotlib

    @styled
    def draw():
        figure = new_figure(2, 1)
        figure.subplots().plot([1, 2])
        return figure

    save(draw(), tmp_path / "one.png")
    own = {"font.size": 30, "savefig.dpi": 10, "axes.facecolor": "red"}
    with matplotlib.rc_context(own):
        save(draw(), tmp_path / "other.png")
        assert {name: matplotlib.rcParams[name] for name in own} == own
    one, other = (Image.open(tmp_path / f"{name}.png") for name in ("one", "other"))
    assert one.size == (400, 200)
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tench, Tinca tinca", "tench, Ti…"),
        ("ten lettrs", "ten lettrs"),
        ("a" * 200, "a" * 9 + "…"),
        ("two\nlines  x", "two lines…"),
        ("猫猫猫猫猫", "猫猫猫猫猫"),
        ("猫猫猫猫猫猫", "猫猫猫猫…"),
        ("$x$", r"\$x\$"),
        ("\x1b[31m", r"\x1b[31m"),
    ],
    ids=["long", "fits", "one-word", "lines", "wide", "too-wide", "formula", "control"],
)
def test_a_long_name_is_cut_by_its_width(text, expected):
    assert shortened(text, 10) == expected


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_figure_is_what_its_file_says(ending, tmp_path):
    path = tmp_path / f"x.{ending}"
    save(new_figure(1, 1), path)
    assert path.read_bytes()[:5] == {"png": b"\x89PNG\r", "svg": b"<?xml", "pdf": b"%PDF-"}[ending]


def test_letters_that_no_font_has_are_one_line(tmp_path, capsys):
    figure = new_figure(1, 1)
    figure.text(0, 0, "\U000e0100\uf8ff\uf8ff")  # in no font: for private use
    save(figure, tmp_path / "x.png")
    (line,) = capsys.readouterr().err.splitlines()
    assert "letters are boxes, as no font here has them" in line
    assert (tmp_path / "x.png").exists()


def test_a_figure_grows_by_the_lines_of_its_title():
    figure = new_figure(7, 1)
    set_title(figure, "a/" + "b" * 150 + " and $x$")
    assert len(figure.get_suptitle().splitlines()) == 2
    assert figure.get_suptitle().endswith(r" and \$x\$")
    assert figure.get_figheight() == pytest.approx(1 + 2 * 0.16)


def details(num_classes):
    """Of class i, i of a hundred images are taken for class 0; class 3 has none."""
    result = Details([f"n{i}" for i in range(num_classes)], [f"c{i}" for i in range(num_classes)])
    for label in range(num_classes):
        if label != 3:
            wrong = label % 101
            result.right[label] = torch.tensor([100, 100 - wrong, 100])
            result.confusions[label, label] += 100 - wrong
            result.confusions[label, 0] += wrong
    return result


def test_of_many_classes_the_easiest_and_the_hardest_are_shown():
    figure = classes_figure(details(90).rows("classes"), title="x")
    (axes,) = figure.axes
    widths = [bar.get_width() for bar in axes.patches]
    easiest = [0, 1, 2, *range(4, 31)]
    assert widths == pytest.approx([*easiest, *range(60, 90)])
    assert axes.get_yticklabels()[59].get_text() == "c89 (100)"
    assert "30 classes of 89" in figure.get_suptitle()
    assert len(classes_figure(details(61).rows("classes"), title="x").axes[0].patches) == 60


def test_many_classes_are_numbered_and_one_without_images_is_empty():
    axes = confusion_figure(details(70), title="x").axes[0]
    assert axes.get_xlabel() == "taken for (by its number, from 0)"
    shares = axes.images[0].get_array()
    assert np.ma.getmaskarray(shares)[3].all()
    assert (shares[20, 0], shares[20, 20], shares[0, 20]) == (20, 80, 0)
    assert not axes.texts
