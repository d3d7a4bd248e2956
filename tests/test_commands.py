"""The commands as a user types them: train, resume, test, and what they say to wrong input."""

import importlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PROJECT_DIR, assert_user_error, is_running, run, run_here
from runs import (
    assert_same_state,
    last_checkpoint,
    lines_of,
    started,
    train,
    train_command,
    wait_until_ended,
)

from replica import demo
from replica.distributed import launch
from replica.training.checkpoint import checkpoints_of, load_checkpoint
from replica.training.run_directory import locked_run
from replica.training.run_record import read_run_record
from replica.training.state import RunState

FIELDS = {
    "kind",
    "step",
    "epoch",
    "loss",
    "top1_error",
    "top5_error",
    "learning_rate",
    "images_per_second",
    "feed_share",
}


@pytest.fixture(scope="module")
def two_towers(shards_dir, tmp_path_factory):
    """A run of six steps, one and a half epochs, with one tower per process."""
    out = tmp_path_factory.mktemp("runs of two") / "run"
    result = train(shards_dir, out, "--gpus", "2", "--steps", "6")
    assert result.returncode == 0, result.stderr
    return out, result


def test_two_processes_hold_half_of_every_parameter_each(two_towers):
    ranks = read_run_record(two_towers[0]).ranks
    assert len({rank.pid for rank in ranks}) == 2
    assert [rank.tower for rank in ranks] == [0, 1]
    halves = [rank.parameters for rank in ranks]
    assert halves == [203_509, 203_509]
    whole = last_checkpoint(two_towers[0])["model"]
    assert sum(halves) == sum(tensor.numel() for tensor in whole.values())


def test_the_record_names_recipe_command_versions_data_and_hardware(two_towers, shards_dir):
    record = json.loads((two_towers[0] / "run.json").read_text())
    assert record["recipe"]["name"] == "mini"
    assert record["recipe"]["batch_size"] == 16  # the alias is recorded under the full name
    assert "replica.train" in record["command"]
    assert record["versions"]["torch"] == torch.__version__
    assert record["data"]["manifest_sha256"]
    assert record["hardware"]["cpu"]
    assert record["numerics"]["precision"] == "float32"


def test_each_default_is_printed_in_one_line(two_towers, shards_dir, tmp_path):
    result = two_towers[1]
    assert "seed: 2012 (no --seed given)" in result.stdout
    assert "devices: two CPU processes, a tower each (--device cpu)" in result.stdout
    assert "classes: 10, as the data has (recipe mini: 10)" not in result.stdout


def test_metrics_have_one_line_per_step_and_every_field(two_towers):
    lines = (two_towers[0] / "metrics.jsonl").read_text().splitlines()
    assert all(set(json.loads(line)) == FIELDS for line in lines)
    steps = lines_of(two_towers[0], "step")
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in steps] == [1, 1, 1, 1, 2, 2]
    validations = lines_of(two_towers[0], "val")
    assert [(line["step"], line["epoch"]) for line in validations] == [(4, 1), (6, 2)]
    for line in steps + validations:
        assert line["loss"] > 0
        assert 0 <= line["top5_error"] <= line["top1_error"] <= 1
        assert line["images_per_second"] > 0
    shares = [line["feed_share"] for line in steps]
    assert all(0 <= share < 1 for share in shares)  # 0 where all batches are made already
    assert max(shares) > 0
    assert all(line["feed_share"] is None for line in validations)


@pytest.mark.fault(21)
def test_the_test_command_counts_every_image_once(two_towers, shards_dir):
    checkpoint = str(checkpoints_of(two_towers[0])[-1])
    ten = run_here("-m", "replica.test", "--checkpoint", checkpoint, "--ten-crop", "--json")
    assert ten.returncode == 0, ten.stderr
    result = json.loads(ten.stdout)
    assert (result["num_images"], result["views"], result["step"]) == (30, 10, 6)
    for name in ("top1", "top5"):
        low, high = result[f"{name}_interval"]
        assert 0 <= low <= result[f"{name}_error"] <= high <= 1
        assert high - low > 0.1  # 30 images say little
    center = run_here("-m", "replica.test", "--checkpoint", checkpoint)
    assert "top-1 error " in center.stdout
    assert "95 % interval" in center.stdout
    assert "on 30 val images, the central crop, step 6" in center.stdout
    # The central crop's count is that of the training run's own validation.
    error = lines_of(two_towers[0], "val")[-1]["top1_error"]
    assert f"top-1 error {error:.2%}" in center.stdout


@pytest.mark.fault(5)
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(shards_dir, tmp_path):
    """By a new process; test_survival.py does the same to two, which it kills."""
    options = ("--gpus", "1", "--epochs", "3")
    assert train(shards_dir, tmp_path / "whole", *options).returncode == 0
    # In mid-epoch, then at an epoch's end, then to the end: the second resume is the one that
    # breaks elsewhere.
    assert train(shards_dir, tmp_path / "cut", *options, "--steps", "3").returncode == 0
    for more in (("--steps", "8"), ()):
        result = run(*train_command(shards_dir, tmp_path / "cut", *options, "--resume", *more))
        assert result.returncode == 0, result.stderr
    assert_same_state(last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "cut"))
    for kind in ("step", "val"):
        whole = {line["step"]: line["loss"] for line in lines_of(tmp_path / "whole", kind)}
        cut = {line["step"]: line["loss"] for line in lines_of(tmp_path / "cut", kind)}
        assert {step: cut[step] for step in whole} == whole
    assert [line["step"] for line in lines_of(tmp_path / "cut", "step")] == list(range(1, 13))
    assert [line["step"] for line in lines_of(tmp_path / "cut", "resume")] == [3, 8]
    assert len(read_run_record(tmp_path / "cut").earlier_sessions) == 2


def best_step(out):
    return load_checkpoint(out / "best.pt").step


def test_best_is_the_lowest_validation_also_of_an_end_in_mid_epoch(two_towers):
    errors = {line["step"]: line["top1_error"] for line in lines_of(two_towers[0], "val")}
    assert best_step(two_towers[0]) == min(errors, key=errors.get)


def test_a_run_that_ends_in_its_first_epoch_has_a_best_until_it_goes_on(shards_dir, tmp_path):
    for more, best in (((), 2), (("--resume", "--checkpoint-steps", "1"), 4)):
        steps = ("--keep", "1", "--steps", str(best))
        assert train(shards_dir, tmp_path / "run", *steps, *more).returncode == 0
        assert best_step(tmp_path / "run") == best
    assert [line["step"] for line in lines_of(tmp_path / "run", "val")] == [2, 4]
    assert last_checkpoint(tmp_path / "run")["val_errors"] == [
        lines_of(tmp_path / "run", "val")[-1]["top1_error"]
    ]


@pytest.mark.parametrize("error", [0.0, 1.0])
def test_an_end_in_mid_epoch_is_best_only_if_its_error_is_lower(error, two_towers, shards_dir):
    """The state of `two_towers` before its last checkpoint, with another error of its epoch."""
    record = read_run_record(two_towers[0])
    run = SimpleNamespace(recipe=record.recipe, steps=6)
    feed = SimpleNamespace(steps_per_epoch=4)
    state = RunState(run, None, None, None, feed, None, {}, 6, [error], end_error=0.5)
    assert state.best_step == (4 if error < 0.5 else 6)


def test_a_validation_that_no_checkpoint_knows_is_written_once(two_towers, shards_dir, tmp_path):
    """As after a crash between the line of the validation and the checkpoint with its error."""
    out = shutil.copytree(two_towers[0], tmp_path / "run")
    for step in (4, 6):
        path = out / f"checkpoint-{step:08d}.pt"
        content = {**torch.load(path, weights_only=True), "val_errors": [], "best_step": None}
        for old in (path, path.with_name(f"{path.name}.sha256")):
            old.unlink()
        if step == 4:
            torch.save(content, path)
    result = train(shards_dir, out, "--gpus", "1", "--resume", "--steps", "5")
    assert result.returncode == 0, result.stderr
    assert [line["step"] for line in lines_of(out, "val")] == [4, 5]
    assert [line["step"] for line in lines_of(out, "step")] == [1, 2, 3, 4, 5]


@pytest.mark.fault(5, 6, 14)
def test_a_run_of_two_processes_is_continued_by_one_and_by_two_again(
    two_towers, shards_dir, tmp_path
):
    out = shutil.copytree(two_towers[0], tmp_path / "run")
    result = train(shards_dir, out, "--gpus", "1", "--resume", "--steps", "8")
    assert result.returncode == 0, result.stderr
    assert last_checkpoint(out)["step"] == 8
    back = train(shards_dir, out, "--gpus", "2", "--resume", "--steps", "9")
    assert back.returncode == 0, back.stderr
    assert last_checkpoint(out)["step"] == 9


@pytest.mark.fault(8)
def test_steps_after_the_last_checkpoint_come_once_after_a_crash(two_towers, shards_dir, tmp_path):
    out = shutil.copytree(two_towers[0], tmp_path / "run")
    with (out / "metrics.jsonl").open("a") as file:
        for step in (7, 8):
            line = {**dict.fromkeys(FIELDS), "kind": "step", "step": step, "epoch": 2}
            file.write(json.dumps(line) + "\n")
        file.write('{"kind": "st')
    result = train(shards_dir, out, "--gpus", "2", "--resume", "--steps", "9")
    assert result.returncode == 0, result.stderr
    steps = lines_of(out, "step")
    assert [line["step"] for line in steps] == list(range(1, 10))
    assert all(line["loss"] is not None for line in steps)


# --- Stopping


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    ("gpus", "number", "status"),
    [
        ("2", signal.SIGINT, 130),
        pytest.param("1", signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_saves_and_says_how_to_resume(gpus, number, status, shards_dir, tmp_path):
    out = tmp_path / "run"
    process = started(train_command(shards_dir, out, "--gpus", gpus), out)
    os.killpg(process.pid, number)  # as a terminal does: parent and ranks
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == status, stderr
    assert f"--resume --out {out}" in stdout
    assert "Traceback" not in stderr
    steps = [line["step"] for line in lines_of(out, "step")]
    assert last_checkpoint(out)["step"] == steps[-1]
    more = str(steps[-1] + 2)
    result = train(shards_dir, out, "--resume", "--steps", more)
    assert result.returncode == 0, result.stderr
    assert [line["step"] for line in lines_of(out, "step")] == list(range(1, int(more) + 1))
    assert f"devices: as many as the run began with, {gpus}" in result.stdout
    assert len(read_run_record(out).ranks) == int(gpus)


def spawned_by(pid):
    """The ranks among the children of a process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_while_the_ranks_are_starting_ends_the_run_without_a_traceback(shards_dir, tmp_path):
    command = train_command(shards_dir, tmp_path / "run", "--gpus", "2")
    process = subprocess.Popen(
        [sys.executable, "-u", *command],
        cwd=PROJECT_DIR,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while "devices: two CPU processes" not in process.stdout.readline():
        pass
    deadline = time.time() + 60
    while len(spawned_by(process.pid)) < 2:
        assert time.time() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # the ranks have begun to import
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "stopped at step 1; continue with" in stdout


@pytest.mark.fault(13)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_rank_outlives_a_killed_parent(shards_dir, tmp_path):
    out = tmp_path / "run"
    options = ("--gpus", "2", "--checkpoint-steps", "1")
    process = started(train_command(shards_dir, out, *options), out)
    pids = [rank.pid for rank in read_run_record(out).ranks]
    assert all(is_running(pid) for pid in pids)
    process.kill()
    process.communicate()
    wait_until_ended(pids)
    # Killed without a word, the run goes on after the last of its checkpoints.
    step = last_checkpoint(out)["step"]
    assert step >= 1
    result = train(shards_dir, out, "--gpus", "2", "--resume", "--steps", str(step + 2))
    assert result.returncode == 0, result.stderr
    assert [line["step"] for line in lines_of(out, "step")] == list(range(1, step + 3))


@pytest.mark.fault(13)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_rank_ends_the_run_with_one_line(shards_dir, tmp_path):
    out = tmp_path / "run"
    process = started(train_command(shards_dir, out, "--gpus", "2"), out)
    pids = [rank.pid for rank in read_run_record(out).ranks]
    os.kill(pids[1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    last = stderr.strip().splitlines()[-1]
    assert f"rank 1 (pid {pids[1]}) ended with exit status -9" in last
    assert "Traceback" not in stderr
    wait_until_ended(pids)


class EndsBetweenQuestions:
    """A process whose pipe is closed a moment before its exit status can be had."""

    def __init__(self, status):
        self.sentinel, other = os.pipe()
        os.close(other)
        self.pid, self._answers = 1, iter([None])
        self._status = status

    @property
    def exitcode(self):
        return next(self._answers, self._status)


def test_a_rank_that_ends_while_its_status_is_asked_for_is_not_lost():
    ranks = [EndsBetweenQuestions(-9), EndsBetweenQuestions(1)]
    with pytest.raises(RuntimeError, match=r"rank 0 \(pid 1\) ended with exit status -9"):
        launch._watch(ranks, multiprocessing.get_context("spawn").SimpleQueue())
    for rank in ranks:
        os.close(rank.sentinel)


# --- Wrong input


def test_unknown_recipes_and_fields_are_refused(shards_dir, tmp_path):
    base = ("-m", "replica.train", "--data", str(shards_dir), "--out", str(tmp_path / "run"))
    assert_user_error(run_here(*base, "--recipe", "alexnet"), "--recipe alexnet", "mini64, paper")
    # Also before data that is not there.
    for more in ((), ("--resume",)):
        result = run_here("-m", "replica.train", "--recipe", "alex", *more, cwd=tmp_path)
        assert_user_error(result, "--recipe alex: expected one of ", "mini64, paper, paper-conv6")
    assert_user_error(run_here(*base, "--set", "depth=9"), "no field depth", "learning_rate")
    assert_user_error(
        run_here(*base, "--lr", "fast"), "expected a number for learning_rate, got 'fast'"
    )
    assert_user_error(run_here(*base, "--classes", "5"), "num_classes 5", "has 10 classes")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train", "--timeout", "1"], "--timeout: expected at least 5 seconds, got 1"),
        (["train", "--steps", "0"], "--steps: expected at least 1, got 0"),
        (["train", "--new-head"], "--new-head and --new-layers: expected --init beside them"),
        (["train", "--resume", "--dry-run"], "expected a new run, got --resume"),
        (["train", "--split", "3"], "argument --split: invalid choice: 3"),
        (["control"], "the following arguments are required: RUN"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(options, message, capsys):
    command, *rest = options
    module = importlib.import_module(f"replica.{command}")
    with pytest.raises(SystemExit) as ended:
        module.main(rest)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"replica.{command}: ")
    assert message in lines[0]


@pytest.mark.fault(12)
def test_an_output_directory_in_use_is_refused(two_towers, shards_dir, tmp_path):
    assert_user_error(train(shards_dir, two_towers[0]), "in use", "--resume")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert_user_error(train(shards_dir, tmp_path / "mine"), "in use")
    out = shutil.copytree(two_towers[0], tmp_path / "run")
    with locked_run(out, resume=True):
        result = run(*train_command(shards_dir, out, "--resume"))
    assert_user_error(result, "in use by another process")


@pytest.mark.fault(9)
def test_resuming_with_another_recipe_seed_precision_or_data_is_refused(
    two_towers, shards_dir, toy_dir, tmp_path
):
    out = two_towers[0]
    result = train(shards_dir, out, "--resume", "--momentum", "0.5")
    assert_user_error(result, "of another recipe", "momentum: 0.9 against 0.5")
    assert_user_error(train(shards_dir, out, "--resume", "--seed", "1"), "--seed 1", "seed 2012")
    result = train(shards_dir, out, "--resume", "--precision", "float64")
    assert_user_error(result, "--precision float64", "float32")
    build = ("data_prep/build_shards.py", "--source", "kaggle", "--input", str(toy_dir))
    assert run_here(*build, "--output", str(tmp_path / "other"), "--limit", "2").returncode == 0
    assert_user_error(train(tmp_path / "other", out, "--resume"), "is not the data")


def test_resuming_or_testing_nothing_says_how_to_begin(tmp_path):
    environment = {"PYTHONPATH": str(PROJECT_DIR)}
    result = run_here("-m", "replica.test", cwd=tmp_path, **environment)
    assert_user_error(result, "runs/: expected a run there to test", "replica.train")
    result = run_here("-m", "replica.train", "--resume", cwd=tmp_path, **environment)
    assert_user_error(result, "runs/: expected a run there to resume")
    result = run_here("-m", "replica.figures", cwd=tmp_path, **environment)
    assert_user_error(result, "runs/: expected a run there to draw")


def test_testing_on_data_with_other_classes_is_refused(two_towers, tmp_path):
    from test_sources import make_folders

    make_folders(tmp_path / "in")
    build = ("data_prep/build_shards.py", "--input", str(tmp_path / "in"))
    assert run_here(*build, "--output", str(tmp_path / "out")).returncode == 0
    checkpoint = str(checkpoints_of(two_towers[0])[-1])
    result = run_here(
        "-m", "replica.test", "--checkpoint", checkpoint, "--data", str(tmp_path / "out")
    )
    assert_user_error(result, "has 10 classes", "has 2")


def test_a_text_file_as_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    result = run_here("-m", "replica.test", "--checkpoint", str(tmp_path / "notes.txt"))
    assert_user_error(result, "notes.txt", "expected a checkpoint")
    result = run_here("-m", "replica.test", "--checkpoint", str(tmp_path / "none.pt"))
    assert_user_error(result, "none.pt", "found no file")


@pytest.mark.fault(3)
@pytest.mark.parametrize("gpus", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_full_disk_ends_in_one_line_and_keeps_what_was_saved(
    gpus, two_towers, shards_dir, tmp_path
):
    out = shutil.copytree(two_towers[0], tmp_path / "run")

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    result = subprocess.run(
        [
            sys.executable,
            *train_command(shards_dir, out, "--gpus", gpus, "--resume", "--steps", "8"),
        ],
        cwd=PROJECT_DIR,
        capture_output=True,
        text=True,
        preexec_fn=small_disk,
    )
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert "cannot write" in last
    assert "make room" in last
    assert "Traceback" not in result.stderr
    assert last_checkpoint(out)["step"] == 6
    assert not list(out.glob("*.part"))


@pytest.mark.fault(15)
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(shards_dir, tmp_path):
    command = train_command(shards_dir, tmp_path / "run", "--lr", "1e6", "--steps", "10")
    result = run(*command)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "the loss is " in last
    assert "at step" in last
    assert lines_of(tmp_path / "run", "step")[-1]["loss"] is None
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16", torch.float32), pytest.param("float64", torch.float64, marks=pytest.mark.slow)],
)
def test_other_precisions_train_and_are_recorded(precision, dtype, shards_dir, tmp_path):
    result = train(shards_dir, tmp_path / "run", "--precision", precision, "--steps", "2")
    assert result.returncode == 0, result.stderr
    assert read_run_record(tmp_path / "run").numerics.precision == precision
    assert last_checkpoint(tmp_path / "run")["model"]["fc6.weight"].dtype == dtype


def test_without_compiled_operators_training_works_and_one_line_says_so(shards_dir, tmp_path):
    command = train_command(shards_dir, tmp_path / "run", "--steps", "2")
    result = run(*command, REPLICA_EXT="off")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "plain PyTorch" in line]
    assert len(lines) == 1
    assert "REPLICA_EXT=off" in lines[0]


@pytest.mark.slow
def test_every_command_of_the_list_has_help():
    listed = run_here("-m", "replica").stdout.splitlines()
    commands = [line.split("  ")[0].split() for line in listed if line.startswith("python ")]
    assert ["python", "-m", "replica.train"] in commands
    for command in commands:
        result = run(*command[1:], "--help")
        assert result.returncode == 0, (command, result.stderr)
        assert "usage: python" in result.stdout


# --- The demo


def test_the_demo_judges_chance_as_outside_its_range():
    assert demo.judge(demo.CHANCE_TOP1_ERROR)[0] is False
    assert demo.judge(sum(demo.EXPECTED_TOP1_ERROR) / 2)[0] is True
    assert "OUTSIDE" in demo.judge(0.9)[1]


@pytest.mark.slow
def test_a_learning_rate_of_zero_falls_outside_the_expected_range(tmp_path):
    out = tmp_path / "demo"
    result = run("-m", "replica.demo", "--out", str(out), "--lr", "0", "--epochs", "1", timeout=580)
    assert result.returncode == 1, result.stderr
    record = json.loads((out / "result.json").read_text())
    assert record["is_as_expected"] is False
    assert record["num_images"] == 500
    assert "OUTSIDE" in result.stdout
