"""The CIFAR-10 nets of the 2012 source against a program in NumPy, written from the facts alone."""

import json
import math

import numpy as np
import pytest
import torch
from golden_values import OLD_RUN
from numpy.lib.stride_tricks import sliding_window_view

from data_prep.errors import UserError
from replica.network.alexnet import AlexNet
from replica.recipes import MINI, PAPER, find_recipe, from_record, with_changes
from replica.recipes.geometry import geometry
from replica.training.schedule import settings_at

NETS = ("cifar10-19pct", "cifar10-18pct", "cifar10-13pct", "cifar10-11pct")
FIGURE_1 = ("figure1-relu", "figure1-tanh")
# (kernels, inputs, side, places of its own) of each layer, and the places that fc10 reads.
CONVOLUTIONS = {"conv1": (32, 3, 5, 0), "conv2": (32, 32, 5, 0), "conv3": (64, 32, 5, 0)}
LAYERS = {
    "19": (CONVOLUTIONS, 64 * 4 * 4),
    "13": (
        {
            "conv1": (64, 3, 5, 0),
            "conv2": (64, 64, 5, 0),
            "local3": (32, 64, 3, 6),
            "local4": (32, 32, 3, 6),
        },
        32 * 6 * 6,
    ),
    "11": (
        {
            "conv1": (64, 3, 5, 0),
            "conv2": (64, 64, 5, 0),
            "local3": (64, 64, 3, 6),
            "local4": (32, 64, 3, 6),
        },
        32 * 6 * 6,
    ),
}
KINDS = {"18": "19"} | {kind: kind for kind in LAYERS}


def kind_of(name):
    return "19" if name.startswith("figure1") else name.removeprefix("cifar10-")[:2]


# --- The program in NumPy: float64, images (N, C, H, W)


def conv(x, w, b):
    side = w.shape[2]
    margin = side // 2
    x = np.pad(x, [(0, 0), (0, 0), (margin, margin), (margin, margin)])
    windows = sliding_window_view(x, (side, side), axis=(2, 3))
    if w.ndim == 6:
        return np.einsum("nchwij,kcijhw->nkhw", windows, w) + b
    return np.einsum("nchwij,kcij->nkhw", windows, w) + b[:, None, None]


def pool(x, take):
    """Windows of 3 x 3, two apart, as many as are needed to cover the map; cut off at its end."""
    side = math.ceil((x.shape[2] - 3) / 2) + 1
    y = np.empty((*x.shape[:2], side, side))
    for i in range(side):
        for j in range(side):
            y[:, :, i, j] = take(x[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], axis=(2, 3))
    return y


def same_map_norm(x):
    """Size 3, scale 5e-5 over 9, pow 0.75, windows cut off at the border."""
    sums = sliding_window_view(np.pad(x**2, [(0, 0), (0, 0), (1, 1), (1, 1)]), (3, 3), axis=(2, 3))
    return x * (1 + 5e-5 / 9 * sums.sum((4, 5))) ** -0.75


def lrn(x):
    """Size 9, scale 0.001 over 9, pow 0.75, over the channels."""
    squares = np.pad(x**2, [(0, 0), (4, 4), (0, 0), (0, 0)])
    sums = sliding_window_view(squares, 9, axis=1).sum(-1)
    return x * (1 + 0.001 / 9 * sums) ** -0.75


def logits(kind, weights, x, activation):
    def layer(name, x):
        return conv(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    if kind in ("19", "18"):
        norm = same_map_norm if kind == "18" else lambda x: x
        x = norm(activation(pool(layer("conv1", x), np.max)))
        x = norm(pool(activation(layer("conv2", x)), np.mean))
        x = pool(activation(layer("conv3", x)), np.mean)
    else:
        norm = lrn if kind == "11" else lambda x: x
        x = norm(pool(activation(layer("conv1", x)), np.max))
        x = pool(norm(activation(layer("conv2", x))), np.max)
        x = activation(layer("local4", activation(layer("local3", x))))
    return x.reshape(len(x), -1) @ weights["fc10.weight"].T + weights["fc10.bias"]


def loss(kind, weights, x, labels, activation):
    z = logits(kind, weights, x, activation)
    z = z - z.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    return -log_p[np.arange(len(x)), labels].mean()


def random_weights(kind, rng):
    convolutions, read = LAYERS[KINDS[kind]]
    weights = {}
    for name, (kernels, inputs, side, places) in convolutions.items():
        own = (places, places) if places else ()
        deviation = (1 if name == "conv1" else 2) / math.sqrt(inputs * side**2)
        weights[f"{name}.weight"] = rng.normal(0, deviation, (kernels, inputs, side, side, *own))
        weights[f"{name}.bias"] = rng.normal(0, 5, (kernels, *own))
    weights["fc10.weight"] = rng.normal(0, 0.02 / math.sqrt(read), (10, read))
    weights["fc10.bias"] = rng.normal(0, 1, 10)
    return weights


@pytest.mark.parametrize("name", [*NETS, *FIGURE_1])
def test_a_net_is_the_program_written_from_the_facts(name):
    """Logits, and the slope of the loss along a random direction of each tensor."""
    kind, rng = kind_of(name), np.random.default_rng(7)
    weights = random_weights(kind, rng)
    size = 24 if kind in ("13", "11") else 32
    x, labels = rng.normal(0, 60, (3, 3, size, size)), np.array([3, 0, 9])
    activation = np.tanh if name.endswith("tanh") else lambda x: np.maximum(x, 0)
    if name.endswith("tanh"):  # where tanh is not flat
        x /= 60
        weights |= {n: w / 5 for n, w in weights.items() if n.endswith("bias")}
        weights["fc10.weight"] *= 20

    model = AlexNet(find_recipe(name), num_classes=10).double()
    model.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()})
    z = model(torch.from_numpy(x))
    expected = logits(kind, weights, x, activation)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(z.detach().numpy(), expected, rtol=1e-9, atol=1e-11)

    torch.nn.functional.cross_entropy(z, torch.from_numpy(labels)).backward()
    for tensor, parameter in model.named_parameters():
        direction = rng.normal(0, 1, weights[tensor].shape)
        step = 1e-7 * np.linalg.norm(weights[tensor]) / np.linalg.norm(direction)
        ends = [weights | {tensor: weights[tensor] + s * step * direction} for s in (1, -1)]
        up, down = (loss(kind, end, x, labels, activation) for end in ends)
        slope = float((parameter.grad.numpy() * direction).sum())
        assert abs((up - down) / (2 * step) - slope) <= 1e-4 * max(abs(slope), 0.01), tensor


@pytest.mark.parametrize("name", NETS)
def test_first_weights_and_rates_are_those_of_the_source(name):
    recipe, kind = find_recipe(name), kind_of(name)
    convolutions, _ = LAYERS[KINDS[kind]]
    assert [layer.name for layer in recipe.layers] == [*convolutions, "fc10"]
    first = {"conv1": 1e-4, "local3": 0.04, "local4": 0.04}
    decay = {"conv1": 0.0, "conv2": 0.0} if kind in ("13", "11") else {}
    of_fc10 = {"19": 3.0, "18": 1.0, "13": 0.004, "11": 0.01}[kind]
    for layer in recipe.layers:
        assert layer.weight_standard_deviation == first.get(layer.name, 0.01), layer.name
        assert layer.bias == 0
        wanted = of_fc10 if layer.name == "fc10" else decay.get(layer.name, 0.004)
        got = recipe.weight_decay if layer.weight_decay is None else layer.weight_decay
        assert got == wanted, layer.name
    assert (recipe.momentum, recipe.batch_size, recipe.decay_biases) == (0.9, 128, False)
    assert (recipe.random_crops, recipe.random_flips) == ((kind in ("13", "11"),) * 2)
    assert (recipe.color_noise, recipe.image_order, recipe.pool_ties) == (0, "cycle", "all")


@pytest.mark.parametrize(
    ("name", "epochs", "drops"),
    [("cifar10-19pct", 140, (121, 131)), ("cifar10-13pct", 520, (501, 511))],
)
def test_the_drops_divide_the_rates_of_weights_and_biases(name, epochs, drops):
    recipe = find_recipe(name)
    assert recipe.epochs == epochs
    names = ["conv1.weight", "fc10.bias"]
    for epoch in (1, drops[0] - 1, *drops, epochs):
        factor = 0.1 ** sum(epoch >= drop for drop in drops)
        step = 7 * (epoch - 1) + 1
        rates = settings_at(recipe, names, step=step, steps_per_epoch=7, val_errors=[]).rates
        assert rates["conv1.weight"] == pytest.approx(0.001 * factor)
        assert rates["fc10.bias"] == pytest.approx(0.002 * factor)


def test_the_nets_of_figure_1_differ_in_the_activation_alone_and_regularize_nothing():
    relu, tanh = map(find_recipe, FIGURE_1)
    assert (relu.activation, tanh.activation) == ("relu", "tanh")
    assert with_changes(relu, ["activation=tanh"]).layers == tanh.layers
    for recipe in (relu, tanh):
        decays = {layer.weight_decay for layer in recipe.layers if layer.weight_decay is not None}
        assert (recipe.weight_decay, decays) == (0, {0})
        assert (recipe.drop_epochs, recipe.changes) == ((), ())
        assert not any(fc.dropout for fc in recipe.fully_connected)
    plain = find_recipe("cifar10-19pct")
    assert geometry(relu) == geometry(plain)


def test_windows_are_counted_up_where_the_recipe_says_so():
    sides = {"down": [27, 13, 13, 13, 6], "up": [27, 13, 13, 13, 6]}
    for rounding, wanted in sides.items():  # in the paper's net every pooling fits
        changed = with_changes(PAPER, [f"pool_rounding={rounding}"])
        assert [row.handed_on[1] for row in geometry(changed)[:5]] == wanted
    changed = with_changes(MINI, ["crop_size=92", "pool_rounding=up"])  # 21 -> 10 -> 5 -> 2
    assert [row.handed_on[1] for row in geometry(changed)[:5]] == [11, 5, 5, 5, 2]
    with pytest.raises(UserError, match=r"conv1: expected a pool_stride of at most its window"):
        with_changes(MINI, ["pool_rounding=up", "conv1.pool_stride=4"])
    with pytest.raises(UserError, match="pool_rounding: expected down or up, got nearest"):
        with_changes(MINI, ["pool_rounding=nearest"])


def test_a_record_without_the_rounding_rounds_down():
    record = json.loads((OLD_RUN / "run.json").read_text())["recipe"]
    assert "pool_rounding" not in record
    assert from_record(record).pool_rounding == PAPER.pool_rounding == "down"
