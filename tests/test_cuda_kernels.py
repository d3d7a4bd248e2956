"""The GPU kernels, run on a CPU one fiber a thread, against the same oracles and wrong versions."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT_DIR
from test_operators import (
    BACKWARD,
    DTYPES,
    FORWARD,
    PAPER,
    WRONG,
    activations,
    close,
    half_unit,
)

KERNELS = PROJECT_DIR / "cuda_ext" / "csrc" / "local_response_norm.cuh"
DRIVER = PROJECT_DIR / "tests" / "emulated_local_response_norm.cpp"
COMPILER = shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the emulation with")

SEEDS = (0, 1, 2)
DIRECTIONS = {"forward": FORWARD, "backward": BACKWARD}
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)


class Emulation:
    """The kernels as a library for this CPU."""

    def __init__(self, kernels: Path, directory: Path):
        library = directory / f"{kernels.stem}.so"
        options = ["-std=c++20", "-O1", "-shared", "-fPIC", f'-DKERNELS="{kernels}"']
        options.append(f"-I{KERNELS.parent}")  # what an altered copy includes
        subprocess.run([COMPILER, *options, str(DRIVER), "-o", str(library)], check=True)
        self.call = ctypes.CDLL(str(library)).emulated_local_response_norm
        pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
        self.call.argtypes = (
            [ctypes.c_int, pointer, pointer, pointer, count, count, count, ctypes.c_bool, count]
            + [number] * 3
            + [ctypes.c_uint, ctypes.c_bool]
        )
        self.call.restype = ctypes.c_char_p

    def run(self, tensors, out, *, is_rows, towers=1, seed=0, only_last=False, n, k, alpha, beta):
        """Dense tensors of (N, C, pixels) or, as rows, (N, pixels, C); fills `out`."""
        gradient = tensors[0] if len(tensors) == 2 else None
        x = tensors[-1]
        images, channels, pixels = (
            (x.shape[0], x.shape[2], x.shape[1]) if is_rows else tuple(x.shape)
        )
        problem = self.call(
            DTYPES.index(x.dtype),
            None if gradient is None else gradient.data_ptr(),
            x.data_ptr(),
            out.data_ptr(),
            images * towers,
            channels // towers,
            pixels,
            is_rows,
            n,
            k,
            alpha,
            beta,
            seed,
            only_last,
        )
        if problem is not None:
            raise RuntimeError(problem.decode())

    def __call__(self, tensors, *, layout, **keywords):
        """The result for tensors of (N, C, pixels), in their own shape."""
        is_rows = layout == "channels last"
        moved = [(t.transpose(1, 2) if is_rows else t).contiguous() for t in tensors]
        out = torch.full_like(moved[-1], float("nan"))
        self.run(moved, out, is_rows=is_rows, **keywords)
        return out.transpose(1, 2) if is_rows else out


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    return Emulation(KERNELS, tmp_path_factory.mktemp("emulation"))


@pytest.fixture
def altered(tmp_path):
    """Builds the kernels with one text replaced by another."""

    def build(old, new, occurrence=0):
        text = KERNELS.read_text()
        at = [i for i in range(len(text)) if text.startswith(old, i)][occurrence]
        kernels = tmp_path / f"altered{occurrence}.cuh"
        kernels.write_text(text[:at] + new + text[at + len(old) :])
        return Emulation(kernels, tmp_path)

    return build


def inputs_of(direction, shape, dtype):
    x = activations(shape, dtype)
    gradient = (activations(shape, torch.float64, seed=1) / 80).to(dtype)
    return (x,) if direction == "forward" else (gradient, x)


# Every kernel in both directions: planes and rows, n = 5 and another, and rows that are too wide
# for shared memory. Rows, columns and channels that do not fill a block.
CASES = [
    ("NCHW", dict(PAPER, towers=2), (2, 12, 137)),
    ("NCHW", dict(PAPER), (1, 3, 5)),
    ("NCHW", dict(PAPER, n=3, beta=0.6), (2, 6, 35)),
    ("NCHW", dict(PAPER, n=31, towers=2), (1, 8, 20)),
    ("NCHW", dict(PAPER, n=1), (1, 1, 300)),
    ("channels last", dict(PAPER, towers=2), (2, 40, 9)),
    ("channels last", dict(PAPER, n=3, beta=0.6), (1, 17, 3)),
    ("channels last", dict(PAPER, n=31, towers=2), (1, 8, 20)),
    ("channels last", dict(PAPER), (1, 1000, 3)),
    ("channels last", dict(PAPER), (1, 13000, 1)),
]


@each_direction
@pytest.mark.parametrize(("layout", "parameters", "shape"), CASES)
def test_kernels_are_the_formula(emulation, direction, layout, parameters, shape):
    reference, oracle, _ = DIRECTIONS[direction]
    for dtype in DTYPES:
        tensors = inputs_of(direction, shape, dtype)
        wide = [t.double() for t in tensors]
        if shape[1] < 100:
            exact = oracle(*(t.numpy() for t in wide), **parameters)
        else:
            exact = reference(*wide, **parameters).numpy()
        limit = 4 * np.finfo(np.float32).eps * np.abs(exact).max()
        if dtype == torch.float64:
            limit = 1e-12 * np.abs(exact).max()
        if dtype.itemsize == 2:
            limit = limit + half_unit(exact, dtype)
        results = [emulation(tensors, layout=layout, seed=seed, **parameters) for seed in SEEDS]
        assert (np.abs(results[0].double().numpy() - exact) <= limit).all(), dtype
        assert all(torch.equal(results[0], other) for other in results), dtype


@each_direction
@pytest.mark.parametrize("layout", ["NCHW", "channels last"])
@pytest.mark.parametrize("wrong", [*WRONG, "window across the towers", "shifted by one channel"])
def test_the_comparison_rejects_wrong_versions(emulation, direction, layout, wrong):
    tensors = inputs_of(direction, (2, 12, 7), torch.bfloat16)
    right = dict(PAPER, towers=2)
    expected = DIRECTIONS[direction][1](*(t.double().numpy() for t in tensors), **right)
    if wrong == "window across the towers":
        actual = emulation(tensors, layout=layout, **PAPER)
    elif wrong == "shifted by one channel":
        actual = emulation([t.roll(1, 1) for t in tensors], layout=layout, **right)
    else:
        actual = emulation(tensors, layout=layout, **dict(WRONG[wrong], towers=2))
    assert close(emulation(tensors, layout=layout, **right).double(), expected, 2**-8)
    assert not close(actual.double(), expected, 2**-8)


BARRIERS = KERNELS.read_text().count("__syncthreads();")


def fails(emulation, direction):
    """Whether a comparison on rows, in some order of the threads, shows that kernels are wrong."""
    tensors = inputs_of(direction, (1, 40, 9), torch.float32)
    expected = DIRECTIONS[direction][0](*(t.double() for t in tensors), **PAPER)
    for seed in SEEDS:
        try:
            result = emulation(tensors, layout="channels last", seed=seed, **PAPER)
        except RuntimeError:
            return True
        if not close(result, expected.numpy(), 1e-6):
            return True
    return False


@pytest.mark.parametrize("barrier", range(BARRIERS))
def test_without_any_one_barrier_a_test_fails(emulation, altered, barrier):
    without = altered("__syncthreads();", "", barrier)
    assert any(fails(without, direction) for direction in DIRECTIONS)
    assert not any(fails(emulation, direction) for direction in DIRECTIONS)


@pytest.mark.parametrize("occurrence", [0, 1])
def test_a_thread_that_ends_before_a_barrier_is_an_error(altered, occurrence):
    wrong = altered(
        "__syncthreads();\n  if (!is_row) return;",
        "if (!is_row) return;\n  __syncthreads();",
        occurrence,
    )
    tensors = inputs_of("backward" if occurrence else "forward", (1, 40, 9), torch.float32)
    with pytest.raises(RuntimeError, match="misses the barrier"):
        wrong(tensors, layout="channels last", **PAPER)


@pytest.mark.parametrize("occurrence", [0, 1])
def test_more_shared_memory_than_asked_for_is_an_error(altered, occurrence):
    wrong = altered(
        "static_cast<size_t>(rows * bytes)", "static_cast<size_t>(rows * bytes - 4)", occurrence
    )
    tensors = inputs_of("backward" if occurrence else "forward", (1, 40, 16), torch.float32)
    with pytest.raises(RuntimeError, match="of its shared memory, and asked for"):
        wrong(tensors, layout="channels last", **PAPER)


@pytest.mark.parametrize(
    ("direction", "is_rows", "n", "shape"),
    [
        # The last image begins beyond, and all of its channels are near each other in memory.
        ("forward", False, 5, (2**14 + 3, 2**9, 2**8 + 1)),
        ("backward", False, 5, (2**14 + 3, 2**9, 2**8 + 1)),
        ("forward", False, 3, (2**14 + 3, 2**9, 2**8 + 1)),
        ("forward", True, 5, (2**14 + 3, 2**12, 32)),
        ("backward", True, 5, (2**14 + 3, 2**12, 32)),
    ],
)
def test_indices_go_beyond_32_bits(emulation, direction, is_rows, n, shape):
    """2 ** 31 elements and some, of which the last block of threads is run."""
    parameters = dict(PAPER, n=n)
    # Pages of zeros that nobody touches take no memory. What is not zero is at the end.
    tensors = [
        torch.from_numpy(np.zeros(shape, np.float16))
        for _ in inputs_of(direction, (1, 1, 1), torch.float16)
    ]
    ends = [tensor[-1:, -2:] if is_rows else tensor[-1:, :, -2:] for tensor in tensors]
    for end, values in zip(ends, inputs_of(direction, ends[0].shape, torch.float16), strict=True):
        end.copy_(values)
    out = torch.from_numpy(np.zeros(shape, np.float16))
    emulation.run(tensors, out, is_rows=is_rows, only_last=True, **parameters)
    if is_rows:
        ends = [end.transpose(1, 2) for end in ends]
        actual = out[-1:, -2:].transpose(1, 2)
    else:
        actual = out[-1:, :, -2:]
    expected = DIRECTIONS[direction][0](*ends, **parameters)
    if not is_rows and n != 5:  # a block of that kernel ends within a channel
        actual, expected = actual[:, -1], expected[:, -1]
    assert expected.abs().max() > 0
    assert close(actual.double(), expected.double().numpy(), 2**-8)
