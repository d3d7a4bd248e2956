"""The picture of augmentation shows what the oracle draws for the images of a run."""

import json

import numpy as np
import oracles
import pytest
from conftest import PROJECT_DIR, assert_user_error, run_here
from PIL import Image

from replica.feed.augment import Crops
from replica.recipes import MINI, to_record, with_changes
from replica.results import augmentation
from replica.results.augmentation import augmentation_figure

SEED = 5


@pytest.fixture
def run_dir(shards_dir, tmp_path):
    return make_run(tmp_path / "run", shards_dir, MINI)


def make_run(path, shards_dir, recipe):
    record = json.loads(
        (PROJECT_DIR / "benchmarks" / "results" / "imagenette" / "run.json").read_text()
    )
    record |= {"recipe": to_record(recipe), "seed": SEED}
    record["data"]["directory"] = str(shards_dir)
    path.mkdir()
    (path / "run.json").write_text(json.dumps(record))
    return path


def drawn_by_the_oracle(known, row, epoch):
    """Place and reflection by the same words as `training_crop`, and what it adds."""
    how = {"epoch": epoch, "seed": SEED, "crop_size": MINI.crop_size}
    down, right, flip, _ = (
        int(w) for w in oracles.philox(SEED, oracles.CROP, [epoch, 0, row >> 32, row])
    )
    places = 256 - MINI.crop_size + 1
    top, left, flip = down * places >> 32, right * places >> 32, flip % 2 == 1
    plain = oracles.training_crop(known, row, **how, color_noise=0)
    colored = oracles.training_crop(known, row, **how, color_noise=MINI.color_noise)
    return top, left, flip, (colored - plain).mean(axis=(1, 2), dtype=np.float64)


def test_each_panel_is_what_training_makes_of_its_image(shards_dir, run_dir):
    pytest.importorskip("matplotlib")
    known, size = oracles.read_data(shards_dir), MINI.crop_size
    rows = oracles.cycle_order(known["cycle_seed"], 60)[:3]
    figure = augmentation_figure(run_dir, None, num_images=3)
    panels = np.array(figure.axes).reshape(3, 4)
    seen = set()
    for (stored, *others), row in zip(panels, map(int, rows), strict=True):
        image = known["train"][0][row]
        assert np.array_equal(stored.images[0].get_array(), image)
        assert stored.get_xlabel().endswith(f"\ntraining image {row}")
        for epoch, axes in enumerate(others, start=1):
            top, left, flip, shift = drawn_by_the_oracle(known, row, epoch)
            seen.add(flip)
            expected = image[top : top + size, left : left + size].astype(float) + shift
            expected = expected[:, ::-1] if flip else expected
            np.testing.assert_allclose(
                axes.images[0].get_array() * 255, expected.clip(0, 255), atol=1e-3
            )
            place, colors = axes.get_xlabel().replace("\N{MINUS SIGN}", "-").splitlines()
            assert place == f"row {top}, column {left}" + (", reflected" if flip else "")
            values = [float(word[2:]) for word in colors.split(", ")]
            assert values == pytest.approx(list(shift), abs=0.06)
            (line,) = [x for x in stored.lines if x.get_label() == f"epoch {epoch}"]
            assert (min(line.get_xdata()), max(line.get_xdata())) == (left - 0.5, left + size - 0.5)
            assert (min(line.get_ydata()), max(line.get_ydata())) == (top - 0.5, top + size - 0.5)
    assert seen == {False, True}


def test_epochs_differ_without_colors_too(run_dir):
    pytest.importorskip("matplotlib")
    stored, *others = augmentation_figure(run_dir, None, num_images=1).axes
    lines = [x for x in stored.lines if str(x.get_label()).startswith("epoch")]
    assert len({(line.get_linestyle(), line.get_color()) for line in lines}) == 3
    assert len({line.get_linestyle() for line in lines}) == 3
    frames = [axes.spines["top"] for axes in others]
    assert len({str(frame.get_linestyle()) for frame in frames}) == 3
    white = [x for x in stored.lines if x.get_color() == "white"]
    assert max(x.zorder for x in white) < min(x.zorder for x in lines)


def test_what_a_recipe_does_not_draw_is_not_shown(shards_dir, tmp_path):
    pytest.importorskip("matplotlib")
    changes = ["color_noise=0", "random_crops=false", "random_flips=false"]
    run_dir = make_run(tmp_path / "run", shards_dir, with_changes(MINI, changes))
    _, *others = augmentation_figure(run_dir, None, num_images=1).axes
    assert {axes.get_xlabel() for axes in others} == {"row 16, column 16\nno color noise"}


@pytest.mark.parametrize("changes", [["vertical_flips=true"], ["pixel_noise=9"]], ids=str)
def test_outlines_are_places_in_the_stored_image(changes, shards_dir, tmp_path):
    pytest.importorskip("matplotlib")
    run_dir = make_run(tmp_path / "run", shards_dir, with_changes(MINI, changes))
    stored, *others = augmentation_figure(run_dir, None, num_images=1).axes
    is_placed = "pixel_noise=9" in changes
    assert bool(stored.lines) == is_placed
    assert all(axes.get_xlabel().startswith("row ") == is_placed for axes in others)


def test_a_caption_has_its_own_images_shift_with_its_sign():
    made = augmentation.Augmented(
        np.zeros((1, 2, 2, 3)), Crops(*np.array([[1], [2], [0]])), np.array([[-0.04, 12.34, 0]])
    )
    expected = "row 1, column 2\nR \N{MINUS SIGN}0.0, G +12.3, B +0.0"
    assert augmentation._described(made, 0, is_placed=True) == expected


def test_the_command_writes_the_picture_where_it_says(shards_dir, run_dir, tmp_path):
    pytest.importorskip("matplotlib")
    command = ("-m", "replica.figures", "--run", str(run_dir), "augmentation", "--images", "1")
    result = run_here(*command)
    assert result.stdout == f"wrote {run_dir / 'figures' / 'augmentation.png'}\n", result.stderr
    with Image.open(run_dir / "figures" / "augmentation.png") as picture:
        assert picture.width > picture.height > 200
    other = tmp_path / "x.svg"
    more = ("--run", str(run_dir), "--picture", str(other), "--data", str(shards_dir))
    assert run_here("-m", "replica.figures", "augmentation", *more).returncode == 0
    assert other.read_bytes().startswith(b"<?xml")
    result = run_here(*command, "--picture", "x.xyz")
    assert_user_error(result, "--picture x.xyz", ".png")
    result = run_here(*command, "--data", str(tmp_path))
    assert_user_error(result, "manifest.json")
