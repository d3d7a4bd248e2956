import ctypes
import dataclasses

import numpy as np
import oracles
import pytest
import torch
from emulated import Emulation, needs_compiler

import cuda_ext
from cuda_ext import momentum_sgd_, reference
from replica.recipes import PAPER, EpochChange, with_changes
from replica.training.schedule import HandChange, num_drops, settings_at

RATES = [0.1] * 4 + [0.01] * 4  # a drop in the middle


def inputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=6), rng.normal(size=(8, 6))


def ours(weights, gradients, rates):
    w, v = torch.tensor(weights), torch.zeros(6, dtype=torch.float64)
    for gradient, rate in zip(gradients, rates, strict=True):
        momentum_sgd_(
            [w],
            [v],
            [torch.tensor(gradient)],
            learning_rates=[rate],
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
    # So low a rate that nothing but the old velocity is left.
    _, after = ours(weights, np.vstack([gradients[:4], np.zeros((1, 6))]), [*RATES[:4], 1e-30])
    np.testing.assert_allclose(after, 0.9 * before, rtol=1e-12)


def test_biases_do_not_decay():
    w, v = torch.ones(3), torch.zeros(3)
    zero = [torch.zeros(3)]
    momentum_sgd_([w], [v], zero, learning_rates=[0.1], momentum=0.9, weight_decays=[0.0])
    assert torch.equal(w, torch.ones(3))
    momentum_sgd_([w], [v], zero, learning_rates=[0.1], momentum=0.9, weight_decays=[0.5])
    torch.testing.assert_close(w, torch.full((3,), 0.95))


# --- The operator: one pass over weight, velocity and gradient


def update_inputs(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in "wvg"]


NUMBERS = {"learning_rate": 0.02, "momentum": 0.9, "weight_decay": 0.05}


def expected_update(w, v, g, *, learning_rate, momentum, weight_decay):
    """The formula, value by value, in float64."""
    w, v, g = (np.asarray(x.double()) for x in (w, v, g))
    after_v = momentum * v - weight_decay * learning_rate * w - learning_rate * g
    return w + after_v, after_v


def update_one_(w, v, g, *, learning_rate, momentum, weight_decay):
    momentum_sgd_(
        [w],
        [v],
        [g],
        learning_rates=[learning_rate],
        momentum=momentum,
        weight_decays=[weight_decay],
    )


SHAPES = [(), (0,), (7,), (5, 3), (200_003,), (6, 4, 5, 3)]
# One of each shape; the third one is frozen.
RATES_OF_ALL = [0.02, 0.5, 0.0, 0.01, 0.003, 1.0]
DECAYS_OF_ALL = [0.05, 0.0, 0.5, 0.25, 0.001, 0.125]


def of_all(dtype, shapes=SHAPES):
    """Weights, velocities, gradients."""
    return [
        list(x)
        for x in zip(*(update_inputs(s, dtype, i) for i, s in enumerate(shapes)), strict=True)
    ]


def in_torch(w, v, g, *, learning_rates, momentum, weight_decays):
    rates, decays = (torch.tensor(x, dtype=torch.float64) for x in (learning_rates, weight_decays))
    reference.momentum_sgd_(w, v, g, rates, momentum, decays)


def assert_are_the_formula(update, dtype, shapes=SHAPES, rates=RATES_OF_ALL, decays=DECAYS_OF_ALL):
    w, v, g = of_all(dtype, shapes)
    expected = []
    for *tensors, rate, decay in zip(w, v, g, rates, decays, strict=True):
        if rate:
            numbers = {"learning_rate": rate, "momentum": 0.9, "weight_decay": decay}
            expected.append(expected_update(*tensors, **numbers))
        else:
            expected.append(tuple(x.double().numpy().copy() for x in tensors[:2]))
    update(w, v, g, learning_rates=rates, momentum=0.9, weight_decays=decays)
    # Three products and three sums of values near 1.
    tolerance = 64 * np.finfo(np.float32 if dtype == torch.float32 else np.float64).eps
    for *got, right in zip(w, v, expected, strict=True):
        for one, other in zip(got, right, strict=True):
            np.testing.assert_allclose(one.double().numpy(), other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("update", [momentum_sgd_, in_torch], ids=["operator", "reference"])
def test_the_operator_is_the_formula_for_all_tensors_at_once(update, dtype):
    assert_are_the_formula(update, dtype)


@pytest.mark.parametrize("wrong", ["learning_rate", "momentum", "weight_decay"])
def test_each_number_of_the_formula_matters(wrong):
    w, v, g = update_inputs((50,), torch.float64)
    expected, _ = expected_update(w, v, g, **NUMBERS)
    update_one_(w, v, g, **{**NUMBERS, wrong: 0.9 * NUMBERS[wrong]})
    assert np.abs(w.numpy() - expected).max() > 1e-5


def test_any_layout_of_the_gradient_and_channels_last_weights_give_the_same():
    plain = update_inputs((6, 4, 5, 3), torch.float32)
    update_one_(*plain, **NUMBERS)
    w, v, g = update_inputs((6, 4, 5, 3), torch.float32)
    w, v = (x.contiguous(memory_format=torch.channels_last) for x in (w, v))
    update_one_(w, v, g, **NUMBERS)
    assert torch.equal(w, plain[0])
    assert torch.equal(v, plain[1])


def test_the_number_of_threads_does_not_change_a_bit():
    results = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        w, v, g = update_inputs((100_001,), torch.float32)
        update_one_(w, v, g, **NUMBERS)
        torch.set_num_threads(before)
        results.append((w, v))
    for w, v in results[1:]:
        assert torch.equal(w, results[0][0])
        assert torch.equal(v, results[0][1])


def test_rates_may_be_a_tensor_that_a_captured_graph_reads_anew():
    rates = torch.tensor([0.02], dtype=torch.float64)
    (w, v, g), (other_w, other_v, _) = (update_inputs((7,), torch.float32) for _ in range(2))
    for rate in (0.02, 0.01, 0.0):
        rates.fill_(rate)
        momentum_sgd_([w], [v], [g], learning_rates=rates, momentum=0.9, weight_decays=[0.5])
        numbers = {"learning_rate": rate, "momentum": 0.9, "weight_decay": 0.5}
        update_one_(other_w, other_v, g, **numbers)
        assert torch.equal(w, other_w)
        assert torch.equal(v, other_v)


def test_wrong_tensors_and_numbers_are_refused_and_nothing_is_changed():
    w, v, g = update_inputs((4, 6), torch.float32)
    before = w.clone(), v.clone()
    for arguments, message in (
        ((w, v[:3], g), r"expected a velocity of \(4, 6\), torch.float32, cpu, got \(3, 6\)"),
        ((w, v, g.double()), "expected a gradient of .* got .* torch.float64"),
        ((w.bfloat16(), v.bfloat16(), g.bfloat16()), "expected float32 or float64, got"),
        ((w[:, ::2], v[:, ::2], g[:, ::2]), "expected a weight without gaps"),
        ((w, v.t().contiguous().t(), g), r"expected a velocity of strides \(6, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            update_one_(*arguments, **NUMBERS)
    with pytest.raises(ValueError, match="expected a finite learning_rate, got nan"):
        update_one_(w, v, g, **{**NUMBERS, "learning_rate": float("nan")})
    numbers = {"learning_rates": [0.1], "momentum": 0.9, "weight_decays": [0.0]}
    for tensors, changes, message in (
        (([w, w.double()], [v, v.double()], [g, g.double()]), {}, "weights of torch.float32, cpu"),
        (([w], [], [g]), {}, "expected 1 velocities and gradients, .* got 0 and 1"),
        (([w], [v], [g]), {"learning_rates": [0.1, 0.2]}, "expected 1 learning_rates, .* got 2"),
        (([w], [v], [g]), {"weight_decays": torch.zeros(1)}, r"weight_decays of \(1,\), .*float64"),
        (([w], [v], [g]), {"momentum": float("inf")}, "expected a finite momentum, got inf"),
    ):
        with pytest.raises(ValueError, match=message):
            momentum_sgd_(*tensors, **{**numbers, **changes})
    assert torch.equal(w, before[0])
    assert torch.equal(v, before[1])


def test_the_registered_operator_checks_for_itself():
    if not cuda_ext.compiled_state().is_live:
        pytest.skip(cuda_ext.compiled_state().reason)
    w, v, g = update_inputs((4, 6), torch.float32)
    operator = torch.ops.replica.momentum_sgd_
    numbers = torch.zeros(1, dtype=torch.float64)
    for tensors, message in (
        (([w], [v[:3]], [g]), "expected a velocity of the shape"),
        (([w[:, ::2]], [v[:, ::2]], [g[:, ::2]]), "expected a weight without gaps"),
        (([w], [v], []), "expected a velocity and a gradient of each weight"),
        (([w, w], [v, v], [g, g]), "expected one float64 rate and decay of each weight"),
        (([w.long()], [v.long()], [g.long()]), "expected float32 or float64"),
    ):
        with pytest.raises(RuntimeError, match=f"momentum_sgd_: {message}"):
            operator(*tensors, numbers, 0.9, numbers)


def test_opcheck_passes():
    w, v, g = of_all(torch.float32)
    rates, decays = (torch.tensor(x, dtype=torch.float64) for x in (RATES_OF_ALL, DECAYS_OF_ALL))
    torch.library.opcheck(torch.ops.replica.momentum_sgd_.default, (w, v, g, rates, 0.9, decays))


def test_a_rate_of_zero_freezes_weight_and_velocity():
    w, v, g = update_inputs((5,), torch.float64)
    before = w.clone(), v.clone()
    other_w, other_v = w.clone(), v.clone()
    momentum_sgd_(
        [w, other_w],
        [v, other_v],
        [g, g],
        learning_rates=[0.0, 0.1],
        momentum=0.9,
        weight_decays=[0.5, 0.5],
    )
    assert torch.equal(w, before[0])
    assert torch.equal(v, before[1])
    assert not torch.equal(other_w, before[0])


# --- The GPU's kernel, run on a CPU one fiber a thread


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_is_the_formula_in_one_launch(dtype, tmp_path):
    emulation = Emulation("momentum_sgd", tmp_path)
    launches = []

    def emulated(w, v, g, *, learning_rates, momentum, weight_decays):
        number = len(w)
        pointers = [(ctypes.c_void_p * number)(*(t.data_ptr() for t in x)) for x in (w, v, g)]
        launches.append(
            emulation.number(
                "emulated_momentum_sgd",
                dtype == torch.float64,
                number,
                *pointers,
                (ctypes.c_int64 * number)(*(t.numel() for t in w)),
                (ctypes.c_double * number)(*learning_rates),
                momentum,
                (ctypes.c_double * number)(*weight_decays),
            )
        )

    shapes = [(), (0,), (7,), (5, 3), (2_051,), (1_024,)]
    assert_are_the_formula(emulated, dtype, shapes)
    many = [(1,)] * 64 + [(1_025,)]
    assert_are_the_formula(emulated, dtype, many, [0.1] * 32 + [0.2] * 33, [0.5] * 65)
    assert launches == [1, 2]


# --- The schedule

EPOCHS = dataclasses.replace(PAPER, drop_rule="epochs")
PLATEAU = dataclasses.replace(PAPER, plateau_patience=3, plateau_improvement=0.01)


def learning_rate(recipe, *, epoch, val_errors):
    """The common rate at the first step of an epoch."""
    step = 10 * epoch - 9
    state = settings_at(recipe, NAMES, step=step, steps_per_epoch=10, val_errors=val_errors)
    return state.learning_rate


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


# --- Rates of layers, and changes by hand

NAMES = ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias")
# The run of the source, configuration 145: 10 steps per epoch here.
SOURCE = dataclasses.replace(
    EPOCHS,
    bias_learning_rate=0.02,
    changes=(
        EpochChange(67, "conv1.weight", 1e-5),
        EpochChange(67, "color_noise", 0.0),
        EpochChange(72, "conv1", 0.0),
    ),
)


def settings(recipe, step, by_hand=()):
    return settings_at(recipe, NAMES, step=step, steps_per_epoch=10, val_errors=[], by_hand=by_hand)


@pytest.mark.parametrize(
    ("epoch", "conv1", "conv1_bias", "conv2", "noise"),
    [
        (1, 1e-2, 0.02, 1e-2, 0.1),
        (25, 1e-3, 0.02, 1e-3, 0.1),
        (66, 1e-4, 0.02, 1e-4, 0.1),
        (67, 1e-5, 0.02, 1e-4, 0.0),
        (72, 0.0, 0.0, 1e-4, 0.0),
        (79, 0.0, 0.0, 1e-5, 0.0),
        (90, 0.0, 0.0, 1e-5, 0.0),
    ],
)
def test_the_schedule_of_the_source_can_be_said(epoch, conv1, conv1_bias, conv2, noise):
    for step in (10 * epoch - 9, 10 * epoch):
        got = settings(SOURCE, step)
        expected = dict(zip(NAMES, (conv1, conv1_bias, conv2, 0.02), strict=True))
        assert got.rates == pytest.approx(expected, rel=1e-12)
        assert got.color_noise == noise
        assert got.learning_rate == pytest.approx(conv2, rel=1e-12)
    assert settings(SOURCE, 10 * 66).color_noise == 0.1


def test_without_rates_of_their_own_all_tensors_have_the_common_rate():
    for epoch in (1, 24, 25, 51, 90):
        got = settings(EPOCHS, 10 * epoch)
        common = learning_rate(EPOCHS, epoch=epoch, val_errors=[])
        assert set(got.rates.values()) == {common}
        assert got.learning_rate == common


def test_what_is_set_by_hand_acts_from_its_step_and_drops_go_on_from_there():
    by_hand = [HandChange(33, "learning_rate", 0.004)]
    before, after = settings(EPOCHS, 32, by_hand), settings(EPOCHS, 33, by_hand)
    assert set(before.rates.values()) == {0.01}
    assert set(after.rates.values()) == {0.004}
    assert settings(EPOCHS, 241, by_hand).learning_rate == pytest.approx(0.0004)


def test_a_common_rate_by_hand_leaves_frozen_layers_frozen_until_they_are_named():
    by_hand = [
        HandChange(5, "conv1", 0.0),
        HandChange(8, "learning_rate", 0.003),
        HandChange(9, "conv1.weight", 0.001),
    ]
    assert settings(EPOCHS, 5, by_hand).rates["conv1.bias"] == 0.0
    at_8 = settings(EPOCHS, 8, by_hand).rates
    assert at_8 == dict(zip(NAMES, (0.0, 0.0, 0.003, 0.003), strict=True))
    at_9 = settings(EPOCHS, 9, by_hand).rates
    assert at_9 == dict(zip(NAMES, (0.001, 0.0, 0.003, 0.003), strict=True))


def test_biases_set_apart_do_not_follow_the_common_rate():
    by_hand = [HandChange(3, "bias_learning_rate", 0.05), HandChange(4, "learning_rate", 0.003)]
    rates = settings(EPOCHS, 300, by_hand).rates
    assert rates["conv1.weight"] == pytest.approx(0.0003)  # it dropped at epoch 25
    assert rates["conv1.bias"] == 0.05


def test_a_layer_has_its_own_rates_and_decay():
    recipe = with_changes(
        dataclasses.replace(EPOCHS, weight_decay=0.1, learning_rate=1.0),
        [
            "conv1.learning_rate=0.5",
            "conv1.bias_learning_rate=0.25",
            "conv2.weight_decay=3",
            "conv3.learning_rate=0.125",
        ],
    )
    names = [*NAMES, "conv2_batch.weight", "conv2_batch.bias", "conv3.weight", "conv3.bias"]

    def at(step):
        return settings_at(recipe, names, step=step, steps_per_epoch=10, val_errors=[])

    first = at(1)
    assert first.rates == {
        "conv1.weight": 0.5,
        "conv1.bias": 0.25,
        "conv2.weight": 1.0,
        "conv2.bias": 1.0,
        "conv2_batch.weight": 1.0,
        "conv2_batch.bias": 1.0,
        "conv3.weight": 0.125,
        "conv3.bias": 0.125,
    }
    zeros = dict.fromkeys(names, 0.0)
    assert first.weight_decays == zeros | {
        "conv1.weight": 0.1,
        "conv2.weight": 3.0,
        "conv3.weight": 0.1,
    }
    late = at(10 * max(recipe.drop_epochs))
    assert late.rates["conv1.weight"] == pytest.approx(0.5 * late.learning_rate)
    assert late.rates["conv1.bias"] == 0.25
    all_decay = dataclasses.replace(recipe, decay_biases=True)
    decays = settings_at(all_decay, names, step=1, steps_per_epoch=10, val_errors=[]).weight_decays
    assert decays["conv2.bias"] == decays["conv2_batch.weight"] == 0.1
    frozen = dataclasses.replace(recipe, changes=(EpochChange(1, "conv2", 0.0),))
    rates = settings_at(frozen, names, step=1, steps_per_epoch=10, val_errors=[]).rates
    assert [rates[n] for n in names if n.startswith("conv2")] == [0.0] * 4
