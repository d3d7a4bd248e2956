"""Training runs as the tests start them, look at them, and compare them."""

import subprocess
import sys
import time

import torch
from conftest import PROJECT_DIR, is_running, run

from replica import runlog
from replica.checkpoint import checkpoints_of


def train_command(shards_dir, out, *options):
    command = ["-m", "replica.train", "--data", str(shards_dir), "--recipe", "mini"]
    # Importing TensorBoard takes two seconds a run; test_board.py does.
    options = ("--no-tensorboard", *options)
    return [*command, "--device", "cpu", "--batch-size", "16", "--out", str(out), *options]


def train(shards_dir, out, *options, **environment):
    return run(*train_command(shards_dir, out, *options), **environment)


def lines_of(run_dir, kind):
    return [line for line in runlog.read_metrics(run_dir) if line["kind"] == kind]


def last_checkpoint(run_dir):
    return torch.load(checkpoints_of(run_dir)[-1], weights_only=True)


def assert_same_state(one, other):
    for kind in ("model", "velocities"):
        for name, tensor in one[kind].items():
            assert torch.equal(tensor, other[kind][name]), (kind, name)
    assert one["step"] == other["step"]
    assert one["val_errors"] == other["val_errors"]


def started(command, out, least_steps=2):
    """Starts a run in its own process group, and waits until it has made some steps."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=PROJECT_DIR,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.time() + 120
    while True:
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        path = out / "metrics.jsonl"
        if path.exists() and path.read_text().count('"step",') >= least_steps:
            return process
        time.sleep(0.05)


def wait_until_ended(pids):
    deadline = time.time() + 30
    while any(is_running(pid) for pid in pids):
        assert time.time() < deadline, "a process outlived its parent"
        time.sleep(0.05)
