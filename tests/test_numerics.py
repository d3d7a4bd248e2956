"""Each way to compute takes the oracle's step within its own rounding, and is what it says."""

import functools
import json

import numpy as np
import oracles
import pytest
import torch
from conftest import assert_user_error, run_here
from functorch.compile import make_boxed_func
from runs import (
    BATCH_SIZE,
    CROP_SIZE,
    NARROW,
    STEPS,
    large_weights,
    mini_shapes_and_deviations,
    train_tiny,
    with_loss_scale,
    write_checkpoint,
)
from torch._dynamo.backends.common import aot_autograd

from data_prep.errors import UserError
from data_prep.shards import open_data_set
from replica.distributed.devices import Devices
from replica.distributed.mesh import Rank
from replica.recipes import MINI, with_changes
from replica.train import parse_arguments
from replica.training.numerics import (
    COMPILED,
    Numerics,
    check_numerics,
    compiler_problem,
    set_numerics,
)
from replica.training.run import Run
from replica.training.run_record import read_run_record
from replica.training.state import begin
from replica.training.step import train_step_

SEED, SEED_OF_WEIGHTS, RATE = 4, 9, 1e-4
# The update of every tensor lies within so many units of the last place of the type that computes
# (the norm of the difference to that of the update). In float32 6.7 units were seen. In bfloat16 a
# unit near zero may be cut by the ReLU that float64 keeps, and each pooling layer takes some other
# maximum, so errors grow on the way back: 1.3 units were seen in fc8, then 1.3, 21, 20, 16, 17, 25
# and 36. A wrong formula is further away: a momentum of 0.8 moves fc8 by 13 units of bfloat16, a
# convolution that stays as it is is off by 256. In float16, whose units are smaller, a ReLU or a
# maximum that is another one counts for more of them: 2.1 were seen in fc8, then up to 1.8 down to
# conv5, and 65, 68, 67 and 86.
FLOAT32, BFLOAT16, FLOAT16, TF32 = 2.0**-24, 2.0**-8, 2.0**-11, 2.0**-11
UNITS_BFLOAT16 = {"fc8": 3, "fc7": 40, "fc6": 40, "conv5": 40, "conv4": 50, "conv3": 50}
UNITS_BFLOAT16 |= {"conv2": 60, "conv1": 80}
UNITS_FLOAT16 = dict.fromkeys(oracles.LAYERS, 200) | {"fc8": 4}
UNITS_TF32 = UNITS_BFLOAT16  # cuts and maxima change in the same way, each by less
UNITS_FLOAT32 = dict.fromkeys(oracles.LAYERS, 64)
WAYS = {
    "float32": (("--precision", "float32"), UNITS_FLOAT32, FLOAT32),
    "contiguous": (("--memory-format", "contiguous"), UNITS_FLOAT32, FLOAT32),
    "not deterministic": (("--deterministic", "off"), UNITS_FLOAT32, FLOAT32),
    "own products": (("--convolution", "own"), UNITS_FLOAT32, FLOAT32),
    "bf16": (("--precision", "bf16"), UNITS_BFLOAT16, BFLOAT16),
    "bf16, two towers": (("--precision", "bf16", "--gpus", "2"), UNITS_BFLOAT16, BFLOAT16),
    "fp16": (("--precision", "fp16"), UNITS_FLOAT16, FLOAT16),
    "fp16, two towers": (("--precision", "fp16", "--gpus", "2"), UNITS_FLOAT16, FLOAT16),
    "compiled": (("--compile", "default"), UNITS_FLOAT32, FLOAT32),
}
GPU = ("--device", "cuda")
GPU_WAYS = {
    "GPU, float32": (GPU, UNITS_FLOAT32, FLOAT32),
    "GPU, tf32": ((*GPU, "--precision", "tf32"), UNITS_TF32, TF32),
    "GPU, bf16": ((*GPU, "--precision", "bf16"), UNITS_BFLOAT16, BFLOAT16),
    "GPU, fp16": ((*GPU, "--precision", "fp16"), UNITS_FLOAT16, FLOAT16),
    "GPU, contiguous": ((*GPU, "--memory-format", "contiguous"), UNITS_FLOAT32, FLOAT32),
    "GPU, own products": ((*GPU, "--convolution", "own"), UNITS_FLOAT32, FLOAT32),
    "GPU, deterministic": ((*GPU, "--deterministic", "on"), UNITS_FLOAT32, FLOAT32),
    "GPU, compiled": ((*GPU, "--compile", "default"), UNITS_FLOAT32, FLOAT32),
    "GPU, CUDA graphs": ((*GPU, "--compile", "cuda-graphs"), UNITS_FLOAT32, FLOAT32),
}


@pytest.fixture(scope="module")
def ways(tiny_shards, tmp_path_factory):
    """The first two steps of each way to compute, made once: directory and checkpoints."""
    known = {}
    weights = large_weights(mini_shapes_and_deviations()[0], seed=SEED_OF_WEIGHTS)
    weights = {name: weight.astype(np.float32) for name, weight in weights.items()}
    start = tmp_path_factory.mktemp("numerics") / "start.pt"
    write_checkpoint(start, weights, open_data_set(tiny_shards))

    def of(name):
        if name not in known:
            out = tmp_path_factory.mktemp("numerics") / "run"
            chosen = {**WAYS, **GPU_WAYS}[name][0]
            options = (*chosen, "--steps", "2", "--lr", str(RATE), "--init", str(start))
            known[name] = out, train_tiny(out, *options, shards=tiny_shards, seed=SEED)
            if "fp16" in chosen:
                # Gradients are near 60 here, and both steps were skipped; with this scale none is.
                with_loss_scale(out, 2, scale=16)
                known[name] = (
                    out,
                    train_tiny(out, "--steps", "4", *(GPU if GPU[0] in chosen else ())),
                )
        return known[name]

    return of


def numpy_of(tensors):
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n == "compiled" else []) for n in WAYS],
)
def test_a_step_from_the_same_weights_is_the_oracles_within_its_precision(name, ways, tiny_shards):
    if name == "compiled" and compiler_problem(torch.__file__):
        pytest.skip(compiler_problem(torch.__file__))
    assert_oracles_step(ways(name)[1], tiny_shards, *WAYS[name][1:])


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("name", GPU_WAYS)
def test_so_is_each_way_on_a_gpu(name, ways, tiny_shards):
    assert_oracles_step(ways(name)[1], tiny_shards, *GPU_WAYS[name][1:])


def assert_oracles_step(checkpoints, tiny_shards, allowed, unit):
    step = max(checkpoints)
    before, after = checkpoints[step - 1], checkpoints[step]
    told = {"seed": SEED, "crop_size": CROP_SIZE, "batch_size": BATCH_SIZE, "steps": step}
    told |= {"learning_rate": RATE, "drop_epochs": (28,)}
    (expected,) = oracles.train(
        oracles.read_data(tiny_shards),
        numpy_of(before["model"]),
        told,
        velocities=numpy_of(before["velocities"]),
        first_step=step,
    )
    velocities = numpy_of(after["velocities"])
    assert velocities.keys() == expected["velocities"].keys()
    too_far, largest = {}, 0.0
    for tensor, right in expected["velocities"].items():
        # The velocity is what is added to the weight in this step.
        units = np.linalg.norm(velocities[tensor] - right) / np.linalg.norm(right) / unit
        largest = max(largest, units)
        if units > allowed[tensor.split(".")[0]]:
            too_far[tensor] = units
    assert not too_far
    assert largest > 0.3  # it really computes in this type, and not in a wider one
    for tensor, weight in after["model"].items():
        velocity, start = after["velocities"][tensor], before["model"][tensor]
        assert weight.dtype == velocity.dtype == torch.float32
        assert torch.equal(weight, start + velocity), tensor
        # Rounded to bfloat16, the lower half of a float32 would be zero.
        for values in (weight, velocity) if tensor.endswith("weight") else (velocity,):
            lower = values[values != 0].view(torch.int32) & 0xFFFF
            assert (lower != 0).double().mean() > 0.9, tensor


def test_the_record_says_how_a_run_computed(ways):
    for name, field, value in (
        ("bf16", "precision", "bf16"),
        ("contiguous", "memory_format", "contiguous"),
        ("not deterministic", "deterministic", False),
        ("own products", "convolution", "own"),
    ):
        assert getattr(read_run_record(ways(name)[0]).numerics, field) == value


def test_a_resumed_run_keeps_its_numerics_and_refuses_others(ways, tiny_shards):
    out = ways("bf16")[0]
    command = ("-m", "replica.train", "--resume", "--out", str(out), "--device", "cpu")
    result = run_here(*command, "--precision", "float32")
    assert_user_error(result, "--precision float32", "began with bf16", "leave the option out")
    result = run_here(*command, "--deterministic", "off")
    assert_user_error(result, "--deterministic off", "began with on")
    before = json.loads((out / "run.json").read_text())
    assert len(train_tiny(out, "--steps", "3")) == 3
    after = json.loads((out / "run.json").read_text())
    assert after["numerics"] == before["numerics"]


def test_compiled_is_what_the_help_says(tiny_shards, tmp_path, monkeypatch, capsys):
    """One graph forward and one backward for each size of batch, each called once a step."""
    graphs, calls = [], []

    def count(kind):
        def compiler(graph, _):
            graphs.append(kind)

            def call(*arguments):
                calls.append(kind)
                return graph(*arguments)

            return make_boxed_func(call)

        return compiler

    backend = aot_autograd(fw_compiler=count("forward"), bw_compiler=count("backward"))
    counting = functools.partial(torch.compile, backend=backend)

    def compile_counted(network, **options):
        assert options == {"fullgraph": True, "dynamic": False}
        return counting(network, **options)

    monkeypatch.setattr(torch, "compile", compile_counted)
    one_step = Run(
        recipe=with_changes(MINI, [*NARROW, f"crop_size={CROP_SIZE}", f"batch_size={BATCH_SIZE}"]),
        num_classes=10,
        data_dir=tiny_shards,
        run_dir=tmp_path,
        devices=Devices("cpu", 1, 1),
        numerics=Numerics(compile="default"),
        seed=SEED,
        steps=None,
        checkpoint_steps=None,
        resume_from=None,
        command=[],
    )
    state = begin(one_step, Rank(0, one_step.devices))
    for batch in state.feed.batches(0, STEPS):
        train_step_(state, batch, settings=state.settings(batch.step + 1))
    assert sorted(graphs) == ["backward", "backward", "forward", "forward"]  # batches of 7 and 3
    assert calls == ["forward", "backward"] * STEPS
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    assert COMPILED in " ".join(capsys.readouterr().out.split())
    assert "one graph forward and one backward" in COMPILED


def test_what_a_device_does_not_have_is_refused():
    cpu, pair = Devices("cpu", 1, 1), Devices("cpu", 2, 2)
    for numerics, devices, message in (
        (Numerics(precision="tf32"), cpu, "--precision tf32: expected a CUDA device"),
        (Numerics(compile="cuda-graphs"), cpu, "--compile cuda-graphs: expected a CUDA device"),
        (Numerics(compile="default"), pair, "--compile default: expected the whole network"),
    ):
        with pytest.raises(UserError, match=message):
            check_numerics(numerics, devices)


def test_compiling_is_refused_where_pytorchs_path_has_a_space(monkeypatch):
    """PyTorch 2.13's own compiler does not quote its directory for the linker."""
    monkeypatch.setattr(torch, "__file__", "/home/a user/.venv/torch/__init__.py")
    with pytest.raises(UserError, match=r"--compile default: PyTorch's compiler fails .*a user"):
        check_numerics(Numerics(compile="default"), Devices("cpu", 1, 1))
    check_numerics(Numerics(), Devices("cpu", 1, 1))


@pytest.mark.fault(18)
def test_deterministic_algorithms_are_refused_where_there_are_none():
    """And the switch is really on: PyTorch refuses what has no fixed order."""
    try:
        set_numerics(Numerics())
        assert torch.are_deterministic_algorithms_enabled()
        x = torch.zeros(3)
        with pytest.raises(RuntimeError, match="deterministic"):
            # Known to have none on any device.
            torch.zeros(4).put_(torch.tensor([0, 0, 1]), x, accumulate=False)
        set_numerics(Numerics(deterministic=False))
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
