"""One table of operators drives these tests: oracle, reference, compiled code, wrong versions."""

import os
import shutil

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_user_error, run

import cuda_ext
from cuda_ext import local_response_norm, reference
from cuda_ext.library import INSTRUCTION_SETS

PAPER = {"n": 5, "k": 2.0, "alpha": 1e-4, "beta": 0.75}
# Each registered operator, with its public function, reference and oracle.
OPERATORS = {
    "replica::local_response_norm": (
        local_response_norm,
        reference.local_response_norm,
        oracles.local_response_norm,
    ),
    "replica::local_response_norm_backward": (
        None,
        reference.local_response_norm_backward,
        oracles.local_response_norm_gradient,
    ),
}

needs_compiled = pytest.mark.skipif(
    not cuda_ext.compiled_state().is_live, reason=cuda_ext.compiled_state().reason
)


def test_where_there_is_a_compiler_the_operators_are_built():
    """Else every test of compiled code would be skipped without anybody noticing."""
    if any(map(shutil.which, ("c++", "g++", "clang++"))) and "REPLICA_EXT" not in os.environ:
        assert cuda_ext.compiled_state().is_live, cuda_ext.compiled_state().reason


def test_every_registered_operator_has_a_row():
    registered = {
        schema.name for schema in torch._C._jit_get_all_schemas() if "replica::" in schema.name
    }
    assert registered == set(OPERATORS)


def activations(shape, dtype=torch.float64, seed=0):
    """Of the size that activations have in the network, so that alpha matters."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 80).to(dtype)


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


@pytest.mark.parametrize(("parameters", "channels"), CASES)
def test_the_reference_is_the_formula(parameters, channels):
    x, gradient = activations((2, channels, 7)), activations((2, channels, 7), seed=1)
    expected = oracles.local_response_norm(x.numpy(), **parameters)
    assert close(reference.local_response_norm(x, **parameters), expected, 1e-12)
    expected = oracles.local_response_norm_gradient(gradient.numpy(), x.numpy(), **parameters)
    actual = reference.local_response_norm_backward(gradient, x, **parameters)
    assert close(actual, expected, 1e-12)


WRONG = {
    "alpha divided by n": dict(PAPER, alpha=PAPER["alpha"] / 5),
    "window 3": dict(PAPER, n=3),
    "k = 1": dict(PAPER, k=1.0),
    "beta 0.5": dict(PAPER, beta=0.5),
}


@pytest.mark.parametrize("wrong", [*WRONG, "window across the towers", "shifted by one channel"])
def test_the_comparison_rejects_wrong_versions(wrong):
    """The loosest tolerance of this file tells every wrong version from the right one."""
    x = activations((2, 12, 7))
    expected = oracles.local_response_norm(x.numpy(), **PAPER, towers=2)
    if wrong == "window across the towers":
        actual = reference.local_response_norm(x, **PAPER, towers=1)
    elif wrong == "shifted by one channel":
        right = reference.local_response_norm(x, **PAPER, towers=2)
        actual = x * (right / x).roll(1, dims=1)
    else:
        actual = reference.local_response_norm(x, **WRONG[wrong], towers=2)
    assert not close(actual, expected, 2**-8)


def test_torchs_function_of_the_same_name_divides_alpha_by_n():
    x = activations((1, 12, 5, 5))
    torchs = F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)
    torch.testing.assert_close(local_response_norm(x, **PAPER), torchs, rtol=1e-10, atol=0)


def layouts(x):
    """The same values as NCHW, channels last, and with gaps in memory."""
    gaps = torch.empty(*x.shape[:3], 2 * x.shape[3], dtype=x.dtype)[..., ::2]
    return {
        "NCHW": x.contiguous(),
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "gaps": gaps.copy_(x),
    }


@needs_compiled
@pytest.mark.parametrize("isa", range(len(INSTRUCTION_SETS)))
@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_compiled_code_is_as_exact_as_torchs_own_float32(isa, towers, beta):
    parameters = dict(PAPER, beta=beta)
    try:
        cuda_ext.set_instruction_set(isa)
    except RuntimeError as error:
        pytest.skip(f"this processor has no {INSTRUCTION_SETS[isa]}: {error}")
    try:
        shape = (3, 24, 5, 7)
        x, gradient = activations(shape), activations(shape, seed=1) / 80
        flat, flat_gradient = x.flatten(2).numpy(), gradient.flatten(2).numpy()
        exact = oracles.local_response_norm(flat, **parameters, towers=towers)
        exact_gradient = oracles.local_response_norm_gradient(
            flat_gradient, flat, **parameters, towers=towers
        )
        # PyTorch's own float32, on each tower by itself.
        single = x.float().requires_grad_()
        torchs = torch.cat(
            [
                F.local_response_norm(part, 5, alpha=5e-4, beta=beta, k=2.0)
                for part in single.chunk(towers, dim=1)
            ],
            dim=1,
        )
        torchs.backward(gradient.float())

        def error(actual, expected):
            return np.abs(actual.detach().double().flatten(2).numpy() - expected).max()

        units = np.finfo(np.float32).eps
        limits = {
            torch.float32: (
                max(2 * error(torchs, exact), 4 * units * np.abs(exact).max()),
                max(
                    2 * error(single.grad, exact_gradient), 4 * units * np.abs(exact_gradient).max()
                ),
            ),
            torch.float64: (1e-12 * np.abs(exact).max(), 1e-12 * np.abs(exact_gradient).max()),
        }
        for dtype, (limit, gradient_limit) in limits.items():
            for name, layout in layouts(x.to(dtype)).items():
                leaf = layout.detach().requires_grad_()
                y = local_response_norm(leaf, **parameters, towers=towers)
                (g,) = torch.autograd.grad(y, leaf, gradient.to(dtype))
                assert error(y, exact) <= limit, (name, dtype)
                assert error(g, exact_gradient) <= gradient_limit, (name, dtype)
                if name == "channels last":
                    assert y.is_contiguous(memory_format=torch.channels_last)
    finally:
        cuda_ext.set_instruction_set(-1)


@needs_compiled
def test_results_do_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    x = activations((5, 96, 27, 27), torch.float32)
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for layout in layouts(x).values():
                results.append(local_response_norm(layout, **PAPER, towers=2))
    finally:
        torch.set_num_threads(before)
    for first in range(3):
        for later in (3 + first, 6 + first):
            assert torch.equal(results[first], results[later])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_types_are_summed_in_float32(dtype):
    # 300 squared is infinite in float16.
    x = torch.full((1, 8, 2, 2), 300.0, dtype=dtype)
    y = local_response_norm(x, **PAPER)
    exact = local_response_norm(x.float(), **PAPER)
    assert y.dtype == dtype
    assert torch.isfinite(y).all()
    assert torch.equal(y, exact.to(dtype))


def test_gradients_are_those_of_the_function():
    x = (activations((2, 6, 2, 3)) / 80).requires_grad_()
    for towers in (1, 2):
        assert torch.autograd.gradcheck(
            lambda x, t=towers: local_response_norm(x, n=3, k=1.0, alpha=0.5, beta=0.75, towers=t),
            (x,),
        )


def test_an_expanded_gradient_is_read_right():
    x = activations((2, 6, 3, 3)).requires_grad_()
    local_response_norm(x, **PAPER).sum().backward()
    (expected,) = torch.autograd.grad(
        local_response_norm(x, **PAPER), x, torch.ones(2, 6, 3, 3, dtype=torch.float64)
    )
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("shape", [(0, 6, 3, 3), (2, 6, 0, 3), (1, 6), (2, 6, 4), (1, 6, 2, 2, 2)])
def test_empty_and_unusual_shapes_work(shape):
    x = torch.ones(shape, requires_grad=True)
    y = local_response_norm(x, **PAPER, towers=2)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape


def test_nan_and_infinity_go_through_the_formula():
    x = torch.ones(1, 7, 1, 1)
    x[0, 3] = float("nan")
    y = local_response_norm(x, **PAPER).flatten()
    assert torch.isnan(y).tolist() == [False, True, True, True, True, True, False]
    x[0, 3] = float("inf")
    y = local_response_norm(x, **PAPER).flatten()
    assert y[2] == 0
    assert torch.isnan(y[3])
    assert y[0] > 0.5


def test_opcheck_passes():
    x = torch.randn(2, 8, 3, 3, requires_grad=True)
    torch.library.opcheck(torch.ops.replica.local_response_norm, (x, 5, 2.0, 1e-4, 0.75, 2))
    with torch.no_grad():
        arguments = (x.detach(), x.detach(), 5, 2.0, 1e-4, 0.75, 2)
        torch.library.opcheck(torch.ops.replica.local_response_norm_backward, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 4}, "expected an odd n >= 1, got 4"),
        ({"n": -1}, "expected an odd n >= 1, got -1"),
        ({"k": 0.0}, "expected k > 0, got 0.0"),
        ({"alpha": -1.0}, "expected alpha >= 0, got -1.0"),
        ({"towers": 4}, "expected channels divisible by towers, got 6 channels and 4 towers"),
        ({"x": torch.ones(6)}, r"expected x of \(N, C, ...\), got \(6,\)"),
        (
            {"x": torch.ones(1, 6, dtype=torch.int64)},
            "expected a floating-point x, got torch.int64",
        ),
    ],
)
def test_wrong_arguments_are_refused_with_the_rule(change, message):
    arguments = {"x": torch.ones(1, 6, 2, 2), **PAPER, **change}
    with pytest.raises(ValueError, match=f"local_response_norm: {message}"):
        local_response_norm(arguments.pop("x"), **arguments)


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
