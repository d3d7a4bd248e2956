"""The network against the oracle: logits and every gradient, for each placement (paper 3, 4.2)."""

import dataclasses

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from network_workers import NARROW, NUM_CLASSES, SEED, STEP, compute, inputs_of

from replica.distributed.devices import Devices
from replica.distributed.launch import run_processes
from replica.network.alexnet import AlexNet
from replica.network.initialization import initialize_
from replica.network.placement import tower_slice
from replica.recipes import PAPER, with_changes


def relative(got, expected):
    """The distance of two arrays in units of the second."""
    assert got.shape == expected.shape
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def expected_of(weights, images, labels):
    weights = {name: weight.double().numpy() for name, weight in weights.items()}
    widths = [len(weights[f"{layer}.bias"]) for layer in oracles.DROPPED]
    masks = oracles.dropout_masks(widths, seed=SEED, step=STEP, rows=np.arange(len(images)))
    _, logits, gradients = oracles.losses_and_gradients(
        weights, images.double().numpy(), labels.numpy(), masks
    )
    tested, _ = oracles.network(weights, images.double().numpy())
    return {"logits": logits, "tested": tested, **gradients}


@pytest.fixture(scope="module")
def narrow():
    """`paper` with few kernels and a small crop, weights large: what the oracle says of it."""
    weights, images, labels = inputs_of(NARROW)
    return expected_of(weights, images, labels)


@pytest.mark.fault(20)
@pytest.mark.parametrize("placement", ["one device", "two towers", "two copies"])
def test_logits_and_gradients_are_those_of_the_oracle(placement, narrow, tmp_path):
    processes = 1 if placement == "one device" else 2
    devices = Devices("cpu", processes, 2 if placement == "two towers" else 1)
    path = tmp_path / "computed.pt"
    assert run_processes(compute, str(path), devices, timeout=120) == 0
    computed = torch.load(path, weights_only=True)
    assert computed.keys() == narrow.keys()
    for name, expected in narrow.items():
        assert relative(computed[name].numpy(), expected) < 1e-9, name


def test_the_oracles_gradients_are_its_finite_differences():
    weights, images, labels = inputs_of(NARROW)
    weights = {name: weight.numpy() for name, weight in weights.items()}
    masks = [np.ones((len(images), len(weights[f"{fc}.bias"])), bool) for fc in oracles.DROPPED]
    arguments = (images.numpy(), labels.numpy(), masks)
    gradients = oracles.losses_and_gradients(weights, *arguments)[2]
    rng = np.random.default_rng(0)
    assert gradients.keys() == weights.keys() == set(oracles.PARAMETERS)
    for name, weight in weights.items():
        direction = rng.normal(size=weight.shape)
        ends = []
        step = 1e-7 * np.linalg.norm(weight) / np.linalg.norm(direction)
        for sign in (1, -1):
            moved = {**weights, name: weight + sign * step * direction}
            ends.append(oracles.losses_and_gradients(moved, *arguments)[0].mean())
        slope = (ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx((gradients[name] * direction).sum(), rel=1e-4), name


def test_normalization_biases_and_dropout_matter_on_the_narrow_network(narrow, monkeypatch):
    """Else the comparison below would prove nothing of them."""
    weights, images, labels = inputs_of(NARROW)
    for name, value in (("k", 1.0), ("alpha", 2e-5), ("beta", 0.5), ("n", 3)):
        monkeypatch.setitem(oracles.LRN, name, value)
        assert relative(expected_of(weights, images, labels)["logits"], narrow["logits"]) > 0.01
        monkeypatch.undo()
    for layer in oracles.LAYERS:
        other = {**weights, f"{layer}.bias": 0 * weights[f"{layer}.bias"]}
        assert relative(expected_of(other, images, labels)["logits"], narrow["logits"]) > 0.003
    for mask in oracles.dropout_masks([20, 12], seed=SEED, step=STEP, rows=np.arange(6)):
        assert 0.3 < mask.mean() < 0.7


def tying_inputs():
    """Small integers times powers of two, so that sums are exact and maxima tie in any program.

    A part of each image has one color; without normalization its maps are equal, too.
    """
    weights, _, labels = inputs_of(NARROW)
    rng = np.random.default_rng(4)
    for name, weight in weights.items():
        scale = 2.0 ** -round(np.log2(4 * np.sqrt(max(1, weight[0].numel()))))
        weights[name] = torch.from_numpy(rng.integers(-7, 8, weight.shape) * scale)
    images = rng.integers(-100, 101, (len(labels), 3, NARROW.crop_size, NARROW.crop_size))
    images[..., :72] = images[..., :1, :1]
    return weights, torch.from_numpy(images).double(), labels


@pytest.mark.parametrize("changes", [["pool_ties=all"], ["conv1.pool_ties=all"], []], ids=str)
def test_who_of_tied_maxima_gets_the_gradient_is_the_recipes_choice(changes, monkeypatch):
    monkeypatch.setattr(oracles, "NORMALIZED", ())
    weights, images, labels = tying_inputs()
    expected = {}
    for ties in (("first",) * 3, ("all", "first", "first"), ("all",) * 3):
        monkeypatch.setattr(oracles, "POOL_TIES", dict(zip(oracles.POOLED, ties, strict=True)))
        expected[sum(x == "all" for x in ties)] = expected_of(weights, images, labels)
    conv1 = [expected[number]["conv1.weight"] for number in (0, 1, 3)]
    assert relative(conv1[1], conv1[0]) > 0.01
    assert relative(conv1[2], conv1[1]) > 0.01
    changes = [*changes, "conv1.normalization=none", "conv2.normalization=none"]
    model = AlexNet(with_changes(NARROW, changes), num_classes=NUM_CLASSES).double()
    model.load_state_dict(weights)
    rows = torch.arange(len(labels))
    logits = model(images, masks=model.dropout_masks(rows, seed=SEED, step=STEP))
    F.cross_entropy(logits, labels).backward()
    number = {"pool_ties=all": 3, "conv1.pool_ties=all": 1}.get(changes[0], 0)
    for name, weight in model.named_parameters():
        assert relative(weight.grad.numpy(), expected[number][name]) < 1e-9, name


def test_the_recipe_has_the_numbers_of_the_text_and_of_the_facts():
    """Each number of `paper`; comparisons of the network and of runs say what is done with them."""
    for layer in PAPER.convs:
        assert layer.num_kernels == oracles.NUM_KERNELS[layer.name]
    for layer in PAPER.fully_connected:
        assert layer.num_units == oracles.NUM_UNITS[layer.name]
    for layer in (*PAPER.convs, *PAPER.fully_connected):
        assert layer.weight_standard_deviation == oracles.STANDARD_DEVIATION
        assert layer.bias == float(layer.name in oracles.ONE_BIASES)
    for got, expected in (
        (PAPER.crop_size, oracles.CROP_SIZE),
        (PAPER.color_noise, oracles.COLOR_NOISE),
        (PAPER.batch_size, oracles.BATCH_SIZE),
        (PAPER.momentum, oracles.MOMENTUM),
        (PAPER.weight_decay, oracles.WEIGHT_DECAY),
        (PAPER.learning_rate, oracles.LEARNING_RATE),
        (PAPER.bias_learning_rate, None),
        (PAPER.drop_factor, oracles.DROP_FACTOR),
        (PAPER.max_drops, oracles.NUM_DROPS),
        (PAPER.drop_epochs, oracles.RECORDED_DROPS),
        (PAPER.epochs, oracles.NUM_EPOCHS),
        (
            [PAPER.pool_ties_of(x) for x in PAPER.convs if x.pooling == "max"],
            list(oracles.POOL_TIES.values()),
        ),
        # REPRODUCE.md, D3 and D4.
        (PAPER.decay_biases, False),
        ((PAPER.drop_rule, PAPER.plateau_patience), ("plateau", 5)),
        (PAPER.plateau_improvement, 0.001),
        ((PAPER.random_crops, PAPER.random_flips, PAPER.changes), (True, True, ())),
    ):
        assert got == expected


def test_the_narrow_network_differs_from_paper_in_widths_and_image_alone():
    widths = [layer.name for layer in (*NARROW.convs, *NARROW.fully_connected)]
    assert widths == list(oracles.LAYERS)
    same = dataclasses.replace(
        NARROW,
        convs=PAPER.convs,
        fully_connected=PAPER.fully_connected,
        crop_size=PAPER.crop_size,
        num_classes=PAPER.num_classes,
    )
    assert same == PAPER


def test_halves_cover_a_layer_once_and_the_first_has_the_smaller_half():
    for width in (1, 2, 7, 1000, 21843):
        first, second = (tower_slice(width, tower=t, towers=2) for t in (0, 1))
        assert (first.start, second.stop) == (0, width)
        assert first.stop == second.start == width // 2


@pytest.mark.slow
def test_the_real_network_is_that_of_the_oracle():
    """`paper` at full size, as it is initialized, and in float32 within its own rounding."""
    model = AlexNet(PAPER, num_classes=1000)
    initialize_(model, seed=4)
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.normal(0, 60, (2, 3, 224, 224)).round().astype(np.float32))
    labels = torch.tensor([3, 997])
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    expected = expected_of(weights, images, labels)
    # Sums of up to 9,216 rounded products in a row: some hundred units in the last place at most.
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 200 * 2.0**-24)):
        model.to(dtype)
        logits = model(
            images.to(dtype), masks=model.dropout_masks(torch.arange(2), seed=SEED, step=STEP)
        )
        F.cross_entropy(logits, labels).backward()
        assert relative(logits.detach().numpy(), expected["logits"]) < tolerance
        with torch.no_grad():
            tested = model.eval()(images.to(dtype))
        assert relative(tested.numpy(), expected["tested"]) < tolerance
        for name, weight in model.named_parameters():
            assert relative(weight.grad.numpy(), expected[name]) < tolerance, name
        model.zero_grad()
