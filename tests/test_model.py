import dataclasses
import math

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F

from cuda_ext import momentum_sgd_
from replica.distributed.exchange import TwoDevices
from replica.feed.feed import TrainFeed
from replica.network.alexnet import AlexNet
from replica.network.dropout_masks import DropoutMask
from replica.network.initialization import initialize_
from replica.network.layers import SplitConv2d, SplitLinear
from replica.recipes import MINI, PAPER


def network(recipe=MINI, num_classes=10, seed=5):
    model = AlexNet(recipe, num_classes=num_classes).eval()
    initialize_(model, seed=seed)
    return model


# --- Wiring (Figure 2)


def activations(model, x):
    """The output of every convolution and linear layer."""
    seen, hooks = {}, []
    for name, module in model.named_children():
        if isinstance(module, (SplitConv2d, SplitLinear)):

            def record(_, __, y, name=name):
                seen[name] = y.detach().clone()

            hooks.append(module.register_forward_hook(record))
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return seen


def changed_towers(model, name):
    """In which towers of the later layers something changes if tower 0 of layer `name` does."""
    torch.manual_seed(1)
    x = torch.randn(1, 3, 224, 224) * 50
    before = activations(model, x)
    with torch.no_grad():
        # One kernel of tower 0 answers differently.
        model.get_parameter(f"{name}.bias")[0] += 100.0
    after = activations(model, x)
    changed = {}
    for layer, old in before.items():
        half = old.shape[1] // 2
        differs = (
            (old != after[layer]).flatten(2).any(-1)[0]
            if old.dim() > 2
            else (old != after[layer])[0]
        )
        changed[layer] = (bool(differs[:half].any()), bool(differs[half:].any()))
    return changed


@pytest.mark.parametrize(
    ("changed_layer", "expected"),
    [
        ("conv1", {"conv1": (1, 0), "conv2": (1, 0), "conv3": (1, 1), "conv4": (1, 1)}),
        ("conv2", {"conv1": (0, 0), "conv2": (1, 0), "conv3": (1, 1), "conv4": (1, 1)}),
        ("conv3", {"conv2": (0, 0), "conv3": (1, 0), "conv4": (1, 0), "conv5": (1, 0)}),
        ("conv4", {"conv3": (0, 0), "conv4": (1, 0), "conv5": (1, 0)}),
        ("conv5", {"conv4": (0, 0), "conv5": (1, 0)}),
        ("fc6", {"conv5": (0, 0), "fc6": (1, 0)}),
        ("fc7", {"fc6": (0, 0), "fc7": (1, 0)}),
    ],
)
def test_a_change_in_tower_0_reaches_exactly_the_layers_that_read_it(changed_layer, expected):
    model = network()
    changed = changed_towers(model, changed_layer)
    layers = list(changed)
    reached = False
    for layer in layers:
        if layer in expected:
            assert changed[layer] == tuple(map(bool, expected[layer])), layer
        elif reached:
            assert changed[layer] == (True, True), layer
        reached = reached or layer == changed_layer


def test_a_wired_up_network_would_fail_the_wiring_test():
    convs = tuple(dataclasses.replace(conv, reads_both_towers=True) for conv in MINI.convs)
    model = network(dataclasses.replace(MINI, convs=convs))
    assert changed_towers(model, "conv1")["conv2"] == (True, True)


def test_conv1_reads_three_zero_pixels_on_the_right_and_at_the_bottom():
    model = network().double()
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    conv1 = activations(model, x)["conv1"]
    padded = np.zeros((3, 227, 227))
    padded[:, :224, :224] = x[0].numpy()
    expected = oracles.convolution(
        padded[:, -51:, -51:],
        model.get_parameter("conv1.weight").detach().numpy(),
        model.get_parameter("conv1.bias").detach().numpy(),
        stride=4,
        groups=1,
    )
    assert conv1.shape == (1, 16, 55, 55)
    np.testing.assert_allclose(conv1[0, :, -11:, -11:].numpy(), expected, rtol=1e-12, atol=1e-12)


# --- Initialization (paper 5)


def test_the_papers_weights_have_deviation_001_and_its_biases_are_0_or_1():
    model = AlexNet(PAPER, num_classes=10)
    initialize_(model, seed=0)
    for name, parameter in model.named_parameters():
        layer, kind = name.split(".")
        if kind == "bias":
            expected = 1.0 if layer in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0
            assert (parameter == expected).all(), name
        else:
            # Five standard errors of a mean and of a standard deviation.
            n = parameter.numel()
            assert abs(parameter.mean().item()) < 5 * 0.01 / math.sqrt(n), name
            assert abs(parameter.std().item() / 0.01 - 1) < 5 / math.sqrt(2 * n), name


def test_each_tower_draws_its_half_of_the_whole_initialization():
    whole = dict(network(num_classes=7).named_parameters())
    for tower in (0, 1):
        placement = TwoDevices(tower=tower, peer=1 - tower)
        half = AlexNet(MINI, num_classes=7, placement=placement)
        initialize_(half, seed=5)
        for name, parameter in half.named_parameters():
            assert torch.equal(parameter, whole[name][placement.own(len(whole[name]))]), name


def test_mini_keeps_the_gain_of_every_layer_of_the_paper():
    def gains(recipe):
        with torch.device("meta"):
            model = AlexNet(recipe, num_classes=10)
        layers = (*recipe.convs, *recipe.fully_connected)
        return {
            layer.name: layer.weight_standard_deviation
            * math.sqrt(model.get_parameter(f"{layer.name}.weight")[0].numel())
            for layer in layers
        }

    papers = gains(PAPER)
    for name, gain in gains(MINI).items():
        assert gain == pytest.approx(papers[name], rel=1e-12), name


def test_mini_has_the_settings_that_reproduce_names():
    assert [conv.num_kernels for conv in MINI.convs] == [16, 32, 48, 48, 32]
    assert [layer.num_units for layer in MINI.fully_connected] == [1024, 1024, 10]
    assert (MINI.batch_size, MINI.learning_rate, MINI.epochs) == (32, 0.005, 22)
    assert (MINI.drop_rule, MINI.drop_epochs) == ("epochs", (19,))


@pytest.mark.slow
def test_std_001_at_the_width_of_mini_does_not_leave_ln_classes(tmp_path):
    """The reason for `mini`'s standard deviations: with the paper's own nothing is learned."""
    from conftest import SMALL

    from data_prep.build_shards import main as build_shards
    from data_prep.shards import open_data_set
    from data_prep.sources import toy

    size = dataclasses.replace(SMALL, train_per_class=100, val_per_class=1)
    toy.draw(tmp_path / "toy", size=size, num_workers=2)
    arguments = ["--source", "kaggle", "--input", str(tmp_path / "toy")]
    assert build_shards([*arguments, "--output", str(tmp_path / "shards")]) == 0
    data = open_data_set(tmp_path / "shards")

    def last_losses(recipe, num_steps):
        feed = TrainFeed(data, recipe, seed=1)
        model = network(recipe)
        weights = list(model.parameters())
        velocities = [torch.zeros_like(w) for w in weights]
        decays = [recipe.weight_decay if w.dim() > 1 else 0.0 for w in weights]
        losses = []
        for batch in feed.batches(0, num_steps):
            masks = model.dropout_masks(batch.rows, seed=1, step=batch.step)
            logits = model(batch.images, masks=masks)
            loss = F.cross_entropy(logits, batch.labels)
            gradients = list(torch.autograd.grad(loss, weights))
            momentum_sgd_(
                weights,
                velocities,
                gradients,
                learning_rates=[recipe.learning_rate] * len(weights),
                momentum=recipe.momentum,
                weight_decays=decays,
            )
            losses.append(loss.item())
        return np.mean(losses[-50:])

    def with_deviation(layers, deviation):
        return tuple(dataclasses.replace(x, weight_standard_deviation=deviation) for x in layers)

    flat = dataclasses.replace(
        MINI,
        convs=with_deviation(MINI.convs, 0.01),
        fully_connected=with_deviation(MINI.fully_connected, 0.01),
    )
    num_steps = 500
    # Above is where dropout and the fresh crops keep it: 2.323 was measured.
    assert last_losses(flat, num_steps) > math.log(10) - 0.02
    assert last_losses(MINI, num_steps) < math.log(10) - 0.15


# --- Dropout (paper 4.2)


def mask(rows, units, *, step=3, layer=0, seed=9, keep=0.5):
    draw = DropoutMask(seed, torch.tensor([step]), layer, torch.tensor(rows), units, keep)
    return draw(torch.ones(len(rows), units.stop - units.start)) > 0


def test_dropout_keeps_half_and_draws_anew_for_each_step_layer_and_row():
    first = mask(range(64), slice(0, 512))
    assert abs(first.double().mean().item() - 0.5) < 5 * 0.5 / math.sqrt(64 * 512)
    for other in (
        mask(range(64), slice(0, 512), step=4),
        mask(range(64), slice(0, 512), layer=1),
        mask(range(64), slice(0, 512), seed=10),
        mask(range(64, 128), slice(0, 512)),
    ):
        agreement = (first == other).double().mean().item()
        assert abs(agreement - 0.5) < 0.02
    quarter = mask(range(64), slice(0, 512), keep=0.25)
    assert abs(quarter.double().mean().item() - 0.25) < 0.02


def test_dropout_masks_do_not_depend_on_the_cut_over_processes():
    whole = mask(range(8), slice(0, 250))
    halves = [mask(range(8), slice(0, 125)), mask(range(8), slice(125, 250))]
    assert torch.equal(torch.cat(halves, dim=1), whole)
    shares = [mask(range(3), slice(0, 250)), mask(range(3, 8), slice(0, 250))]
    assert torch.equal(torch.cat(shares), whole)


def test_dropout_zeroes_without_scaling_in_training_and_halves_at_test():
    # A network of ones: fc7 sees the count of kept fc6 outputs; nothing else varies.
    model = AlexNet(MINI, num_classes=10).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.zero_()
            if name == "fc6.bias":
                parameter.fill_(1.0)
            if name in ("fc7.weight", "fc8.weight"):
                parameter.copy_(torch.eye(*parameter.shape))
    x = torch.zeros(4, 3, 224, 224)
    with torch.no_grad():
        trained = model(x, masks=model.dropout_masks(torch.arange(4), seed=1, step=0))
        tested = model(x)
    assert set(trained.unique().tolist()) == {0.0, 1.0}
    assert (tested == 0.25).all()  # after fc6 and after fc7
    both_kept = mask(range(4), slice(0, 10), step=0, layer=0, seed=1) & mask(
        range(4), slice(0, 10), step=0, layer=1, seed=1
    )
    assert torch.equal(trained == 1.0, both_kept)


def test_only_the_hidden_layers_fc6_and_fc7_drop():
    assert [fc.name for fc in PAPER.fully_connected if fc.dropout] == ["fc6", "fc7"]
