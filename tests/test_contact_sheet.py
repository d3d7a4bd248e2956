"""The sheet shows what is stored, under the class that is stored."""

import numpy as np
import pytest
from conftest import assert_user_error, run_here
from PIL import Image

from data_prep import contact_sheet
from data_prep.contact_sheet import COLUMNS, LABEL_HEIGHT, ROWS, SIDE, class_index
from data_prep.errors import UserError

VERIFY = "data_prep/verify_shards.py"


def drawn(sheet, part, place):
    """The picture at a place of a part of a sheet."""
    top = part * (LABEL_HEIGHT + ROWS * (SIDE + LABEL_HEIGHT)) + LABEL_HEIGHT
    top += place // COLUMNS * (SIDE + LABEL_HEIGHT) + LABEL_HEIGHT
    left = place % COLUMNS * SIDE
    return np.asarray(sheet.crop((left, top, left + SIDE - 2, top + SIDE - 2)))


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
