"""The sums are exact, merge in any order, and give the statistics of all pixels."""

import numpy as np
import pytest

from data_prep import color_statistics as module
from data_prep.color_statistics import (
    PixelSummer,
    PixelSums,
    color_statistics,
    comparison_with_published,
)


def sums_of(images):
    summer = PixelSummer(images.shape[1])
    for image in images:
        summer.add(image)
    return summer.sums()


def exact(images):
    """The same sums from Python's integers, which have no last bit to lose."""
    pixels = images.reshape(-1, 3).astype(object)
    moment = np.array(
        [[int((pixels[:, i] * pixels[:, j]).sum()) for j in range(3)] for i in (0, 1, 2)]
    )
    return images.astype(object).sum(axis=0), moment  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 8, 32, 51, 257])
@pytest.mark.parametrize("fill", ["random", "white"])
def test_sums_are_exact(size, fill):
    images = np.random.default_rng(size).integers(0, 256, (5, size, size, 3), np.uint8)
    if fill == "white":  # the largest sums, where float32 would be the first to give way
        images[:] = 255
    sums, (pixel_sum, moment) = sums_of(images), exact(images)
    assert sums.pixel_sum.dtype == sums.rgb_second_moment.dtype == np.uint64
    assert (sums.pixel_sum == pixel_sum).all()
    assert (sums.rgb_second_moment == moment).all()
    assert sums.num_images == 5


def test_sums_stay_exact_beyond_what_float32_holds(monkeypatch):
    images = np.full((7, 2, 2, 3), 255, np.uint8)
    monkeypatch.setattr(module, "EXACT_IMAGES", 3)
    assert (sums_of(images).pixel_sum == 7 * 255).all()


def test_the_bounds_are_the_last_ones_that_float32_holds():
    assert 255 * module.EXACT_IMAGES < 2**24 < 255 * (module.EXACT_IMAGES + 1)
    assert 255**2 * module.EXACT_PRODUCTS < 2**24 < 255**2 * (module.EXACT_PRODUCTS + 1)


def test_sums_merge_exactly_whatever_the_order():
    images = np.random.default_rng(2).integers(0, 256, (12, 16, 16, 3), np.uint8)
    whole = sums_of(images)
    parts = [sums_of(images[i::3]) for i in range(3)]
    for order in ((0, 1, 2), (2, 0, 1)):
        merged = parts[order[0]] + parts[order[1]] + parts[order[2]]
        assert merged.num_images == whole.num_images
        assert np.array_equal(merged.pixel_sum, whole.pixel_sum)
        assert np.array_equal(merged.rgb_second_moment, whole.rgb_second_moment)
        for name, value in vars(color_statistics(merged)).items():
            assert np.array_equal(value, getattr(color_statistics(whole), name)), name


def test_color_statistics_are_those_of_all_pixels():
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), np.uint8)
    images[..., 1] = images[..., 0] // 2
    statistics = color_statistics(sums_of(images))
    pixels = images.reshape(-1, 3) / 255.0
    expected = np.cov(pixels.T, bias=True)
    np.testing.assert_allclose(statistics.rgb_covariance, expected, rtol=1e-12)
    np.testing.assert_allclose(
        statistics.eigenvectors @ np.diag(statistics.eigenvalues) @ statistics.eigenvectors.T,
        expected,
        rtol=1e-9,
        atol=1e-12,
    )
    assert list(statistics.eigenvalues) == sorted(statistics.eigenvalues, reverse=True)
    np.testing.assert_allclose(statistics.mean_image, images.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(statistics.rgb_mean, 255 * pixels.mean(axis=0), rtol=1e-12)
    # The source's form: deviations of pixel values 0..255 along the components.
    along = (255 * (pixels - pixels.mean(axis=0))) @ statistics.eigenvectors
    np.testing.assert_allclose(statistics.standard_deviations, along.std(axis=0), rtol=1e-9)


def test_gray_pictures_have_no_negative_eigenvalue():
    gray = np.random.default_rng(3).integers(0, 256, (4, 8, 8, 1), np.uint8).repeat(3, axis=-1)
    statistics = color_statistics(sums_of(gray))
    assert (statistics.eigenvalues >= 0).all()
    assert np.isfinite(statistics.standard_deviations).all()


def test_no_picture_has_no_statistics():
    with pytest.raises(ValueError, match="expected at least one training picture, got 0"):
        color_statistics(PixelSums(0, np.zeros((8, 8, 3), np.uint64), np.zeros((3, 3), np.uint64)))


def test_the_published_values_stand_beside_ours_with_the_same_signs():
    """Against a set that has exactly the published statistics, the two columns agree."""
    vectors = np.array(module.PUBLISHED_EIGENVECTORS)
    deviations = np.array(module.PUBLISHED_STANDARD_DEVIATIONS)
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), range(3)])
    statistics = module.ColorStatistics(
        mean_image=np.zeros((8, 8, 3), np.float32),
        rgb_mean=np.array(module.PUBLISHED_RGB_MEAN),
        rgb_covariance=np.zeros((3, 3)),
        eigenvalues=(deviations / 255) ** 2,
        eigenvectors=vectors * signs,
        standard_deviations=deviations,
    )
    lines = comparison_with_published(statistics)
    assert len(lines) == 6
    for line in lines[1:]:
        ours, theirs = line[26:54].split(), line[54:].split()
        assert ours == theirs, line
    assert "121.780" in lines[2]
    assert "127.30" in lines[1]
    # They are eigenvectors of one matrix: orthogonal, of length one, to the digits published.
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=2e-4)
