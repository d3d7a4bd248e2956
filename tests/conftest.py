"""What several test modules share: a small real data set of shards, and how commands are run."""

import contextlib
import importlib
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from data_prep.build_shards import main as build_shards
from data_prep.shards import DataSet, open_data_set
from data_prep.sources import toy

if "PYTEST_XDIST_WORKER" in os.environ:
    # Read when PyTorch is first imported. The workers share the cores: threads beyond these would
    # only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

PROJECT_DIR = Path(__file__).resolve().parent.parent
SMALL = toy.ToySize(seed=7, train_per_class=6, val_per_class=3)


@pytest.fixture(scope="session")
def toy_dir(tmp_path_factory) -> Path:
    """A drawn toy set: 60 train and 30 val pictures."""
    directory = tmp_path_factory.mktemp("toy set")
    toy.draw(directory, size=SMALL, num_workers=1)
    return directory


@pytest.fixture(scope="session")
def shards_dir(toy_dir, tmp_path_factory) -> Path:
    """The shards of `toy_dir`: train in two files, val in one; the path has a space in it."""
    directory = tmp_path_factory.mktemp("small shards")
    arguments = ["--source", "kaggle", "--input", str(toy_dir), "--output", str(directory)]
    assert build_shards([*arguments, "--images-per-shard", "40", "--workers", "1"]) == 0
    return directory


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory) -> Path:
    """Ten classes, 10 train and 20 val pictures of 104 pixels, in shards of four."""
    directory = tmp_path_factory.mktemp("tiny")
    toy.draw(directory / "toy", size=toy.ToySize(3, 1, 2), num_workers=1)
    arguments = ["--source", "kaggle", "--input", str(directory / "toy"), "--size", "104"]
    arguments += ["--output", str(directory / "shards"), "--images-per-shard", "4"]
    assert build_shards([*arguments, "--workers", "1"]) == 0
    return directory / "shards"


@pytest.fixture(scope="session")
def data(shards_dir) -> DataSet:
    return open_data_set(shards_dir)


@pytest.fixture(scope="module")
def weights() -> dict:
    """Of a network of `mini`, so large that its guesses differ."""
    from runs import large_weights, mini_shapes_and_deviations

    return large_weights(mini_shapes_and_deviations()[0], seed=8)


@pytest.fixture(scope="module")
def checkpoint(weights, tiny_shards, tmp_path_factory) -> Path:
    """The best one of a run, with these weights; a module may leave files beside it."""
    from runs import write_checkpoint

    path = tmp_path_factory.mktemp("a run") / "best.pt"
    return write_checkpoint(path, weights, open_data_set(tiny_shards))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory with real pictures."""
    directory = os.environ.get("REPLICA_REAL_DATA")
    if not directory:
        pytest.skip("REPLICA_REAL_DATA is not set: no real pictures here")
    return Path(directory)


@pytest.fixture(scope="session")
def torchvision():
    """The module; its Python parts are enough."""
    import torch

    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    try:
        import torchvision
    except RuntimeError:  # its build for CUDA has no operators beside PyTorch for the CPU
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor x) -> Tensor")
        import torchvision
    return torchvision


@pytest.fixture
def cuda() -> None:
    """Skips without a GPU; with REQUIRE_GPU=1 that is a failure."""
    import torch

    if not torch.cuda.is_available():
        if os.environ.get("REQUIRE_GPU") == "1":
            pytest.fail("REQUIRE_GPU=1, and PyTorch sees no CUDA device")
        pytest.skip("PyTorch sees no CUDA device")


def run(*command: str, cwd: Path | None = None, timeout: float = 240, **environment: str):
    """Runs `python` with these arguments and returns the finished process, output as text."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd or PROJECT_DIR,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **environment},
    )


def run_here(*command: str, cwd: Path | None = None, **environment: str):
    """The same within this process, which has spent the seconds that importing PyTorch takes.

    Not for what a process of its own is for: signals, limits, the choice of a library on import.
    """
    import torch

    is_module = command[0] == "-m"
    name = command[1] if is_module else command[0].removesuffix(".py").replace("/", ".")
    arguments = command[2:] if is_module else command[1:]
    if PROJECT_DIR.joinpath(*name.split("."), "__main__.py").exists():
        name += ".__main__"
    module = importlib.import_module(name)
    environment = {"REPLICA_MALLOC": "stock", **environment}
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd or PROJECT_DIR),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        mock.patch.dict(os.environ, environment),
        mock.patch.object(sys, "argv", [str(module.__file__), *arguments]),
        mock.patch.object(sys, "orig_argv", [sys.executable, *command]),
    ):
        try:
            status = module.main()
        except SystemExit as end:
            status = end.code
        finally:
            torch.set_deterministic_debug_mode("default")
    return subprocess.CompletedProcess(command, status or 0, stdout.getvalue(), stderr.getvalue())


def assert_user_error(result: subprocess.CompletedProcess, *words: str) -> None:
    """One line on standard error, exit status 2, no traceback."""
    assert result.returncode == 2, result.stderr + result.stdout
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0], lines[0]


def is_running(pid: int) -> bool:
    """Whether a process still runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
