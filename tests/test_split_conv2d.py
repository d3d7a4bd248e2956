"""`split_conv2d` against loops in float64: reference, both arrangements, the GPU's kernels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import PROJECT_DIR, run

import cuda_ext
from cuda_ext import (
    convolution_ways,
    reference,
    split_conv2d,
    split_conv2d_add_,
    split_conv2d_backward,
    split_conv2d_products,
)
from cuda_ext.convolution_ways import MEASURED_FAMILIES, processor_family, way_of

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}
needs_compiled = pytest.mark.skipif(
    not cuda_ext.compiled_state().is_live, reason=cuda_ext.compiled_state().reason
)

# Shape of x, kernels, their sides, and how they go over it. Among them conv1 of the paper in small,
# whose last column of padding no kernel reaches; kernels and maps that are not square.
CASES = {
    "conv1": ((2, 3, 22, 19), 6, (11, 11), {"stride": 4, "padding": (1, 2)}),
    "conv2": ((2, 8, 7, 9), 6, (5, 5), {"stride": 1, "padding": (2, 2), "towers": 2}),
    "one place": ((1, 2, 3, 3), 4, (3, 3), {"stride": 1, "padding": (0, 0)}),
    "stride without padding": ((2, 1, 9, 12), 2, (3, 2), {"stride": 3, "padding": (0, 0)}),
    "stride beyond the kernel": ((1, 4, 11, 8), 2, (2, 2), {"stride": 3, "padding": (2, 0)}),
    "more before": ((2, 6, 8, 5), 3, (4, 3), {"stride": 2, "padding": (3, 1), "towers": 3}),
    "pixels": ((3, 5, 4, 4), 7, (1, 1), {"stride": 1, "padding": (0, 0)}),
    "one kernel": ((2, 3, 6, 6), 1, (3, 3), {"stride": 2, "padding": (1, 1)}),
}
# More rows than a tile of the GPU's kernels has, and a sum that they cut into parts.
LARGE = {
    "many kernels": ((1, 66, 3, 5), 70, (2, 2), {"stride": 1, "padding": (1, 0)}),
    "many places": ((3, 2, 25, 23), 4, (3, 3), {"stride": 1, "padding": (1, 1), "towers": 2}),
}
each_case = pytest.mark.parametrize("case", CASES)


def inputs_of(case, dtype=torch.float64):
    """x, weight, bias, and a gradient of y."""
    shape, kernels, sides, options = {**CASES, **LARGE}[case]
    rng = np.random.default_rng(0)
    weight_shape = (kernels, shape[1] // options.get("towers", 1), *sides)
    height, width = (
        (size + sum(options["padding"]) - side) // options["stride"] + 1
        for size, side in zip(shape[2:], sides, strict=True)
    )
    shapes = (shape, weight_shape, (kernels,), (shape[0], kernels, height, width))
    return [torch.from_numpy(rng.normal(size=s)).to(dtype) for s in shapes]


def oracle(x, weight, bias, *, stride, padding, towers=1, activation="none", gradient=None):
    """The formula place by place; y, and where there is a gradient of y those of the inputs."""
    x, weight, bias = (np.asarray(t.detach().double()) for t in (x, weight, bias))
    before, after = padding
    padded = np.pad(x, ((0, 0), (0, 0), (before, after), (before, after)))
    kernels, channels, height, width = weight.shape
    rows = (padded.shape[2] - height) // stride + 1
    columns = (padded.shape[3] - width) // stride + 1
    y = np.empty((len(x), kernels, rows, columns))
    of_padded, of_weight = np.zeros_like(padded), np.zeros_like(weight)
    of_bias = np.zeros(kernels)
    for n, k, r, q in np.ndindex(*y.shape):
        first = k // (kernels // towers) * channels
        here = np.s_[
            n,
            first : first + channels,
            r * stride : r * stride + height,
            q * stride : q * stride + width,
        ]
        y[n, k, r, q] = (padded[here] * weight[k]).sum() + bias[k]
        if activation == "relu":
            y[n, k, r, q] = max(y[n, k, r, q], 0)
        if gradient is not None and (activation == "none" or y[n, k, r, q] > 0):
            incoming = float(gradient[n, k, r, q])
            of_padded[here] += incoming * weight[k]
            of_weight[k] += incoming * padded[here]
            of_bias[k] += incoming
    if gradient is None:
        return y
    of_x = of_padded[:, :, before : before + x.shape[2], before : before + x.shape[3]]
    return y, of_x, of_weight, of_bias


def options_of(case, **changes):
    return {**{**CASES, **LARGE}[case][3], **changes}


def close(actual, expected, relative):
    expected = np.asarray(expected)
    scale = max(np.abs(expected).max(initial=0), 1e-30)
    actual = np.asarray(actual.detach().double())
    return actual.shape == expected.shape and (np.abs(actual - expected) <= relative * scale).all()


def moved(tensors, memory_format):
    return [t.contiguous(memory_format=memory_format) if t.dim() == 4 else t for t in tensors]


# --- Forward and gradients


@each_case
def test_the_reference_is_the_formula(case):
    x, weight, bias, gradient = inputs_of(case)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    for activation in ("none", "relu"):
        options = options_of(case, activation=activation)
        y = reference.split_conv2d(*leaves, **options)
        found = (y, *torch.autograd.grad(y, leaves, gradient))
        expected = oracle(*(t.detach() for t in leaves), **options, gradient=gradient)
        assert all(map(close, found, expected, [1e-12] * 4))


@needs_compiled
@each_case
@pytest.mark.parametrize("products", ["measured", "library", "own"])
def test_the_operator_and_its_gradients_are_the_formula(case, products):
    for layout in LAYOUTS.values():
        for activation in ("none", "relu"):
            options = options_of(case, activation=activation)
            x, weight, bias, gradient = moved(inputs_of(case), layout)
            expected = oracle(x, weight, bias, **options, gradient=gradient)
            leaves = [t.requires_grad_() for t in (x, weight, bias)]
            y = split_conv2d(*leaves, **options, products=products)
            found = (y, *torch.autograd.grad(y, leaves, gradient))
            assert all(map(close, found, expected, [1e-12] * 4))
            without = split_conv2d(x, weight, None, **options_of(case), products=products)
            assert close(without, oracle(x, weight, bias * 0, **options_of(case)), 1e-12)


# A rounding of the result; of float32 at most twice the error of PyTorch's own.
TOLERANCE = {torch.float32: None, torch.bfloat16: 2**-8, torch.float16: 2**-10}


@needs_compiled
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("products", ["library", "own"])
def test_other_types_are_as_exact_as_pytorchs_own(dtype, products):
    for case in ("conv1", "conv2", "more before"):
        options = options_of(case)
        tensors = inputs_of(case, dtype)
        expected = oracle(*tensors[:3], **options, gradient=tensors[3])
        wide = [t.float().requires_grad_() for t in tensors[:3]]
        before, after = options["padding"]
        padded = F.pad(wide[0], (before, after, before, after))
        y = F.conv2d(*(padded, *wide[1:]), options["stride"], groups=options.get("towers", 1))
        torchs = (y, *torch.autograd.grad(y, wide, tensors[3].float()))
        for layout in LAYOUTS.values():
            *inputs, gradient = moved(tensors, layout)
            leaves = [t.requires_grad_() for t in inputs]
            y = split_conv2d(*leaves, **options, products=products)
            found = (y, *torch.autograd.grad(y, leaves, gradient))
            for one, exact, other in zip(found, expected, torchs, strict=True):
                assert one.dtype == dtype
                error = np.abs(other.detach().double().numpy() - exact).max()
                scale = np.abs(exact).max()
                limit = max(2 * error, 4 * np.finfo(np.float32).eps * scale)
                if TOLERANCE[dtype] is not None:
                    limit = TOLERANCE[dtype] * scale
                assert np.abs(one.detach().double().numpy() - exact).max() <= limit


def wrong_versions(case):
    """The formula with a mistake in it."""
    x, weight, bias, _ = inputs_of(case)
    options = options_of(case)
    before, after = options["padding"]
    right = (x, weight, bias)
    yield "mirrored kernels", (x, weight.flip(2, 3), bias), options
    yield "rows and columns swapped", (x, weight.transpose(2, 3), bias), options
    yield "no bias", (x, weight, bias * 0), options
    yield "padding swapped", right, {**options, "padding": (after, before)}
    yield "shifted by one channel", (x.roll(1, 1), weight, bias), options
    if options.get("towers", 1) > 1:
        towers = options["towers"]
        parts = [part.flip(0) for part in weight.chunk(towers)]
        yield "towers swapped", (torch.cat(x.chunk(towers, 1)[::-1], 1), weight, bias), options
        yield "kernels of a tower reversed", (x, torch.cat(parts), bias), options


@pytest.mark.parametrize("case", ["conv1", "conv2"])
def test_the_comparison_rejects_wrong_versions(case):
    """The loosest tolerance of this file tells every wrong version from the right one."""
    x, weight, bias, _ = inputs_of(case)
    expected = oracle(x, weight, bias, **options_of(case))
    for wrong, tensors, options in wrong_versions(case):
        if wrong == "padding swapped" and options["padding"] == options_of(case)["padding"]:
            continue
        assert not close(split_conv2d(*tensors, **options), expected, 2**-8), wrong
    assert not close(split_conv2d(x, weight, bias, **options_of(case)), expected.clip(0), 2**-8)


@needs_compiled
@pytest.mark.parametrize("products", ["library", "own"])
def test_the_layout_of_the_image_or_of_the_weight_is_kept(products):
    for case in ("conv1", "conv2", "one kernel"):
        *tensors, gradient = inputs_of(case, torch.float32)
        expected = split_conv2d(*tensors, **options_of(case), products=products)
        for layout in LAYOUTS.values():
            x, weight, bias = moved(tensors, layout)
            for one, other in ((x, tensors[1]), (tensors[0], weight), (x, weight)):
                leaves = [one.detach().requires_grad_(), other.detach().requires_grad_()]
                y = split_conv2d(*leaves, bias, **options_of(case), products=products)
                assert torch.allclose(y, expected, rtol=1e-5, atol=1e-5)
                assert y.is_contiguous(memory_format=layout)
                of_x, of_weight = torch.autograd.grad(y, leaves, gradient)
                assert of_x.is_contiguous(memory_format=layout)
                assert of_weight.stride() == other.stride()
    x, weight, bias, _ = inputs_of("conv2")
    gaps = torch.empty(*x.shape[:3], 2 * x.shape[3], dtype=x.dtype)[..., ::2].copy_(x)
    expected = split_conv2d(x, weight, bias, **options_of("conv2"))
    apart = torch.stack([bias, bias + 1], dim=1)[:, 0]
    assert torch.equal(split_conv2d(gaps, weight, apart, **options_of("conv2")), expected)
    ended = split_conv2d_add_(expected.clone(), x, weight, bias, **options_of("conv2"))
    again = split_conv2d_add_(expected.clone(), gaps, weight, apart, **options_of("conv2"))
    assert torch.equal(ended, again)


def test_second_derivatives():
    x, weight, bias, _ = inputs_of("more before")
    options = options_of("more before", towers=1)
    weight = weight.repeat(1, 3, 1, 1)
    leaves = [t[:1].requires_grad_() if t is x else t.requires_grad_() for t in (x, weight, bias)]

    def convolve(*tensors):
        return split_conv2d(*tensors, **options)

    assert torch.autograd.gradcheck(convolve, leaves)
    assert torch.autograd.gradgradcheck(convolve, leaves)

    def backward(gradient, x, weight):
        return torch.ops.replica.split_conv2d_backward(
            gradient, x, weight, 2, 3, 1, 1, "library", [True, True, True]
        )

    gradient = convolve(*leaves).detach().requires_grad_()
    assert torch.autograd.gradcheck(backward, (gradient, *leaves[:2]))


@needs_compiled
@pytest.mark.parametrize("products", ["library", "own"])
def test_only_what_is_needed_is_computed(products):
    x, weight, _, gradient = inputs_of("conv1")
    options = options_of("conv1")
    whole = split_conv2d_backward(gradient, x, weight, **options, products=products)
    for needed in np.ndindex(2, 2, 2):
        some = split_conv2d_backward(
            gradient, x, weight, **options, products=products, needed=tuple(map(bool, needed))
        )
        for one, all_of_it, is_needed in zip(some, whole, needed, strict=True):
            assert (one is not None) == is_needed
            assert one is None or torch.allclose(one, all_of_it, rtol=1e-12, atol=1e-12)


# --- The other half of a layer


def halves():
    """conv3 in small: both halves of x and weight, the bias, and the layer as a whole."""
    x, weight, bias, _ = inputs_of("conv2")
    weight = weight.repeat(1, 2, 1, 1) * torch.arange(1.0, 9.0).view(1, 8, 1, 1)
    return x, weight, bias, {"stride": 1, "padding": (2, 2)}


@each_case
def test_the_end_of_a_layer_is_the_formula(case):
    x, weight, bias, y = inputs_of(case)
    for dtype in DTYPES:
        for layout in LAYOUTS.values():
            for activation in ("none", "relu"):
                for with_bias in (True, False):
                    tensors = moved([t.to(dtype) for t in (x, weight, y)], layout)
                    added = bias.to(dtype) if with_bias else None
                    exact = oracle(
                        *tensors[:2], torch.zeros(len(bias)), **options_of(case)
                    ) + np.asarray(tensors[2].double())
                    if with_bias:
                        exact += np.asarray(added.double()).reshape(-1, 1, 1)
                    if activation == "relu":
                        exact = exact.clip(0)
                    result = split_conv2d_add_(
                        tensors[2].clone(memory_format=torch.preserve_format),
                        *tensors[:2],
                        added,
                        **options_of(case),
                        activation=activation,
                    )
                    # In 16 bits the products are rounded, and the sum.
                    limit = {8: 1e-12, 4: 1e-5, 2: 2**-7 if dtype == torch.bfloat16 else 2**-9}
                    assert close(result, exact, limit[dtype.itemsize])


def test_two_halves_are_the_whole_layer():
    x, weight, bias, options = halves()
    whole = split_conv2d(x, weight, bias, **options, activation="relu")
    own, other = weight.chunk(2, 1)
    y = split_conv2d(x[:, :4], own, None, **options)
    result = split_conv2d_add_(y, x[:, 4:], other, bias, **options, activation="relu")
    assert result is y
    assert torch.allclose(y, whole, rtol=1e-12, atol=1e-12)
    for wrong in ((x[:, :4], other), (x[:, 4:], own)):
        y = split_conv2d(x[:, :4], own, None, **options)
        split_conv2d_add_(y, *wrong, bias, **options, activation="relu")
        assert not torch.allclose(y, whole, rtol=1e-2)


def test_infinity_and_nan_are_those_of_the_sum():
    x, weight, bias, options = halves()
    for value in (float("inf"), float("nan")):
        y = split_conv2d(x[:, :4], weight[:, :4], None, **options)
        y[0, 0, 0, 0] = value
        for activation in ("none", "relu"):
            ended = split_conv2d_add_(
                y.clone(), x[:, 4:], weight[:, 4:], bias, **options, activation=activation
            )
            assert repr(ended[0, 0, 0, 0].item()) == repr(value)


# --- Blocks of pixels, the end of a layer: compiled


@needs_compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_of_pixels_are_those_of_the_padded_image(dtype):
    for side, before, rows, columns in ((4, 1, 6, 5), (4, 0, 2, 1), (3, 7, 9, 9), (1, 2, 12, 11)):
        for shape in ((2, 3, 17, 13), (1, 1, 5, 4), (2, 4, 1, 3), (0, 3, 8, 8)):
            x = torch.randn(shape).to(dtype)
            big = torch.zeros(*shape[:2], 99, 99, dtype=dtype)
            big[:, :, before : before + shape[2], before : before + shape[3]] = x
            big = big[:, :, : rows * side, : columns * side]
            parts = big.reshape(*shape[:2], rows, side, columns, side)
            expected = parts.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
            for layout in LAYOUTS.values():
                given = x.contiguous(memory_format=layout)
                found = torch.ops.replica_cpu.pixel_blocks(given, side, before, rows, columns)
                assert torch.equal(found, expected), (side, shape)


@needs_compiled
def test_wrong_arguments_of_the_compiled_parts_are_refused():
    x = torch.zeros(1, 2, 3, 3)
    for arguments, message in [
        ((x[0], 1, 0, 1, 1), r"expected x of \(N, C, H, W\), got 3 dimensions"),
        ((x, 0, 0, 1, 1), "expected positive numbers of pixels and blocks"),
        ((x.int(), 1, 0, 1, 1), "expected float32, float64, bfloat16 or float16"),
    ]:
        with pytest.raises(RuntimeError, match=f"pixel_blocks: {message}"):
            torch.ops.replica_cpu.pixel_blocks(*arguments)
    finish = torch.ops.replica_cpu.finish_products_
    for others in (x[:, :1], x.double(), torch.zeros(1, 3, 3, 2).permute(0, 3, 1, 2)):
        with pytest.raises(RuntimeError, match="finish_products_: expected two tensors alike"):
            finish(x.clone(), others, None, False)
    with pytest.raises(RuntimeError, match="expected a bias for each kernel"):
        finish(x.clone(), x, torch.zeros(3), False)
    with pytest.raises(RuntimeError, match="finish_products_: expected float32"):
        finish(x.int(), x.int(), None, False)


@needs_compiled
def test_results_do_not_depend_on_the_number_of_threads():
    x, weight, bias = torch.randn(4, 3, 64, 64), torch.randn(8, 3, 11, 11), torch.randn(8)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for layout in LAYOUTS.values():
                image = x.contiguous(memory_format=layout)
                blocks = torch.ops.replica_cpu.pixel_blocks(image, 4, 1, 16, 16)
                y = split_conv2d(image, weight, bias, stride=4, padding=(1, 2), products="own")
                ended = split_conv2d_add_(
                    y.clone(), image, weight, bias, stride=4, padding=(1, 2), activation="relu"
                )
                found.append((blocks, y, ended))
    finally:
        torch.set_num_threads(before)
    for first, second in zip(found, found[2:], strict=False):
        assert all(map(torch.equal, first, second))


# --- PyTorch's machinery


@needs_compiled
@pytest.mark.parametrize(
    ("case", "layout", "products"),
    [
        ("conv1", "channels last", "own"),
        ("conv1", "NCHW", "own"),
        ("conv2", "channels last", "library"),
        ("one kernel", "NCHW", "library"),
    ],
)
def test_opcheck_passes(case, layout, products):
    options = {"towers": 1, **options_of(case)}
    numbers = (options["stride"], *options["padding"], options["towers"])
    x, weight, bias, y = moved(inputs_of(case, torch.float32), LAYOUTS[layout])
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    operators, end = torch.ops.replica, (True, products)
    torch.library.opcheck(operators.split_conv2d.default, (*leaves, *numbers, *end))
    arguments = (y, x, weight, bias, *numbers, *end)
    torch.library.opcheck(operators.split_conv2d_add_.default, arguments)
    arguments = (y, x, weight, *numbers, products, [True, False, True])
    torch.library.opcheck(operators.split_conv2d_backward.default, arguments)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own code
def test_torch_compile_and_export():
    x, weight, bias, _ = inputs_of("conv1", torch.float32)
    options = options_of("conv1", activation="relu")

    class Module(torch.nn.Module):
        def forward(self, x, weight, bias):
            return split_conv2d(x, weight, bias, **options)

    def gradients(module):
        leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
        y = module(*leaves)
        return (y.detach(), *torch.autograd.grad(y.square().sum(), leaves))

    compiled = torch.compile(Module(), backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, gradients(compiled), gradients(Module())))
    program = torch.export.export(Module(), (x, weight, bias))
    assert torch.equal(program.module()(x, weight, bias), Module()(x, weight, bias))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["replica.split_conv2d.default"]


def test_autocast_casts_as_it_does_for_the_librarys_convolution():
    x, weight, bias, _ = inputs_of("conv2", torch.float32)
    options = options_of("conv2")
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            y = split_conv2d(x, weight, bias, **options)
            wide = split_conv2d(x.double(), weight.double(), bias.double(), **options)
        expected = split_conv2d(*(t.to(dtype) for t in (x, weight, bias)), **options)
        assert torch.equal(y, expected)
        assert wide.dtype == torch.float64


def test_empty_batches_work():
    for case in CASES:
        x, weight, bias, gradient = inputs_of(case)
        for products in ("library", "own"):
            leaves = [t.detach().requires_grad_() for t in (x[:0], weight, bias)]
            y = split_conv2d(*leaves, **options_of(case), activation="relu", products=products)
            assert y.shape == gradient[:0].shape
            for found, leaf in zip(torch.autograd.grad(y.sum(), leaves), leaves, strict=True):
                assert found.shape == leaf.shape
                assert not found.any()
            y = split_conv2d_add_(gradient[:0], x[:0], weight, bias, **options_of(case))
            assert y.shape == gradient[:0].shape


def test_without_compiled_code_it_is_the_same():
    code = (
        "import torch; from test_split_conv2d import *\n"
        "for case in CASES:\n"
        "    x, weight, bias, y = inputs_of(case)\n"
        "    for products in ('measured', 'own'):\n"
        "        found = split_conv2d(x, weight, bias, **options_of(case), products=products)\n"
        "        print(close(found, oracle(x, weight, bias, **options_of(case)), 1e-12))\n"
        "    split_conv2d_add_(y, x, weight, bias, **options_of(case), activation='relu')"
    )
    result = run("-c", code, REPLICA_EXT="off", PYTHONPATH=f"{PROJECT_DIR / 'tests'}:{PROJECT_DIR}")
    assert result.stdout.split() == ["True"] * 2 * len(CASES), result.stderr


# --- Which way, and what is refused


def test_the_way_of_a_layer_is_what_was_measured():
    conv1 = {"channels": 3, "stride": 4, "towers": 1}
    for family, measured in MEASURED_FAMILIES.items():
        way = way_of(**conv1, family=family)
        assert (way.forward != "library") == measured.forward
        assert (way.weight_gradient != "library") == measured.weight_gradient
        assert way.why == f"{family}: {measured.what}"
        assert way_of(**conv1, family=family, products="own").forward == "blocks of pixels"
        assert way_of(**conv1, family=family, products="library").weight_gradient == "library"
    unknown = way_of(**conv1, family="SomeoneElse 1")
    assert (unknown.forward, unknown.weight_gradient) == ("library", "library")
    assert unknown.why == "nothing was measured on SomeoneElse 1"
    assert processor_family()
    for other in ({"channels": 48}, {"stride": 1}, {"towers": 2}):
        way = way_of(**{**conv1, **other}, family="GenuineIntel 6, AMX")
        assert (way.forward, way.weight_gradient) == ("library", "library")


def test_a_way_has_a_name_that_is_the_same_way_on_every_processor():
    conv1 = {"channels": 3, "stride": 4, "towers": 1}
    names = set()
    for products in convolution_ways.ALL_PRODUCTS:
        for family in (*MEASURED_FAMILIES, "SomeoneElse 1"):
            way = way_of(**conv1, family=family, products=products)
            for other in (*MEASURED_FAMILIES, "SomeoneElse 1"):
                again = way_of(**conv1, family=other, products=way.products)
                assert (again.forward, again.weight_gradient) == (way.forward, way.weight_gradient)
            assert products in ("measured", way.products)
            names.add(way.products)
    assert names == set(convolution_ways.ALL_PRODUCTS) - {"measured"}


@needs_compiled
@pytest.mark.parametrize("family", MEASURED_FAMILIES)
@pytest.mark.parametrize("products", ["measured", "own forward", "own weight gradient"])
def test_the_operator_goes_the_way_that_is_recorded(family, products, monkeypatch):
    arranged = []
    in_blocks = split_conv2d_products._image_in_blocks

    def recording(*arguments):
        arranged.append(len(arguments))
        return in_blocks(*arguments)

    monkeypatch.setattr(convolution_ways, "processor_family", lambda: family)
    monkeypatch.setattr(split_conv2d_products, "_image_in_blocks", recording)
    x, weight, bias, gradient = inputs_of("conv1")
    expected = MEASURED_FAMILIES[family].forward, MEASURED_FAMILIES[family].weight_gradient
    if products != "measured":
        expected = products == "own forward", products == "own weight gradient"
    split_conv2d(x, weight, bias, **options_of("conv1"), products=products)
    assert bool(arranged) == expected[0]
    arranged.clear()
    split_conv2d_backward(gradient, x, weight, **options_of("conv1"), products=products)
    assert bool(arranged) == expected[1]


def test_implementations_name_the_operator():
    assert {"split_conv2d", "split_conv2d on CUDA"} <= set(cuda_ext.implementations())


WRONG_ARGUMENTS = [
    ({"x": torch.zeros(2, 8, 7)}, r"x of \(N, C, H, W\), got \(2, 8, 7\)"),
    (
        {"x": torch.zeros(2, 8, 7, 9).int()},
        "float32, float64, bfloat16 or float16, got",
    ),
    ({"weight": torch.zeros(6, 4, 5)}, r"a weight of \(K, C, rows, columns\), got \(6, 4, 5\)"),
    ({"weight": torch.zeros(6, 4, 0, 5)}, r"a weight of \(K, C, rows, columns\), got"),
    ({"weight": torch.zeros(6, 4, 5, 5).double()}, "x and weight of one type, got torch.float32, "),
    ({"bias": torch.zeros(6).double()}, "x and bias of one type, got torch.float32, "),
    (
        {"weight": torch.zeros(6, 4, 5, 5, device="meta")},
        "x and weight on one device, got cpu, meta",
    ),
    (
        {"weight": torch.zeros(5, 4, 5, 5)},
        "kernels divisible by towers, got 5 kernels and 2",
    ),
    ({"towers": 0}, "kernels divisible by towers, got 6 kernels and 0 towers"),
    ({"towers": 1}, "x of 1 x 4 channels, as the weight reads, got 8 channels"),
    ({"bias": torch.zeros(5)}, r"a bias of \(6,\), got \(5,\)"),
    ({"stride": 0}, "a stride of at least 1, got 0"),
    (
        {"padding": (2, 6)},
        r"padding \(before, after\) of 0 to 5, the kernels' side, got \(2, 6\)",
    ),
    ({"padding": (-1, 2)}, r"padding \(before, after\) of 0 to 5"),
    ({"x": torch.zeros(2, 8, 1, 9), "padding": (1, 1)}, "at least 5 x 5 places, as the kernels"),
    ({"activation": "tanh"}, "an activation of none or relu, got 'tanh'"),
    ({"products": "fast"}, r"products of measured, library, own, own forward, .*, got 'fast'"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_ARGUMENTS, ids=str)
def test_wrong_arguments_are_refused_with_the_rule(changes, message):
    x, weight, bias, y = inputs_of("conv2", torch.float32)
    given = {"x": x, "weight": weight, "bias": bias, **options_of("conv2"), **changes}
    x, weight, bias = (given.pop(name) for name in ("x", "weight", "bias"))
    with pytest.raises(ValueError, match=f"^split_conv2d: expected {message}"):
        split_conv2d(x, weight, bias, **given)
    with pytest.raises(ValueError, match=f"^split_conv2d_add_: expected {message}"):
        split_conv2d_add_(y, x, weight, bias, **given)


def test_another_half_of_another_size_is_refused():
    x, weight, bias, y = inputs_of("conv2", torch.float32)
    options = options_of("conv2")
    rule = r"^split_conv2d_add_: expected y of torch.float32, \(2, 6, 7, 9\), cpu, as the other"
    for other in (y[:, :5], y[:1], y[..., :8], y.double()):
        with pytest.raises(ValueError, match=rule):
            split_conv2d_add_(other, x, weight, bias, **options)
    with pytest.raises(ValueError, match="expected a dense y, got one of strides"):
        split_conv2d_add_(
            y.transpose(2, 3).contiguous().transpose(2, 3), x, weight, bias, **options
        )
    with pytest.raises(ValueError, match="expected tensors without a gradient, got one that"):
        split_conv2d_add_(y, x, weight.requires_grad_(), bias, **options)
    with torch.no_grad():
        split_conv2d_add_(y, x, weight, bias, **options)
    rule = r"^split_conv2d_backward: expected a gradient of torch.float32, \(2, 6, 7, 9\), cpu"
    with pytest.raises(ValueError, match=rule):
        split_conv2d_backward(y[:1], x, weight.detach(), **options)
