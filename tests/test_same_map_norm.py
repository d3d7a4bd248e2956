"""`same_map_norm` against loops in NumPy: reference, compiled code, and the GPU's kernels."""

import itertools

import numpy as np
import pytest
import torch
from conftest import PROJECT_DIR, run
from emulated import Emulation, Mistake, needs_compiler
from test_operators import half_unit, instruction_set, needs_compiled  # noqa: F401

from cuda_ext import reference, same_map_norm

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}
# As in the source of 2012; inputs are of the size at which alpha matters.
LETTERS = {"n": 5, "k": 1.0, "alpha": 0.001 / 25, "beta": 0.75}
CASES = [
    ((2, 3, 7, 9), dict(LETTERS)),
    ((1, 2, 2, 3), dict(LETTERS)),  # a window that is larger than the map
    ((1, 3, 6, 5), dict(LETTERS, n=3, k=2.0, beta=0.6)),
    ((1, 2, 5, 4), dict(LETTERS, n=1)),
    ((1, 2, 4, 3), dict(LETTERS, n=31)),
]


def activations(shape, dtype=torch.float64, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=shape) * 80).to(dtype)


def around(shape, n, row, column):
    """The places of a window."""
    for r in range(max(0, row - n // 2), min(shape[2], row + n // 2 + 1)):
        for q in range(max(0, column - n // 2), min(shape[3], column + n // 2 + 1)):
            yield r, q


def loops(x, gradient, *, n, k, alpha, beta):
    """The formula, and each term of the chain rule, in float64."""
    y, result = np.empty(x.shape), np.zeros(x.shape)
    for i, c, row, column in np.ndindex(x.shape):
        places = list(around(x.shape, n, row, column))
        base = k + alpha * sum(float(x[i, c, r, q]) ** 2 for r, q in places)
        value = float(x[i, c, row, column])
        y[i, c, row, column] = value / base**beta
        for r, q in places:
            term = -2 * alpha * beta * x[i, c, r, q] * value / base ** (beta + 1)
            if (r, q) == (row, column):
                term += 1 / base**beta
            result[i, c, r, q] += gradient[i, c, row, column] * term
    return y, result


def with_gradient(x, gradient, **letters):
    x = x.detach().requires_grad_()
    y = same_map_norm(x, **letters)
    return y.detach(), torch.autograd.grad(y, x, gradient)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "letters"), CASES)
def test_reference_and_operator_are_the_loops(shape, letters, layout):
    x = activations(shape).contiguous(memory_format=LAYOUTS[layout])
    gradient = activations(shape, seed=1)
    expected = loops(x.numpy(), gradient.numpy(), **letters)
    plain = reference.same_map_norm(x, **letters)
    back = reference.same_map_norm_backward(gradient, x, **letters)
    for pair in (with_gradient(x, gradient, **letters), (plain, back)):
        for got, exact in zip(pair, expected, strict=True):
            np.testing.assert_allclose(got.numpy(), exact, rtol=1e-12, atol=1e-12)


WRONG = {
    "alpha undivided": {"alpha": 0.001},
    "window 3": {"n": 3},
    "k 2": {"k": 2.0},
    "beta 0.5": {"beta": 0.5},
}


@pytest.mark.parametrize("wrong", [*WRONG, "rows and columns exchanged", "shifted by a channel"])
def test_the_comparison_rejects_wrong_versions(wrong):
    x, gradient = activations((2, 3, 7, 9)), activations((2, 3, 7, 9), seed=1)
    expected = loops(x.numpy(), gradient.numpy(), **LETTERS)
    moved = x
    if wrong == "rows and columns exchanged":
        moved = x.reshape(2, 3, 9, 7).reshape(2, 3, 7, 9).flatten(2).roll(1, 2).reshape(x.shape)
    if wrong == "shifted by a channel":
        moved = x.roll(1, 1)
    got = with_gradient(moved, gradient, **{**LETTERS, **WRONG.get(wrong, {})})
    for actual, exact in zip(got, expected, strict=True):
        assert not np.allclose(actual.numpy(), exact, rtol=2**-8, atol=1e-3)


@needs_compiled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_compiled_code_is_exact_in_every_type(layout, beta, instruction_set):  # noqa: F811
    for shape, n, dtype in itertools.product(
        ((2, 40, 5, 7), (1, 3, 4, 35), (1, 70, 2, 2)), (5, 3), DTYPES
    ):
        letters = dict(LETTERS, beta=beta, n=n)
        x = activations(shape, dtype).contiguous(memory_format=LAYOUTS[layout])
        gradient = (activations(shape, seed=1) / 80).to(dtype)
        wide = x.double(), gradient.double()
        exact = (
            reference.same_map_norm(wide[0], **letters).numpy(),
            reference.same_map_norm_backward(wide[1], wide[0], **letters).numpy(),
        )
        for got, right in zip(with_gradient(x, gradient, **letters), exact, strict=True):
            limit = 8 * np.finfo(np.float32).eps * np.abs(right).max()
            if dtype == torch.float64:
                limit = 1e-12 * np.abs(right).max()
            if dtype.itemsize == 2:
                limit = limit + half_unit(right, dtype)
            assert (np.abs(got.double().numpy() - right) <= limit).all(), (shape, dtype)
            assert got.dtype == dtype
            assert got.stride() == x.stride()


@needs_compiled
def test_results_do_not_depend_on_threads_layout_or_batch():
    before = torch.get_num_threads()
    x, gradient = (activations((5, 70, 13, 11), torch.float32, seed=i) for i in (0, 1))
    expected = with_gradient(x, gradient, **LETTERS)
    try:
        for threads, part in ((1, slice(0, 5)), (3, slice(0, 5)), (5, slice(1, 2))):
            torch.set_num_threads(threads)
            for layout in LAYOUTS.values():
                moved = x[part].contiguous(memory_format=layout)
                got = with_gradient(moved, gradient[part], **LETTERS)
                assert all(torch.equal(a, b[part]) for a, b in zip(got, expected, strict=True))
    finally:
        torch.set_num_threads(before)


@needs_compiled
def test_nan_and_overflow_go_through_the_formula(instruction_set):  # noqa: F811
    for layout, channels in itertools.product(LAYOUTS.values(), (1, 20)):
        x = torch.ones(1, channels, 9, 9)
        x[:, :, 4, 4] = float("nan")
        x = x.contiguous(memory_format=layout)
        y, gradient = with_gradient(x, torch.ones_like(x), **LETTERS)
        is_near = torch.zeros(9, 9, dtype=torch.bool)
        is_near[2:7, 2:7] = True
        assert torch.equal(y[0, -1].isnan(), is_near)
        assert gradient.isnan().all()  # two windows reach the corner of 9 x 9
        assert not same_map_norm(torch.full_like(x, 1e25), **LETTERS).any()


def test_gradients_are_those_of_the_function():
    x = (activations((2, 2, 4, 3)) / 80).requires_grad_()
    gradient = (activations((2, 2, 4, 3), seed=1) / 80).requires_grad_()

    def normalize(x):
        return same_map_norm(x, n=3, k=1.0, alpha=0.5, beta=0.75)

    assert torch.autograd.gradcheck(normalize, (x,))
    assert torch.autograd.gradgradcheck(normalize, (x,), (gradient,))


def test_opcheck_compile_and_export():
    x = torch.randn(2, 4, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    letters = tuple(LETTERS.values())
    torch.library.opcheck(torch.ops.replica.same_map_norm.default, (x, *letters))
    backward = torch.ops.replica.same_map_norm_backward.default
    torch.library.opcheck(backward, (torch.randn(2, 4, 5, 5), x, *letters))

    class Module(torch.nn.Module):
        def forward(self, x):
            return same_map_norm(x * 2, **LETTERS)

    expected = Module()(x)
    compiled = torch.compile(Module(), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), expected)
    program = torch.export.export(Module(), (x.detach(),))
    assert torch.equal(program.module()(x.detach()), expected)


@pytest.mark.parametrize("shape", [(0, 6, 3, 3), (2, 0, 3, 3), (2, 6, 0, 3), (2, 6, 1, 1)])
def test_empty_and_small_shapes_and_any_strides_work(shape):
    for dtype in DTYPES:
        x = torch.ones(shape, dtype=dtype, requires_grad=True)
        y = same_map_norm(x, **LETTERS)
        assert y.shape == shape
        y.sum().backward()
        assert x.grad.shape == shape
    x = activations((2, 3, 5, 8), torch.float32)[..., ::2]
    assert torch.equal(same_map_norm(x, **LETTERS), same_map_norm(x.contiguous(), **LETTERS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 4)}, r"expected x of \(N, C, H, W\), got \(3, 4\)"),
        ({"x": torch.zeros(1, 1, 2, 2).int()}, "expected float32, float64, bfloat16 or float16"),
        ({"n": 2}, "expected an odd n >= 1, got 2"),
        ({"k": 0.0}, "expected a finite k > 0, got 0.0"),
        ({"alpha": -1.0}, "expected a finite alpha >= 0, got -1.0"),
        ({"beta": float("inf")}, "expected a finite beta >= 0, got inf"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_with_the_rule(changes, message):
    with pytest.raises(ValueError, match=f"same_map_norm: {message}"):
        same_map_norm(**{"x": torch.zeros(1, 1, 3, 3), **LETTERS, **changes})


@needs_compiled
def test_the_registered_operators_check_too():
    x, operators = torch.zeros(1, 1, 3, 3), torch.ops.replica
    with pytest.raises(RuntimeError, match="same_map_norm: expected an odd n >= 1, got 2"):
        operators.same_map_norm(x, 2, 1.0, 1.0, 1.0)
    with pytest.raises(RuntimeError, match="same_map_norm: expected a gradient of the shape"):
        operators.same_map_norm_backward(x[..., :2], x, 3, 1.0, 1.0, 1.0)


def test_without_compiled_code_it_is_the_same():
    code = (
        "import torch; from test_same_map_norm import *;"
        "x, g = activations((2, 3, 7, 9)), activations((2, 3, 7, 9), seed=1);"
        "pairs = zip(with_gradient(x, g, **LETTERS), loops(x.numpy(), g.numpy(), **LETTERS));"
        "print(all(np.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in pairs))"
    )
    result = run("-c", code, REPLICA_EXT="off", PYTHONPATH=f"{PROJECT_DIR / 'tests'}:{PROJECT_DIR}")
    assert result.stdout.strip() == "True", result.stderr


# --- The GPU's kernels, run on a CPU one fiber a thread


def emulated(emulation, x, gradient, layout, seed=0, **letters):
    """The result, and the gradient of x."""
    x, gradient = (t.contiguous(memory_format=LAYOUTS[layout]) for t in (x, gradient))
    results = []
    images, channels, *place = x.shape
    groups = (images, channels) if layout == "channels last" else (images * channels, 1)
    for incoming in (None, gradient):
        out = torch.full_like(x, float("nan"))
        emulation.call(x.dtype, incoming, x, out, *groups, *place, *letters.values(), seed)
        results.append(out)
    return results


@needs_compiler
def test_the_gpu_kernels_are_the_formula(tmp_path):
    emulation = Emulation("same_map_norm", tmp_path)
    for (shape, letters), layout, dtype in itertools.product(CASES, LAYOUTS, DTYPES):
        x, gradient = activations(shape, dtype), (activations(shape, seed=1) / 80).to(dtype)
        exact = loops(x.double().numpy(), gradient.double().numpy(), **letters)
        results = [emulated(emulation, x, gradient, layout, seed, **letters) for seed in (0, 1)]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        for got, right in zip(results[0], exact, strict=True):
            limit = 8 * np.finfo(np.float32).eps * np.abs(right).max()
            if dtype == torch.float64:
                limit = 1e-12 * np.abs(right).max()
            if dtype.itemsize == 2:
                limit = limit + half_unit(right, dtype)
            assert (np.abs(got.double().numpy() - right) <= limit).all(), (shape, dtype)


@needs_compiler
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("row + r >= p.rows", "row + r >= p.rows - 1"),
        ("* powers.inverse *", "*"),
        ("sqrt(root)), 1 / base}", "sqrt(root)), 1 / root}"),
        ("i / p.channels % p.columns", "i % p.columns"),
    ],
)
def test_the_comparison_rejects_wrong_kernels(old, new, tmp_path):
    emulation = Emulation("same_map_norm", tmp_path, Mistake(old, new))
    x, gradient = activations((2, 3, 7, 9)), activations((2, 3, 7, 9), seed=1)
    got = emulated(emulation, x, gradient, "channels last", **LETTERS)
    exact = loops(x.numpy(), gradient.numpy(), **LETTERS)
    assert not all(
        np.allclose(a.numpy(), b, rtol=2**-8, atol=1e-3) for a, b in zip(got, exact, strict=True)
    )
