"""What the recipes of other systems need of a network and of its images, against plain loops."""

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_user_error
from runs import last_checkpoint, train

from replica.feed.feed import TrainFeed
from replica.feed.images import mean_image_of
from replica.network.alexnet import AlexNet
from replica.network.initialization import initialize_
from replica.network.kernels import rgb_kernels
from replica.network.layers import Dropout, Input
from replica.recipes import MINI, RECIPES, with_changes
from replica.recipes.geometry import geometry
from replica.training.checkpoint import Checkpoint
from replica.training.weights import converted


def network(*changes, seed=5):
    model = AlexNet(with_changes(MINI, list(changes)), num_classes=10)
    initialize_(model, seed=seed)
    return model.double().eval()


def pixels(num=2, side=224):
    generator = torch.Generator().manual_seed(3)
    return 60 * torch.randn(num, 3, side, side, generator=generator, dtype=torch.float64)


def test_counts_and_shapes_are_those_of_the_systems():
    """Of torchvision its own count; Caffe's layers have the paper's shapes but for the crop."""
    layers = {name: geometry(RECIPES[name]) for name in ("torchvision", "caffe-alexnet", "paper")}
    assert sum(layer.parameters for layer in layers["torchvision"]) == 61_100_840
    for ours, papers in zip(layers["caffe-alexnet"], layers["paper"], strict=True):
        assert ours.weight_shape == papers.weight_shape
        assert ours.output_shape == papers.output_shape
    assert [layer.handed_on for layer in layers["torchvision"]][4] == (256, 6, 6)


def test_pixels_are_divided_and_blue_is_first():
    x = pixels()
    divided = Input(divisor=(2.0, 4.0, 8.0), channels="bgr")(x)
    for place, (channel, divisor) in enumerate([(2, 8), (1, 4), (0, 2)]):
        assert torch.equal(divided[:, place], x[:, channel] / divisor)
    plain, bgr = network(), network("channels=bgr")
    assert "input" not in dict(plain.named_children())
    assert plain.state_dict().keys() == bgr.state_dict().keys()
    assert torch.equal(bgr(x), plain(x.flip(1)))
    divided = network("pixel_divisor=2,4,8")
    assert torch.equal(divided(x), plain(x / torch.tensor([2.0, 4.0, 8.0]).view(3, 1, 1)))


def test_kernels_are_drawn_red_first():
    weights = torch.arange(3.0).view(1, 3, 1, 1)
    assert rgb_kernels(weights, MINI).flatten().tolist() == [0, 1, 2]
    bgr = with_changes(MINI, ["channels=bgr"])
    assert rgb_kernels(weights, bgr).flatten().tolist() == [2, 1, 0]


def lrn_loops(x, *, borders, n, k, alpha, beta):
    """Paper 3.3, with windows that end at these channels; x is (N, C, H, W)."""
    y = np.empty_like(x)
    for channel in range(x.shape[1]):
        first = max(b for b in borders if b <= channel)
        end = min(b for b in borders if b > channel)
        window = x[:, max(first, channel - n // 2) : min(end, channel + n // 2 + 1)]
        y[:, channel] = x[:, channel] / (k + alpha * (window**2).sum(1)) ** beta
    return y


@pytest.mark.parametrize("scope", ["tower", "layer"])
@pytest.mark.parametrize("fused", [True, False])
def test_windows_end_at_the_tower_or_at_the_layer(scope, fused):
    letters = ["lrn_alpha=0.01", "lrn_k=1", f"lrn_scope={scope}"]
    recipe = with_changes(MINI, letters)
    model = AlexNet(recipe, num_classes=10, fused=fused).double().eval()
    initialize_(model, seed=5)
    outputs = {}
    for name in ("conv1", "conv1_lrn" if not fused else "conv2"):
        module = model.get_submodule(name)
        if fused and name == "conv2":
            module.register_forward_pre_hook(lambda _, x: outputs.update(pooled=x[0]))
        else:
            module.register_forward_hook(lambda _, __, y, name=name: outputs.update({name: y}))
    with torch.no_grad():
        model(pixels())
    x = outputs["conv1"].relu().numpy()
    borders = [0, 8, 16] if scope == "tower" else [0, 16]
    expected = torch.from_numpy(lrn_loops(x, borders=borders, n=5, k=1, alpha=0.01, beta=0.75))
    got = outputs["pooled"] if fused else outputs["conv1_lrn"]
    expected = F.max_pool2d(expected, 3, 2) if fused else expected
    assert torch.allclose(got, expected, rtol=1e-12, atol=0)


def test_two_devices_refuse_windows_across_the_towers(shards_dir, tmp_path):
    options = ("--gpus", "2", "--set", "lrn_scope=layer")
    result = train(shards_dir, tmp_path / "run", *options)
    assert_user_error(result, "recipe mini: lrn_scope=layer", "--split 1")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("scale", ["test", "training"])
def test_dropout_multiplies_at_test_or_in_training(scale):
    x = torch.linspace(0.5, 1.5, 1000, dtype=torch.float64).view(10, 100)
    module = Dropout("fc6", keep=0.8, scale=scale)
    assert torch.allclose(module.eval()(x), x * 0.8 if scale == "test" else x, rtol=1e-15)
    y = module.train()(x)
    stays = y != 0
    assert 700 < stays.sum() < 880
    assert torch.allclose(y[stays], (x if scale == "test" else x / 0.8)[stays], rtol=1e-15)


def test_dropout_behind_a_convolution_draws_each_of_its_outputs():
    """32 maps of 6 x 6 before fc6, at a number behind those of the fully connected layers."""
    model = network("conv5.dropout=true", "dropout_scale=training").train()
    rows = torch.tensor([3, 77])
    masks = model.dropout_masks(rows, seed=9, step=4)
    assert list(masks) == ["fc6", "fc7", "conv5"]
    outputs = {}
    for name in ("conv5_pooling", "conv5_dropout"):
        module = model.get_submodule(name)
        module.register_forward_hook(lambda _, __, y, name=name: outputs.update({name: y}))
    with torch.no_grad():
        model(pixels(), masks)
    number, units = 3 + 4, np.arange(32 * 6 * 6)
    for x, y, row in zip(outputs["conv5_pooling"], outputs["conv5_dropout"], rows, strict=True):
        counters = np.array([[4, number, int(row), u // 4] for u in units])
        words = oracles.philox(9, oracles.DROPOUT, counters)[np.arange(len(units)), units % 4]
        expected = np.where(words < 2**31, 2 * x.flatten().numpy(), 0)
        assert np.array_equal(y.flatten().numpy(), expected)
    assert (outputs["conv5_dropout"] != 0).any()


def test_one_color_is_subtracted_in_place_of_the_mean_image(data):
    recipe = with_changes(MINI, ["pixel_mean=100,50,25", "color_noise=0"])
    plain = TrainFeed(data, with_changes(MINI, ["color_noise=0"]), seed=1).batch(0)
    batch = TrainFeed(data, recipe, seed=1).batch(0)
    colors = torch.tensor([100.0, 50.0, 25.0]).view(3, 1, 1)
    whole = batch.images + colors
    assert torch.equal(whole, whole.round())
    assert (whole.min(), whole.max()) >= (0, 200)
    assert not torch.equal(batch.images, plain.images)
    mean = mean_image_of(recipe, data.statistics.mean_image)
    assert mean.shape == (256, 256, 3)
    assert mean.dtype == np.float32
    assert mean_image_of(MINI, data.statistics.mean_image) is data.statistics.mean_image


def test_a_checkpoint_holds_the_color_and_validation_subtracts_it(shards_dir, tmp_path):
    options = ("--set", "pixel_mean=100,50,25", "--steps", "4", "--seed", "1")
    result = train(shards_dir, tmp_path / "run", *options)
    assert result.returncode == 0, result.stderr
    saved = last_checkpoint(tmp_path / "run")
    assert saved["mean_image"].reshape(-1, 3).unique(dim=0).tolist() == [[100, 50, 25]]


CHANGES = ["channels=bgr", "pixel_divisor=50,60,70", "dropout_scale=training"]


@pytest.mark.parametrize("change", [*CHANGES, "all"])
@pytest.mark.parametrize("way", ["there", "back"])
def test_weights_of_another_recipe_give_the_same_outputs(change, way):
    changes = CHANGES if change == "all" else [change]
    recipes = [MINI, with_changes(MINI, changes)]
    began, goes_on = recipes if way == "there" else recipes[::-1]
    model = AlexNet(began, num_classes=10)
    initialize_(model, seed=3)
    source = checkpoint_of(began, model)
    taken, words = converted(source, goes_on)
    assert len(words) == len(changes) + (changes[-1] == CHANGES[-1])
    other = AlexNet(goes_on, num_classes=10)
    other.load_state_dict(taken.model)
    x = pixels().float()
    with torch.no_grad():
        expected, got = model.eval()(x), other.eval()(x)
    assert (got - expected).norm() < 1e-5 * expected.norm()
    same, words = converted(source, began)
    assert words == []
    assert all(same.model[name] is tensor for name, tensor in source.model.items())


def checkpoint_of(recipe, model):
    empty = {key: [] for key in ("velocities", "val_errors", "wnids", "class_names")}
    zeros = dict.fromkeys(("mean_image", "eigenvalues", "eigenvectors"), torch.zeros(3))
    return Checkpoint(
        model=model.state_dict(),
        recipe=recipe,
        num_classes=10,
        step=0,
        epoch=1,
        best_step=None,
        seed=0,
        **empty,
        **zeros,
    )
