import dataclasses

import numpy as np
import oracles
import pytest
import torch

from replica.optimizer import sgd_step_
from replica.recipes import PAPER
from replica.schedule import learning_rate, num_drops

RATES = [0.1] * 4 + [0.01] * 4  # a drop in the middle


def inputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=6), rng.normal(size=(8, 6))


def ours(weights, gradients, rates):
    w, v = torch.tensor(weights), torch.zeros(6, dtype=torch.float64)
    for gradient, rate in zip(gradients, rates, strict=True):
        sgd_step_(
            [w],
            [v],
            [torch.tensor(gradient)],
            learning_rate=rate,
            momentum=0.9,
            weight_decays=[0.0005],
        )
    return w.numpy(), v.numpy()


def torchs(weights, gradients, rates):
    w = torch.nn.Parameter(torch.tensor(weights))
    sgd = torch.optim.SGD([w], lr=rates[0], momentum=0.9, weight_decay=0.0005)
    for gradient, rate in zip(gradients, rates, strict=True):
        sgd.param_groups[0]["lr"] = rate
        w.grad = torch.tensor(gradient)
        sgd.step()
    return w.detach().numpy()


def test_the_update_is_the_papers_across_a_drop():
    weights, gradients = inputs()
    expected_w, expected_v = oracles.sgd(weights, gradients, RATES, momentum=0.9, weight_decay=5e-4)
    w, v = ours(weights, gradients, RATES)
    np.testing.assert_allclose(w, expected_w, rtol=1e-12)
    np.testing.assert_allclose(v, expected_v, rtol=1e-12)


def test_torchs_sgd_fails_the_same_test_and_only_after_the_drop():
    weights, gradients = inputs()
    for steps, is_the_same in ((4, True), (8, False)):
        expected, _ = oracles.sgd(
            weights, gradients[:steps], RATES[:steps], momentum=0.9, weight_decay=5e-4
        )
        theirs = torchs(weights, gradients[:steps], RATES[:steps])
        assert np.allclose(theirs, expected, rtol=1e-9) == is_the_same


def test_rate_drop_keeps_old_momentum():
    weights, gradients = inputs()
    _, before = ours(weights, gradients[:4], RATES[:4])
    _, after = ours(weights, np.vstack([gradients[:4], np.zeros((1, 6))]), [*RATES[:4], 0.0])
    np.testing.assert_allclose(after, 0.9 * before, rtol=1e-12)


def test_biases_do_not_decay():
    w, v = torch.ones(3), torch.zeros(3)
    zero = [torch.zeros(3)]
    sgd_step_([w], [v], zero, learning_rate=0.1, momentum=0.9, weight_decays=[0.0])
    assert torch.equal(w, torch.ones(3))
    sgd_step_([w], [v], zero, learning_rate=0.1, momentum=0.9, weight_decays=[0.5])
    torch.testing.assert_close(w, torch.full((3,), 0.95))


# --- The schedule

EPOCHS = dataclasses.replace(PAPER, drop_rule="epochs")
PLATEAU = dataclasses.replace(PAPER, plateau_patience=3, plateau_improvement=0.01)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(1, 1e-2), (24, 1e-2), (25, 1e-3), (50, 1e-3), (51, 1e-4), (78, 1e-4), (79, 1e-5), (90, 1e-5)],
)
def test_recorded_drops_act_before_the_first_step_of_their_epoch(epoch, rate):
    assert learning_rate(EPOCHS, epoch=epoch, val_errors=[]) == pytest.approx(rate, rel=1e-12)


def test_the_rate_drops_when_the_validation_error_stops_improving():
    errors = [0.9, 0.8, 0.7, 0.695, 0.695, 0.7]  # three epochs without a gain of 0.01
    drops = [num_drops(PLATEAU, epoch=e, val_errors=errors) for e in range(1, 8)]
    assert drops == [0, 0, 0, 0, 0, 0, 1]
    assert learning_rate(PLATEAU, epoch=7, val_errors=errors) == pytest.approx(1e-3)


def test_the_count_begins_anew_after_a_drop_and_ends_after_three():
    errors = [0.5] * 40
    drops = [num_drops(PLATEAU, epoch=e, val_errors=errors) for e in range(1, 42)]
    assert drops.index(1) == 4
    assert drops.index(2) == 7
    assert drops.index(3) == 10
    assert max(drops) == 3


def test_a_steady_gain_never_drops_the_rate():
    errors = [0.9 - 0.011 * i for i in range(60)]
    assert num_drops(PLATEAU, epoch=61, val_errors=errors) == 0


def test_later_errors_do_not_change_the_rate_of_an_earlier_epoch():
    errors = [0.9, 0.5, 0.5, 0.5, 0.5, 0.1, 0.1]
    for epoch in range(1, 8):
        assert num_drops(PLATEAU, epoch=epoch, val_errors=errors) == num_drops(
            PLATEAU, epoch=epoch, val_errors=errors[: epoch - 1]
        )
