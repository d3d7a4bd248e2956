"""Other ways to compute follow the curve of float32, and are what they say they are."""

import json

import numpy as np
import pytest
import torch
from conftest import assert_user_error
from runs import last_checkpoint, lines_of, train

from data_prep.shards import UserError
from replica import runlog
from replica.devices import Devices, Numerics, check_numerics, set_numerics

STEPS = 24


@pytest.fixture(scope="module")
def curves(shards_dir, tmp_path_factory):
    """Losses of the first steps of a run with given options; each is run once."""
    known = {}

    def of(*options):
        if options not in known:
            out = tmp_path_factory.mktemp("numerics") / "run"
            result = train(shards_dir, out, *options, "--epochs", "6", "--steps", str(STEPS))
            assert result.returncode == 0, result.stderr
            known[options] = out
        return known[options]

    return of


def losses(out):
    return np.array([line["loss"] for line in lines_of(out, "step")])


# How far a loss may be from float32's: the first before any update, the last after many. A curve
# of another seed is further away (tested below), so that a wrong computation would be seen.
FOLLOWING = [
    (("--precision", "float64"), 1e-6, 0.02),
    (("--precision", "bf16"), 0.02, 0.06),
    (("--memory-format", "contiguous"), 1e-6, 0.02),
    (("--deterministic", "off"), 1e-6, 0.02),
    pytest.param(("--compile", "default"), 1e-6, 0.02, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("options", "first", "mean"), FOLLOWING, ids=str)
def test_each_way_to_compute_follows_the_curve_of_float32(options, first, mean, curves):
    expected, got = losses(curves()), losses(curves(*options))
    assert len(got) == len(expected) == STEPS
    assert abs(got[0] - expected[0]) <= first
    assert np.abs(got - expected).mean() <= mean
    record = runlog.read_run_record(curves(*options))["numerics"]
    names = {"--precision": "precision", "--memory-format": "memory_format"}
    for option, value in zip(options[::2], options[1::2], strict=True):
        name = names.get(option, option.removeprefix("--"))
        assert record[name] == {"off": False}.get(value, value)


def test_another_seed_does_not_follow_it(curves):
    other = losses(curves("--seed", "7"))
    assert np.abs(other - losses(curves())).mean() > 0.1


def test_two_processes_compute_in_bf16_what_one_does(curves):
    one, two = curves("--precision", "bf16"), curves("--precision", "bf16", "--gpus", "2")
    assert np.abs(losses(one) - losses(two)).mean() <= 0.06
    assert last_checkpoint(two)["model"]["conv3.weight"].dtype == torch.float32


def test_a_resumed_run_keeps_its_numerics_and_refuses_others(curves, shards_dir):
    out = curves("--precision", "bf16")
    result = train(shards_dir, out, "--resume", "--precision", "float32", "--steps", "25")
    assert_user_error(result, "--precision float32", "began with bf16", "leave the option out")
    result = train(shards_dir, out, "--resume", "--deterministic", "off", "--steps", "25")
    assert_user_error(result, "--deterministic off", "began with on")
    before = json.loads((out / "run.json").read_text())
    result = train(shards_dir, out, "--resume", "--steps", "25")
    assert result.returncode == 0, result.stderr
    after = json.loads((out / "run.json").read_text())
    assert after["numerics"] == before["numerics"]


def test_what_a_device_does_not_have_is_refused():
    cpu, pair = Devices("cpu", 1, 1), Devices("cpu", 2, 2)
    for numerics, devices, message in (
        (Numerics(precision="tf32"), cpu, "--precision tf32: expected a CUDA device"),
        (Numerics(compile="cuda-graphs"), cpu, "--compile cuda-graphs: expected a CUDA device"),
        (Numerics(compile="default"), pair, "--compile default: expected the whole network"),
    ):
        with pytest.raises(UserError, match=message):
            check_numerics(numerics, devices)


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
