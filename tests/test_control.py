"""Changes by hand reach a live run at its next step, are logged, and are repeated exactly."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import PROJECT_DIR, assert_user_error, run_here
from runs import assert_same_state, last_checkpoint, lines_of, started, train, train_command

from data_prep.errors import UserError
from replica.recipes import MINI
from replica.training import control_log

# Epochs enough for any machine, and no drops: the run is stopped by hand.
LONG = ("--epochs", "5000", "--set", "drop_rule=epochs", "--set", "drop_epochs=")


def ask(run_dir, *options):
    return run_here("-m", "replica.control", str(run_dir), *options)


@pytest.fixture(scope="module")
def controlled(shards_dir, tmp_path_factory):
    """A run of two towers that was changed by hand several times and stopped."""
    out = tmp_path_factory.mktemp("controlled") / "run"
    command = train_command(shards_dir, out, "--gpus", "2", *LONG)
    process = started(command, out)
    (out / control_log.REQUESTS_DIR).mkdir()
    os.mkfifo(out / control_log.REQUESTS_DIR / "0.json")  # a reader would wait for a writer
    asked = [
        ask(out, "--lr", "0.001", "--reason", "validation error stopped improving"),
        ask(out, "--freeze", "conv1", "--rate", "fc8.bias=0.002", "--color-noise", "off"),
        ask(out, "--checkpoint"),
        ask(out, "--stop", "--reason", "enough"),
    ]
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    return out, asked, stdout, stderr


def test_each_request_is_answered_with_the_step_that_it_acts_from(controlled):
    out, asked, stdout, stderr = controlled
    assert all(answer.returncode == 0 for answer in asked), [answer.stderr for answer in asked]
    log = control_log.read_log(out)
    assert len(log) == 4
    for line, answer in zip(log, asked, strict=True):
        assert f"from step {line.step}, epoch {line.epoch}" in answer.stdout
        assert f"by hand, from step {line.step}" in stderr
    assert "learning_rate=0.001" in asked[0].stdout
    assert log[1].changes == {"fc8.bias": 0.002, "conv1": 0.0, "color_noise": 0.0}
    assert [log[0].reason, log[3].reason] == [
        "validation error stopped improving",
        "enough",
    ]
    assert f"--resume --out {out}" in stdout
    assert stderr.count("0.json: expected a request of replica.control (") == 1
    assert not list((out / control_log.REQUESTS_DIR).iterdir())


def test_the_rate_changes_at_the_logged_step_and_not_before(controlled):
    out = controlled[0]
    step = control_log.read_log(out)[0].step
    rates = {line["step"]: line["learning_rate"] for line in lines_of(out, "step")}
    assert step >= 2
    for at, rate in rates.items():
        assert rate == (0.001 if at >= step else MINI.learning_rate), at


def test_a_checkpoint_was_saved_when_it_was_asked_for_and_the_run_stopped_where_it_says(controlled):
    out = controlled[0]
    *_, saved, stopped = control_log.read_log(out)
    last = lines_of(out, "step")[-1]["step"]
    # A request acts from the next step on; an action is done after the step before it.
    assert last_checkpoint(out)["step"] == last == stopped.step - 1
    assert saved.step <= stopped.step


@pytest.mark.fault(7)
def test_a_replay_and_a_resumed_run_repeat_what_was_done_by_hand_bit_for_bit(
    controlled, shards_dir, tmp_path
):
    out, new = controlled[0], tmp_path / "replayed"
    last = lines_of(out, "step")[-1]["step"]
    options = ("--gpus", "2", *LONG)
    # Cut just before the layer is frozen, and continued: the log goes on by itself.
    frozen_from = control_log.read_log(out)[1].step
    cut = ("--steps", str(frozen_from - 1), "--replay", str(out))
    result = train(shards_dir, new, *options, *cut)
    assert result.returncode == 0, result.stderr
    assert f"changes by hand of {out}" in result.stdout
    before = last_checkpoint(new)
    result = train(shards_dir, new, *options, "--resume", "--steps", str(last))
    assert result.returncode == 0, result.stderr
    # One was stopped and the other came to its end: that one validates once more.
    ended = {**last_checkpoint(new), "val_errors": last_checkpoint(out)["val_errors"]}
    assert_same_state(ended, last_checkpoint(out))
    one, other = ([line["loss"] for line in lines_of(run_dir, "step")] for run_dir in (out, new))
    assert one == other
    assert all(line.replayed_from == str(out) for line in control_log.read_log(new))
    # The frozen layer stood still with its velocity, and nothing else did.
    for kind in ("model", "velocities"):
        still = {name for name, x in before[kind].items() if torch.equal(x, ended[kind][name])}
        assert still == {"conv1.weight", "conv1.bias"}


def test_a_request_whose_run_died_after_logging_it_is_not_logged_twice(tmp_path):
    request = control_log.Request("1-1.json", {"conv1": 0.0}, [], "")
    (tmp_path / control_log.REQUESTS_DIR).mkdir()
    path = tmp_path / control_log.REQUESTS_DIR / request.name
    path.write_text(json.dumps({"changes": request.changes, "actions": [], "reason": ""}))
    for step in (7, 9):
        control_log.log_requests(tmp_path, [request], step=step, epoch=1)
    assert [line.step for line in control_log.read_log(tmp_path)] == [7]
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", "[" * 100_000),
        '{"changes": {"conv9": 0}, "actions": [], "reason": ""}',
        '{"changes": {"conv1": 1e400}, "actions": [], "reason": ""}',
    ],
    ids=lambda content: content[:40],
)
def test_a_request_that_is_none_is_named_and_removed(content, tmp_path, capsys):
    (tmp_path / control_log.REQUESTS_DIR).mkdir()
    path = tmp_path / control_log.REQUESTS_DIR / "1-1.json"
    path.write_text(content)
    assert control_log.pending_requests(tmp_path, MINI) == []
    assert f"passed over {path}" in capsys.readouterr().err
    assert not path.exists()


def test_only_plain_files_of_a_size_are_requests(tmp_path, capsys):
    requests = tmp_path / control_log.REQUESTS_DIR
    content = json.dumps({"changes": {"conv1": 0}, "actions": ["stop"], "reason": ""})
    (requests / "1-1.json" / "inside").mkdir(parents=True)
    os.mkfifo(requests / "1-2.json")
    writer = os.open(requests / "1-2.json", os.O_RDWR | os.O_NONBLOCK)
    os.write(writer, content.encode())
    (requests / "1-3.json").symlink_to("/dev/zero")
    (requests / "1-4.json").write_text(content + " " * control_log.MAX_REQUEST_BYTES)
    (requests / "1-5.json").symlink_to("nowhere")
    (requests / "1-6.json").write_text(content)
    for _ in range(2):
        (request,) = control_log.pending_requests(tmp_path, MINI)
        assert request == control_log.Request("1-6.json", {"conv1": 0.0}, ["stop"], "")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert all(f"1-{number}.json" in line for number, line in enumerate(lines, 1))
    assert [path.name for path in sorted(requests.iterdir())] == ["1-1.json", "1-6.json"]
    os.close(writer)


@pytest.mark.fault(41)
@pytest.mark.parametrize(
    "line",
    [
        *(b"hello", b"\xff\xfe", b"[]", b"[" * 100_000, b'{"name": "a", "changes": {}}', b"1"),
        b'{"name": "a", "step": 1e400, "changes": {}}',
        b'{"name": "a", "step": 3, "changes": {"conv1": 1e400}}',
        b'{"name": "a", "step": 3, "changes": {"conv1": "fast"}}',
        b'{"name": "a", "step": 3, "changes": {"conv1": 1' + b"0" * 400 + b"}}",
        b'{"name": "a", "step": 3, "changes": {}, "actions": "stop"}',
        b'{"name": "a", "step": 3, "changes": {}, "reason": []}',
    ],
    ids=lambda line: str(line[:50]),
)
def test_a_damaged_log_is_refused_with_its_line(line, tmp_path):
    whole = b'{"name": "a", "step": 3, "changes": {}}\n'
    (tmp_path / control_log.LOG_FILE).write_bytes(whole + line + b"\n")
    with pytest.raises(UserError, match=r"control.jsonl: line 2: expected a change"):
        control_log.read_log(tmp_path)


def test_wrong_requests_are_refused_and_leave_nothing(controlled, tmp_path):
    out = controlled[0]
    for options, *words in (
        ([], "expected something to change"),
        (["--freeze", "conv9"], "conv9", "conv1, conv2"),
        (["--rate", "conv1"], "--rate conv1", "conv1=0.0001"),
        (["--color-noise", "loud"], "--color-noise loud", "off"),
        (["--lr", "-1"], "--lr", "expected at least 0, got -1"),
        (["--freeze", "conv1,conv1"], "conv1", "one value each"),
        (["--lr", "0.1"], "no run is alive there", "--resume"),
    ):
        assert_user_error(ask(out, *options), *words)
    assert_user_error(ask(tmp_path, "--stop"), "expected the run.json of a run")
    assert not list((out / control_log.REQUESTS_DIR).iterdir())


def test_replaying_what_was_not_changed_by_hand_is_refused(shards_dir, tmp_path):
    assert train(shards_dir, tmp_path / "plain", "--steps", "1").returncode == 0
    result = train(shards_dir, tmp_path / "new", "--replay", str(tmp_path / "plain"))
    assert_user_error(result, "--replay", "changed by hand, found none")
    assert not (tmp_path / "new").exists()


def test_a_run_that_does_not_read_its_requests_is_reported(shards_dir, tmp_path):
    """The lock is held by a process that makes no steps."""
    assert train(shards_dir, tmp_path / "run", "--steps", "1").returncode == 0
    holder = (
        "import signal, sys; from pathlib import Path\n"
        "from replica.training.run_directory import locked_run\n"
        "with locked_run(Path(sys.argv[1]), resume=True):\n"
        "    print('held', flush=True); signal.pause()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "run")],
        cwd=PROJECT_DIR,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        result = ask(tmp_path / "run", "--lr", "0.1", "--wait", "1")
        assert_user_error(result, "has not read the request", "nothing is changed", "--wait")
        assert not list((tmp_path / "run" / control_log.REQUESTS_DIR).iterdir())
    finally:
        process.kill()
        process.communicate()
