"""The GPU kernels, run on a CPU one fiber a thread, against the same oracles and wrong versions."""

import itertools

import numpy as np
import pytest
import torch
from emulated import CSRC, Emulation, Mistake, needs_compiler
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

KERNELS = CSRC / "local_response_norm.cuh"
VECTORS = "local_response_norm_vectors.cuh"
pytestmark = needs_compiler

SEEDS = (0, 1, 2)
DIRECTIONS = {"forward": FORWARD, "backward": BACKWARD}
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
MARGIN = 32  # values around a tensor, of a whole number of vectors in every type


def placed(tensor, shift=0):
    """A copy of the values that begins at a multiple of 16 bytes, or `shift` values beyond, and the
    memory around it, which is NaN.
    """
    memory = torch.full((tensor.numel() + 2 * MARGIN,), float("nan"), dtype=tensor.dtype)
    assert memory.data_ptr() % 16 == 0
    place = memory[MARGIN + shift :][: tensor.numel()].view(tensor.shape)
    return place.copy_(tensor), memory


class LrnEmulation(Emulation):
    """The kernels of the operator."""

    def run(self, tensors, out, *, is_rows, towers=1, seed=0, only_last=False, n, k, alpha, beta):
        """Dense tensors of (N, C, pixels) or, as rows, (N, pixels, C); fills `out`."""
        gradient = tensors[0] if len(tensors) == 2 else None
        x = tensors[-1]
        images, channels, pixels = (
            (x.shape[0], x.shape[2], x.shape[1]) if is_rows else tuple(x.shape)
        )
        problem = (images * towers, channels // towers, pixels, is_rows, n, k, alpha, beta)
        self.call(x.dtype, gradient, x, out, *problem, seed, only_last)

    def __call__(self, tensors, *, layout, shifts=(0, 0, 0), **keywords):
        """The result for tensors of (N, C, pixels), in their own shape.

        `shifts`: by how many values x, the gradient and the result begin beside 16 bytes.
        """
        is_rows = layout == "channels last"
        moved = [t.transpose(1, 2) if is_rows else t for t in tensors]
        given = [placed(t, s)[0] for t, s in zip(moved[::-1], shifts, strict=False)][::-1]
        out, memory = placed(torch.full_like(moved[-1], float("nan")), shifts[2])
        self.run(given, out, is_rows=is_rows, **keywords)
        num_around = memory.numel() - out.numel()
        assert memory.isnan().sum() - out.isnan().sum() == num_around, "it wrote beside the result"
        return out.transpose(1, 2) if is_rows else out

    @property
    def num_vectors_read(self):
        """Of 16 bytes, up to now."""
        return self.number("emulated_num_vectors_read")


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    return LrnEmulation("local_response_norm", tmp_path_factory.mktemp("emulation"))


@pytest.fixture
def altered(tmp_path):
    """Builds the kernels with one text replaced by another."""

    def build(old, new, occurrence=0, file=""):
        mistake = Mistake(old, new, occurrence, file)
        return LrnEmulation("local_response_norm", tmp_path, mistake)

    return build


def inputs_of(direction, shape, dtype):
    x = activations(shape, dtype)
    gradient = (activations(shape, torch.float64, seed=1) / 80).to(dtype)
    return (x,) if direction == "forward" else (gradient, x)


# Every kernel in both directions: planes and rows, in whole vectors (of 16 bytes, so of 2 to 8
# channels) and not, n = 5 and another, and rows that are too wide for shared memory. Rows, columns
# and channels that do not fill a block.
CASES = [
    ("NCHW", dict(PAPER, towers=2), (2, 12, 137)),
    ("NCHW", dict(PAPER), (1, 3, 5)),
    ("NCHW", dict(PAPER, n=3, beta=0.6), (2, 6, 35)),
    ("NCHW", dict(PAPER, n=31, towers=2), (1, 8, 20)),
    ("NCHW", dict(PAPER, n=1), (1, 1, 300)),
    ("channels last", dict(PAPER, towers=2), (2, 48, 67)),
    ("channels last", dict(PAPER, towers=2), (2, 40, 9)),
    ("channels last", dict(PAPER, towers=2), (2, 16, 9)),
    ("channels last", dict(PAPER, towers=2), (1, 8, 5)),
    ("channels last", dict(PAPER, towers=2), (1, 82, 9)),
    ("channels last", dict(PAPER, beta=0.6), (1, 16, 9)),
    ("channels last", dict(PAPER, n=3), (1, 16, 9)),
    ("channels last", dict(PAPER, n=3, beta=0.6), (1, 17, 3)),
    ("channels last", dict(PAPER, n=31, towers=2), (1, 8, 20)),
    ("channels last", dict(PAPER), (1, 1000, 3)),
    ("channels last", dict(PAPER), (1, 13000, 1)),
    ("channels last", dict(PAPER), (1, 13001, 1)),
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


def in_vectors(dtype, channels, shifts):
    return dtype.itemsize < 8 and channels * dtype.itemsize % 16 == 0 and not any(shifts)


@each_direction
@pytest.mark.parametrize("towers", [1, 2])
def test_vectors_give_the_bits_of_single_values_and_serve_where_they_can(
    emulation, direction, towers
):
    """Of all sizes, with NaN, infinity and zeros, wherever the tensors begin."""
    parameters = dict(PAPER, towers=towers)
    places = [(0, 0, 0), (1, 0, 0), (0, 0, 3), *([(0, 2, 0)] if direction == "backward" else [])]
    for dtype, channels in itertools.product(DTYPES, (8, 16, 34, 48)):
        tensors = inputs_of(direction, (2, channels, 21), dtype)
        tensors[-1][0, 3, :8] = torch.tensor([float("nan"), float("inf"), 0, -0.0] * 2).to(dtype)
        tensors[-1][1, :, 5] = 0
        tensors[0][1, 1, 3] = float("nan")
        results = {}
        for shifts in places:
            before = emulation.num_vectors_read
            results[shifts] = emulation(
                tensors, layout="channels last", shifts=shifts, **parameters
            )
            num_read = emulation.num_vectors_read - before
            assert (num_read > 0) == in_vectors(dtype, channels // towers, shifts), (
                dtype,
                channels,
            )
        single = results.pop((1, 0, 0))
        for shifts, result in results.items():
            assert result.isnan().equal(single.isnan()), (dtype, channels, shifts)
            assert result.nan_to_num(0).equal(single.nan_to_num(0)), (dtype, channels, shifts)
            assert result.signbit()[~single.isnan()].equal(single.signbit()[~single.isnan()])


def test_each_vector_is_read_once_and_its_neighbors_as_little_as_possible(emulation):
    """In 16 bits the neighbors are parts of vectors."""
    x = inputs_of("forward", (1, 64, 5), torch.bfloat16)
    before = emulation.num_vectors_read
    emulation(x, layout="channels last", **PAPER)
    assert emulation.num_vectors_read - before == 64 * 5 // 8


def test_indices_of_vectors_have_32_bits_as_long_as_these_suffice(emulation):
    most = (2**31 - 1) // 16
    assert emulation.number("emulated_needs_64_bits", most, 16, 1) == 0
    assert emulation.number("emulated_needs_64_bits", 1, 16, most + 1) == 1


# More are in tests/mutants.
MISTAKES_IN_VECTORS = {
    "a row sees the one before": ("if (!begins_row)", "if (true)"),
    "a row sees the one after": ("if (!ends_row)", "if (true)"),
    "no term before": ("i < kLanes<T> + 2 * kReach; ++i", "i < kLanes<T> + kReach; ++i"),
    "another beta": ("&& p.three_quarters", ""),
}


@pytest.mark.parametrize("mistake", MISTAKES_IN_VECTORS)
def test_mistakes_in_the_vectors_are_seen(altered, mistake):
    wrong = altered(*MISTAKES_IN_VECTORS[mistake], occurrence=None, file=VECTORS)
    seen = False
    for direction, letters, channels in itertools.product(
        DIRECTIONS, ({}, {"n": 3}, {"beta": 0.6}), (16, 18)
    ):
        tensors = inputs_of(direction, (1, channels, 9), torch.float32)
        exact = DIRECTIONS[direction][1](*(t.double().numpy() for t in tensors), **PAPER | letters)
        try:
            result = wrong(tensors, layout="channels last", **PAPER | letters)
        except (RuntimeError, AssertionError):
            seen = True
            continue
        seen = seen or not close(result.double(), exact, 1e-6)
    assert seen


def test_a_vector_that_begins_between_two_is_an_error(altered):
    wrong = altered("is_aligned);", "[](const T*) { return true; });", file=VECTORS)
    tensors = inputs_of("backward", (1, 16, 9), torch.float16)
    for shifts in np.eye(3, dtype=int):
        with pytest.raises(RuntimeError, match="bytes begins between two of its places"):
            wrong(tensors, layout="channels last", shifts=shifts, **PAPER)


BARRIERS = KERNELS.read_text().count("__syncthreads();")


def fails(emulation, direction):
    """Whether a comparison on rows, in some order of the threads, shows that kernels are wrong."""
    tensors = inputs_of(direction, (1, 41, 9), torch.float32)
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
    tensors = inputs_of("backward" if occurrence else "forward", (1, 41, 9), torch.float32)
    with pytest.raises(RuntimeError, match="misses the barrier"):
        wrong(tensors, layout="channels last", **PAPER)


@pytest.mark.parametrize("occurrence", [0, 1])
def test_more_shared_memory_than_asked_for_is_an_error(altered, occurrence):
    wrong = altered(
        "static_cast<size_t>(rows * bytes)", "static_cast<size_t>(rows * bytes - 4)", occurrence
    )
    tensors = inputs_of("backward" if occurrence else "forward", (1, 41, 16), torch.float32)
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
        ("forward", True, 5, (2**14 + 3, 2**12, 33)),
        ("backward", True, 5, (2**14 + 3, 2**12, 33)),
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
