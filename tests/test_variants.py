"""Augmentations of other projects: what is drawn, and what torchvision's functions make of it."""

import colorsys
import sys

import numpy as np
import oracles
import pytest
import torch
from conftest import assert_user_error
from PIL import Image
from runs import lines_of, train

from data_prep.errors import UserError
from replica.feed.feed import TrainFeed
from replica.feed.variants import check_variants, has_variants, vary
from replica.recipes import MINI, PAPER, from_record, to_record, with_changes

SEED, VARIANT, SIZE = 5, 8, 224
PLAIN = ["random_crops=false", "random_flips=false", "color_noise=0"]


def images():
    """Smooth, and of all colors: int (4, 256, 256, 3)."""
    y, x = np.mgrid[:256, :256] / 256
    waves = [[np.sin(7 * x * k + 3 * y * c + c) for c in range(3)] for k in range(1, 5)]
    return (127 + 100 * np.array(waves)).round().astype(np.uint8).transpose(0, 2, 3, 1)


def varied(changes, rows, epoch=2):
    """Of `images()`, which are the rows that are named."""
    recipe = with_changes(MINI, [*PLAIN, *changes])
    parts = [torch.from_numpy(part) for part in np.split(images(), [1])]
    return vary(parts, np.arange(4), np.array(rows), recipe=recipe, seed=SEED, epoch=epoch).numpy()


def words(row, what, epoch=2):
    return [int(w) for w in oracles.philox(SEED, VARIANT, [epoch, what, row >> 32, row % 2**32])]


def uniform(word):
    return (word + 0.5) / 2**32


ROWS = [3, 17, 2**33 + 5, 40]


def test_half_of_the_images_stand_on_their_heads():
    seen = set()
    for epoch in (1, 2, 3):
        made = varied(["vertical_flips=true"], ROWS, epoch)
        for image, row, plain in zip(made, ROWS, images(), strict=True):
            flip = words(row, 0, epoch)[0] % 2
            seen.add(flip)
            assert np.array_equal(image, plain[::-1] if flip else plain)
    assert seen == {0, 1}


def test_each_pixel_has_its_own_noise():
    made = varied(["pixel_noise=12"], ROWS)
    for image, row, plain in zip(made, ROWS, images(), strict=True):
        channels = plain.transpose(2, 0, 1).reshape(-1)
        for place in (0, 5, 40_000, 256 * 256 + 3, 3 * 256 * 256 - 1):
            normal = oracles._gaussian(
                oracles.philox(SEED, VARIANT, [2, 32 + place // 4, row >> 32, row % 2**32])
            )[place % 4]
            expected = min(255, max(0, round(int(channels[place]) + 12 * normal)))
            assert image.transpose(2, 0, 1).reshape(-1)[place] == expected
        difference = image.astype(float) - plain
        assert difference.std() == pytest.approx(12, rel=0.02)
        assert abs(difference.mean()) < 0.1


def gray(rgb):
    return rgb @ [0.2989, 0.587, 0.114]


def adjusted(rgb, name, by):
    """Float64, of 0..255, rounded down to bytes as torchvision does."""
    if name == "hue":
        flat = rgb.reshape(-1, 3) / 255
        turned = [colorsys.rgb_to_hsv(*pixel) for pixel in flat]
        back = [colorsys.hsv_to_rgb((h + by) % 1, s, v) for h, s, v in turned]
        return np.floor(255.999 * np.array(back)).reshape(rgb.shape)
    other = {
        "brightness": 0.0,
        "contrast": np.floor(gray(rgb)).mean(),
        "saturation": np.floor(gray(rgb))[..., None],
    }[name]
    return np.floor(np.clip(by * rgb + (1 - by) * other, 0, 255))


NAMES = ("brightness", "contrast", "saturation", "hue")


@pytest.mark.parametrize("reaches", ["0.4,0,0,0", "0,0.7,0,0", "0,0,1.5,0", "0,0,0,0.3", "all"])
def test_colors_are_jittered_as_drawn(torchvision, reaches):
    reaches = "0.2,0.3,0.4,0.1" if reaches == "all" else reaches
    made = varied([f"color_jitter={reaches}"], ROWS)
    sizes, changes = [float(x) for x in reaches.split(",")], []
    for image, row, plain in zip(made, ROWS, images(), strict=True):
        factors, order = words(row, 1), words(row, 2)
        expected = plain.astype(float)
        for i in sorted(range(4), key=order.__getitem__):
            low, high = (-sizes[3], sizes[3]) if i == 3 else (max(0, 1 - sizes[i]), 1 + sizes[i])
            if sizes[i]:
                by = low + (high - low) * uniform(factors[i])
                expected = adjusted(expected, NAMES[i], by)
        step = np.s_[::7, ::7]
        difference = np.abs(image.astype(float) - expected)[step]
        assert difference.max() <= 4
        assert difference.mean() < 0.8
        changes.append(np.abs(expected - plain).mean())
    assert max(changes) > 2  # of one of them, whatever is drawn


def test_resized_crops_have_a_share_of_the_area_and_are_in_the_middle(torchvision):
    made = varied(["resized_crops=0.08,0.6"], ROWS)
    for image, row, plain in zip(made, ROWS, images(), strict=True):
        for attempt in range(10):
            share, ratio, down, right = words(row, 16 + attempt)
            area = 256**2 * (0.08 + 0.52 * uniform(share))
            sides = (4 / 3) ** (2 * uniform(ratio) - 1)
            width, height = round((area * sides) ** 0.5), round((area / sides) ** 0.5)
            if width <= 256 and height <= 256:
                break
        top, left = down * (257 - height) >> 32, right * (257 - width) >> 32
        part = Image.fromarray(plain).crop((left, top, left + width, top + height))
        expected = np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR), float)
        assert np.abs(image[16:240, 16:240] - expected).max() <= 2
        outside = image.copy()
        outside[16:240, 16:240] = 0
        assert not outside.any()


def test_parts_that_fit_nowhere_become_the_whole_image(torchvision):
    """Of the whole area only a square fits, and none is drawn."""
    expected = Image.fromarray(images()[0]).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    made = varied(["resized_crops=1,1"], ROWS)[0, 16:240, 16:240]
    assert np.abs(made.astype(float) - np.asarray(expected)).max() <= 2


# --- In the feed

VARIED = ["vertical_flips=true", "pixel_noise=5"]


@pytest.mark.parametrize("threads", [0, 3])
def test_batches_depend_on_neither_threads_nor_processes_nor_where_a_run_begins(data, threads):
    recipe = with_changes(MINI, VARIED)
    expected = [TrainFeed(data, recipe, seed=1).batch(step).images for step in range(3)]
    for first in (0, 1):
        made = TrainFeed(data, recipe, seed=1).batches(first, 3, threads=threads)
        for batch, images_ in zip(made, expected[first:], strict=True):
            assert torch.equal(batch.images, images_)
    shares = [TrainFeed(data, recipe, 1, i, 3).batch(1).images for i in range(3)]
    assert torch.equal(torch.cat(shares), expected[1])


def test_the_paper_s_own_augmentation_follows(data):
    """Crops, mean image, reflections and colors are those of the recipe without variants."""
    plain = TrainFeed(data, MINI, seed=1).batch(0)
    noisy = TrainFeed(data, with_changes(MINI, ["pixel_noise=3"]), seed=1).batch(0)
    difference = (noisy.images - plain.images).numpy()
    assert np.allclose(difference, difference.round(), atol=1e-3)
    assert 2 < difference.std() < 3.1
    assert not torch.equal(plain.images, noisy.images)


def test_epochs_and_seeds_have_draws_of_their_own(data):
    recipe = with_changes(MINI, [*PLAIN, *VARIED])
    batches = [TrainFeed(data, recipe, seed=s).batch(n) for s, n in ((1, 0), (1, 2), (2, 0))]
    made = {batch.images.numpy().tobytes() for batch in batches}
    assert len(made) == 3


def test_an_older_record_has_no_variants():
    record = to_record(PAPER)
    for name in ("vertical_flips", "resized_crops", "color_jitter", "pixel_noise"):
        del record[name]
    assert from_record(record) == PAPER
    assert not has_variants(PAPER)
    changed = with_changes(PAPER, ["color_jitter=0.2,0.2,0.2,0.1", "pixel_noise=1.5"])
    assert from_record(to_record(changed)) == changed
    assert changed.color_jitter == (0.2, 0.2, 0.2, 0.1)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("color_jitter=0.2", "four numbers >= 0, the last"),
        ("color_jitter=0,0,0,0.6", "at most 0.5, got 0.0,0.0,0.0,0.6"),
        ("color_jitter=-1,0,0,0", "four numbers >= 0"),
        ("resized_crops=0.5", "two shares of the area"),
        ("resized_crops=0,1", "more than 0"),
        ("resized_crops=0.5,0.4", "rising"),
        ("resized_crops=0.1,1", "random_crops=false"),
        ("pixel_noise=-1", "a number >= 0"),
        ("vertical_flips=1", "true or false"),
    ],
)
def test_a_wrong_value_is_refused_with_its_rule(change, rule):
    with pytest.raises(UserError, match=rule):
        with_changes(MINI, [change])


@pytest.mark.parametrize(
    "changes", [["color_jitter=0.2,0.2,0.2,0"], ["random_crops=false", "resized_crops=0.1,1"]]
)
def test_without_torchvision_one_line_names_the_extra(changes, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    recipe = with_changes(MINI, changes)
    message = rf"{changes[-1].split('=')[0]} needs a torchvision .*'replica-alexnet\[augment\]'"
    with pytest.raises(UserError, match=message):
        check_variants(recipe)
    check_variants(with_changes(MINI, VARIED))


def test_a_run_that_needs_torchvision_ends_before_it_begins(shards_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    change = ("--set", "color_jitter=0.2,0.2,0.2,0")
    result = train(shards_dir, tmp_path / "run", *change)
    assert_user_error(result, "recipe mini: color_jitter needs a torchvision", "[augment]")
    assert not (tmp_path / "run").exists()


def test_a_run_is_augmented_as_its_recipe_says(shards_dir, tmp_path):
    changes = [word for change in VARIED for word in ("--set", change)]
    losses = {}
    for name, more in (("plain", []), ("varied", changes), ("again", changes)):
        result = train(shards_dir, tmp_path / name, "--seed", "1", "--steps", "2", *more)
        assert result.returncode == 0, result.stderr
        losses[name] = [line["loss"] for line in lines_of(tmp_path / name, "step")]
    assert losses["varied"] == losses["again"] != losses["plain"]
