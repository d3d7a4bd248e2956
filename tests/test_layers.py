"""The modules of the network against loops, and what other programs see of it."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data_prep.errors import UserError
from replica.distributed.exchange import TwoDevices
from replica.network.alexnet import AlexNet
from replica.network.initialization import initialize_
from replica.network.layers import BatchNorm, SameMapNorm, SplitLinear, SplitLocal2d
from replica.network.placement import Placement
from replica.recipes import MINI, PAPER, with_changes
from replica.recipes.geometry import LayerGeometry, geometry

NUM_CLASSES = 10


def network(*changes, recipe=MINI):
    model = AlexNet(with_changes(recipe, list(changes)), num_classes=NUM_CLASSES)
    initialize_(model, seed=5)
    return model


def images(side, num=2):
    generator = torch.Generator().manual_seed(3)
    return 50 * torch.randn(num, 3, side, side, generator=generator, dtype=torch.float64)


def row(**fields):
    """A layer's geometry in which only what its module reads is said."""
    empty = dict.fromkeys(("input_shape", "output_shape", "handed_on"), ())
    others = {"name": "x", "kernel_size": 0, "stride": 1, "padding": (0, 0), "receptive_field": 0}
    return LayerGeometry(**{**empty, **others, **fields})


def filled(module):
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


# --- Single layers


def same_map_loops(x, *, n, k, alpha, beta):
    y = np.empty_like(x)
    reach = n // 2
    for image, channel, i, j in np.ndindex(*x.shape):
        window = x[
            image, channel, max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1
        ]
        y[image, channel, i, j] = x[image, channel, i, j] / (k + alpha * (window**2).sum()) ** beta
    return y


def test_same_map_normalization_is_the_sources_formula():
    x = np.random.default_rng(0).normal(0, 60, (2, 3, 7, 6))
    right = {"n": 5, "k": 1.0, "alpha": 0.001 / 25, "beta": 0.75}
    got = SameMapNorm(**right)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, same_map_loops(x, **right), rtol=1e-12)
    for name, wrong in (("n", 3), ("k", 2.0), ("alpha", 0.001), ("beta", 0.5)):
        far = np.abs(same_map_loops(x, **{**right, name: wrong}) / got - 1).max()
        assert far > 0.01, name


def test_a_recipe_has_the_same_map_normalization_of_the_source():
    module = network("conv2.normalization=lrn,same-map").conv2_same_map
    assert (module.n, module.k, module.alpha, module.beta) == (5, 1.0, 4e-5, 0.75)


@pytest.mark.parametrize("towers", [1, 2])
def test_a_locally_connected_layer_has_kernels_and_biases_of_its_own_at_each_place(towers):
    stride, kernel, (before, after) = 2, 3, (0, 1)
    num_kernels, channels, side = 4, 6, 6
    out = (side + before + after - kernel) // stride + 1
    shape = (num_kernels, channels // towers, kernel, kernel, out, out)
    layer = row(
        reads="own tower" if towers == 2 else "all",
        weight_shape=shape,
        bias_shape=(num_kernels, out, out),
        stride=stride,
        padding=(before, after),
    )
    module = filled(SplitLocal2d(layer, Placement(towers)))
    x = (
        images(side)[:, :1].expand(-1, channels, -1, -1)
        * torch.arange(1, channels + 1)[:, None, None]
    )
    got = module(x).detach().numpy()
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (before, after), (before, after)))
    weight, bias = module.weight.detach().numpy(), module.bias.detach().numpy()
    for image, k, i, j in np.ndindex(*got.shape):
        tower = k // (num_kernels // towers)
        own = slice(tower * channels // towers, (tower + 1) * channels // towers)
        window = padded[image, own, 2 * i : 2 * i + kernel, 2 * j : 2 * j + kernel]
        expected = (window * weight[k, :, :, :, i, j]).sum() + bias[k, i, j]
        assert got[image, k, i, j] == pytest.approx(expected, rel=1e-10)


def test_a_linear_layer_can_read_its_own_tower_alone():
    layer = row(reads="own tower", weight_shape=(6, 8), bias_shape=(6,))
    module = filled(SplitLinear(layer, Placement(2)))
    x = images(2)[:, :1].expand(-1, 4, -1, -1) * torch.arange(1, 5)[:, None, None]
    got, flat = module(x).detach(), x.flatten(1)
    weight, bias = module.weight.detach(), module.bias.detach()
    expected = torch.cat([flat[:, :8] @ weight[:3].T, flat[:, 8:] @ weight[3:].T], 1) + bias
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def test_batch_normalization_is_the_formula_and_follows_the_statistics():
    x = images(4, num=5)[:, :, :3]
    module = filled(BatchNorm(3, num_dimensions=4, placement=Placement(1)).double())
    got = module(x).detach().numpy()
    values = x.numpy()
    mean, var = values.mean((0, 2, 3)), values.var((0, 2, 3))
    weight, bias = (p.detach().numpy()[:, None, None] for p in module.parameters())
    normal = (values - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
    np.testing.assert_allclose(got, normal * weight + bias, rtol=1e-10)
    count = values.size / 3
    np.testing.assert_allclose(module.running_mean.numpy(), 0.1 * mean, rtol=1e-12)
    unbiased = var * count / (count - 1)
    np.testing.assert_allclose(module.running_var.numpy(), 0.9 + 0.1 * unbiased, rtol=1e-12)
    tested = module.eval()(x).detach().numpy()
    running = np.sqrt(0.9 + 0.1 * unbiased[:, None, None] + 1e-5)
    expected = (values - 0.1 * mean[:, None, None]) / running * weight + bias
    np.testing.assert_allclose(tested, expected, rtol=1e-10)
    assert torch.autograd.gradcheck(module.train(), x.requires_grad_())


# --- What a recipe says of its layers is what the network does


def lrn(x, towers):
    """Torch divides alpha by n; each tower by itself."""
    parts = x.chunk(towers, 1)
    return torch.cat([F.local_response_norm(p, 5, 5e-4, 0.75, 2.0) for p in parts], 1)


def test_every_field_of_a_layer_reaches_the_network():
    """Layer 1 as the 2012 source has it, and one of everything else; steps by hand."""
    model = network(
        "crop_size=96",
        "conv1.order=normalization,pooling,activation",
        "conv2.normalization=lrn,same-map",
        "conv2.activation=tanh",
        "conv3.reads_both_towers=false",
        "conv3.num_kernels=32",
        "conv4.pooling=average",
        "conv4.pool_window=2",
        "conv4.pool_stride=1",
        "conv5.padding=2,1",
        "fc6.num_units=20",
        "fc6.dropout=false",
        "fc7.reads_both_towers=false",
        "activation=relu",
        "fc7.activation=linear",
    ).double()
    model.eval()
    w = dict(model.named_parameters())
    x = images(96)

    def conv(name, x, groups, padding, stride=1):
        before, after = padding
        x = F.pad(x, (before, after, before, after))
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=stride, groups=groups)

    y = F.max_pool2d(lrn(conv("conv1", x, 1, (0, 3), 4), 2), 3, 2).relu()
    y = lrn(conv("conv2", y, 2, (2, 2)).tanh(), 2)
    y = torch.from_numpy(same_map_loops(y.detach().numpy(), n=5, k=1.0, alpha=4e-5, beta=0.75))
    y = F.max_pool2d(y, 3, 2)
    y = conv("conv3", y, 2, (1, 1)).relu()
    y = F.avg_pool2d(conv("conv4", y, 2, (1, 1)).relu(), 2, 1)
    y = F.max_pool2d(conv("conv5", y, 2, (2, 1)).relu(), 3, 2).flatten(1)
    y = F.linear(y, w["fc6.weight"], w["fc6.bias"]).relu()
    halves = zip(y.chunk(2, 1), w["fc7.weight"].chunk(2), strict=True)
    y = torch.cat([F.linear(part, weight) for part, weight in halves], 1) + w["fc7.bias"]
    y = F.linear(0.5 * y, w["fc8.weight"], w["fc8.bias"])
    torch.testing.assert_close(model(x), y, rtol=1e-9, atol=0)


def test_a_layer_left_out_leaves_the_others_as_they_were():
    model = network("without=conv4")
    assert "conv4.weight" not in dict(model.named_parameters())
    assert model.conv5.weight.shape == (32, 24, 3, 3)
    names = [name for name, _ in model.named_children()]
    assert names.index("conv5") == names.index("conv3_activation") + 1


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("without=conv4", "conv5.kernel_size=5"),
        ("conv1.pooling=none", "conv1.stride=8"),
        ("crop_size=131", "conv2.padding=0,1"),
        ("conv4.is_local=true", "towers=1"),
        ("conv5.normalization=batch", "fc6.normalization=batch"),
    ],
    ids=str,
)
def test_the_table_of_geometry_is_what_the_network_computes(changes):
    recipe = with_changes(MINI, list(changes))
    model = AlexNet(recipe, num_classes=NUM_CLASSES).eval()
    initialize_(model, seed=1)
    outputs = {}
    for name, module in model.named_children():
        module.register_forward_hook(
            lambda _, inputs, y, name=name: outputs.update({name: (inputs[0], y)})
        )
    with torch.no_grad():
        model(torch.randn(1, 3, recipe.crop_size, recipe.crop_size))
    table = geometry(recipe, num_classes=NUM_CLASSES)
    for layer, following in itertools.pairwise([*table, None]):
        read, output = outputs[layer.name]
        assert layer.input_shape == read.shape[1:] or layer.num_inputs == read[0].numel()
        assert layer.output_shape == output.shape[1:]
        weight, bias = (model.get_parameter(f"{layer.name}.{kind}") for kind in ("weight", "bias"))
        assert (layer.weight_shape, layer.bias_shape) == (weight.shape, bias.shape)
        assert layer.parameters == weight.numel() + bias.numel()
        assert layer.fan_in == weight[0].numel() // (
            output[0, 0].numel() if weight.dim() == 6 else 1
        )
        if following is not None:
            assert layer.handed_on == following.input_shape
    normal = sum(p.numel() for name, p in model.named_parameters() if "_batch" in name)
    assert sum(layer.parameters for layer in table) + normal == sum(
        p.numel() for p in model.parameters()
    )


def test_the_receptive_field_is_the_part_of_the_crop_that_moves_an_output():
    model = network().double().eval()
    fields = {layer.name: layer.receptive_field for layer in geometry(model.recipe)}
    for name, expected in (
        ("conv1", 11),
        ("conv2", 51),
        ("conv3", 99),
        ("conv5", 163),
        ("fc6", 224),
    ):
        assert fields[name] == expected
    seen = {}
    handle = model.conv3.register_forward_hook(lambda _, __, y: seen.update(y=y))
    x = images(224, num=1).requires_grad_()
    model(x)
    handle.remove()
    moved = torch.autograd.grad(seen["y"][0, :, 6, 6].sum(), x)[0][0].abs().sum((0, 1))
    inside = moved.nonzero()
    assert int(inside.max() - inside.min()) + 1 <= 99
    assert int(inside.max() - inside.min()) + 1 > 90  # maxima leave out some at the border


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["crop_size=20"], ("conv2", "3 x 3", "1 x 1", "crops of 20", "crop_size=64")),
        (["crop_size=32", "conv1.kernel_size=40"], ("conv1", "40 x 40", "35 x 35", "crop_size=")),
        (["conv1.kernel_size=203"], ("conv5", "crops of 224", "crop_size=256")),
        (["conv1.kernel_size=400"], ("no crop of up to 256 pixels works",)),
        # 257 would do.
        (["conv1.padding=0,2", "conv5.pool_window=15"], ("no crop of up to 256 pixels works",)),
        (["conv3.num_kernels=5"], ("conv3", "even width", "5")),
        (["conv9.stride=1"], ("conv9", "conv1, conv2")),
        (["conv3.strde=1"], ("strde", "stride")),
        (["conv3.stride=x"], ("an integer for conv3.stride", "'x'")),
        (["conv3.stride=0"], ("conv3.stride: expected at least 1, at most 1,000,000, got 0",)),
        (["conv2.normalization=lnr"], ("conv2.normalization", "lrn, same-map, batch", "lnr")),
        (["conv1.order=pooling"], ("conv1.order", "activation, normalization, pooling")),
        (["activation=sigmoid"], ("activation: expected relu or tanh or linear, got sigmoid",)),
        (["conv1.pooling=min"], ("conv1.pooling", "max or average or none", "min")),
        (["without=conv7"], ("conv7",)),
        (["without=conv4", "conv4.stride=2"], ("without=conv4",)),
        (["fc8.reads_both_towers=false"], ("fc8.reads_both_towers", "both towers")),
        (["fc8.dropout=true"], ("fc8", "logits")),
        (["conv1.padding=1"], ("conv1.padding", "two numbers")),
        (["conv2.padding=2,6"], ("conv2.padding: expected at most the 5 of its kernels, got 2,6",)),
        (["conv1.weight_decay=-1"], ("conv1.weight_decay", ">= 0", "-1")),
        (["without=fc6,fc7,fc8"], ("a fully connected one",)),
    ],
    ids=str,
)
def test_a_wrong_change_is_one_line_with_the_value_and_the_rule(changes, words):
    with pytest.raises(UserError) as error:
        with_changes(PAPER, changes)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_mini_keeps_the_gain_of_paper_where_a_change_moves_a_fan_in():
    papers = {layer.name: 0.01 * layer.fan_in**0.5 for layer in geometry(PAPER)}
    for changes in (["crop_size=112"], ["conv2.num_kernels=64"], ["conv3.reads_both_towers=false"]):
        recipe = with_changes(MINI, changes)
        for layer in geometry(recipe):
            deviation = recipe.layer(layer.name).weight_standard_deviation
            assert deviation * layer.fan_in**0.5 == pytest.approx(papers[layer.name], rel=1e-12)
    own = with_changes(MINI, ["crop_size=112", "fc6.weight_standard_deviation=0.5"])
    assert own.layer("fc6").weight_standard_deviation == 0.5
    # Nothing is kept where nothing moved: a deviation of one's own stays.
    assert with_changes(own, ["learning_rate=0.1"]) == with_changes(
        own, ["lr=0.1".replace("lr", "learning_rate")]
    )
    assert with_changes(own, ["crop_size=112"]).layer("fc6").weight_standard_deviation == 0.5
    assert with_changes(PAPER, ["crop_size=112"]).layer("fc6").weight_standard_deviation == 0.01


# --- What other programs see


def test_print_shows_the_layers_in_the_order_in_which_they_run():
    lines = str(network()).splitlines()
    first = [line.split("(")[1].split(")")[0] for line in lines[1:6]]
    assert first == ["conv1", "conv1_activation", "conv1_lrn", "conv1_pooling", "conv2"]
    assert (
        "16 x 3 x 11 x 11, reads image, stride=4, padding=(0, 3), split_conv2d of towers=1"
        in (lines[1])
    )
    assert "n=5, k=2.0, alpha=0.0001, beta=0.75, towers=2" in lines[3]


def test_a_network_is_told_who_multiplies():
    model = network()
    model.set_products_({f"conv{number}": "own" for number in (1, 3, 4, 5)})
    for number in range(1, 6):
        products = "measured" if number == 2 else "own"
        assert str(model.get_submodule(f"conv{number}")).endswith(f"products={products})")


def test_a_hook_sees_each_layer_in_both_placements():
    for placement, units in ((Placement(2), 1024), (TwoDevices(tower=0, peer=1), 512)):
        model = AlexNet(MINI, num_classes=NUM_CLASSES, placement=placement)
        assert model.fc7.weight.shape[0] == units
        seen = []
        model.conv1_pooling.register_forward_hook(
            lambda _, __, y, seen=seen: seen.append(y.shape[1])
        )
        module_names = [name for name, _ in model.named_children()]
        x = torch.zeros(1, 3, 224, 224)
        for name in module_names[: module_names.index("conv2")]:
            x = model.get_submodule(name)(x)
        assert seen == [model.conv1.weight.shape[0]]


def test_symbolic_tracing_gives_the_same_network_with_and_without_masks():
    model = network("crop_size=96").eval()
    traced = torch.fx.symbolic_trace(model)
    x = images(96).float()
    masks = model.dropout_masks(torch.arange(2), seed=1, step=0)
    with torch.no_grad():
        assert torch.equal(traced(x), model(x))
        assert torch.equal(traced(x, masks), model(x, masks))
    modules = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert {"conv1_pooling", "conv5_activation"} <= modules


def test_features_can_be_read_by_name(monkeypatch):
    """As torchvision's feature extraction does, by a traced graph that ends earlier."""
    model = network("crop_size=96").eval()
    traced = torch.fx.symbolic_trace(model)
    graph = traced.graph
    node = next(node for node in graph.nodes if node.name == "fc7_activation")
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = (node,)
    graph.eliminate_dead_code()
    traced.recompile()
    seen = []
    model.fc7_activation.register_forward_hook(lambda _, __, y: seen.append(y))
    x = images(96).float()
    with torch.no_grad():
        model(x)
        assert torch.equal(traced(x), seen[0])
    assert seen[0].shape == (2, 1024)


def test_export_gives_the_same_network():
    model = network("crop_size=96").eval()
    x = images(96).float()
    exported = torch.export.export(model, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), model(x), rtol=1e-5, atol=1e-5)


def test_training_mode_drops_by_torchs_generator_where_no_masks_are_given():
    model = network("crop_size=96").train()
    x = images(96).float()
    seen = []
    model.fc6_dropout.register_forward_hook(lambda _, inputs, y: seen.append((inputs[0], y)))
    with torch.no_grad():
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            model(x)
    (before, after), same, other = seen
    assert torch.equal(after, same[1])
    assert not torch.equal(after, other[1])
    stays = after[before > 0] > 0
    assert 0.3 < stays.float().mean() < 0.7
    assert torch.equal(after[after > 0], before[after > 0])


def test_for_onnx_a_network_is_made_of_its_operators(monkeypatch):
    model = network("crop_size=96", "conv5.pool_ties=all").eval()
    x = images(96).float()
    with torch.no_grad():
        expected = model(x)
        monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
        traced = torch.export.export(model, (x,))
        torch.testing.assert_close(traced.module()(x), expected, rtol=1e-5, atol=1e-5)
    assert not [node for node in traced.graph.nodes if "replica" in str(node.target)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the exporter itself
def test_onnx_gives_the_same_network(tmp_path):
    pytest.importorskip("onnxscript", reason="ONNX export needs onnx and onnxscript")
    from onnx.reference import ReferenceEvaluator

    model = network("crop_size=96").eval()
    x = images(96).float()
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    evaluator = ReferenceEvaluator(str(tmp_path / "model.onnx"))
    (logits,) = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(x).numpy(), rtol=1e-4, atol=1e-5)
