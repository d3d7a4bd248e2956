"""What earlier versions wrote is still read, and what they computed is still computed."""

import json
import shutil

import golden_values as golden
import pytest
import torch
from conftest import run_here

VALUES = json.loads(golden.VALUES.read_text())
THREADS = VALUES["machine"]["threads"]
IS_SAME_MACHINE = VALUES["machine"] == {**golden.machine(), "threads": THREADS}
# Elsewhere sums have other last bits: in ten steps losses of float32 and float64 were apart by at
# most 1.6e-5 of themselves.
ELSEWHERE = 1e-3


@pytest.fixture(autouse=True)
def threads_of_the_golden_run():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def assert_same(got, expected):
    if IS_SAME_MACHINE:
        assert got == expected
    else:
        assert got == pytest.approx(expected, rel=ELSEWHERE)


@pytest.mark.fault(19)
@pytest.mark.parametrize("name", golden.RECIPES)
def test_the_first_ten_losses_are_those_of_the_golden_run(name, tmp_path):
    losses = golden.first_losses(golden.RECIPES[name], golden.SHARDS, tmp_path)
    assert len(losses) == golden.STEPS
    assert_same(losses, VALUES["losses"][name])


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.FULL_SIZE)
def test_so_are_those_at_full_size(name, shards_dir, tmp_path):
    losses = golden.first_losses(golden.FULL_SIZE[name], shards_dir, tmp_path)
    assert_same(losses, VALUES["losses_at_full_size"][name])


def test_batches_of_the_old_shards_are_the_golden_ones():
    batches = golden.batches()
    assert_same([b["mean"] for b in batches], [b["mean"] for b in VALUES["batches"]])
    if IS_SAME_MACHINE:
        assert batches == VALUES["batches"]


def test_the_old_run_goes_on_as_it_did(tmp_path):
    out = shutil.copytree(golden.OLD_RUN, tmp_path / "run")
    command = ("-m", "replica.train", "--resume", "--out", str(out), "--no-tensorboard")
    result = run_here(*command, "--data", str(golden.SHARDS))
    assert result.returncode == 0, result.stderr
    lines = golden.lines_after(out, golden.OLD_STEPS)
    assert [line[:2] for line in lines] == [line[:2] for line in VALUES["old_run"]]
    for line, expected in zip(lines, VALUES["old_run"], strict=True):
        assert_same(line[2:], expected[2:])


def test_the_old_checkpoint_is_tested_on_the_old_shards():
    (checkpoint,) = golden.OLD_RUN.glob("*.pt")
    command = ("-m", "replica.test", "--checkpoint", str(checkpoint), "--json")
    result = run_here(*command, "--data", str(golden.SHARDS))
    assert result.returncode == 0, result.stderr
    tested = json.loads(result.stdout)
    (validated,) = (
        line for line in golden.lines_after(golden.OLD_RUN, 3) if line[:2] == ["val", 4]
    )
    assert_same([tested[name] for name in ("loss", "top1_error", "top5_error")], validated[2:5])
