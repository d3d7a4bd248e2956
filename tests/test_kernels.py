"""The share of color in the kernels of conv1, against kernels made by hand and plain loops."""

import numpy as np
import pytest
import torch

from replica.network.kernels import color_energy

RED, BLUE = 0, 2


def share_by_loops(kernel):
    """Of one kernel, (3, side, side), weight by weight."""
    color = energy = 0.0
    for y in range(kernel.shape[1]):
        for x in range(kernel.shape[2]):
            r, g, b = (float(kernel[c, y, x]) for c in range(3))
            gray = (r + g + b) / 3
            color += (r - gray) ** 2 + (g - gray) ** 2 + (b - gray) ** 2
            energy += r**2 + g**2 + b**2
    return color / energy


def made_by_hand():
    """Kernels of 3 x 3 with their shares."""
    edge = np.array([[-1.0, 0.0, 1.0]] * 3)
    gray = np.stack([edge, edge, edge])
    opponent = np.stack([edge, np.zeros((3, 3)), -edge])
    # Gray at each place, of another brightness everywhere; and a color without any pattern.
    uneven = np.stack([np.arange(9.0).reshape(3, 3)] * 3)
    red = np.zeros((3, 3, 3))
    red[RED] = 5
    # At a place each: one gray of energy 3, one opponent of energy 2.
    half = np.zeros((3, 3, 3))
    half[:, 0, 0] = 1
    half[RED, 2, 2], half[BLUE, 2, 2] = 1, -1
    # Its colors sum to zero over the kernel, yet each place is gray or not by itself.
    apart = np.zeros((3, 3, 3))
    apart[RED, 0, 0], apart[BLUE, 2, 2] = 1, -1
    return {
        "gray": (gray, 0),
        "opponent": (opponent, 1),
        "uneven": (uneven, 0),
        "red": (red, 2 / 3),
        "half": (half, 2 / 5),
        "apart": (apart, 2 / 3),
        "zeros": (np.zeros((3, 3, 3)), 0),
    }


@pytest.mark.parametrize("name", made_by_hand())
def test_color_energy_of_a_kernel_made_by_hand(name):
    kernel, expected = made_by_hand()[name]
    (found,) = color_energy(kernel[None])
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_color_energy_is_each_kernels_own_in_float64():
    weights = torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(2))
    weights *= torch.logspace(-30, 2, 7).view(-1, 1, 1, 1)  # in float32, squares would be zero
    found = color_energy(weights.requires_grad_())
    assert found.shape == (7,)
    assert found.dtype == np.float64
    expected = [share_by_loops(kernel.detach().double().numpy() * 1e30) for kernel in weights]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_color_energy_knows_no_order_of_colors_and_no_scale():
    weights = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(3)).double()
    expected = color_energy(weights)
    np.testing.assert_allclose(color_energy(weights.flip(1)), expected, rtol=1e-12)
    np.testing.assert_allclose(color_energy(-7 * weights), expected, rtol=1e-12)


def test_random_weights_have_two_thirds_of_color():
    weights = torch.randn(96, 3, 11, 11, generator=torch.Generator().manual_seed(4))
    assert color_energy(weights).mean() == pytest.approx(2 / 3, abs=0.01)


def test_color_energy_needs_three_colors_and_finite_weights():
    with pytest.raises(ValueError, match=r"\(kernels, 3, side, side\), got \(4, 1, 5, 5\)"):
        color_energy(torch.zeros(4, 1, 5, 5))
    with pytest.raises(ValueError, match="finite"):
        color_energy(torch.full((1, 3, 2, 2), float("nan")))
    assert color_energy(torch.zeros(0, 3, 5, 5)).shape == (0,)
