import math

import numpy as np
import oracles
import pytest
from scipy.stats import chisquare

from replica.feed.augment import (
    center_crop,
    draw_color_shifts,
    draw_crops,
    ten_crops,
    view_places,
)
from replica.feed.feed import TrainFeed
from replica.recipes import MINI


def crops_of(indices, epoch=1, seed=3):
    return draw_crops(np.asarray(indices), epoch=epoch, seed=seed, image_size=256, crop_size=224)


def test_crops_and_flips_take_2178_equally_likely_values():
    crops = crops_of(range(400_000))
    values = (crops.tops * 33 + crops.lefts) * 2 + crops.flips
    counts = np.bincount(values, minlength=2178)
    assert len(counts) == 2178  # the paper says 2048 = 32 * 32 * 2
    assert counts.min() > 0
    assert chisquare(counts).pvalue > 1e-4


def test_each_image_has_its_own_crop_and_a_new_one_in_each_epoch():
    first, second = crops_of(range(1000)), crops_of(range(1000), epoch=2)
    for one, other in ((first.tops[:-1], first.tops[1:]), (first.tops, second.tops)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.15
        assert (one == other).mean() < 0.1
    assert np.array_equal(crops_of([17]).tops, first.tops[17:18])


EIGENVALUES = np.array([0.23, 0.02, 0.006])
EIGENVECTORS = np.linalg.qr(np.array([[5.0, 1, 2], [5, 2, -9], [6, -4, 3]]))[0]


def shifts_of(count, epoch=1, standard_deviation=0.1):
    return draw_color_shifts(
        np.arange(count),
        epoch=epoch,
        seed=4,
        standard_deviation=standard_deviation,
        eigenvalues=EIGENVALUES,
        eigenvectors=EIGENVECTORS,
    )


def test_color_noise_is_255_times_p_alphas_lambdas():
    """Its components along the eigenvectors are normal with deviation 255 * 0.1 * lambda."""
    shifts = shifts_of(100_000)
    along = shifts @ EIGENVECTORS
    for i in range(3):
        expected = 255 * 0.1 * EIGENVALUES[i]
        assert along[:, i].std() == pytest.approx(expected, rel=0.01)
        assert abs(along[:, i].mean()) < 5 * expected / math.sqrt(100_000)
        # Not by standard deviations, as the source has it, nor by rows instead of columns.
        assert along[:, i].std() != pytest.approx(25.5 * math.sqrt(EIGENVALUES[i]), rel=0.3)
    wrong_axis = shifts @ EIGENVECTORS.T
    assert wrong_axis[:, 0].std() != pytest.approx(255 * 0.1 * EIGENVALUES[0], rel=0.01)
    assert abs(np.corrcoef(along.T)[0, 1]) < 0.02


def test_color_noise_is_drawn_anew_in_each_epoch():
    assert not np.allclose(shifts_of(10), shifts_of(10, epoch=2))


def test_ten_crops_are_ten_distinct_views_the_last_five_reflected():
    image = np.random.default_rng(2).integers(0, 256, (256, 256, 3), np.uint8)
    views = ten_crops(image, crop_size=224)
    assert views.shape == (10, 224, 224, 3)
    assert len({view.tobytes() for view in views}) == 10
    places = [(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]
    for i, (top, left) in enumerate(places):
        for flip in (False, True):
            expected = oracles.crop(image, top=top, left=left, size=224, flip=flip)
            assert np.array_equal(views[i + 5 * flip], expected)
    assert np.array_equal(center_crop(image, crop_size=224)[0], views[2])


@pytest.mark.parametrize("per_side", [1, 2, 3, 4, 6, 7, 8])
@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (9, 31), (7, 7), (0, 5)])
def test_evenly_spaced_views_reach_both_edges_and_are_reflected(per_side, rows, columns):
    crops = view_places(f"grid:{per_side}", (224 + rows, 224 + columns), crop_size=224)
    down, right = (oracles.even_places(last, per_side) for last in (rows, columns))
    expected = [(top, left, flip) for flip in (0, 1) for top in down for left in right]
    assert list(zip(crops.tops, crops.lefts, crops.flips, strict=True)) == expected
    if per_side > 1:
        assert (down[0], down[-1], right[0], right[-1]) == (0, rows, 0, columns)
        assert np.ptp(np.diff(down)) <= 1 >= np.ptp(np.diff(right))


# --- Batches


def test_every_image_is_used_once_an_epoch_in_the_same_order(data):
    feed = TrainFeed(data, MINI, seed=1)
    assert feed.steps_per_epoch == 2  # 60 images in batches of 32
    first = [feed.batch(step) for step in range(2)]
    second = [feed.batch(step) for step in range(2, 4)]
    assert [batch.batch_size for batch in first] == [32, 28]
    labels = np.concatenate([batch.labels for batch in first])
    assert sorted(labels) == sorted(data.train.labels)
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.labels, other.labels)
        assert not np.array_equal(one.images, other.images)  # new crops and colors


@pytest.mark.parametrize("shares", [2, 3, 40])
def test_shares_of_a_batch_together_are_the_whole_batch(data, shares):
    whole = TrainFeed(data, MINI, seed=1).batch(3)
    parts = [TrainFeed(data, MINI, 1, i, shares).batch(3) for i in range(shares)]
    assert np.array_equal(np.concatenate([p.images for p in parts]), whole.images)
    assert np.array_equal(np.concatenate([p.labels for p in parts]), whole.labels)
    assert np.array_equal(np.concatenate([p.rows for p in parts]), whole.rows)
    assert {p.batch_size for p in parts} == {whole.batch_size}


def test_batches_made_ahead_are_those_of_their_steps(data):
    feed = TrainFeed(data, MINI, seed=1)
    batches = list(feed.batches(1, 6))
    assert [batch.step for batch in batches] == [1, 2, 3, 4, 5]
    for batch in batches:
        assert np.array_equal(batch.images, feed.batch(batch.step).images)


@pytest.mark.parametrize(("side", "crop_size"), [(12, 7), (13, 6), (9, 9), (11, 3)])
def test_the_central_crop_and_the_ten_are_cut_by_their_size(side, crop_size):
    """Sizes of which no binary digits are apart, unlike those of 224 and 256."""
    image = np.arange(side * side * 3, dtype=np.float32).reshape(side, side, 3)
    first = (side - crop_size) // 2
    center = image[first : first + crop_size, first : first + crop_size]
    assert np.array_equal(center_crop(image, crop_size=crop_size), center[None])
    views = ten_crops(image, crop_size=crop_size)
    end = side - crop_size
    corners = [(0, 0), (0, end), (first, first), (end, 0), (end, end)]
    for (top, left), view, mirrored in zip(corners, views[:5], views[5:], strict=True):
        expected = image[top : top + crop_size, left : left + crop_size]
        assert np.array_equal(view, expected)
        assert np.array_equal(mirrored, expected[:, ::-1])
