"""`augment_batch` against the oracle, bit for bit: reference, compiled code, the GPU's kernel."""

import ctypes
import itertools
import math
import shutil
import subprocess

import numpy as np
import oracles
import pytest
import torch
from conftest import PROJECT_DIR, run
from torch.utils._python_dispatch import TorchDispatchMode

from cuda_ext import augment_batch, compiled_state, library, reference, set_instruction_set

DTYPES = (torch.float32, torch.bfloat16, torch.uint8)
FORMATS = {"channels last": torch.channels_last, "NCHW": torch.contiguous_format}
# Columns for two vectors of AVX-512 and a rest; rows and columns differ.
SHARDS, SIDE, SIZE = (3, 1, 2), (41, 43), 37
# The paper's, and the two of the 2012 source, alone and together.
RULES = ({}, {"is_central": True}, {"divisor": 1.1}, {"is_central": True, "divisor": 0.7})
each_format = pytest.mark.parametrize("layout", FORMATS)


def drawn(size=SIZE, side=SIDE, batch=7, seed=0):
    """Images in several shards, places in every corner, a mean image and shifts."""
    rng = np.random.default_rng(seed)
    images = [torch.from_numpy(rng.integers(0, 256, (n, *side, 3), np.uint8)) for n in SHARDS]
    down, right = side[0] - size, side[1] - size
    places = np.stack(
        [
            rng.integers(0, sum(SHARDS), batch),
            rng.integers(0, down + 1, batch),
            rng.integers(0, right + 1, batch),
            rng.integers(0, 2, batch),
        ],
        axis=1,
    )
    places[:4] = [[0, 0, 0, 1], [3, down, right, 0], [5, down, 0, 1], [2, 0, right, 1]]
    mean = torch.from_numpy(rng.uniform(0, 255, (*side, 3)).astype(np.float32))
    shifts = torch.from_numpy(rng.normal(0, 20, (batch, 3)).astype(np.float32))
    return {"images": images, "places": torch.from_numpy(places), "mean": mean, "shifts": shifts}


def oracle(*, images, places, mean, shifts, size=SIZE, dtype=torch.float32, **rules):
    """(N, 3, size, size), image by image and pixel by pixel."""
    whole = np.concatenate(images)
    result = []
    for n, (index, top, left, flip) in enumerate(places.tolist()):
        where = {"top": top, "left": left, "size": size, "flip": bool(flip)}
        less = np.zeros(whole.shape[1:]) if mean is None else mean.double().numpy()
        shift = np.zeros(3) if shifts is None else shifts[n].double().numpy()
        result.append(oracles.augmented(whole[index], less, shift, **where, **rules))
    return torch.from_numpy(np.stack(result)).to(dtype).permute(0, 3, 1, 2)


def made(*, images, places, mean, shifts, size=SIZE, is_central=False, **options):
    if is_central:
        options["mean"] = "center"
    return augment_batch(images, places, crop_size=size, mean_image=mean, shifts=shifts, **options)


def without_pixels(inputs, dtype):
    """The inputs, and for uint8, which is only cut, without mean image and shifts."""
    return {**inputs, "mean": None, "shifts": None} if dtype == torch.uint8 else inputs


def same(one, other):
    return one.dtype == other.dtype and torch.equal(one, other)


@pytest.fixture(params=range(len(library.INSTRUCTION_SETS)), ids=str)
def instruction_set(request):
    """Each that this processor has."""
    if not compiled_state().is_live:
        pytest.skip("no compiled code here")
    best = set_instruction_set(-1)
    if request.param > best:
        pytest.skip(f"this processor has no {library.INSTRUCTION_SETS[request.param]}")
    set_instruction_set(request.param)
    yield
    set_instruction_set(-1)


@each_format
def test_compiled_code_is_the_oracle_with_any_instructions(instruction_set, layout):
    for size, side in ((SIZE, SIDE), (16, (16, 16)), (5, (9, 6)), (1, (1, 2)), (32, (35, 34))):
        inputs = drawn(size, side)
        for dtype in DTYPES:
            own = without_pixels(inputs, dtype)
            result = made(**own, size=size, dtype=dtype, memory_format=FORMATS[layout])
            assert same(result, oracle(**own, size=size, dtype=dtype)), (size, dtype)
            assert result.is_contiguous(memory_format=FORMATS[layout])


@each_format
def test_so_it_is_by_the_source_s_rules(instruction_set, layout):
    for size, side in ((SIZE, SIDE), (16, (16, 16)), (5, (9, 6)), (32, (35, 34))):
        inputs = drawn(size, side)
        for dtype, rules in itertools.product(DTYPES[:2], RULES[1:]):
            result = made(**inputs, **rules, size=size, dtype=dtype, memory_format=FORMATS[layout])
            assert same(result, oracle(**inputs, **rules, size=size, dtype=dtype)), (size, rules)


def test_so_is_the_reference():
    inputs = drawn()
    for dtype in DTYPES:
        own = without_pixels(inputs, dtype)
        out = torch.empty(7, 3, SIZE, SIZE, dtype=dtype)
        images, places, mean, shifts = own.values()
        for rules in RULES if dtype != torch.uint8 else RULES[:1]:
            reference.augment_batch_(images, places, mean, shifts, out, True, **rules)
            assert same(out, oracle(**own, dtype=dtype, **rules))


@pytest.mark.parametrize("left_out", ["mean", "shifts", "both"])
def test_mean_image_and_shifts_may_be_left_out(left_out):
    inputs = drawn()
    for name in ("mean", "shifts"):
        if left_out in (name, "both"):
            inputs[name] = None
    assert same(made(**inputs), oracle(**inputs))


def test_a_large_batch_is_written_past_the_caches(instruction_set):
    """More than 16 MB, of rows that fit vectors or not; the memory around it stays as it was."""
    for dtype, (size, first) in itertools.product(DTYPES, ((64, 1), (61, 1), (61, 0))):
        batch = 1 + (16 << 20) // (3 * size * size * dtype.itemsize)
        inputs = without_pixels(drawn(size, side=(70, 69), batch=batch), dtype)
        memory = torch.full((batch + 2, size, size, 3), 7, dtype=dtype)
        out = memory[first : first + batch].permute(0, 3, 1, 2)
        assert made(**inputs, size=size, out=out) is out
        # The reference is the oracle's equal, and faster.
        expected = torch.empty_like(out)
        images, places, mean, shifts = inputs.values()
        reference.augment_batch_(images, places, mean, shifts, expected, True)
        assert same(out, expected)
        if dtype != torch.uint8:
            made(**inputs, **RULES[3], size=size, out=out)
            reference.augment_batch_(images, places, mean, shifts, expected, True, **RULES[3])
            assert same(out, expected)
        assert (memory[first + batch :] == 7).all()
        assert (memory[:first] == 7).all()


WRONG = {
    "another image": lambda p: p.add_(torch.tensor([1, 0, 0, 0])).remainder_(6),
    "rows and columns swapped": lambda p: p.copy_(p[:, [0, 2, 1, 3]].clamp(max=4)),
    "upright": lambda p: p[:, 3].zero_(),
    "one row up": lambda p: p[:, 1].sub_(1).clamp_(min=0),
    "one column left": lambda p: p[:, 2].sub_(1).clamp_(min=0),
}


@pytest.mark.parametrize("wrong", [*WRONG, "mean of the corner", "shifts of a neighbor"])
def test_the_comparison_rejects_wrong_versions(wrong):
    inputs = drawn()
    expected = oracle(**inputs)
    if wrong == "mean of the corner":
        corner = inputs["mean"][:SIZE, :SIZE].contiguous()
        cut = made(**{**inputs, "mean": None, "shifts": None}, dtype=torch.uint8)
        cut = cut.permute(0, 2, 3, 1).contiguous()
        places = torch.tensor([[n, 0, 0, 0] for n in range(7)])
        actual = made(images=cut, places=places, mean=corner, shifts=inputs["shifts"])
    elif wrong == "shifts of a neighbor":
        actual = made(**{**inputs, "shifts": inputs["shifts"].roll(1, 0)})
    else:
        places = inputs["places"].clone()
        WRONG[wrong](places)
        actual = made(**{**inputs, "places": places})
    assert not same(actual, expected)


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: " ".join(rules) or "paper")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_crops_of_bytes_are_finished_to_the_same_batch(dtype, rules):
    """As on a GPU, which gets bytes: cut without reflecting, then the same places once more."""
    inputs = drawn()
    upright = inputs["places"] * torch.tensor([1, 1, 1, 0])
    crops = augment_batch(inputs["images"], upright, crop_size=SIZE, dtype=torch.uint8)
    crops = crops.permute(0, 2, 3, 1)
    places = torch.cat([torch.arange(7)[:, None], inputs["places"][:, 1:]], dim=1)
    finished = made(**{**inputs, "images": crops, "places": places}, **rules, dtype=dtype)
    assert same(finished, oracle(**inputs, **rules, dtype=dtype))


def test_any_number_of_threads_gives_the_same():
    inputs, before = drawn(batch=40), torch.get_num_threads()
    expected = made(**inputs, parallel=False)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert same(made(**inputs), expected)
    finally:
        torch.set_num_threads(before)


def test_a_read_only_memory_map_is_read_in_place(tmp_path, recwarn):
    inputs = drawn()
    whole = np.concatenate(inputs["images"])
    path = tmp_path / "images"
    path.write_bytes(b"head" + whole.tobytes())
    mapped = np.memmap(path, np.uint8, "r", offset=4, shape=whole.shape)
    result = made(**{**inputs, "images": mapped})
    assert same(result, oracle(**inputs))
    assert same(made(**{**inputs, "images": [mapped[:2], mapped[2:]]}), result)
    assert not [w for w in recwarn if "writ" in str(w.message)]
    del mapped  # a tensor of it keeps the map


def test_an_empty_batch_is_empty():
    inputs = drawn()
    inputs["places"], inputs["shifts"] = inputs["places"][:0], inputs["shifts"][:0]
    assert made(**inputs).shape == (0, 3, SIZE, SIZE)


@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("value", [-1, 6])
def test_a_place_outside_of_the_images_is_refused(column, value):
    inputs = drawn(size=38)
    inputs["places"][2, column] = value
    message = "expected places of 6 images of 41 x 43, got index"
    with pytest.raises(RuntimeError, match=message):
        made(**inputs, size=38)
    images, places, mean, shifts = inputs.values()
    with pytest.raises(RuntimeError, match=message):
        reference.augment_batch_(images, places, mean, shifts, torch.empty(7, 3, 38, 38), True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "expected images, got none"),
        ({"images": torch.zeros(1, 3, 41, 43)}, r"expected images of uint8, \(M, H, W, 3\), got"),
        ({"images": [torch.zeros(1, s, s, 3).byte() for s in (41, 43)]}, r"got \(43, 43, 3\)"),
        ({"images": torch.zeros(1, 41, 86, 3).byte()[:, :, ::2]}, "images without gaps in memory"),
        ({"images": torch.zeros(6, 40, 43, 3).byte()}, "as the mean image, or crops of 37 x 37, "),
        ({"places": torch.zeros(7, 3).long()}, r"expected places of int64, \(N, 4\), got"),
        ({"places": torch.zeros(7, 4).int()}, "expected places of int64"),
        ({"mean": torch.zeros(41, 43, 3).double()}, r"a mean image of float32, \(H, W, 3\)"),
        ({"shifts": torch.zeros(6, 3)}, r"expected shifts of float32, \(7, 3\), got"),
        ({"size": 0}, "expected a crop_size of 1 to 41, got 0"),
        ({"size": 42}, "expected a crop_size of 1 to 41, got 42"),
        ({"dtype": torch.float64}, "expected float32, bfloat16 or uint8, got torch.float64"),
        ({"dtype": torch.uint8}, "expected no mean_image, shifts or divisor for a result of uint8"),
        (
            {"mean": None, "shifts": None, "divisor": 2.0, "dtype": torch.uint8},
            "shifts or divisor for a result of uint8",
        ),
        ({"divisor": 0.0}, "expected a divisor above 0, got 0.0"),
        ({"divisor": math.nan}, "expected a divisor above 0, got nan"),
        ({"divisor": math.inf}, "expected a divisor above 0, got inf"),
        ({"memory_format": torch.preserve_format}, "expected channels_last or contiguous_format"),
        ({"out": torch.zeros(7, 3, 37, 36)}, r"expected out of \(7, 3, 37, 37\)"),
        ({"out": torch.zeros(7, 3, 37, 74)[..., ::2]}, "NCHW or channels last"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_with_the_rule(changes, message):
    with pytest.raises(ValueError, match=f"augment_batch: .*{message}"):
        made(**{**drawn(), **changes})


def test_a_mean_of_another_place_is_refused():
    inputs = drawn()
    how = {"crop_size": SIZE, "mean_image": inputs["mean"], "mean": "corner"}
    with pytest.raises(ValueError, match="expected a mean of place or center, got corner"):
        augment_batch(inputs["images"], inputs["places"], **how)


def registered(inputs, out, divisor=1.0):
    images, places, mean, shifts = inputs.values()
    torch.ops.replica.augment_batch_(images, places, mean, shifts, out, True, False, divisor)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("images", lambda x: [x[0], x[1][:, 1:].contiguous()]),
        ("images", lambda x: [x[0].int()]),
        ("places", lambda x: x[1:]),
        ("mean", lambda x: x.double()),
        ("mean", lambda x: x[:30]),
        ("shifts", lambda x: x[:, :2]),
        ("out", lambda x: x.double()),
        ("out", lambda x: x.byte()),
        ("out", lambda x: x[:, :, ::2, ::2]),
        ("out", lambda x: x[:, :, :20]),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_the_registered_operator_checks_for_itself(name, wrong):
    if not compiled_state().is_live:
        pytest.skip("no compiled code here")
    inputs, out = drawn(), torch.empty(7, 3, SIZE, SIZE)
    if name == "out":
        out = wrong(out)
    else:
        inputs[name] = wrong(inputs[name])
    with pytest.raises(RuntimeError, match="augment_batch: expected"):
        registered(inputs, out)


@pytest.mark.parametrize("divisor", [0.0, -1.0, math.inf, math.nan, 2.0], ids=str)
def test_the_registered_operator_checks_the_divisor(divisor):
    if not compiled_state().is_live:
        pytest.skip("no compiled code here")
    inputs, out = drawn(), torch.empty(7, 3, SIZE, SIZE)
    if divisor == 2.0:  # which bytes do not take
        inputs, out = without_pixels(inputs, torch.uint8), out.byte()
    with pytest.raises(RuntimeError, match=r"augment_batch: expected .* divisor"):
        registered(inputs, out, divisor)


def test_opcheck_and_compile():
    inputs, out = drawn(), torch.empty(7, 3, SIZE, SIZE)
    images, places, mean, shifts = inputs.values()
    arguments = (images, places, mean, shifts, out, True)
    torch.library.opcheck(torch.ops.replica.augment_batch_.default, arguments)
    expected = made(**inputs)

    def augment(places, shifts):
        return made(images=images, places=places, mean=mean, shifts=shifts)

    compiled = torch.compile(augment, backend="aot_eager", fullgraph=True)
    assert same(compiled(places, shifts), expected)


class Named(TorchDispatchMode):
    """The operations that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_it_is_one_operation():
    inputs, called = drawn(), Named()
    with called:
        made(**inputs)
    assert called.names == ["aten.empty.memory_format", "replica.augment_batch_.default"]


def test_without_compiled_code_it_is_the_same():
    code = (
        "from test_augment_batch import *; inputs = drawn();"
        "print(same(made(**inputs), oracle(**inputs)))"
    )
    result = run("-c", code, REPLICA_EXT="off", PYTHONPATH=f"{PROJECT_DIR / 'tests'}:{PROJECT_DIR}")
    assert result.stdout.strip() == "True", result.stderr


# --- The GPU's kernel, run on a CPU one fiber a thread


KERNELS = PROJECT_DIR / "cuda_ext" / "csrc" / "augment_batch.cuh"
COMPILER = shutil.which("g++")


def emulation(kernels, directory):
    library = directory / f"{kernels.stem}.so"
    options = ["-std=c++20", "-O1", "-shared", "-fPIC", f'-DKERNELS="{kernels}"']
    options += [f"-I{KERNELS.parent}", str(PROJECT_DIR / "tests" / "emulated_augment_batch.cpp")]
    subprocess.run([COMPILER, *options, "-o", str(library)], check=True)
    call = ctypes.CDLL(str(library)).emulated_augment_batch
    call.restype = ctypes.c_char_p

    def emulated(
        *, images, places, mean, shifts, size, dtype, layout, order, is_central=False, divisor=1.0
    ):
        whole = torch.cat(list(images))
        shape = (len(places), 3, size, size)
        out = torch.empty(shape, dtype=dtype, memory_format=FORMATS[layout]).fill_(7)
        lies_on = whole.shape[1:3] if mean is None else mean.shape[:2]
        sizes = torch.tensor([len(places), size, *whole.shape[:3], *lies_on])
        pointers = [
            None if tensor is None else ctypes.c_void_p(tensor.data_ptr())
            for tensor in (whole, places, mean, shifts, sizes, out)
        ]
        how = [ctypes.c_bool(layout == "channels last"), ctypes.c_bool(is_central)]
        how.append(ctypes.c_float(divisor))
        problem = call(DTYPES.index(dtype), *pointers[:5], *how, pointers[5], order)
        assert problem is None, problem
        return out

    return emulated


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no g++ to compile the emulation with")
    return emulation(KERNELS, tmp_path_factory.mktemp("emulation"))


@each_format
def test_the_kernel_is_the_oracle(kernel, layout):
    for size, side in ((9, (11, 12)), (1, (1, 2))):
        inputs = drawn(size, side)
        for dtype in DTYPES:
            own = without_pixels(inputs, dtype)
            for order, rules in enumerate(RULES if dtype != torch.uint8 else RULES[:1]):
                how = {"size": size, "dtype": dtype, "layout": layout, "order": order % 2, **rules}
                assert same(kernel(**own, **how), oracle(**own, **rules, size=size, dtype=dtype))


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: " ".join(rules) or "paper")
def test_the_kernel_finishes_crops(kernel, rules):
    inputs = drawn(9, (11, 12))
    upright = inputs["places"] * torch.tensor([1, 1, 1, 0])
    crops = augment_batch(inputs["images"], upright, crop_size=9, dtype=torch.uint8)
    places = torch.cat([torch.arange(7)[:, None], inputs["places"][:, 1:]], dim=1)
    images = [crops.permute(0, 2, 3, 1).contiguous()]
    how = {"size": 9, "dtype": torch.float32, "layout": "channels last", "order": 0}
    finished = kernel(**{**inputs, "images": images, "places": places}, **how, **rules)
    assert same(finished, oracle(**inputs, **rules, size=9))


def test_the_kernel_makes_nan_of_a_place_outside(kernel):
    inputs = drawn(9, (11, 12))
    expected = oracle(**inputs, size=9)
    for column, value in ((0, 6), (0, -1), (1, 3), (1, -1), (2, 4), (2, -1), (3, 2)):
        places = inputs["places"].clone()
        places[2, column] = value
        changed = {**inputs, "places": places}
        how = {"size": 9, "layout": "NCHW", "order": 0}
        result = kernel(**changed, **how, dtype=torch.float32)
        assert result[2].isnan().all()
        result[2] = expected[2]
        assert same(result, expected)
        bytes_ = kernel(**without_pixels(changed, torch.uint8), **how, dtype=torch.uint8)
        assert (bytes_[2] == 0).all()
