"""The sheet shows what is stored, under the class that is stored."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_user_error, run_here
from PIL import Image, features

from data_prep import contact_sheet
from data_prep.contact_sheet import (
    COLUMNS,
    LABEL_HEIGHT,
    ROWS,
    SIDE,
    class_index,
    fitted,
    font_for,
    title_of,
)
from data_prep.errors import UserError

VERIFY = "data_prep/verify_shards.py"


def drawn(sheet, part, place):
    """The picture at a place of a part of a sheet."""
    top = part * (LABEL_HEIGHT + ROWS * (SIDE + LABEL_HEIGHT)) + LABEL_HEIGHT
    top += place // COLUMNS * (SIDE + LABEL_HEIGHT)
    left = place % COLUMNS * SIDE
    return np.asarray(sheet.crop((left, top, left + SIDE - 2, top + SIDE - 2)))


def written(sheet, part, place):
    """What stands below the picture at a place."""
    top = part * (LABEL_HEIGHT + ROWS * (SIDE + LABEL_HEIGHT)) + LABEL_HEIGHT
    top += place // COLUMNS * (SIDE + LABEL_HEIGHT) + SIDE - 2
    left = place % COLUMNS * SIDE
    return np.asarray(sheet.crop((left, top, left + SIDE, top + LABEL_HEIGHT + 2)))


def test_each_picture_of_a_sheet_is_one_of_the_class(data, tmp_path):
    path = tmp_path / "sheet.png"
    label = 3
    num_pictures = contact_sheet.draw(data, path, seed=5, class_name=data.wnids[label])
    rows = [np.flatnonzero(part.labels == label) for part in (data.train, data.val)]
    assert num_pictures == len(rows[0]) + len(rows[1])
    with Image.open(path) as sheet:
        sheet.load()
    for number, part in enumerate((data.train, data.val)):
        expected = {
            Image.fromarray(part.image(row)).resize((SIDE - 2, SIDE - 2)).tobytes()
            for row in rows[number]
        }
        found = {drawn(sheet, number, place).tobytes() for place in range(len(rows[number]))}
        assert found == expected
        # What follows the last picture is white.
        assert (drawn(sheet, number, len(rows[number])) == 255).all()


def test_a_seed_draws_the_same_sheet_again(data, tmp_path):
    sheets = []
    for seed in (1, 1, 2):
        contact_sheet.draw(data, tmp_path / "sheet.png", seed=seed)
        sheets.append((tmp_path / "sheet.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_a_class_is_found_by_wnid_and_by_any_of_its_names(data):
    for label, (wnid, names) in enumerate(zip(data.wnids, data.class_names, strict=True)):
        for name in (wnid, names, names.split(",")[0].upper()):
            assert class_index(data, name) == label


def test_a_name_of_two_classes_is_refused(data):
    class Twice:
        wnids = ["n02012849", "n03126707"]
        class_names = ["crane", "crane, lifting device"]
        directory = data.directory

    message = "several classes have that name: give one of n02012849, n03126707"
    with pytest.raises(UserError, match=message):
        class_index(Twice, "crane")


def test_the_command_draws_and_says_its_seed(shards_dir, tmp_path):
    path = tmp_path / "sheet.png"
    result = run_here(VERIFY, str(shards_dir), "--contact-sheet", str(path), "--seed", "7")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{path}: 48 pictures, seed 7\n"
    assert path.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--contact-sheet", "sheet.jpg"), "expected a file that ends in .png"),
        (("--contact-sheet", "nowhere/sheet.png"), "expected a file in a directory that exists"),
        (("--contact-sheet", "SHEET", "--class", "unicorn"), "--class unicorn: expected a wnid or"),
    ],
)
def test_wrong_options_are_refused_in_one_line(shards_dir, tmp_path, options, message):
    options = [str(tmp_path / "s.png") if word == "SHEET" else word for word in options]
    assert_user_error(run_here(VERIFY, str(shards_dir), *options), message)
    assert not (tmp_path / "s.png").exists()


def test_a_class_without_a_sheet_is_refused(shards_dir):
    result = run_here(VERIFY, str(shards_dir), "--class", "unicorn")
    assert_user_error(result, "--class: expected --contact-sheet beside it")


@pytest.fixture
def one_font(monkeypatch):
    """No font but Pillow's own and DejaVu Sans, which has Cyrillic and Arabic letters."""
    matplotlib = pytest.importorskip("matplotlib")
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    monkeypatch.setattr(contact_sheet, "FONT_FILES", ("no such font.ttf", str(font)))
    monkeypatch.setenv("PATH", "")  # no fontconfig
    font_for.cache_clear()
    yield
    font_for.cache_clear()


def sheet_with(data, path, name, label=3):
    """The sheet of a class under another name."""
    names = tuple(name if n == label else old for n, old in enumerate(data.class_names))
    plan = replace(data.manifest.plan, class_names=names)
    renamed = replace(data, manifest=replace(data.manifest, plan=plan))
    contact_sheet.draw(renamed, path, seed=5, class_name=data.wnids[label])
    with Image.open(path) as sheet:
        sheet.load()
    return sheet


def test_names_of_any_letters_stand_below_the_pictures(data, one_font, tmp_path, capsys):
    wnid = sheet_with(data, tmp_path / "sheet.png", data.wnids[3])
    # Each differs from the one before by one letter, which is no empty box.
    names = ["carp", "carb", "Bär", "Bor", "щука", "щупа", "قط", "قد", "żółw", "żółt"]
    if not features.check("raqm"):
        names = [name for name in names if "ق" not in name]
    sheets = [sheet_with(data, tmp_path / "sheet.png", name) for name in names]
    texts = [written(sheet, 1, 2) for sheet in sheets]
    assert all((text < 128).sum() > 20 for text in texts)
    assert len({text.tobytes() for text in [*texts, written(wnid, 1, 2)]}) == len(names) + 1
    for sheet in sheets:
        assert np.array_equal(drawn(sheet, 1, 2), drawn(wnid, 1, 2))
        assert (written(sheet, 1, 3) == 255).all()  # below no picture
    assert capsys.readouterr().err == ""


def test_a_name_that_no_font_can_draw_is_replaced_and_a_line_says_so(
    data, one_font, tmp_path, capsys
):
    wnid = sheet_with(data, tmp_path / "sheet.png", data.wnids[3])
    assert capsys.readouterr().err == ""
    for name in ("鲤", "carp, 鲤", "two\nlines"):
        assert sheet_with(data, tmp_path / "sheet.png", name).tobytes() == wnid.tobytes()
        assert capsys.readouterr().err == (
            f"{tmp_path}/sheet.png: no font here has the letters of 1 class names: their wnids or "
            "codes stand there; fonts such as Noto Sans CJK have more\n"
        )
    assert title_of("鲤 é", "鲤")[0] == r"\u9ca4 \xe9"


def test_letters_from_right_to_left_need_what_sets_them(one_font, monkeypatch):
    monkeypatch.setattr(features, "check", lambda feature: feature == "raqm")
    assert title_of("قط", "n1")[0] == "قط"
    font_for.cache_clear()
    monkeypatch.setattr(features, "check", lambda feature: feature != "raqm")
    assert title_of("قط", "n1")[0] == "n1"
    assert title_of("щука", "n1")[0] == "щука"


def test_fontconfig_is_asked_for_letters_that_known_fonts_lack(one_font, monkeypatch, tmp_path):
    _, font = contact_sheet.FONT_FILES
    monkeypatch.setattr(contact_sheet, "FONT_FILES", ())
    assert title_of("щу", "n1")[0] == "n1"
    font_for.cache_clear()
    script = tmp_path / "fc-match"
    script.write_text(f'#!/bin/sh\necho "$2" > {tmp_path}/asked\nprintf %s "{font}"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert title_of("щу", "n1")[0] == "щу"
    asked = (tmp_path / "asked").read_text()
    assert sorted(asked.removeprefix(":charset=").split()) == ["443", "449"]
    assert title_of("鲤", "n1")[0] == "n1"  # what it finds has no such letter, either


def test_a_long_name_ends_in_an_ellipsis_within_its_cell(data, one_font, tmp_path):
    font = font_for("щука, обыкновенная щука")
    for name in ("щука, обыкновенная щука", "щука"):
        for width in (60, 90, 122):
            text = fitted(name, font, width=width)
            assert font.getlength(text) <= width
            if text != name:
                assert text.endswith("...")
                assert name.startswith(text[:-3])
                assert font.getlength(name[: len(text) - 2] + "...") > width
            else:
                assert font.getlength(name) <= width
    sheet = sheet_with(data, tmp_path / "sheet.png", 40 * "W")
    assert (written(sheet, 0, 0)[:, -3:] == 255).all()
    assert (written(sheet, 0, 0)[:, -20:-3] < 128).any()
