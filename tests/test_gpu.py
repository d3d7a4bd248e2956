"""What only a CUDA device can show; skipped with the reason where there is none."""

import itertools
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import PROJECT_DIR, run
from runs import lines_of
from test_operators import DTYPES, OPERATORS, PAPER, call, half_unit, inputs_of, layouts
from test_step import batch_of, one_step, state_of

import cuda_ext
from cuda_ext import reference
from replica.feed.feed import TrainFeed
from replica.recipes import MINI

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]


def test_the_compiled_operators_are_live():
    assert cuda_ext.compiled_cuda_state().is_live, cuda_ext.compiled_cuda_state().reason


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("layout", ["NCHW", "channels last", "gaps"])
@pytest.mark.parametrize("parameters", [dict(PAPER, towers=2), dict(PAPER, n=3, beta=0.6)])
def test_the_operator_on_a_gpu_is_the_formula(name, layout, parameters):
    for shape in ((3, 96, 13, 13), (1, 40, 5, 7), (0, 96, 3, 3)):
        for dtype in DTYPES:
            tensors = inputs_of(name, shape, dtype)
            exact = OPERATORS[name].reference(*(t.double() for t in tensors), **parameters).numpy()
            moved = [layouts(tensor)[layout].cuda() for tensor in tensors]
            results = [call(name, moved, **parameters).cpu() for _ in range(3)]
            assert all(torch.equal(results[0], other) for other in results)
            largest = np.abs(exact).max(initial=0)
            limit = (1e-12 if dtype == torch.float64 else 4 * np.finfo(np.float32).eps) * largest
            if dtype.itemsize == 2:
                limit = limit + half_unit(exact, dtype)
            assert (np.abs(results[0].double().numpy() - exact) <= limit).all(), (shape, dtype)


@pytest.mark.parametrize("products", ["library", "own"])
@pytest.mark.parametrize("layout", ["NCHW", "channels last"])
def test_the_split_convolution_on_a_gpu_is_the_formula(products, layout, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    shapes = {
        "conv1": ((3, 3, 67, 67), (96, 3, 11, 11), {"stride": 4, "padding": (1, 2)}),
        "conv2": ((3, 96, 27, 27), (256, 48, 5, 5), {"padding": (2, 2), "towers": 2}),
        "conv5": ((40, 384, 13, 13), (256, 192, 3, 3), {"padding": (1, 1), "towers": 2}),
    }
    for x_shape, weight_shape, options in shapes.values():
        options = {"stride": 1, "activation": "relu", **options}
        x, weight, bias = (
            torch.randn(shape, dtype=torch.float64, requires_grad=True)
            for shape in (x_shape, weight_shape, weight_shape[:1])
        )
        y = cuda_ext.reference.split_conv2d(x, weight, bias, **options)
        gradient = torch.randn_like(y)
        exact = [y, *torch.autograd.grad(y, (x, weight, bias), gradient)]
        results = []
        for _ in range(2):
            leaves = [t.detach().float() for t in (x, weight)]
            leaves = [*(layouts(t)[layout].cuda() for t in leaves), bias.detach().float().cuda()]
            leaves = [t.requires_grad_() for t in leaves]
            y = cuda_ext.split_conv2d(*leaves, **options, products=products)
            results.append([y, *torch.autograd.grad(y, leaves, gradient.float().cuda())])
        for one, again, right in zip(*results, exact, strict=True):
            assert torch.equal(one, again)
            right = right.detach()
            # A sum near zero that ReLU keeps or drops changes its gradient: not in one of these.
            assert (one.detach().cpu() - right).abs().max() <= 1e-4 * right.abs().max()


def test_the_end_of_a_layer_on_a_gpu_is_that_on_the_cpu():
    x, weight, bias = torch.randn(4, 8, 9, 9), torch.randn(6, 8, 3, 3), torch.randn(6)
    y = torch.randn(4, 6, 7, 7)
    for products in ("library", "own"):
        on_gpu = [t.cuda() for t in (y, x, weight, bias)]
        cuda_ext.split_conv2d_add_(*on_gpu, activation="relu", products=products)
        expected = cuda_ext.split_conv2d_add_(y.clone(), x, weight, bias, activation="relu")
        assert torch.allclose(on_gpu[0].cpu(), expected, rtol=1e-3, atol=1e-3)


def test_gradients_are_those_of_the_function():
    x = torch.randn(2, 6, 2, 3, dtype=torch.float64, device="cuda", requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: cuda_ext.local_response_norm(x, n=5, k=1.0, alpha=0.5, beta=0.75, towers=2), (x,)
    )


@pytest.mark.parametrize("layout", ["NCHW", "channels last"])
@pytest.mark.parametrize("order", ["relu-norm-pool", "norm-pool-relu"])
@pytest.mark.parametrize("ties", ["first", "all"])
def test_the_one_pass_on_a_gpu_is_its_three_operators(layout, order, ties):
    """Forward bit for bit; the gradient once rounded, theirs at each step in 16 bits."""
    letters = dict(PAPER, towers=2)
    for shape, dtype in itertools.product(((3, 96, 13, 13), (1, 40, 5, 7), (0, 96, 3, 3)), DTYPES):
        (x,) = inputs_of("local_response_norm", shape, dtype)
        x = layouts(x)[layout].cuda().requires_grad_()
        y = cuda_ext.relu_lrn_pool(x, **letters, order=order, ties=ties)
        three = x.relu() if order == "relu-norm-pool" else x
        three = cuda_ext.local_response_norm(three, **letters)
        three = cuda_ext.max_pool2d(three, window=3, stride=2, ties=ties)
        three = three if order == "relu-norm-pool" else three.relu()
        assert torch.equal(y, three), (shape, dtype)
        gradient = torch.randn_like(y)
        own, expected = (torch.autograd.grad(one, x, gradient)[0] for one in (y, three))
        assert torch.equal(
            own,
            torch.autograd.grad(
                cuda_ext.relu_lrn_pool(x, **letters, order=order, ties=ties), x, gradient
            )[0],
        )
        unit = 4 * max(torch.finfo(dtype).eps, 1e-12)
        largest = expected.abs().max() if expected.numel() else 0
        assert ((own - expected).abs() <= unit * largest).all(), (shape, dtype)


@pytest.mark.parametrize("layout", ["NCHW", "channels last"])
def test_the_same_map_normalization_on_a_gpu_is_the_formula(layout):
    letters = {"n": 5, "k": 1.0, "alpha": 0.001 / 25, "beta": 0.75}
    for shape, dtype in itertools.product(((3, 20, 13, 11), (1, 3, 2, 2)), DTYPES):
        g, x = inputs_of("local_response_norm_backward", shape, dtype)
        exact = (
            reference.same_map_norm(x.double(), **letters).numpy(),
            reference.same_map_norm_backward(g.double(), x.double(), **letters).numpy(),
        )
        moved = layouts(x)[layout].cuda().requires_grad_()
        y = cuda_ext.same_map_norm(moved, **letters)
        results = y, torch.autograd.grad(y, moved, g.cuda())[0]
        for result, right in zip(results, exact, strict=True):
            limit = (1e-12 if dtype == torch.float64 else 1e-6) * np.abs(right).max()
            if dtype.itemsize == 2:
                limit = limit + half_unit(right, dtype)
            assert (np.abs(result.detach().cpu().double().numpy() - right) <= limit).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_on_a_gpu_is_that_of_the_cpu(dtype):
    rows, x = torch.tensor([0, 5, 3, 4_000_000_000]), torch.randn(4, 298).to(dtype)
    how = {"key": (9, 4), "layer": 1, "units": slice(3, 301), "keep": 0.5}
    expected = cuda_ext.philox_dropout(x, step=7, rows=rows, **how)
    on_gpu = cuda_ext.philox_dropout(x.cuda(), step=7, rows=rows.cuda(), **how)
    assert torch.equal(on_gpu.cpu(), expected)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize(("mean_place", "divisor"), [("place", 1.0), ("center", 1.1)])
def test_augmentation_on_a_gpu_is_that_of_the_cpu(layout, mean_place, divisor):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (9, 41, 43, 3), np.uint8))
    places = torch.from_numpy(np.stack([rng.integers(0, n, 20) for n in (9, 5, 7, 2)], axis=1))
    mean, shifts = torch.rand(41, 43, 3) * 255, torch.randn(20, 3) * 20
    how = {"crop_size": 37, "memory_format": layout}
    rules = {"mean": mean_place, "divisor": divisor}
    for dtype in (torch.float32, torch.bfloat16):
        expected = cuda_ext.augment_batch(
            images, places, mean_image=mean, shifts=shifts, dtype=dtype, **how, **rules
        )
        moved = {"mean_image": mean.cuda(), "shifts": shifts.cuda(), **rules}
        on_gpu = cuda_ext.augment_batch(images.cuda(), places.cuda(), dtype=dtype, **moved, **how)
        assert torch.equal(on_gpu.cpu(), expected)


@pytest.mark.parametrize("threads", [0, 3])
def test_batches_on_a_gpu_are_those_of_the_cpu(data, threads):
    feed = TrainFeed(data, MINI, seed=1)
    for batch in feed.batches(0, 12, threads=threads, device=torch.device("cuda")):
        assert torch.equal(batch.images.cpu(), feed.batch(batch.step).images)


def test_the_update_on_a_gpu_is_that_of_the_cpu():
    shapes = [(5, 3), (0,), (200_003,), (1_024,)]
    numbers = {
        "learning_rates": [0.02, 0.5, 0.0, 0.01],
        "momentum": 0.9,
        "weight_decays": [0.1] * 4,
    }
    tensors = [[torch.randn(shape) for shape in shapes] for _ in "wvg"]
    moved = [[tensor.cuda() for tensor in kind] for kind in tensors]
    cuda_ext.momentum_sgd_(*tensors, **numbers)
    cuda_ext.momentum_sgd_(*moved, **numbers)
    for kind, on_gpu in zip(tensors[:2], moved[:2], strict=True):
        for one, other in zip(kind, on_gpu, strict=True):
            torch.testing.assert_close(other.cpu(), one, rtol=1e-6, atol=1e-6)


def test_a_captured_step_is_the_step():
    plain, captured = state_of(MINI, "cuda"), state_of(MINI, "cuda", compile="cuda-graphs")
    for parameter in plain.model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    captured.model.load_state_dict(plain.model.state_dict())
    for step, num in enumerate((3, 3, 2, 3)):
        batch = batch_of(MINI, num, step)
        expected, got = one_step(plain, batch), one_step(captured, batch)
        torch.testing.assert_close(got.sums, expected.sums)
        for name, weight in plain.weights.items():
            torch.testing.assert_close(captured.weights[name], weight)


@pytest.mark.fault(17)
def test_more_elements_than_a_32_bit_index_reaches():
    free, _ = torch.cuda.mem_get_info()
    if free < 20 * 2**30:
        pytest.skip(f"20 GiB of free memory are needed, {free / 2**30:.0f} GiB are there")
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.zeros(2049, 1024, 32, 32, dtype=torch.bfloat16, device="cuda")
        x = x.contiguous(memory_format=memory_format)
        x[-1] = 80 * torch.randn(1024, 32, 32, device="cuda")
        y = cuda_ext.local_response_norm(x, **PAPER)
        assert torch.equal(y[-1:], cuda_ext.local_response_norm(x[-1:].clone(), **PAPER))
        assert not y[-2].any()


def test_tensors_on_two_devices_are_refused():
    x = torch.ones(1, 6, 2, 2, device="cuda")
    with pytest.raises(ValueError, match="expected x and out on one device, got cuda:0 and cpu"):
        cuda_ext.local_response_norm_out(x, **PAPER, out=torch.ones(1, 6, 2, 2))
    with pytest.raises(RuntimeError, match="local_response_norm: expected a gradient"):
        torch.ops.replica.local_response_norm_backward(x.cpu(), x, 5, 2.0, 1e-4, 0.75, 1)


SMALL = """
import torch
from cuda_ext import local_response_norm, split_conv2d
for memory_format in (torch.contiguous_format, torch.channels_last):
    for n in (3, 5):
        x = torch.randn(2, 40, 5, 7, device="cuda").contiguous(memory_format=memory_format)
        x.requires_grad_()
        y = local_response_norm(x, n=n, k=2.0, alpha=1e-4, beta=0.75, towers=2)
        y.square().sum().backward()
    w = torch.randn(66, 20, 3, 3, device="cuda", requires_grad=True)
    y = split_conv2d(x, w, None, stride=2, padding=(1, 2), towers=2, products="own")
    y.square().sum().backward()
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool):
    program = shutil.which("compute-sanitizer") or shutil.which(
        "/usr/local/cuda/bin/compute-sanitizer"
    )
    if program is None:
        pytest.skip("no compute-sanitizer here")
    result = subprocess.run(
        [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SMALL],
        cwd=PROJECT_DIR,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "float64"])
def test_training_runs_on_a_gpu_and_two_runs_give_the_same_losses(precision, shards_dir, tmp_path):
    losses = []
    for name in ("first", "second"):
        out = tmp_path / name
        command = ("-m", "replica.train", "--data", str(shards_dir), "--recipe", "mini")
        options = ("--device", "cuda", "--precision", precision, "--steps", "3", "--out", str(out))
        result = run(*command, *options)
        assert result.returncode == 0, result.stderr
        lines = lines_of(out, "step")
        losses.append([line["loss"] for line in lines])
    assert losses[0] == losses[1]
