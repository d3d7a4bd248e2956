"""`philox_dropout` against the oracle's words: reference, compiled code, and the GPU's kernel."""

from functools import partial

import numpy as np
import oracles
import pytest
import torch
from conftest import PROJECT_DIR, run
from emulated import Emulation, needs_compiler

from cuda_ext import philox_dropout, reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KEY = (9, 4)  # of a seed, and the purpose of dropout
# Rows far apart, units that begin and end within a counter, more than one block of counters.
ROWS = torch.tensor([0, 5, 3, 4_000_000_000])
UNITS = slice(3, 301)


def arguments(**changes):
    return {
        "key": KEY,
        "step": 900_899,
        "layer": 1,
        "rows": ROWS,
        "units": UNITS,
        "keep": 0.5,
        **changes,
    }


def activations(dtype=torch.float32, units=UNITS):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(len(ROWS), units.stop - units.start))).to(dtype)


def oracle(x, *, key, step, layer, rows, units, keep):
    """x where the word of the unit is below keep * 2^32."""
    row, word = np.meshgrid(np.asarray(rows), np.arange(-(-units.stop // 4)), indexing="ij")
    counters = np.stack([row * 0 + step, row * 0 + layer, row, word], axis=-1)
    words = oracles.philox(key[0], key[1], counters).reshape(len(rows), -1)
    return x * torch.from_numpy(words[:, units] < keep * 2**32)


def same(one, other):
    """Bit for bit, the sign of zeros too."""
    return torch.equal(one, other) and torch.equal(one.signbit(), other.signbit())


def plain(x, *, key, step, layer, rows, units, keep):
    at_step = torch.tensor(step)
    return reference.philox_dropout(x, key, at_step, layer, rows, units.start, round(keep * 2**32))


@pytest.mark.parametrize("keep", [0.5, 0.25, 0.999, 0.0, 1.0])
@pytest.mark.parametrize("units", [UNITS, slice(0, 1), slice(2, 3), slice(128, 700)], ids=str)
def test_reference_and_operator_are_the_oracle(units, keep):
    changes = {"units": units, "keep": keep}
    for dtype in DTYPES:
        x = activations(dtype, units)
        expected = oracle(x, **arguments(**changes))
        assert same(philox_dropout(x, **arguments(**changes)), expected)
        assert same(plain(x, **arguments(**changes)), expected)


WRONG = {
    "other step": {"step": 900_898},
    "other layer": {"layer": 0},
    "other rows": {"rows": ROWS.flip(0)},
    "local rows": {"rows": torch.arange(4)},
    "other units": {"units": slice(4, 302)},
    "other seed": {"key": (10, 4)},
    "other purpose": {"key": (9, 3)},
    "more stays": {"keep": 0.51},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_comparison_rejects_wrong_versions(wrong):
    x = activations()
    assert not same(philox_dropout(x, **arguments(**WRONG[wrong])), oracle(x, **arguments()))


def test_any_cut_gives_the_same_and_any_number_of_threads():
    x = activations()
    whole = philox_dropout(x, **arguments())
    parts = [
        philox_dropout(x[:, a - 3 : b - 3], **arguments(units=slice(a, b)))
        for a, b in ((3, 154), (154, 301))
    ]
    assert same(torch.cat(parts, dim=1), whole)
    parts = [
        philox_dropout(x[rows], **arguments(rows=ROWS[rows])) for rows in (slice(0, 1), slice(1, 4))
    ]
    assert same(torch.cat(parts), whole)
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            assert same(philox_dropout(x, **arguments()), whole)
    finally:
        torch.set_num_threads(threads)


def test_the_step_may_be_a_tensor_and_strides_may_be_any():
    x = activations()
    expected = philox_dropout(x, **arguments())
    assert same(philox_dropout(x, **arguments(step=torch.tensor(900_899))), expected)
    assert same(philox_dropout(x.T.contiguous().T, **arguments()), expected)
    assert philox_dropout(x[:0], **arguments(rows=ROWS[:0])).shape == (0, 298)


def test_infinity_and_nan_are_what_a_product_with_the_mask_gives():
    x = torch.full((4, 298), float("inf"))
    x[0] = float("nan")
    x[1] = -1.0
    assert torch.equal(
        philox_dropout(x, **arguments()).nan_to_num(7.0, 8.0, 9.0),
        oracle(x, **arguments()).nan_to_num(7.0, 8.0, 9.0),
    )


def test_the_gradient_has_the_mask_of_the_forward_pass():
    x = activations(torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(philox_dropout(x, **arguments()).sum(), x)
    assert same(gradient, oracle(torch.ones_like(x), **arguments()))
    assert torch.autograd.gradcheck(lambda x: philox_dropout(x, **arguments()), x)
    assert torch.autograd.gradgradcheck(lambda x: philox_dropout(x, **arguments()), x)


def test_opcheck_compile_and_export():
    x = activations().requires_grad_()
    step = torch.tensor(7)
    torch.library.opcheck(
        torch.ops.replica.philox_dropout.default, (x, 9, 4, step, 1, ROWS, 3, 2**31)
    )

    class Module(torch.nn.Module):
        def forward(self, x, step):
            return philox_dropout(x, **arguments(step=step))

    expected = Module()(x, step)
    compiled = torch.compile(Module(), backend="aot_eager", fullgraph=True)
    assert same(compiled(x, step), expected)
    program = torch.export.export(Module(), (x.detach(), step))
    assert same(program.module()(x.detach(), step), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": (2**32, 0)}, "expected a key of two words, 0 to 4294967295, got"),
        ({"step": -1}, "expected a step of 0 to 4294967295, got -1"),
        ({"step": torch.tensor(1.0)}, "expected a step of one int64 on cpu, got torch.float32"),
        ({"layer": -1}, "expected a layer of 0 to 4294967295, got -1"),
        ({"rows": ROWS[:3]}, r"expected rows of int64, \(4,\), on cpu, got torch.int64, \(3,\)"),
        ({"rows": ROWS.int()}, "expected rows of int64"),
        ({"units": slice(0, 300)}, "expected units of the 298 columns of x"),
        ({"keep": 1.5}, "expected keep from 0 to 1, got 1.5"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_with_the_rule(changes, message):
    with pytest.raises(ValueError, match=f"philox_dropout: {message}"):
        philox_dropout(activations(), **arguments(**changes))
    with pytest.raises(ValueError, match=r"expected x of \(N, units\), got \(298,\)"):
        philox_dropout(activations()[0], **arguments())


def test_without_compiled_code_it_is_the_same():
    code = (
        "import torch; from test_philox_dropout import *; x = activations();"
        "print(same(philox_dropout(x, **arguments()), oracle(x, **arguments())))"
    )
    result = run("-c", code, REPLICA_EXT="off", PYTHONPATH=f"{PROJECT_DIR / 'tests'}:{PROJECT_DIR}")
    assert result.stdout.strip() == "True", result.stderr


# --- The GPU's kernel, run on a CPU one fiber a thread


def emulated(emulation, x, *, key, step, layer, rows, units, keep, order=0):
    out, at_step = torch.full_like(x, 7.0), torch.tensor(step)
    pointers, threshold = (x, at_step, rows), round(keep * 2**32)
    sizes = (*x.shape, units.start, layer, *key, threshold)
    emulation.call(x.dtype, *pointers, *sizes, out, order)
    return out


@needs_compiler
def test_the_kernel_is_the_oracle(tmp_path):
    kernel = partial(emulated, Emulation("philox_dropout", tmp_path))
    for units in (UNITS, slice(0, 1), slice(2, 3)):
        for keep in (0.5, 0.0, 1.0):
            for dtype in DTYPES:
                x, changes = activations(dtype, units), {"units": units, "keep": keep}
                for order in (0, 1):
                    result = kernel(x, **arguments(**changes), order=order)
                    assert same(result, oracle(x, **arguments(**changes)))
    x = activations()
    for wrong in WRONG.values():
        assert not same(kernel(x, **arguments(**wrong)), oracle(x, **arguments()))
