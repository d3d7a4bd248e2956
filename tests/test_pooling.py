"""`max_pool2d` and `relu_lrn_pool` against loops in NumPy: reference, compiled code, GPU kernels.

The rule of ties is exact, so pooling alone is compared bit for bit; the fused operator is compared
with its three modules bit for bit, too, and with float64 loops.
"""

import itertools

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from conftest import PROJECT_DIR, run
from emulated import Emulation, Mistake, needs_compiler
from test_operators import instruction_set, needs_compiled  # noqa: F401

import cuda_ext
from cuda_ext import local_response_norm, max_pool2d, reference, relu_lrn_pool

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}
LETTERS = {"n": 5, "k": 2.0, "alpha": 1e-4, "beta": 0.75}
ORDERS = ("relu-norm-pool", "norm-pool-relu")
TIES = ("first", "all")
# The paper's windows, the ones that do not overlap, those that leave rows out, and larger ones.
WINDOWS = ((3, 2), (2, 2), (3, 1), (1, 1), (2, 3), (4, 3), (1, 2))
# Partial and several vectors of every instruction set.
SHAPES = ((2, 6, 7, 9), (1, 40, 5, 4), (2, 1, 35, 37), (1, 34, 4, 71))


def integers(shape, dtype=torch.float64, seed=0):
    """Few different values, so that nearly every window has ties."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(-2, 3, shape).astype(np.float64)).to(dtype)


def activations(shape, dtype=torch.float64, seed=0):
    """Of the size that activations have in the network, so that alpha matters; some are 0."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape) * 80
    values[rng.random(shape) < 0.1] = 0
    return torch.from_numpy(values).to(dtype)


def like(gradient_of, shape, dtype):
    return gradient_of((*shape[:2], *shape[2:]), dtype, seed=1)


def pooled_shape(shape, window, stride):
    return (*shape[:2], *((size - window) // stride + 1 for size in shape[2:]))


# --- The oracle: loops over windows and their places


def pool_loops(x, window, stride, ties="first"):
    """Maxima, and of each window the places (row, column) that get its gradient."""
    images, channels, rows, columns = pooled_shape(x.shape, window, stride)
    y = np.empty((images, channels, rows, columns))
    winners = {}
    for index in np.ndindex(y.shape):
        i, c, r, q = index
        places = [(r * stride + a, q * stride + b) for a in range(window) for b in range(window)]
        values = [x[i, c, row, column] for row, column in places]
        y[index] = max(values)
        equal = [place for place, value in zip(places, values, strict=True) if value == y[index]]
        winners[index] = equal if ties == "all" else equal[:1]
    return y, winners


def unpool_loops(gradient, winners, shape):
    result = np.zeros(shape)
    for (i, c, r, q), places in winners.items():
        for row, column in places:
            result[i, c, row, column] += gradient[i, c, r, q]
    return result


def fused_loops(x, gradient, *, order, window, stride, ties, **letters):
    """The result and the gradient of x, in float64."""
    flat = (*x.shape[:2], -1)
    relu_first = order == ORDERS[0]
    seen = np.maximum(x, 0) if relu_first else x
    y = oracles.local_response_norm(seen.reshape(flat), **letters).reshape(x.shape)
    pooled, winners = pool_loops(y, window, stride, ties)
    if not relu_first:
        gradient = np.where(pooled > 0, gradient, 0)
        pooled = np.maximum(pooled, 0)
    of_y = unpool_loops(gradient, winners, x.shape)
    of_seen = oracles.local_response_norm_gradient(
        of_y.reshape(flat), seen.reshape(flat), **letters
    ).reshape(x.shape)
    return pooled, np.where(x > 0, of_seen, 0) if relu_first else of_seen


# --- max_pool2d


def gradient_of(function, x, gradient):
    x = x.detach().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y, x, gradient)[0]


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pooling_is_the_loops_bit_for_bit(ties, layout):
    for (window, stride), dtype in itertools.product((*WINDOWS, (5, 2)), DTYPES):
        shape = (2, 5, 7, 9)
        x = integers(shape, dtype).contiguous(memory_format=LAYOUTS[layout])
        # Sums of these are exact in every type.
        gradient = integers(pooled_shape(shape, window, stride), dtype, seed=1)
        y, winners = pool_loops(x.double().numpy(), window, stride, ties)
        expected = unpool_loops(gradient.double().numpy(), winners, shape)
        keywords = {"window": window, "stride": stride}
        got = gradient_of(lambda x: max_pool2d(x, **keywords, ties=ties), x, gradient)  # noqa: B023
        assert torch.equal(got[0].double(), torch.from_numpy(y))
        assert torch.equal(got[1].double(), torch.from_numpy(expected))
        assert got[0].dtype == got[1].dtype == dtype
        assert got[1].stride() == x.stride()
        assert got[0].is_contiguous(memory_format=LAYOUTS[layout])
        plain = reference.max_pool2d(x, **keywords)
        all_ties = ties == "all"
        back = reference.max_pool2d_backward(gradient, x, **keywords, all_ties=all_ties)
        assert torch.equal(plain, got[0])
        assert torch.equal(back, got[1])


@needs_compiled
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_pooling_is_torchs_with_its_gradient_and_nan(layout, instruction_set):  # noqa: F811
    for (window, stride), shape, dtype in itertools.product(WINDOWS, SHAPES, DTYPES[:2]):
        x = integers(shape, dtype)
        x[0, 0, :3, :4] = float("nan")
        x[-1, -1, 1:] = float("-inf")
        x[-1, 0, 1] = float("inf")
        x = x.contiguous(memory_format=LAYOUTS[layout])
        gradient = activations(pooled_shape(shape, window, stride), dtype, seed=1)
        own = gradient_of(lambda x: max_pool2d(x, window=window, stride=stride), x, gradient)  # noqa: B023
        torchs = gradient_of(lambda x: F.max_pool2d(x, window, stride), x, gradient)  # noqa: B023
        for got, expected in zip(own, torchs, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_a_nan_is_a_maximum_that_no_tie_equals():
    x = torch.tensor([[[[1.0, float("nan")], [1.0, 0.0]]]])
    for ties, expected in (("first", [0, 1, 0, 0]), ("all", [0, 0, 0, 0])):
        for layout in LAYOUTS.values():
            many = x.repeat(1, 20, 1, 1).contiguous(memory_format=layout)
            y, gradient = gradient_of(
                lambda x: max_pool2d(x, window=2, stride=1, ties=ties),  # noqa: B023
                many,
                torch.ones(1, 20, 1, 1),
            )
            assert y.isnan().all()
            assert gradient[0, 7].flatten().tolist() == expected


def test_all_ties_get_the_whole_gradient_and_the_first_alone_by_default():
    x = torch.zeros(1, 1, 3, 3)
    _, every = gradient_of(
        lambda x: max_pool2d(x, window=3, stride=2, ties="all"), x, 1 + x[..., :1, :1]
    )
    _, first = gradient_of(lambda x: max_pool2d(x, window=3, stride=2), x, 1 + x[..., :1, :1])
    assert every.flatten().tolist() == [1] * 9
    assert first.flatten().tolist() == [1] + [0] * 8


# --- relu_lrn_pool


def modules(x, *, order, window, stride, ties="first", **letters):
    """The three, one after the other."""
    x = local_response_norm(x.relu() if order == ORDERS[0] else x, **letters)
    x = max_pool2d(x, window=window, stride=stride, ties=ties)
    return x if order == ORDERS[0] else x.relu()


FUSED_CASES = [
    ((2, 12, 7, 9), dict(LETTERS, towers=2), (3, 2)),
    ((1, 6, 6, 5), dict(LETTERS, n=3, beta=0.6), (2, 2)),
    ((1, 6, 5, 5), dict(LETTERS, n=31, towers=2), (4, 1)),
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize(("shape", "letters", "windows"), FUSED_CASES)
def test_reference_and_fused_operator_are_the_loops(shape, letters, windows, ties, order):
    keywords = {"order": order, "window": windows[0], "stride": windows[1], "ties": ties, **letters}
    x = activations(shape)
    gradient = activations(pooled_shape(shape, *windows), seed=1) / 80
    expected = fused_loops(x.numpy(), gradient.numpy(), **keywords)
    named = {"window": windows[0], "stride": windows[1], "relu_first": order == ORDERS[0]}
    y, winners = reference.relu_lrn_pool(x, **named, all_ties=ties == "all", **letters)
    back = reference.relu_lrn_pool_backward(gradient, x, winners, **named, **letters)
    for layout in LAYOUTS.values():
        moved = x.contiguous(memory_format=layout)
        got = gradient_of(lambda x: relu_lrn_pool(x, **keywords), moved, gradient)
        for pair in (got, (y, back)):
            for actual, right in zip(pair, expected, strict=True):
                np.testing.assert_allclose(actual.numpy(), right, rtol=1e-12, atol=1e-12)


WRONG = {
    "other order": {"order": ORDERS[1]},
    "other ties": {"ties": "first"},
    "window 2": {"window": 2},
    "alpha over n": {"alpha": 2e-5},
    "n 3": {"n": 3},
    "k 1": {"k": 1.0},
    "one tower": {"towers": 1},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_comparison_rejects_wrong_versions(wrong):
    # Values of two sizes only, so that ties stay ties after the normalization.
    x = integers((2, 12, 7, 9)).abs() * 80
    right = {"order": ORDERS[0], "window": 3, "stride": 2, "ties": "all", "towers": 2, **LETTERS}
    x[:, ::2] -= 60
    gradient = activations((2, 12, 3, 4), seed=1)
    expected = fused_loops(x.numpy(), gradient.numpy(), **right)
    got = (
        gradient_of(lambda x: relu_lrn_pool(x, **{**right, **WRONG[wrong]}), x, gradient)
        if (wrong != "window 2")
        else gradient_of(
            lambda x: relu_lrn_pool(x[:, :, :6, :8], **{**right, **WRONG[wrong]}), x, gradient
        )
    )
    assert not all(
        np.allclose(actual.numpy(), one, rtol=2**-8, atol=0.01)
        for actual, one in zip(got, expected, strict=True)
    )


@needs_compiled
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_code_is_its_three_modules_bit_for_bit(layout, order, instruction_set):  # noqa: F811
    cases = itertools.product(SHAPES, WINDOWS, DTYPES, TIES, (5, 3))
    for number, (shape, windows, dtype, ties, n) in enumerate(cases):
        if instruction_set < 3 and number % 3:  # the best one in full
            continue
        letters = dict(LETTERS, n=n, towers=1 if shape[1] == 1 else 2)
        keywords = {"order": order, "window": windows[0], "stride": windows[1], "ties": ties}
        x = activations(shape, dtype).contiguous(memory_format=LAYOUTS[layout])
        gradient = (activations(pooled_shape(shape, *windows), seed=1) / 80).to(dtype)
        own = gradient_of(lambda x: relu_lrn_pool(x, **keywords, **letters), x, gradient)  # noqa: B023
        three = gradient_of(lambda x: modules(x, **keywords, **letters), x, gradient)  # noqa: B023
        assert torch.equal(own[0], three[0]), (shape, windows, dtype)
        assert own[0].is_contiguous(memory_format=LAYOUTS[layout])
        assert own[1].stride() == x.stride()
        if dtype.itemsize > 2:
            assert torch.equal(own[1], three[1]), (shape, windows, dtype)
            continue
        # The modules round the gradient on its way, this does once.
        named = {"window": windows[0], "stride": windows[1], "relu_first": order == ORDERS[0]}
        _, winners = reference.relu_lrn_pool(x, **named, all_ties=ties == "all", **letters)
        wide = [gradient.double(), x.double(), winners]
        exact = reference.relu_lrn_pool_backward(*wide, **named, **letters)
        unit = torch.finfo(dtype).eps
        limit = 0.5001 * unit * exact.abs() + 2e-6 * exact.abs().max()
        assert ((own[1].double() - exact).abs() <= limit.clamp(min=1e-7)).all(), (shape, dtype)


@needs_compiled
def test_nan_and_infinity_go_through_the_modules(instruction_set):  # noqa: F811
    for layout, order, channels in itertools.product(LAYOUTS, ORDERS, (7, 40)):
        x = activations((1, channels, 7, 7), torch.float32)
        x[0, 2, 1, 1] = float("nan")
        x[0, 5, 5, 5] = float("inf")
        x[0, 1, 3, 3] = float("-inf")
        x = x.contiguous(memory_format=LAYOUTS[layout])
        keywords = {"order": order, "window": 3, "stride": 2, **LETTERS}
        gradient = torch.ones(1, channels, 3, 3)
        own = gradient_of(lambda x: relu_lrn_pool(x, **keywords), x, gradient)  # noqa: B023
        three = gradient_of(lambda x: modules(x, **keywords), x, gradient)  # noqa: B023
        for got, expected in zip(own, three, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@needs_compiled
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_do_not_depend_on_threads_or_on_the_batch(layout):
    before = torch.get_num_threads()
    x = activations((5, 48, 27, 29), torch.float32)
    gradient = activations((5, 48, 13, 14), torch.float32, seed=1)
    results = []
    try:
        for threads, part in (
            (1, slice(0, 5)),
            (2, slice(0, 5)),
            (5, slice(0, 1)),
            (3, slice(2, 4)),
        ):
            torch.set_num_threads(threads)
            moved = x[part].contiguous(memory_format=LAYOUTS[layout])
            for ties in TIES:
                for function in (
                    lambda x: relu_lrn_pool(x, **LETTERS, towers=2, ties=ties),  # noqa: B023
                    lambda x: max_pool2d(x, window=3, stride=2, ties=ties),  # noqa: B023
                ):
                    results.append((part, *gradient_of(function, moved, gradient[part])))
    finally:
        torch.set_num_threads(before)
    for number, (part, *tensors) in enumerate(results):
        for tensor, whole in zip(tensors, results[number % 4][1:], strict=True):
            assert torch.equal(tensor, whole[part])


# --- Both as PyTorch's operators


def pool(x, **changes):
    return max_pool2d(x, **{"window": 3, "stride": 2, **changes})


def fused(x, **changes):
    return relu_lrn_pool(x, **{**LETTERS, "towers": 2, **changes})


def test_gradients_are_those_of_the_functions():
    # No two values are so near that a step of gradcheck swaps them, and none is near 0.
    values = torch.randperm(2 * 6 * 5 * 5, generator=torch.Generator().manual_seed(0)) - 150
    x = (values.double() + 0.5).reshape(2, 6, 5, 5) / 30
    for layout, ties in itertools.product(LAYOUTS.values(), TIES):
        moved = x.contiguous(memory_format=layout).requires_grad_()
        functions = [
            lambda x: max_pool2d(x, window=3, stride=2, ties=ties),  # noqa: B023
            *(
                lambda x, order=order: relu_lrn_pool(
                    x,
                    n=3,
                    k=1.0,
                    alpha=0.01,
                    beta=0.75,
                    towers=2,
                    order=order,
                    ties=ties,  # noqa: B023
                )
                for order in ORDERS
            ),
        ]
        for function in functions:
            assert torch.autograd.gradcheck(function, (moved,), fast_mode=True)
            assert torch.autograd.gradgradcheck(function, (moved,), fast_mode=True)


def test_opcheck_passes():
    x = torch.randn(2, 8, 7, 7)
    gradient = torch.randn(2, 8, 3, 3)
    operators, letters = torch.ops.replica, (5, 2.0, 1e-4, 0.75, 2, 3, 2, True)
    needy = x.clone().requires_grad_()
    last = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    _, winners = operators.relu_lrn_pool(x, *letters, False, True)
    torch.library.opcheck(operators.max_pool2d.default, (needy, 3, 2, True))
    torch.library.opcheck(operators.relu_lrn_pool.default, (last, *letters, False, True))
    # Backward passes are traced with their forward ones above.
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    for operator, arguments in (
        (operators.max_pool2d_backward.default, (gradient, needy, 3, 2, False)),
        (operators.relu_lrn_pool_backward.default, (gradient, needy, winners, *letters)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=quick)


@pytest.mark.parametrize("function", [pool, fused])
def test_compile_and_export(function):
    class Module(torch.nn.Module):
        def forward(self, x):
            return function(x * 2)

    x = activations((2, 8, 7, 7), torch.float32).requires_grad_()
    compiled = torch.compile(Module(), backend="aot_eager", fullgraph=True)
    expected, got = Module()(x), compiled(x)
    assert torch.equal(got, expected)
    assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (got, expected)))
    program = torch.export.export(Module(), (x.detach(),))
    assert torch.equal(program.module()(x.detach()), expected)


@pytest.mark.parametrize("function", [pool, fused])
@pytest.mark.parametrize("shape", [(0, 6, 5, 5), (2, 0, 5, 5), (1, 6, 3, 3), (1, 2, 3, 20)])
def test_empty_and_small_shapes_work(function, shape):
    for dtype in DTYPES:
        x = torch.ones(shape, dtype=dtype, requires_grad=True)
        y = function(x)
        assert y.shape == pooled_shape(shape, 3, 2)
        y.sum().backward()
        assert x.grad.shape == shape


def test_one_pixel_and_any_strides():
    x = activations((2, 8, 1, 1), torch.float32)
    one = {"window": 1, "stride": 1}
    assert torch.equal(fused(x, **one), modules(x, order=ORDERS[0], **one, **LETTERS, towers=2))
    assert torch.equal(pool(x, **one), x)
    x = activations((2, 8, 7, 14), torch.float32)[..., ::2]
    for function in (pool, fused):
        assert torch.equal(function(x), function(x.contiguous()))
        expanded = torch.ones(()).expand(2, 8, 3, 3)
        got = gradient_of(function, x, expanded)[1]
        assert torch.equal(got, gradient_of(function, x, expanded.contiguous())[1])


X = torch.zeros(1, 8, 7, 6)


@pytest.mark.parametrize(
    ("function", "changes", "message"),
    [
        (pool, {"x": X[0]}, r"expected x of \(N, C, H, W\), got \(8, 7, 6\)"),
        (pool, {"x": X.int()}, "expected float32, float64, bfloat16 or float16, got torch.int32"),
        (
            pool,
            {"window": 7},
            "expected a window of 1 to the rows and columns of x, 7 and 6, got 7",
        ),
        (
            pool,
            {"window": 0},
            "expected a window of 1 to the rows and columns of x, 7 and 6, got 0",
        ),
        (pool, {"window": 2.0}, "expected a window of 1 to .* got 2.0"),
        (pool, {"stride": 0}, "expected a stride >= 1, got 0"),
        (pool, {"ties": "last"}, "expected first or all, got last"),
        (
            fused,
            {"window": 7},
            "expected a window of 1 to the rows and columns of x, 7 and 6, got 7",
        ),
        (fused, {"window": 5}, "expected a window of 1 to 4, got 5"),
        (fused, {"ties": "none"}, "expected first or all, got none"),
        (fused, {"order": "pool"}, "expected relu-norm-pool or norm-pool-relu, got pool"),
        (fused, {"n": 4}, "expected an odd n >= 1, got 4"),
        (fused, {"k": 0.0}, "expected a finite k > 0, got 0.0"),
        (
            fused,
            {"towers": 3},
            "expected channels divisible by towers, got 8 channels and 3 towers",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:60]),
)
def test_wrong_arguments_are_refused_with_the_rule(function, changes, message):
    x = changes.pop("x", X) if "x" in changes else X
    name = "max_pool2d" if function is pool else "relu_lrn_pool"
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        function(x, **changes)


@needs_compiled
def test_the_registered_operators_check_too():
    operators, letters = torch.ops.replica, (5, 2.0, 1e-4, 0.75, 2, 3, 2, True)
    winners = torch.zeros(1, 8, 3, 2, dtype=torch.int16)
    g = torch.zeros(1, 8, 3, 2)
    for call, message in (
        (lambda: operators.max_pool2d(X, 7, 2, False), "max_pool2d: expected a window of 1 to"),
        (lambda: operators.max_pool2d(X, 3, 0, False), "max_pool2d: expected a stride >= 1, got 0"),
        (lambda: operators.max_pool2d_backward(X, X, 3, 2, False), "expected a gradient of the"),
        (
            lambda: operators.relu_lrn_pool(X, *letters[:5], 5, 2, True, False, False),
            "relu_lrn_pool: expected a window of 1 to 4, got 5",
        ),
        (lambda: operators.relu_lrn_pool_backward(X, X, winners, *letters), "a gradient of the"),
        (lambda: operators.relu_lrn_pool_backward(g, X, g, *letters), "expected winners of the"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
    x = X.clone().requires_grad_()
    y, _ = operators.relu_lrn_pool(x, *letters, False, False)
    with pytest.raises(RuntimeError, match="expected keeps=True where a gradient is asked for"):
        y.sum().backward()


def test_without_compiled_code_it_is_the_same():
    code = (
        "import torch; from test_pooling import *; x = activations((2, 12, 7, 9));"
        "g = activations((2, 12, 3, 4), seed=1);"
        "right = dict(order=ORDERS[0], window=3, stride=2, ties='all', towers=2, **LETTERS);"
        "got = gradient_of(lambda x: relu_lrn_pool(x, **right), x, g);"
        "exact = fused_loops(x.numpy(), g.numpy(), **right);"
        "print(all(np.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(got, exact)));"
        "print(torch.equal(max_pool2d(x, window=3, stride=2), F.max_pool2d(x, 3, 2)))"
    )
    result = run("-c", code, REPLICA_EXT="off", PYTHONPATH=f"{PROJECT_DIR / 'tests'}:{PROJECT_DIR}")
    assert result.stdout.split() == ["True", "True"], result.stderr


# --- The GPU's kernels, run on a CPU one fiber a thread


class PoolingEmulation(Emulation):
    """The kernels of both operators."""

    def run(self, x, gradient, layout, *, window, stride, ties, order="", seed=0, **letters):
        """The result and the gradient of x; without letters those of max_pool2d."""
        format_ = LAYOUTS[layout]
        x = x.contiguous(memory_format=format_)
        gradient = gradient.contiguous(memory_format=format_)
        winners = torch.zeros_like(gradient, dtype=torch.int16)
        results = [torch.full_like(gradient, float("nan")), torch.full_like(x, float("nan"))]
        letters = {"n": 0, "k": 1.0, "alpha": 0.0, "beta": 0.0, "towers": 1, **letters}
        for incoming, out in zip((None, gradient), results, strict=True):
            self.call(
                x.dtype,
                incoming,
                x,
                winners,
                out,
                *x.shape,
                layout == "channels last",
                window,
                stride,
                ties == "all",
                order == ORDERS[0],
                *letters.values(),
                seed,
            )
        return results


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    return PoolingEmulation("pooling", tmp_path_factory.mktemp("emulation"))


@needs_compiler
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gpu_kernel_of_pooling_is_the_reference(emulation, layout):
    for (window, stride), ties, dtype in itertools.product((*WINDOWS, (5, 2)), TIES, DTYPES):
        x = integers((2, 5, 7, 9), dtype)
        gradient = integers(pooled_shape(x.shape, window, stride), dtype, seed=1)
        keywords = {"window": window, "stride": stride}
        expected = reference.max_pool2d(x, **keywords)
        back = reference.max_pool2d_backward(gradient, x, **keywords, all_ties=ties == "all")
        for seed in (0, 1):
            got = emulation.run(x, gradient, layout, ties=ties, seed=seed, **keywords)
            assert torch.equal(got[0], expected)
            assert torch.equal(got[1], back)


# Every kernel of the gradient: planes and rows, another n, rows too wide for shared memory.
EMULATED = [
    ("NCHW", (2, 12, 7, 9), dict(LETTERS, towers=2)),
    ("NCHW", (1, 6, 6, 5), dict(LETTERS, n=3, beta=0.6)),
    ("channels last", (2, 40, 7, 5), dict(LETTERS, towers=2)),
    ("channels last", (1, 8, 5, 5), dict(LETTERS, n=31, towers=2)),
    ("channels last", (1, 4200, 3, 3), dict(LETTERS)),
]


@needs_compiler
@pytest.mark.parametrize(("layout", "shape", "letters"), EMULATED)
def test_the_gpu_kernels_are_the_formula(emulation, layout, shape, letters):
    dtypes = DTYPES if shape[1] < 100 else DTYPES[:1]
    for order, ties, dtype in itertools.product(ORDERS, TIES, dtypes):
        x = activations(shape, dtype)
        gradient = (activations(pooled_shape(shape, 3, 2), seed=1) / 80).to(dtype)
        named = {"window": 3, "stride": 2, "relu_first": order == ORDERS[0]}
        y, winners = reference.relu_lrn_pool(x, **named, all_ties=ties == "all", **letters)
        wide = [gradient.double(), x.double(), winners]
        back = reference.relu_lrn_pool_backward(*wide, **named, **letters)
        results = [
            emulation.run(
                x,
                gradient,
                layout,
                window=3,
                stride=2,
                ties=ties,
                order=order,
                seed=seed,
                **letters,
            )
            for seed in (0, 1)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        unit = torch.finfo(dtype).eps
        for got, expected in zip(results[0], (y.double(), back), strict=True):
            # A result in 16 bits may be rounded to the other neighbor, and so win a tie.
            is_near = (got.double() - expected).abs() <= 2 * unit * expected.abs() + 1e-6
            assert is_near.double().mean() >= (1 if dtype.itemsize > 2 else 0.99), dtype


WRONG_KERNELS = {
    "forgets the rectifier": ("return value < 0 ? decltype(value)(0) : value;", "return value;"),
    "passes on below zero": ("return value <= 0 ? A(0) : result;", "return result;"),
    "only one window": ("r <= rows.last; ++r", "r <= rows.first; ++r"),
    "the last of equal maxima": ("value > best ||", "value >= best ||"),
    "keeps negative windows": ("if (best <= 0) bits = 0;", ""),
    "all places win": ("winners[j] >> place & 1", "winners[j]"),
}


@needs_compiler
@pytest.mark.parametrize("wrong", WRONG_KERNELS)
def test_the_comparison_rejects_wrong_kernels(wrong, tmp_path):
    emulated = PoolingEmulation("pooling", tmp_path, Mistake(*WRONG_KERNELS[wrong]))
    x = integers((1, 6, 7, 7)) * 80
    x[:, :3] = -x[:, :3].abs()
    gradient = activations((1, 6, 3, 3), seed=1)
    right = []
    for order in ORDERS:
        named = {"window": 3, "stride": 2, "relu_first": order == ORDERS[0]}
        y, winners = reference.relu_lrn_pool(x, **named, all_ties=False, **LETTERS, towers=2)
        back = reference.relu_lrn_pool_backward(gradient, x, winners, **named, **LETTERS, towers=2)
        got = emulated.run(
            x, gradient, "NCHW", window=3, stride=2, ties="first", order=order, **LETTERS, towers=2
        )
        right += [torch.allclose(a, b, rtol=1e-9) for a, b in zip(got, (y, back), strict=True)]
    assert not all(right)


def test_both_are_listed():
    assert {"max_pool2d", "relu_lrn_pool on CUDA"} <= cuda_ext.implementations().keys()
