"""One table of operators drives these tests: oracle, reference, compiled code, wrong versions."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_user_error, run

import cuda_ext
from cuda_ext import local_response_norm, local_response_norm_out, reference
from cuda_ext.library import INSTRUCTION_SETS
from replica.training.numerics import compiler_problem

PAPER = {"n": 5, "k": 2.0, "alpha": 1e-4, "beta": 0.75}


@dataclass(frozen=True)
class Operator:
    """A registered operator: what it computes, from how many tensors, into what."""

    reference: Callable
    oracle: Callable
    inputs: int  # 1: x; 2: gradient, x
    writes_into_out: bool


FORWARD = (reference.local_response_norm, oracles.local_response_norm, 1)
BACKWARD = (reference.local_response_norm_backward, oracles.local_response_norm_gradient, 2)
OPERATORS = {
    "local_response_norm": Operator(*FORWARD, False),
    "local_response_norm_out": Operator(*FORWARD, True),
    "local_response_norm_backward": Operator(*BACKWARD, False),
    "local_response_norm_backward_out": Operator(*BACKWARD, True),
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

needs_compiled = pytest.mark.skipif(
    not cuda_ext.compiled_state().is_live, reason=cuda_ext.compiled_state().reason
)
each_operator = pytest.mark.parametrize("name", OPERATORS)


@pytest.fixture(params=range(len(INSTRUCTION_SETS)), ids=INSTRUCTION_SETS)
def instruction_set(request):
    """Each instruction set that this processor has, in force for one test."""
    try:
        cuda_ext.set_instruction_set(request.param)
    except RuntimeError as error:
        pytest.skip(f"no {INSTRUCTION_SETS[request.param]}: {str(error).splitlines()[0]}")
    yield request.param
    cuda_ext.set_instruction_set(-1)


def test_where_there_is_a_compiler_the_operators_are_built():
    """Else every test of compiled code would be skipped without anybody noticing."""
    if any(map(shutil.which, ("c++", "g++", "clang++"))) and "REPLICA_EXT" not in os.environ:
        assert cuda_ext.compiled_state().is_live, cuda_ext.compiled_state().reason


def test_every_registered_operator_has_a_row():
    registered = {
        schema.name for schema in torch._C._jit_get_all_schemas() if "replica::" in schema.name
    }
    # Of modules of their own: they take other arguments.
    others = {"augment_batch_", "momentum_sgd_", "philox_dropout"}
    for name in ("max_pool2d", "relu_lrn_pool", "same_map_norm"):
        others |= {name, f"{name}_backward"}
    others |= {"split_conv2d", "split_conv2d_add_", "split_conv2d_backward"}
    assert registered == {f"replica::{name}" for name in {*OPERATORS, *others}}


def activations(shape, dtype=torch.float64, seed=0):
    """Of the size that activations have in the network, so that alpha matters."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 80).to(dtype)


def inputs_of(name, shape, dtype=torch.float64):
    """x, and before it a gradient where the operator takes one."""
    x = activations(shape, dtype)
    if OPERATORS[name].inputs == 1:
        return (x,)
    return (activations(shape, torch.float64, seed=1) / 80).to(dtype), x


def call(name, tensors, *, n, k, alpha, beta, towers=1):
    """Calls the registered operator, and returns its result also where it writes into `out`."""
    operator = getattr(torch.ops.replica, name)
    if not OPERATORS[name].writes_into_out:
        return operator(*tensors, n, k, alpha, beta, towers)
    out = torch.full_like(dense(tensors[-1]), float("nan"))
    assert operator(*tensors, n, k, alpha, beta, towers, out=out) is None
    return out


def dense(x):
    if x.dim() == 4 and x.stride(1) == 1 and x.shape[1] > 1:
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous()


def layouts(x):
    """The same values as NCHW, channels last, with gaps in memory, and cut from channels last."""
    gaps = torch.empty(*x.shape[:3], 2 * x.shape[3], dtype=x.dtype)[..., ::2]
    cut = torch.empty(x.shape[0], *x.shape[2:], 2 * x.shape[1], dtype=x.dtype)
    return {
        "NCHW": x.contiguous(),
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "gaps": gaps.copy_(x),
        "cut": cut[..., : x.shape[1]].permute(0, 3, 1, 2).copy_(x),
    }


CASES = [
    (dict(PAPER), 12),
    (dict(PAPER, towers=2), 12),
    (dict(PAPER, n=3, k=1.0, beta=0.5), 6),
    (dict(PAPER, n=1), 4),
    (dict(PAPER, n=31, towers=2), 8),  # a window wider than a tower
    (dict(PAPER, alpha=0.0), 5),
    (dict(PAPER), 1),
]


def close(actual, expected, relative):
    scale = np.abs(expected).max()
    return np.abs(np.asarray(actual, np.float64) - expected).max() <= relative * scale


@each_operator
@pytest.mark.parametrize(("parameters", "channels"), CASES)
def test_reference_and_operator_are_the_formula(name, parameters, channels):
    tensors = inputs_of(name, (2, channels, 7))
    expected = OPERATORS[name].oracle(*(t.numpy() for t in tensors), **parameters)
    assert close(OPERATORS[name].reference(*tensors, **parameters), expected, 1e-12)
    assert close(call(name, tensors, **parameters), expected, 1e-12)


WRONG = {
    "alpha divided by n": dict(PAPER, alpha=PAPER["alpha"] / 5),
    "window 3": dict(PAPER, n=3),
    "k = 1": dict(PAPER, k=1.0),
    "beta 0.5": dict(PAPER, beta=0.5),
}


@each_operator
@pytest.mark.parametrize("wrong", [*WRONG, "window across the towers", "shifted by one channel"])
def test_the_comparison_rejects_wrong_versions(name, wrong):
    """The loosest tolerance of this file tells every wrong version from the right one."""
    tensors = inputs_of(name, (2, 12, 7))
    expected = OPERATORS[name].oracle(*(t.numpy() for t in tensors), **PAPER, towers=2)
    if wrong == "window across the towers":
        actual = call(name, tensors, **PAPER, towers=1)
    elif wrong == "shifted by one channel":
        right = call(name, tensors, **PAPER, towers=2)
        actual = tensors[0] * (right / tensors[0]).roll(1, dims=1)
    else:
        actual = call(name, tensors, **WRONG[wrong], towers=2)
    assert not close(actual, expected, 2**-8)


def test_numbers_of_numpy_are_taken():
    x = activations((1, 6, 2, 2))
    parameters = {name: np.asarray(value)[()] for name, value in PAPER.items()}
    assert torch.equal(local_response_norm(x, **parameters), local_response_norm(x, **PAPER))


def test_torchs_function_of_the_same_name_divides_alpha_by_n():
    x = activations((1, 12, 5, 5))
    torchs = F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)
    torch.testing.assert_close(local_response_norm(x, **PAPER), torchs, rtol=1e-10, atol=0)


def torchs_float32(tensors, *, beta, towers):
    """PyTorch's own normalization of each tower by itself, or its gradient, in float32."""
    x = tensors[-1].float().clone().requires_grad_()
    parts = [
        F.local_response_norm(part, 5, alpha=5e-4, beta=beta, k=2.0)
        for part in x.chunk(towers, dim=1)
    ]
    y = torch.cat(parts, dim=1)
    if len(tensors) == 1:
        return y.detach()
    return torch.autograd.grad(y, x, tensors[0].float())[0].detach()


def half_unit(values, dtype):
    """Half the distance between neighbors of `dtype` around each value; float64."""
    information = torch.finfo(dtype)
    exponents = np.floor(np.log2(np.maximum(np.abs(values), information.tiny)))
    return 0.5 * information.eps * 2.0**exponents


@needs_compiled
@each_operator
@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_compiled_code_is_as_exact_as_torchs_own_float32(name, instruction_set, towers, beta):
    parameters = dict(PAPER, beta=beta, towers=towers)
    shape = (2, 40, 3, 7)
    for dtype in DTYPES:
        tensors = inputs_of(name, shape, dtype)
        exact = (
            OPERATORS[name]
            .oracle(*(t.double().flatten(2).numpy() for t in tensors), **parameters)
            .reshape(shape)
        )
        torchs = torchs_float32(tensors, beta=beta, towers=towers)
        torchs_error = np.abs(torchs.double().numpy() - exact).max()
        limit = max(2 * torchs_error, 4 * np.finfo(np.float32).eps * np.abs(exact).max())
        if dtype == torch.float64:
            limit = 1e-12 * np.abs(exact).max()
        if dtype.itemsize == 2:
            limit = limit + half_unit(exact, dtype)
        for layout in layouts(tensors[-1]):
            moved = [layouts(tensor)[layout] for tensor in tensors]
            result = call(name, moved, **parameters)
            error = np.abs(result.double().numpy() - exact)
            assert (error <= limit).all(), (layout, dtype)
            assert result.dtype == dtype
            assert result.stride() == dense(moved[-1]).stride(), layout


# Partial and several vectors of every instruction set, and more planes than are done together.
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 48, 50, 64, 100)


@needs_compiled
@each_operator
@pytest.mark.parametrize("n", [1, 3, 5, 7, 31])
def test_compiled_code_is_the_reference_for_any_number_of_channels_and_pixels(
    name, instruction_set, n
):
    parameters = dict(PAPER, n=n)
    for channels in WIDTHS:
        for height, width in ((1, 1), (3, 7)):
            tensors = inputs_of(name, (2, channels, height, width), torch.float32)
            expected = OPERATORS[name].reference(*(t.double() for t in tensors), **parameters)
            for layout in ("NCHW", "channels last"):
                moved = [layouts(tensor)[layout] for tensor in tensors]
                result = call(name, moved, **parameters)
                assert close(result, expected.numpy(), 1e-6), (channels, height, layout)


@needs_compiled
@each_operator
def test_planes_larger_than_a_block_are_cut_right(name, instruction_set):
    tensors = inputs_of(name, (1, 7, 73, 71), torch.float32)
    for parameters in (dict(PAPER), dict(PAPER, n=3)):
        expected = OPERATORS[name].reference(*(t.double() for t in tensors), **parameters)
        assert close(call(name, tensors, **parameters), expected.numpy(), 1e-6)


@needs_compiled
@each_operator
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(name, dtype):
    before = torch.get_num_threads()
    results = {}
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            for batch in (1, 5):
                tensors = inputs_of(name, (batch, 50, 27, 29), dtype)
                for layout in ("NCHW", "channels last"):
                    moved = [layouts(tensor)[layout] for tensor in tensors]
                    for n in (5, 7):
                        result = call(name, moved, **dict(PAPER, n=n, towers=2))
                        results.setdefault((batch, layout, n), []).append(result)
    finally:
        torch.set_num_threads(before)
    for case, same in results.items():
        assert all(torch.equal(same[0], other) for other in same[1:]), case


@pytest.mark.fault(17)
@needs_compiled
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["NCHW", "channels last"])
def test_more_elements_than_a_32_bit_index_reaches(layout):
    """2 ** 31 and some: the last image, which lies beyond, must be right."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 11 * 2**30:
        pytest.skip(f"11 GiB of free memory are needed, {free / 2**30:.0f} GiB are there")
    shape = (2049, 1024, 32, 32)
    format_ = torch.channels_last if layout == "channels last" else torch.contiguous_format
    x = torch.empty(shape, dtype=torch.bfloat16, memory_format=format_).zero_()
    x[-1] = activations(shape[1:], torch.bfloat16)
    out = torch.empty_like(x)
    local_response_norm_out(x, **PAPER, out=out)
    assert torch.equal(out[-1:], local_response_norm(x[-1:].clone(), **PAPER))
    assert not out[-2].any()


@pytest.mark.fault(16)
@each_operator
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_types_are_summed_in_float32(name, dtype):
    # 300 squared is infinite in float16.
    tensors = [torch.full((1, 8, 2, 2), 300.0, dtype=dtype)] * OPERATORS[name].inputs
    y = call(name, tensors, **PAPER)
    assert y.dtype == dtype
    assert torch.isfinite(y).all()
    assert torch.equal(y, call(name, [t.float() for t in tensors], **PAPER).to(dtype))


@pytest.mark.fault(16)
@needs_compiled
def test_denormal_numbers_are_kept(instruction_set):
    for dtype in DTYPES:
        x = torch.full((1, 16, 1, 5), torch.finfo(dtype).tiny / 2, dtype=dtype)
        for layout in ("NCHW", "channels last"):
            y = local_response_norm(layouts(x)[layout], **PAPER)
            assert (y > 0).all(), (dtype, layout)


def test_gradients_are_those_of_the_function():
    x = (activations((2, 6, 2, 3)) / 80).requires_grad_()
    gradient = activations((2, 6, 2, 3), seed=1) / 80
    for towers in (1, 2):

        def normalize(x, towers=towers):
            return local_response_norm(x, n=3, k=1.0, alpha=0.5, beta=0.75, towers=towers)

        assert torch.autograd.gradcheck(normalize, (x,))
        assert torch.autograd.gradgradcheck(normalize, (x,), (gradient.requires_grad_(),))


def test_an_expanded_gradient_is_read_right():
    """The gradient of a sum has stride 0 everywhere; that of a mean over one axis, there."""
    for layout, x in layouts(activations((2, 6, 3, 3))).items():
        x = x.detach().requires_grad_()
        y = local_response_norm(x, **PAPER)
        for expanded in (torch.ones(()).expand(y.shape), torch.ones(2, 6, 1, 1).expand(y.shape)):
            expanded = expanded.double()
            (actual,) = torch.autograd.grad(y, x, expanded, retain_graph=True)
            (expected,) = torch.autograd.grad(y, x, expanded.contiguous(), retain_graph=True)
            assert torch.equal(actual, expected), layout


@pytest.mark.fault(16, 17)
@pytest.mark.parametrize(
    "shape",
    [(0, 6, 3, 3), (2, 6, 0, 3), (2, 0, 3, 3), (1, 6), (2, 6, 4), (1, 6, 2, 2, 2)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_and_unusual_shapes_work(shape, dtype):
    x = torch.ones(shape, requires_grad=True, dtype=dtype)
    y = local_response_norm(x, **PAPER, towers=2)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape
    if x.numel():
        base = 2.0 + 1e-4 * 3
        assert torch.allclose(y, torch.full_like(y, base**-0.75), rtol=1e-2)
    with torch.no_grad():
        out = torch.empty_like(x)
        assert torch.equal(local_response_norm_out(x, **PAPER, towers=2, out=out), y)


@pytest.mark.fault(17)
def test_channels_last_is_kept_in_five_dimensions():
    x = activations((2, 6, 2, 3, 4))
    last = x.contiguous(memory_format=torch.channels_last_3d)
    y = local_response_norm(last, **PAPER)
    assert y.stride() == last.stride()
    torch.testing.assert_close(y, local_response_norm(x, **PAPER), rtol=1e-12, atol=0)


@pytest.mark.parametrize("channels", [7, 40])
def test_nan_and_infinity_go_through_the_formula(channels):
    for dtype in DTYPES:
        for layout in ("NCHW", "channels last"):
            x = torch.ones(1, channels, 2, 3, dtype=dtype)
            x[0, 3] = float("nan")
            x = layouts(x)[layout].requires_grad_()
            y = local_response_norm(x, **PAPER)
            is_near = [1 <= c <= 5 for c in range(channels)]
            assert torch.isnan(y)[0, :, 1, 1].tolist() == is_near
            # The gradient of channel c holds terms of c - 2 to c + 2.
            (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
            is_reached = [c <= 7 for c in range(channels)]
            assert torch.isnan(gradient)[0, :, 1, 1].tolist() == is_reached
            with torch.no_grad():
                x[0, 3] = float("inf")
                y = local_response_norm(x, **PAPER)[0, :, 1, 1]
            assert torch.isnan(y).tolist() == [c == 3 for c in range(channels)]
            assert y[[1, 2, 4, 5]].tolist() == [0, 0, 0, 0]
            assert (y[[0, 6]] > 0.5).all()


@pytest.mark.fault(16)
@needs_compiled
def test_a_sum_that_overflows_divides_by_infinity(instruction_set):
    x = torch.full((1, 20, 2, 3), 1e25)
    for layout in ("NCHW", "channels last"):
        assert not local_response_norm(layouts(x)[layout], **PAPER).any()


@each_operator
def test_opcheck_passes(name):
    for shape in ((2, 8, 3, 3), (0, 8, 3, 3), (2, 8)):
        for layout in ("NCHW", "channels last", "gaps") if len(shape) == 4 else ("as is",):
            tensors = [torch.randn(shape) for _ in range(OPERATORS[name].inputs)]
            if layout != "as is":
                tensors = [layouts(tensor)[layout] for tensor in tensors]
            keywords = {}
            if OPERATORS[name].writes_into_out:
                keywords["out"] = torch.empty_like(dense(tensors[-1]))
            else:
                tensors[-1].requires_grad_()
            arguments = (*tensors, 5, 2.0, 1e-4, 0.75, 2)
            torch.library.opcheck(getattr(torch.ops.replica, name), arguments, keywords)


def network_like(x, weight):
    """The operator between two others, as a network has it."""
    return local_response_norm(F.relu(F.conv2d(x, weight)), **PAPER, towers=2).square().sum()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own code
def test_it_works_under_torch_compile(backend):
    if backend == "inductor":
        if not any(map(shutil.which, ("c++", "g++", "clang++"))):
            pytest.skip("no C++ compiler")
        problem = compiler_problem(torch.__file__)
        if problem:
            pytest.skip(problem)
    results = []
    for function in (network_like, torch.compile(network_like, backend=backend, fullgraph=True)):
        x, weight = activations((2, 3, 6, 6), torch.float32), torch.ones(8, 3, 3, 3) / 100
        weight.requires_grad_()
        value = function(x.contiguous(memory_format=torch.channels_last), weight)
        value.backward()
        results.append((value.detach(), weight.grad))
    torch.testing.assert_close(results[0], results[1])


def test_it_works_under_autocast_without_a_cast():
    x, weight = activations((2, 3, 6, 6), torch.float32), torch.ones(8, 3, 3, 3) / 100
    with torch.autocast("cpu", torch.bfloat16):
        before = F.conv2d(x, weight)
        after = local_response_norm(before, **PAPER)
        assert after.dtype == before.dtype == torch.bfloat16
        assert local_response_norm(x, **PAPER).dtype == torch.float32


def test_it_can_be_exported():
    class Normalize(torch.nn.Module):
        def forward(self, x):
            return local_response_norm(x, **PAPER, towers=2)

    batch = torch.export.Dim("batch", min=1)
    x = activations((3, 8, 5, 5), torch.float32)
    exported = torch.export.export(Normalize(), (x,), dynamic_shapes=({0: batch},))
    assert "replica.local_response_norm" in str(exported.graph)
    larger = activations((7, 8, 5, 5), torch.float32)
    assert torch.equal(exported.module()(larger), Normalize()(larger))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 4}, "expected an odd n >= 1, got 4"),
        ({"n": -1}, "expected an odd n >= 1, got -1"),
        ({"n": 5.0}, "expected an odd n >= 1, got 5.0"),
        ({"k": 0.0}, "expected a finite k > 0, got 0.0"),
        ({"k": float("nan")}, "expected a finite k > 0, got nan"),
        ({"alpha": -1.0}, "expected a finite alpha >= 0, got -1.0"),
        ({"beta": float("inf")}, "expected a finite beta >= 0, got inf"),
        ({"beta": -0.75}, "expected a finite beta >= 0, got -0.75"),
        ({"towers": 4}, "expected channels divisible by towers, got 6 channels and 4 towers"),
        ({"towers": 0}, "expected channels divisible by towers, got 6 channels and 0 towers"),
        ({"x": torch.ones(6)}, r"expected x of \(N, C, ...\), got \(6,\)"),
        (
            {"x": torch.ones(1, 6, dtype=torch.int64)},
            "expected float32, float64, bfloat16 or float16, got torch.int64",
        ),
        (
            {"x": torch.ones(1, 6, dtype=torch.complex64)},
            "expected float32, float64, bfloat16 or float16, got torch.complex64",
        ),
    ],
)
def test_wrong_arguments_are_refused_with_the_rule(change, message):
    arguments = {"x": torch.ones(1, 6, 2, 2), **PAPER, **change}
    x = arguments.pop("x")
    with pytest.raises(ValueError, match=f"local_response_norm: {message}"):
        local_response_norm(x, **arguments)
    with pytest.raises(ValueError, match=f"local_response_norm: {message}"):
        local_response_norm_out(x, **arguments, out=torch.empty_like(x))


X = torch.ones(2, 6, 3, 3)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.empty(2, 6, 3), r"expected out of torch.float32, \(2, 6, 3, 3\), got"),
        (torch.empty(2, 6, 3, 3, dtype=torch.float64), "expected out of torch.float32"),
        (torch.empty(2, 6, 3, 3, device="meta"), "expected x and out on one device, got cpu and"),
        (X.contiguous(memory_format=torch.channels_last), r"expected out of strides \(54, 9, 3, 1"),
        (torch.empty(2, 6, 3, 6)[..., ::2], "expected out of strides"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(out, message):
    with pytest.raises(ValueError, match=f"local_response_norm: {message}"):
        local_response_norm_out(X, **PAPER, out=out)


def test_an_out_beside_a_gradient_is_refused():
    x = X.clone().requires_grad_()
    with pytest.raises(ValueError, match="expected tensors without a gradient beside out"):
        local_response_norm_out(x, **PAPER, out=torch.empty_like(X))


@needs_compiled
def test_compiled_code_called_directly_stays_within_its_tensors():
    """The registered operators check again what keeps them from reading elsewhere."""
    operators = torch.ops.replica
    x, rest = torch.ones(1, 6, 2, 2), (5, 2.0, 1e-4, 0.75, 1)
    shared = torch.ones(36)
    for wrong, message in [
        (lambda: operators.local_response_norm(torch.ones(6), *rest), "expected x of"),
        (lambda: operators.local_response_norm(x.int(), *rest), "expected float32"),
        (lambda: operators.local_response_norm(x, 4, *rest[1:]), "expected an odd n"),
        (lambda: operators.local_response_norm(x, *rest[:4], 4), "expected channels divisible"),
        (lambda: operators.local_response_norm_backward(x[:, :4], x, *rest), "expected a gradient"),
        (lambda: operators.local_response_norm_backward(x.double(), x, *rest), "a gradient of"),
        (lambda: operators.local_response_norm_out(x, *rest, out=x[:, :4]), "expected out"),
        (lambda: operators.local_response_norm_out(x, *rest, out=x), "shares no memory"),
        (
            lambda: operators.local_response_norm_out(
                shared[:24].view(1, 6, 2, 2), *rest, out=shared[12:].view(1, 6, 2, 2)
            ),
            "shares no memory",
        ),
        (
            lambda: operators.local_response_norm_backward_out(x, x.clone(), *rest, out=x),
            "shares no memory",
        ),
    ]:
        with pytest.raises(RuntimeError, match=f"local_response_norm: .*{message}"):
            wrong()


def test_the_report_says_what_is_live():
    assert "local_response_norm: " in run("-m", "cuda_ext").stdout
    off = run("-m", "cuda_ext", "--json", REPLICA_EXT="off")
    assert '"local_response_norm": "plain PyTorch (REPLICA_EXT=off)"' in off.stdout


def test_an_unknown_value_of_the_switch_is_refused():
    result = run("-m", "cuda_ext", REPLICA_EXT="fast")
    assert result.returncode == 2
    assert "REPLICA_EXT: expected auto or off, got 'fast'" in result.stderr
    assert "Traceback" not in result.stderr


def test_training_and_testing_refuse_an_unknown_value_of_the_switch(shards_dir):
    train = ("-m", "replica.train", "--data", str(shards_dir), "--recipe", "mini")
    assert_user_error(run(*train, REPLICA_EXT="fast"), "REPLICA_EXT: expected auto or off")


@needs_compiled
def test_the_processor_that_runs_these_tests_uses_its_best_instruction_set():
    if os.uname().machine == "x86_64":
        flags = torch.backends.cpu.get_cpu_capability()
        expected = {"AVX512": "AVX-512", "AVX2": "AVX2"}.get(flags)
        if expected:
            assert expected in cuda_ext.implementations()["local_response_norm"]
