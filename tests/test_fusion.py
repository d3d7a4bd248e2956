"""The network does ReLU, normalization and pooling in one pass, and nobody can tell."""

import contextlib

import pytest
import torch
from network_workers import NARROW
from test_operators import needs_compiled
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from replica.network import fusion
from replica.network.alexnet import AlexNet
from replica.network.initialization import initialize_
from replica.recipes import with_changes

pytestmark = needs_compiled
SOURCE = ("conv1.order=normalization,pooling,activation", "conv2.normalization=lrn,same-map")


class Operators(TorchDispatchMode):
    """Names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function.overloadpacket).removeprefix("replica."))
        return function(*args, **(kwargs or {}))


def network(*changes, **options):
    recipe = with_changes(NARROW, ["crop_size=96", *changes])
    model = AlexNet(recipe, num_classes=5, **options)
    initialize_(model, seed=3)
    return model.to(memory_format=torch.channels_last).eval()


def images(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(4, 3, 96, 96, generator=generator) * 60).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def result_of(model, x):
    """Logits, gradients, and how often which operator of a fusion ran."""
    with Operators() as operators:
        y = model(x)
    gradients = torch.autograd.grad(y.square().sum(), list(model.parameters()))
    counts = [
        operators.names.count(name)
        for name in ("relu_lrn_pool", "local_response_norm", "aten.max_pool2d_with_indices")
    ]
    return y, gradients, counts


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ((), [2, 0, 1]),
        (SOURCE, [1, 1, 2]),
        (("conv1.pool_window=2",), [2, 0, 1]),
        (("conv1.pool_window=5",), [1, 1, 2]),
        (("conv1.pooling=average",), [1, 1, 1]),
        (("conv1.activation=tanh",), [1, 1, 2]),
        (("conv1.normalization=batch", "conv2.normalization=batch,lrn"), [0, 1, 3]),
        (("towers=1",), [2, 0, 1]),
        (("pool_ties=all",), [2, 0, 0]),
        (("conv2.pool_ties=all", "conv1.order=normalization,pooling,activation"), [2, 0, 1]),
    ],
    ids=str,
)
def test_layers_of_that_shape_take_one_pass_with_the_same_bits(changes, counts):
    x = images()
    fused, plain = network(*changes), network(*changes, fused=False)
    y, gradients, used = result_of(fused, x)
    expected, others, unused = result_of(plain, x)
    assert used == counts
    assert unused[0] == 0
    assert torch.equal(y, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
    for dtype in (torch.bfloat16, torch.float64):
        with torch.no_grad():
            assert torch.equal(*(m.to(dtype)(images(dtype)) for m in (fused, plain)))
        fused.float(), plain.float()


def rectified(model, x):
    """How often ReLU runs by itself."""
    with Operators() as operators, torch.no_grad():
        model(x)
    return operators.names.count("aten.relu")


@pytest.mark.parametrize(
    ("changes", "alone"),
    [
        ((), 2),  # behind fc6 and fc7; those of conv1 and conv2 are in the pass of three
        (SOURCE, 2),
        (("conv4.activation=tanh",), 2),
        (("conv4.is_local=true",), 3),
        (("conv5.order=normalization,pooling,activation",), 3),
        (("conv3.normalization=batch", "conv4.normalization=lrn"), 2),
    ],
    ids=str,
)
def test_a_relu_behind_a_convolution_is_done_as_that_ends(changes, alone):
    assert rectified(network(*changes), images()) == alone
    plain = network(*changes, fused=False)
    assert rectified(plain, images()) == sum(type(x) is nn.ReLU for x in plain.children())


@pytest.mark.parametrize("name", ["conv3", "conv3_activation"])
def test_a_hook_on_a_convolution_or_its_relu_is_called(name):
    model, x, seen = network(), images(), []
    expected = model(x)
    handle = model.get_submodule(name).register_forward_hook(lambda _, __, y: seen.append(y))
    assert rectified(model, x) == 3
    assert (seen[0].min() < 0) == (name == "conv3")
    assert torch.equal(model(x), expected)
    handle.remove()
    assert rectified(model, x) == 2


def test_modules_keep_their_names():
    names = [name for name, _ in network().named_children()]
    assert names == [name for name, _ in network(fused=False).named_children()]
    assert names[:4] == ["conv1", "conv1_activation", "conv1_lrn", "conv1_pooling"]


@pytest.mark.parametrize("changes", [(), ("conv1.order=normalization,pooling,activation",)])
def test_in_one_pass_all_of_tied_maxima_get_the_gradient_where_the_recipe_says_so(changes):
    """On one color, where all places but those at the border tie."""
    x = torch.full_like(images(), 50.0)
    ways = {
        (ties, fused): result_of(network(f"pool_ties={ties}", *changes, fused=fused), x)
        for ties in ("first", "all")
        for fused in (True, False)
    }
    for ties in ("first", "all"):
        (y, gradients, used), (expected, others, _) = ways[ties, True], ways[ties, False]
        assert used[0] == 2
        assert torch.equal(y, expected)
        assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
    assert torch.equal(ways["first", True][0], ways["all", True][0])
    first, of_all = ways["first", True][1][0], ways["all", True][1][0]
    assert (of_all - first).norm() > 0.1 * first.norm()


HOOKS = {
    "forward": lambda module, call: module.register_forward_hook(lambda *_: call()),
    "before": lambda module, call: module.register_forward_pre_hook(lambda *_: call()),
    "backward": lambda module, call: module.register_full_backward_hook(lambda *_: call()),
    "before backward": lambda module, call: module.register_full_backward_pre_hook(
        lambda *_: call()
    ),
}


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("name", ["conv1_activation", "conv1_lrn", "conv1_pooling"])
def test_a_hook_on_any_of_the_three_is_called(kind, name):
    model, x, seen = network(), images().requires_grad_(), []
    expected = model(x)
    handle = HOOKS[kind](model.get_submodule(name), lambda: seen.append(1) and None)
    y, _, counts = result_of(model, x)
    assert len(seen) == 1
    assert counts == [1, 1, 2]
    assert torch.equal(y, expected)
    handle.remove()
    assert result_of(model, x)[2] == [2, 0, 1]


def test_a_hook_of_all_modules_sees_each():
    model, seen = network(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(handle.remove)
        model(images())
    assert model.conv1_lrn in seen


@pytest.mark.parametrize("changes", [(), ("pool_ties=all",)], ids=str)
def test_a_graph_has_the_modules_and_the_same_bits(changes):
    model, x = network(*changes), images()
    expected = model(x)
    traced = torch.fx.symbolic_trace(model, concrete_args={"masks": None})
    names = {str(node.target) for node in traced.graph.nodes}
    assert "conv1_activation" in names
    assert {"conv1_pooling", "conv2_pooling"} <= names or "max_pool2d" in str(traced.graph)
    assert "local_response_norm" in str(traced.graph)
    assert torch.equal(traced(x), expected)
    exported = torch.export.export(model, (x,))
    assert "relu_lrn_pool" not in str(exported.graph)
    assert torch.equal(exported.module()(x), expected)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), expected)


@pytest.mark.parametrize(
    "place", ["compiler.is_compiling", "compiler.is_exporting", "jit.is_tracing"]
)
def test_the_modules_run_whoever_traces(place, monkeypatch):
    model = network()
    children = list(model.children())
    for modules, x in (
        (children[1:5], torch.ones(1, 16, 5, 5)),
        (children[8:12], torch.ones(1, 20, 5, 5)),
    ):
        with torch.no_grad():
            assert fusion.fuse(modules, x)[1] == (3 if modules[0] is children[1] else 2)
            with monkeypatch.context() as patch:
                patch.setattr(f"torch.{place}", lambda: True)
                assert fusion.fuse(modules, x) is None


def test_a_module_of_another_kind_runs_itself():
    model = network()
    model.conv1_pooling = nn.MaxPool2d(3, 2, padding=1)
    model.conv2_lrn = nn.Identity()
    with Operators() as operators, torch.no_grad(), contextlib.suppress(RuntimeError):
        model(images())
    assert "relu_lrn_pool" not in operators.names
