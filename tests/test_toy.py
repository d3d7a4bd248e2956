"""The embedded data set, against its formulas pixel by pixel."""

import numpy as np
import pytest

from data_prep.sources.toy import CLASS_NAMES, draw_picture

DISKS = {4: (205, 40, 40), 5: (40, 170, 60), 6: (45, 70, 215)}


def second_color(rng, label, x, y, inside):
    """Where the object is, and where it has its second color."""
    period, phase = rng.uniform(0.4, 0.75), rng.uniform(0, 1)
    u, v = x / period + phase, y / period + phase
    nowhere = np.zeros_like(inside)
    if label == 7:
        return inside & (x * x + y * y > (1 - rng.uniform(0.25, 0.4)) ** 2), nowhere
    if label == 8:
        return (y < 0.7) & (y > -1 + 1.75 * abs(x)), nowhere
    if label == 9:
        return inside & (np.minimum(abs(x), abs(y)) < rng.uniform(0.2, 0.3)), nowhere
    return inside, {
        0: v % 1 < 0.5,
        1: u % 1 < 0.5,
        2: (u % 1 < 0.5) != (v % 1 < 0.5),
        3: (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.09,
    }.get(label, nowhere)


def plainly_drawn(rng, label):
    """The pixels of a picture before it may lose its colors: uint8 (H, W, 3).

    A sine per pixel and wave, all of the picture at once, as version 1 of the set was drawn.
    """
    width, height = (int(side) for side in rng.integers(258, 401, 2))
    radius = rng.uniform(0.26, 0.38) * min(width, height)
    reach = min(width, height) / 2 - radius
    center = [side / 2 + rng.uniform(-reach, reach) for side in (width, height)]
    rows, columns = np.indices((height, width)).astype(np.float32)
    x, y = (columns - center[0]) / radius, (rows - center[1]) / radius
    first, second = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    wave = np.zeros((height, width), np.float32)
    for _ in range(3):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        along = columns / width * np.cos(angle) + rows / height * np.sin(angle)
        wave += np.sin(2 * np.pi * rng.uniform(0.5, 3.0) * along + phase)
    blend = (0.5 + wave / 6)[..., None]
    pixels = first * (1 - blend) + second * blend
    color = np.array(DISKS.get(label) or rng.uniform(0, 255, 3)) + rng.uniform(-25, 25, 3)
    other = rng.uniform(0, 255, 3)
    while abs((other - color) @ (0.299, 0.587, 0.114)) <= 70:
        other = rng.uniform(0, 255, 3)
    mask, where = second_color(rng, label, x, y, x * x + y * y < 1)
    pixels[mask], pixels[mask & where] = color, other
    deviation = rng.uniform(3, 14)
    return (pixels + rng.normal(0, deviation, pixels.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("label", range(len(CLASS_NAMES)))
def test_a_picture_is_that_of_its_formulas_bit_for_bit(label):
    modes = set()
    for seed in range(8):
        rng, plain = np.random.default_rng([seed, label]), np.random.default_rng([seed, label])
        picture, box = draw_picture(rng, label=label)
        expected = plainly_drawn(plain, label)
        assert picture.size == expected.shape[1::-1]
        assert 1 <= box[0] < box[2] <= picture.width
        assert 1 <= box[1] < box[3] <= picture.height
        modes.add(picture.mode)
        if picture.mode == "RGB":
            assert np.array_equal(picture, expected)
        plain.uniform()  # which chooses the mode
        assert rng.bit_generator.state == plain.bit_generator.state
    assert "RGB" in modes
