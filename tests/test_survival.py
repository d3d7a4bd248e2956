"""A run cannot be lost: killed anywhere, it goes on as if nothing had been."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import PROJECT_DIR, assert_user_error, run, run_here
from runs import (
    all_lines_of,
    assert_same_state,
    last_checkpoint,
    lines_of,
    started,
    train,
    train_command,
    wait_until_ended,
)

from data_prep.errors import UserError
from replica.recipes import MINI
from replica.training import loop
from replica.training.checkpoint import checkpoints_of
from replica.training.run_directory import read_metrics
from replica.training.run_record import read_run_record

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
TIMES = {"images_per_second", "feed_share"}


def without_times(lines):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(shards_dir, tmp_path_factory):
    """The run that nobody disturbs, by the number of processes."""
    runs = {}

    def of(gpus):
        if gpus not in runs:
            out = tmp_path_factory.mktemp("uninterrupted") / "run"
            assert train(shards_dir, out, "--gpus", gpus, *LENGTH).returncode == 0
            runs[gpus] = out
        return runs[gpus]

    return of


# Six epochs of four steps, of which the last ones are in mid-epoch.
LENGTH = ("--epochs", "7", "--steps", "26")


def assert_went_on_as_if_nothing_had_been(out, whole, gpus):
    assert_same_state(last_checkpoint(whole), last_checkpoint(out))
    for kind in ("step", "val"):
        assert without_times(lines_of(out, kind)) == without_times(lines_of(whole, kind))
    assert [line["step"] for line in lines_of(out, "step")] == list(range(1, 27))


def processes_of(out, parent):
    return [parent, *(rank.pid for rank in read_run_record(out).ranks)]


@linux
@pytest.mark.fault(1, 5, 6, 8)
@pytest.mark.parametrize(
    ("gpus", "seed"),
    [("2", 1), *(pytest.param(g, 2, marks=pytest.mark.slow) for g in "12")],
)
def test_a_kill_of_any_process_at_any_moment_changes_nothing(
    gpus, seed, uninterrupted, shards_dir, tmp_path
):
    """Killed twice, each time another process after a random step; resumed with other threads."""
    rng = random.Random(seed)
    out = tmp_path / "run"
    options = ["--gpus", gpus, *LENGTH, "--checkpoint-steps", "3"]
    resumed = 0
    for kill in (1, 2):
        seen = len(lines_of(out, "step")) if out.exists() else 0
        more = ["--resume"] if out.exists() else []
        least = seen + rng.randint(1, 8)
        process = started(train_command(shards_dir, out, *options, *more), out, least)
        resumed += bool(more)
        pids = processes_of(out, process.pid)
        victim = rng.choice(pids)
        os.kill(victim, signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
        wait_until_ended(pids)
        if victim == process.pid:
            assert process.returncode == -9
        elif process.returncode:  # else it had just come to its end
            assert re.search(rf"rank \d \(pid {victim}\) ended with exit status -9", stderr)
            assert "Traceback" not in stderr
        options += ["--loader-threads", str(kill + 1)]
    result = train(shards_dir, out, *options, "--resume")
    assert result.returncode == 0, result.stderr
    assert_went_on_as_if_nothing_had_been(out, uninterrupted(gpus), gpus)
    assert 1 <= len(lines_of(out, "resume")) <= resumed + 1


# Sessions of one run, each a copy of one process: in the first SIGTERM comes in an epoch's last
# step; the others are killed after a line of a validation, before the checkpoint that knows it.
KILLED_IN_VALIDATION = """
import json, os, signal, sys
from replica import train
from replica.training import loop, run_log
ends, armed = 0, False
def stopped_in(state, *args, **kwargs):
    if state.step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return train_step_(state, *args, **kwargs)
def validation(*args, **kwargs):
    global armed
    armed = True
    return run_log_validation(*args, **kwargs)
def save_checkpoint(*args, **kwargs):
    global armed, ends
    ends -= armed
    if armed and ends == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    armed = False
    return loop_save_checkpoint(*args, **kwargs)
train_step_, loop.train_step_ = loop.train_step_, stopped_in
run_log_validation, run_log.RunLog.validation = run_log.RunLog.validation, validation
loop_save_checkpoint, loop.save_checkpoint = loop.save_checkpoint, save_checkpoint
found = []
for number, more in enumerate(([], ["--resume"], ["--resume"])):
    ends = number
    if os.fork() == 0:
        if number:
            loop.train_step_ = train_step_
        os._exit(train.main([*sys.argv[1:], *more]))
    found.append(os.waitstatus_to_exitcode(os.wait()[1]))
print(found, file=sys.stderr)
"""


@pytest.mark.fault(5, 6, 8)
def test_kills_between_a_validation_and_its_checkpoint_leave_the_same_files(
    uninterrupted, shards_dir, tmp_path
):
    out, whole = tmp_path / "run", uninterrupted("1")
    options = ("--gpus", "1", *LENGTH, "--checkpoint-steps", "2")
    command = train_command(shards_dir, out, *options)
    result = run("-c", KILLED_IN_VALIDATION, *command[2:])
    assert result.stderr.endswith("[143, -9, -9]\n"), result.stderr
    result = train(shards_dir, out, *options, "--resume")
    assert result.returncode == 0, result.stderr
    assert_went_on_as_if_nothing_had_been(out, whole, "1")
    one, other = (
        [line for line in without_times(all_lines_of(run_dir)) if line["kind"] != "resume"]
        for run_dir in (out, whole)
    )
    assert one == other
    kinds_and_steps = [(line["kind"], line["step"]) for line in all_lines_of(out)]
    assert len(kinds_and_steps) == len(set(kinds_and_steps))
    assert {path.name for path in out.glob("*.pt*")} == {path.name for path in whole.glob("*.pt*")}
    for path in out.glob("*.pt"):
        assert path.read_bytes() == (whole / path.name).read_bytes(), path.name


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(
    uninterrupted, shards_dir, tmp_path
):
    out = tmp_path / "run"
    process = started(train_command(shards_dir, out, "--gpus", "1", *LENGTH), out, 1)
    process.kill()
    process.communicate()
    for checkpoint in checkpoints_of(out):  # on a fast machine there may be one by now
        checkpoint.unlink()
    result = train(shards_dir, out, "--gpus", "1", *LENGTH, "--resume")
    assert result.returncode == 0, result.stderr
    assert "from the beginning: it has no checkpoint yet" in result.stdout
    assert lines_of(out, "resume")[0]["step"] == 0
    assert_went_on_as_if_nothing_had_been(out, uninterrupted("1"), "1")


def test_a_step_is_saved_once_though_it_ends_an_epoch(shards_dir, tmp_path, monkeypatch):
    saved = []

    def save_checkpoint(run_dir, checkpoint, **options):
        saved.append((checkpoint.step, len(checkpoint.val_errors)))
        return written(run_dir, checkpoint, **options)

    written = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", save_checkpoint)
    options = ("--gpus", "1", "--checkpoint-steps", "2", "--steps", "8")
    assert train(shards_dir, tmp_path / "run", *options).returncode == 0
    assert saved == [(2, 0), (4, 1), (6, 1), (8, 2)]


@pytest.mark.fault(11)
def test_a_run_that_was_stopped_in_its_last_step_is_validated_when_it_is_resumed(
    shards_dir, tmp_path, monkeypatch
):
    out, options = tmp_path / "run", ("--gpus", "1", "--steps", "4")

    def train_step_(state, *args, **kwargs):
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return stepped(state, *args, **kwargs)

    stepped = loop.train_step_
    monkeypatch.setattr(loop, "train_step_", train_step_)
    assert train(shards_dir, out, *options).returncode == 143
    assert last_checkpoint(out)["val_errors"] == lines_of(out, "val") == []
    for _ in range(2):
        assert train(shards_dir, out, *options, "--resume").returncode == 0
        (line,) = lines_of(out, "val")
        assert line["step"] == last_checkpoint(out)["best_step"] == 4
        assert last_checkpoint(out)["val_errors"] == [line["top1_error"]]


# Two sessions that end before their record is whole: one on a full disk, one killed.
FAILED_EARLY = """
import os, resource, signal, sys
from replica import train
from replica.training import run_log
found = []
for number in range(2):
    if os.fork() == 0:
        if number == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        else:
            run_log.write_run_record = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        os._exit(train.main(sys.argv[1:]))
    found.append(os.waitstatus_to_exitcode(os.wait()[1]))
print(found, file=sys.stderr)
"""


@pytest.mark.fault(3)
def test_a_run_that_failed_before_its_record_is_begun_by_the_same_command(shards_dir, tmp_path):
    out = tmp_path / "run"
    command = train_command(shards_dir, out, "--gpus", "1", "--steps", "1")
    result = run("-c", FAILED_EARLY, *command[2:])
    full, last = result.stderr.splitlines()
    assert last == "[2, -9]"
    assert f"cannot write {out}/run.json" in full
    assert "run the same command again" in full
    # Of a session that was killed while it wrote them; a change by hand is not to act.
    (out / "run.json.part").write_text('{"version"')
    line = {"name": "1-1.json", "step": 1, "changes": {"learning_rate": 1e9}, "actions": []}
    (out / "control.jsonl").write_text(json.dumps(line) + "\n")
    resumed = train(shards_dir, out, "--resume")
    assert_user_error(resumed, "run.json", "begun by its own command, without --resume")
    result = run_here(*command)
    assert result.returncode == 0, result.stderr
    assert lines_of(out, "step")[0]["learning_rate"] == MINI.learning_rate
    assert not (out / "control.jsonl").exists()
    assert not list(out.glob("*.part"))
    assert_user_error(run_here(*command), "in use", "--resume")


@pytest.mark.fault(3)
def test_a_disk_that_fills_up_in_mid_run_ends_in_one_line_and_is_resumed(shards_dir, tmp_path):
    """No file may grow beyond a size at which the second line of the session is cut."""
    out = tmp_path / "run"
    options = ("--gpus", "1", "--resume", "--steps")
    assert train(shards_dir, out, "--gpus", "1", "--steps", "2").returncode == 0
    path = out / "metrics.jsonl"
    before = path.read_bytes().replace(b"{", b"{" + b" " * 20_000, 1)
    path.write_bytes(before)
    limited = (
        "import resource, sys; from replica import train\n"
        "limit = int(sys.argv.pop(1)); resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "sys.exit(train.main(sys.argv[1:]))"
    )
    limit = len(before) + 250
    result = run("-c", limited, str(limit), *train_command(shards_dir, out, *options, "6")[2:])
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert f"cannot write {path}: File too large: make room, then continue the run with" in last
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    written = path.read_bytes()
    assert len(written) == limit
    assert not written.endswith(b"\n")
    result = train(shards_dir, out, *options, "4")
    assert result.returncode == 0, result.stderr
    assert path.read_bytes().startswith(before)
    assert [line["step"] for line in lines_of(out, "step")] == [1, 2, 3, 4]


@pytest.mark.fault(8)
def test_damaged_lines_of_metrics_are_put_aside_and_all_others_stay(shards_dir, tmp_path):
    out = tmp_path / "run"
    assert train(shards_dir, out, "--gpus", "1", "--steps", "6").returncode == 0
    path = out / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    flipped = lines[1].replace(b'"step", "step"', b'"step"- "step"')
    other_kind = lines[3].replace(b'"kind": "step"', b'"kind": "stdp"')
    damaged = [
        flipped,
        b"\xff\x00\n",
        other_kind,
        b'{"kind": "step", "step": 1e400}\n',
        b'{"kind": "st\n',
    ]
    path.write_bytes(
        b"".join([lines[0], flipped, lines[2], damaged[1], other_kind, damaged[3], *lines[4:]])
        + b'{"kind": "st'
    )
    with pytest.raises(UserError, match=r"metrics.jsonl: line 2: damaged"):
        read_metrics(out)
    result = train(shards_dir, out, "--resume", "--steps", "7")
    assert result.returncode == 0, result.stderr
    assert f"{path}: line 2, 4, 5, 6, 11 damaged: put aside into" in result.stderr
    assert (out / "metrics-damaged.jsonl").read_bytes() == b"".join(damaged)
    assert path.read_bytes().startswith(b"".join([lines[0], lines[2], *lines[4:]]))
    assert [line["step"] for line in lines_of(out, "step")] == [1, 3, 5, 6, 7]
    assert len(read_metrics(out)) == len(all_lines_of(out))


@pytest.mark.fault(4)
def test_the_newest_checkpoint_damaged_the_one_before_gives_the_same(
    uninterrupted, shards_dir, tmp_path
):
    out = tmp_path / "run"
    options = ("--gpus", "1", *LENGTH, "--checkpoint-steps", "5")
    assert train(shards_dir, out, *options, "--steps", "17").returncode == 0
    newest = checkpoints_of(out)[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    result = train(shards_dir, out, *options, "--resume")
    assert result.returncode == 0, result.stderr
    assert f"passed over {newest}: damaged" in result.stdout
    assert_went_on_as_if_nothing_had_been(out, uninterrupted("1"), "1")


@linux
@pytest.mark.fault(13)
@pytest.mark.parametrize("number", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_rank_that_hangs_is_named_and_ends_the_run(number, shards_dir, tmp_path):
    out = tmp_path / "run"
    command = train_command(shards_dir, out, "--gpus", "2", "--epochs", "5000", "--timeout", "6")
    process = started(command, out)
    ranks = read_run_record(out).ranks
    began = time.monotonic()
    os.kill(ranks[number].pid, signal.SIGSTOP)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 1
    assert time.monotonic() - began < 60
    last = stderr.strip().splitlines()[-1]
    assert f"rank {number} (pid {ranks[number].pid} on {ranks[number].host})" in last
    assert "has not moved for 6 s" in last
    assert "--timeout" in last
    assert "Traceback" not in stderr
    wait_until_ended([process.pid, *(rank.pid for rank in ranks)])


@pytest.mark.fault(15)
def test_a_loss_that_is_lost_names_its_images_and_the_last_good_checkpoint(shards_dir, tmp_path):
    out = tmp_path / "run"
    assert train(shards_dir, out, "--gpus", "1", "--steps", "2").returncode == 0
    # The changes by hand are where a later session may find another rate.
    line = {"name": "1-1.json", "step": 4, "changes": {"learning_rate": 1e9}, "actions": []}
    (out / "control.jsonl").write_text(json.dumps(line) + "\n")
    result = train(shards_dir, out, "--gpus", "2", "--resume", "--steps", "20")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(r"the loss is not finite at step \d+, for \d+ of \d+ images", last)
    good = checkpoints_of(out)[-1]
    assert f"the last good checkpoint is {good}" in last
    assert all(torch.isfinite(x).all() for x in last_checkpoint(out)["model"].values())
    record = json.loads(next(out.glob("lost-loss-*.json")).read_text())
    step = lines_of(out, "step")[-1]["step"]
    assert record["step"] == step
    assert f"at step {step}," in last
    assert lines_of(out, "step")[-1]["loss"] is None
    manifest_names = set(record["images"])
    assert len(record["images"]) == len(manifest_names) == (16 if step % 4 else 12)
    assert all(name.endswith((".JPEG", ".png")) for name in manifest_names)
    assert set(record["images_without_a_finite_loss"]) <= manifest_names
    assert record["images_without_a_finite_loss"][0] in last


@pytest.mark.fault(15)
def test_weights_that_are_not_finite_are_not_saved(shards_dir, tmp_path):
    """The loss of a step is that before its update: a checkpoint could hold what killed it."""
    out = tmp_path / "run"
    options = ("--lr", "1e39", "--steps", "1")
    result = run(*train_command(shards_dir, out, *options))
    assert result.returncode == 1
    assert "not finite after step 1" in result.stderr
    assert checkpoints_of(out) == []
    assert "Traceback" not in result.stderr


@pytest.mark.fault(11)
def test_sigterm_of_a_run_saves_and_ends_with_143(shards_dir, tmp_path):
    out = tmp_path / "run"
    process = started(train_command(shards_dir, out, "--gpus", "2", "--epochs", "5000"), out)
    process.terminate()  # as a scheduler does: the parent alone
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert last_checkpoint(out)["step"] == lines_of(out, "step")[-1]["step"]


# --- torchrun: several machines, and restarts


def torchrun(port, node, *options, nodes=2, processes=1, restarts=0):
    """One agent of torchrun, as a machine of its own would have it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes)]
    command += ["--nproc-per-node", str(processes), "--node-rank", str(node)]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    command += ["--max-restarts", str(restarts), "--monitor-interval", "0.5", *options]
    return subprocess.Popen(
        command,
        cwd=PROJECT_DIR,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )


def free_port():
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.fault(20)
@linux
@pytest.mark.parametrize(
    "processes", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["two towers", "two pairs"]
)
def test_two_machines_started_by_torchrun_train_as_one(processes, shards_dir, tmp_path):
    """Two agents, each with its own processes, that meet at a port; the same as one machine's."""
    out, port = tmp_path / "run", free_port()
    options = ("--precision", "float64", "--steps", "6")
    command = train_command(shards_dir, out, *options)
    agents = [torchrun(port, node, *command, processes=processes) for node in (0, 1)]
    results = [agent.communicate(timeout=240) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], results
    ranks = read_run_record(out).ranks
    assert len({rank.pid for rank in ranks}) == 2 * processes
    assert results[1][0].strip() == ""  # what the second machine would say, the first one says
    assert "saved" in results[0][0]
    alone = train(shards_dir, tmp_path / "alone", *options)
    assert alone.returncode == 0, alone.stderr
    one, other = ([line["loss"] for line in lines_of(d, "step")] for d in (out, tmp_path / "alone"))
    assert one == pytest.approx(other, rel=1e-9)


@linux
@pytest.mark.fault(13)
def test_torchrun_brings_a_run_back_after_a_kill(uninterrupted, shards_dir, tmp_path):
    out = tmp_path / "run"
    command = train_command(shards_dir, out, *LENGTH, "--checkpoint-steps", "3")
    agent = torchrun(free_port(), 0, *command, nodes=1, processes=2, restarts=2)
    deadline = time.monotonic() + 120
    while not out.exists() or not checkpoints_of(out):
        assert time.monotonic() < deadline
        assert agent.poll() is None, agent.communicate()
        time.sleep(0.1)
    pids = [rank.pid for rank in read_run_record(out).ranks]
    os.kill(pids[1], signal.SIGKILL)
    stdout, stderr = agent.communicate(timeout=240)
    assert agent.returncode == 0, stderr
    assert "start number 2: continuing the run" in stdout
    wait_until_ended(pids)
    assert len(lines_of(out, "resume")) == 1
    assert_went_on_as_if_nothing_had_been(out, uninterrupted("2"), "2")


@linux
def test_no_process_outlives_a_killed_torchrun(shards_dir, tmp_path):
    out = tmp_path / "run"
    command = train_command(shards_dir, out, "--epochs", "5000")
    agent = torchrun(free_port(), 0, *command, nodes=1, processes=2)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or not lines_of(out, "step"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    pids = [rank.pid for rank in read_run_record(out).ranks]
    agent.kill()
    agent.communicate()
    wait_until_ended(pids)


def test_torchrun_without_out_or_with_other_numbers_is_refused(shards_dir, tmp_path):
    environment = {
        "TORCHELASTIC_RUN_ID": "x",
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
    }
    base = ("-m", "replica.train", "--data", str(shards_dir), "--no-tensorboard")
    assert_user_error(run_here(*base, **environment), "torchrun", "--out DIR")
    out = ("--out", str(tmp_path / "run"))
    result = run_here(*base, *out, "--gpus", "4", **environment)
    assert_user_error(result, "--gpus 4", "torchrun started 2 processes")
    silent = run_here(*base, *out, "--gpus", "4", **{**environment, "RANK": "1"})
    assert (silent.returncode, silent.stderr) == (2, "")
    assert not (tmp_path / "run").exists()
