"""The GPU kernels of `split_conv2d`, run on a CPU one fiber a thread, against loops in float64."""

import ctypes

import numpy as np
import pytest
import torch
from emulated import CSRC, Emulation, Mistake, needs_compiler
from test_split_conv2d import (
    CASES,
    LARGE,
    LAYOUTS,
    inputs_of,
    moved,
    options_of,
    oracle,
    wrong_versions,
)

KERNELS = CSRC / "split_conv2d.cuh"
pytestmark = needs_compiler

SEEDS = (0, 1)
PRODUCTS = ("y", "gradient of x", "gradient of weight")


class ConvolutionEmulation(Emulation):
    """The products of the operator."""

    def __call__(self, product, x, weight, y, bias=None, *, seed=0, only_last=False, **how):
        """One of the products, into that one of x, weight and y that it gives."""
        orders = {"y": (y, x, weight), PRODUCTS[1]: (x, y, weight), PRODUCTS[2]: (weight, y, x)}
        out, *given = orders[product]
        numbers = problem_of(x, weight, y, **how)
        adds, relu = how.get("adds", False), how.get("activation", "none") == "relu"
        of = PRODUCTS.index(product)
        self.call(of, *given, bias, numbers, adds, relu, out, seed, only_last)
        return out

    def parts(self, product, *tensors, **how):
        """Into how many parts its sums are cut."""
        return self.number("emulated_parts", PRODUCTS.index(product), problem_of(*tensors, **how))


def problem_of(x, weight, y, *, stride, padding, towers=1, **_):
    """The numbers of `Problem`, in its order."""
    numbers = [len(x), *x.shape[2:], weight.shape[1], len(weight) // towers, towers]
    numbers += [*weight.shape[2:], stride, padding[0], *y.shape[2:]]
    for tensor in (x, y, weight):
        numbers += tensor.stride()
    return (ctypes.c_int64 * len(numbers))(*numbers)


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    return ConvolutionEmulation("split_conv2d", tmp_path_factory.mktemp("emulation"))


@pytest.fixture
def altered(tmp_path):
    """Builds the kernels with one text replaced by another."""

    def build(old, new, occurrence=0):
        return ConvolutionEmulation("split_conv2d", tmp_path, Mistake(old, new, occurrence))

    return build


def float32_inputs(case, layout=torch.contiguous_format):
    return moved(inputs_of(case, torch.float32), layout)


def results_of(emulation, tensors, *, seed=0, **options):
    """y, dx and dweight."""
    x, weight, bias, gradient = tensors
    nan = [torch.full_like(t, float("nan")) for t in (gradient, x, weight)]
    return (
        emulation("y", x, weight, nan[0], bias, seed=seed, **options),
        emulation(PRODUCTS[1], nan[1], weight, gradient, seed=seed, **options),
        emulation(PRODUCTS[2], x, nan[2], gradient, seed=seed, **options),
    )


def close(actual, expected, relative=1e-6):
    scale = np.abs(expected).max()
    return (np.abs(actual.double().numpy() - expected) <= relative * scale).all()


@pytest.mark.parametrize("case", [*CASES, *LARGE])
def test_kernels_are_the_formula(emulation, case):
    for layout in LAYOUTS.values():
        tensors = float32_inputs(case, layout)
        *expected, _ = oracle(*tensors[:3], **options_of(case), gradient=tensors[3])
        for seed in SEEDS:
            found = results_of(emulation, tensors, seed=seed, **options_of(case))
            for name, one, exact in zip(PRODUCTS, found, expected, strict=True):
                assert close(one, exact), name


def test_a_long_sum_is_cut_into_parts_that_are_added_in_order(emulation):
    case = "many places"
    x, weight, _, y = float32_inputs(case)
    parts = emulation.parts(PRODUCTS[2], x, weight, y, **options_of(case))
    assert parts == 3 * 25 * 23 // 512 == 3
    assert emulation.parts("y", x, weight, y, **options_of(case)) == 1
    results = [
        emulation(PRODUCTS[2], x, torch.empty_like(weight), y, seed=seed, **options_of(case))
        for seed in range(4)
    ]
    assert all(torch.equal(results[0], other) for other in results)


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_the_end_of_a_layer_adds_to_what_is_there(emulation, activation):
    for case in ("conv1", "conv2"):
        for layout in LAYOUTS.values():
            x, weight, bias, y = float32_inputs(case, layout)
            options = options_of(case, activation=activation)
            for given in (bias, None):
                biases = torch.zeros_like(bias) if given is None else bias
                exact = oracle(x, weight, biases, **options_of(case)) + y.double().numpy()
                exact = exact.clip(0) if activation == "relu" else exact
                out = y.clone(memory_format=torch.preserve_format)
                assert close(emulation("y", x, weight, out, given, adds=True, **options), exact)
                assert not close(emulation("y", x, weight, out, given, **options), exact)


@pytest.mark.parametrize("case", ["conv1", "conv2"])
def test_the_comparison_rejects_wrong_versions(emulation, case):
    x, weight, bias, gradient = float32_inputs(case)
    *expected, _ = oracle(x, weight, bias, **options_of(case), gradient=gradient)
    for wrong, tensors, options in wrong_versions(case):
        if wrong == "padding swapped" and options["padding"] == options_of(case)["padding"]:
            continue
        tensors = [t.float().contiguous() for t in tensors]
        y, of_x, of_weight = results_of(emulation, (*tensors, gradient), **options)
        assert not close(y, expected[0], 2**-8), wrong
        if wrong not in ("no bias", "shifted by one channel", "towers swapped"):
            assert not close(of_x, expected[1], 2**-8), wrong
        if wrong in ("padding swapped", "shifted by one channel", "towers swapped"):
            assert not close(of_weight, expected[2], 2**-8), wrong


BARRIERS = KERNELS.read_text().count("__syncthreads();")


def fails(emulation):
    """Whether a comparison, in some order of the threads, shows that kernels are wrong."""
    for case in ("conv2", "many places"):
        tensors = float32_inputs(case)
        *expected, _ = oracle(*tensors[:3], **options_of(case), gradient=tensors[3])
        for seed in SEEDS:
            try:
                found = results_of(emulation, tensors, seed=seed, **options_of(case))
            except RuntimeError:
                return True
            if not all(map(close, found, expected)):
                return True
    return False


@pytest.mark.parametrize("barrier", range(BARRIERS))
def test_without_any_one_barrier_a_test_fails(emulation, altered, barrier):
    assert BARRIERS == 2
    assert fails(altered("__syncthreads();", "", barrier))
    assert not fails(emulation)


def test_more_shared_memory_than_asked_for_is_an_error(altered):
    wrong = altered("dim3(kThreads), kSharedBytes", "dim3(kThreads), kSharedBytes - 64")
    with pytest.raises(RuntimeError, match="of its shared memory, and asked for"):
        results_of(wrong, float32_inputs("conv2"), **options_of("conv2"))


MISTAKES = {
    "a part begins where the one before does": ("part * shape.terms_per_part", "0"),
    "a part less": ("part < shape.parts; ++part", "part + 1 < shape.parts; ++part"),
    "strides are not asked for": ("row % p.stride != 0 || column % p.stride != 0", "false"),
    "the other padding": ("place.b + p.before - tap.b", "place.b - tap.b"),
    "a row beyond the border": ("row >= p.height", "row > p.height"),
    "the bias of the first tower": ("tower * shape.rows + row)", "row)"),
    "the first tower's channels": ("tower * p.channels + tap.a, row, column", "tap.a, row, column"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_kernels_are_seen(altered, mistake):
    wrong = altered(*MISTAKES[mistake])
    tensors = {case: float32_inputs(case) for case in ("conv2", "more before", "many places")}
    seen = False
    for case, given in tensors.items():
        *expected, _ = oracle(*given[:3], **options_of(case), gradient=given[3])
        seen = seen or not all(map(close, results_of(wrong, given, **options_of(case)), expected))
    assert seen


def test_a_division_by_multiplication_is_right_up_to_31_bits(emulation):
    rng = np.random.default_rng(0)
    divisors = [*range(1, 70), 121, 363, 729, 3025, 2**16 - 1, 2**16 + 1, 2**30 + 1, 2**31 - 1]
    for divisor in divisors:
        multiples = rng.integers(0, 2**31 // divisor + 1, 200) * divisor
        numbers = np.concatenate([multiples, multiples - 1, multiples + 1, [0, 2**31 - 1]])
        numbers = numbers[(numbers >= 0) & (numbers < 2**31)].astype(np.uint32)
        pointer = numbers.ctypes.data_as(ctypes.c_void_p)
        first_wrong = emulation.number("emulated_quotient", pointer, len(numbers), divisor)
        assert first_wrong == -1, divisor


def test_indices_in_memory_go_beyond_32_bits(emulation):
    """The last image begins beyond 2 ** 31 values; the last block of threads is run."""
    images, side = 2**21, 32
    big = torch.from_numpy(np.zeros((images, 1, side, side), np.float32))
    assert big.numel() == 2**31
    rng = np.random.default_rng(0)
    big[-1] = torch.from_numpy(rng.normal(size=(1, side, side)).astype(np.float32))
    weight = torch.from_numpy(rng.normal(size=(1, 1, 8, 8)).astype(np.float32))
    y = torch.from_numpy(np.zeros((images, 1, 4, 4), np.float32))
    how = {"stride": 8, "padding": (0, 0)}
    emulation("y", big, weight, y, only_last=True, **how)
    exact = oracle(big[-1:], weight, torch.zeros(1), **how)
    assert close(y[-1:], exact)


def test_more_than_the_kernels_count_is_refused(emulation):
    x = torch.zeros(1, 1, 1, 1).expand(2**30, 1, 2, 2)
    y = torch.zeros(1, 1, 1, 1).expand(2**30, 1, 2, 2)
    message = "split_conv2d: expected at most 2147475455 columns, got 4294967296"
    with pytest.raises(RuntimeError, match=message):
        emulation("y", x, torch.zeros(1, 1, 1, 1), y, stride=1, padding=(0, 0))


def test_nothing_to_do_is_done(emulation):
    x, weight, bias, y = float32_inputs("conv2")
    options = options_of("conv2")
    assert not emulation("y", x[:0], weight, y[:0], bias, **options).numel()
    of_weight = emulation(PRODUCTS[2], x[:0], torch.ones_like(weight), y[:0], **options)
    assert not of_weight.any()
