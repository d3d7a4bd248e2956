"""Streams that are closed or full, signals at any moment, names that are no text: real ones."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PROJECT_DIR, assert_user_error, run, run_here
from runs import last_checkpoint, lines_of, started, train_command

from replica.training.checkpoint import checkpoints_of

linux = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full, /proc and mount are Linux's")


def in_shell(text, *words, **environment):
    """Runs a line of bash in which $PYTHON is this Python; the words are $1, $2, ..."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {text}", "bash", *map(str, words)],
        cwd=PROJECT_DIR,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )


# --- Nobody listens, or nothing can be written


@linux
@pytest.mark.fault(45)
@pytest.mark.parametrize(
    ("gpus", "redirected"),
    [
        ("2", "| head -n 1"),
        ("1", ">&- 2>&- <&-"),
        pytest.param("2", ">&- 2>&-", marks=pytest.mark.slow),
        pytest.param("1", "2>&1 | true", marks=pytest.mark.slow),
        pytest.param("2", "2>/dev/full", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_where_nobody_listens(gpus, redirected, shards_dir, tmp_path):
    out = tmp_path / "run"
    command = train_command(shards_dir, out, "--gpus", gpus, "--steps", "5")
    result = in_shell(f'"$PYTHON" "$@" {redirected}', *command)
    assert (result.returncode, lines_of(out, "step")[-1]["step"]) == (0, 5), result.stderr
    assert last_checkpoint(out)["step"] == 5
    assert "Broken pipe" not in result.stderr
    assert "Traceback" not in result.stderr
    # No file of the run got the number of a closed stream, and what was printed.
    assert all("step" in line for line in (out / "metrics.jsonl").read_text().splitlines())


@pytest.mark.fault(45)
def test_a_build_goes_on_where_nobody_listens(toy_dir, tmp_path):
    words = ("--source", "kaggle", "--input", toy_dir, "--output", tmp_path, "--workers", "1")
    result = in_shell('"$PYTHON" data_prep/build_shards.py "$@" 2>&1 | true', *words)
    assert (result.returncode, result.stderr) == (0, "")
    assert '"complete": true' in (tmp_path / "manifest.json").read_text()


@linux
@pytest.mark.parametrize(
    "command",
    [
        "data_prep/verify_shards.py SHARDS --workers 1",
        "-m replica.info --json",
        "-m replica.train --help",
        "-m replica",
        "-m cuda_ext --json",
    ],
)
def test_a_result_that_cannot_be_written_is_one_line(command, shards_dir):
    words = [str(shards_dir) if word == "SHARDS" else word for word in command.split()]
    result = in_shell('"$PYTHON" "$@" >/dev/full', *words)
    *_, last = result.stderr.replace("\r", "\n").splitlines()
    assert result.returncode == 1, result.stderr
    assert ": standard output: No space left on device" in last
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


@linux
@pytest.mark.parametrize("redirected", [">&-", "2>&-", ">&- 2>&- <&-", "2>/dev/full", "| true"])
def test_a_closed_stream_changes_no_exit_status(redirected):
    for words, status in ((["--json"], 0), (["--set", "epochs=0"], 2), (["--x"], 2)):
        result = in_shell(f'"$PYTHON" -m replica.info "$@" {redirected}', *words)
        assert result.returncode == status, result.stderr
        assert "Traceback" not in result.stderr


# --- Signals

# Modules that a command imports, as ones whose import takes forever; h5py is one of a build's.
SLOW = "import os, pathlib, time\npathlib.Path(os.environ['BEGUN']).touch()\ntime.sleep(60)\n"


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    "command",
    [
        "data_prep/build_shards.py",
        "-m data_prep.build_shards",
        "data_prep/verify_shards.py",
        "-m replica.train",
        "-m replica.test",
        "-m cuda_ext",
        "SCRIPTS/replica-train",
        "SCRIPTS/replica-build-shards",
    ],
)
def test_ctrl_c_while_modules_are_imported_ends_quietly(command, tmp_path):
    for module in ("h5py", "torch"):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text(SLOW)
    for name in ("train", "build_shards"):
        package = "replica" if name == "train" else "data_prep"
        script = tmp_path / f"replica-{name.replace('_', '-')}"
        script.write_text(f"from {package}.{name} import main\nraise SystemExit(main())\n")
    words = [word.replace("SCRIPTS", str(tmp_path)) for word in command.split()]
    path = os.pathsep.join([str(tmp_path), str(PROJECT_DIR)])
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=PROJECT_DIR,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "BEGUN": str(tmp_path / "begun")},
    )
    wait_for(tmp_path / "begun", process)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == 130


def test_importing_the_package_leaves_ctrl_c_to_the_program():
    code = (
        "import signal, replica, data_prep.build_shards, cuda_ext\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    assert run("-c", code).stdout == "True\n"


def wait_for(path, process):
    deadline = time.time() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.01)


WAITING = """
import pathlib, sys, time
from data_prep.errors import run_command
def command():
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(float(sys.argv[2]))
sys.exit(run_command('program', command, when_interrupted='nothing was changed'))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_stop_signal_ends_a_command_in_one_line(number, tmp_path):
    command = [sys.executable, "-c", WAITING, str(tmp_path / "begun"), "60"]
    process = subprocess.Popen(command, cwd=PROJECT_DIR, stderr=subprocess.PIPE)
    wait_for(tmp_path / "begun", process)
    process.send_signal(number)
    assert process.communicate(timeout=30)[1] == b"program: nothing was changed\n"
    assert process.returncode == 128 + number


def test_a_signal_that_nohup_ignores_stays_ignored(tmp_path):
    command = [sys.executable, "-c", WAITING, str(tmp_path / "begun"), "1"]
    process = subprocess.Popen(
        command,
        cwd=PROJECT_DIR,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for(tmp_path / "begun", process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 0


@pytest.mark.fault(11)
@pytest.mark.parametrize("gpus", ["2", pytest.param("1", marks=pytest.mark.slow)])
def test_a_terminal_that_is_closed_saves_the_run(gpus, shards_dir, tmp_path):
    """SIGHUP reaches all processes, and twice: from the system, and from the shell."""
    out = tmp_path / "run"
    process = started(train_command(shards_dir, out, "--gpus", gpus, "--epochs", "5000"), out)
    process.stdout.close()
    for _ in range(2):
        os.killpg(process.pid, signal.SIGHUP)
        time.sleep(0.05)
    with process.stderr:
        stderr = process.stderr.read()
    assert process.wait(timeout=60) == 129, stderr
    assert last_checkpoint(out)["step"] == lines_of(out, "step")[-1]["step"]
    assert "Traceback" not in stderr


# --- Odd places


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("command", ["build", "train"])
def test_a_full_shared_memory_is_one_line(command, toy_dir, shards_dir, tmp_path):
    full = (
        "mount -t tmpfs -o size=8k tmpfs /dev/shm || exit 77; "
        'head -c 1M /dev/zero >/dev/shm/full 2>/dev/null; exec "$PYTHON" "$@"'
    )
    out = tmp_path / "out"
    words = ["data_prep/build_shards.py", "--source", "kaggle", "--input", toy_dir]
    words += ["--output", out]
    if command == "train":
        words = train_command(shards_dir, out, "--gpus", "2")
    result = in_shell('unshare -m bash -c "$1" bash "${@:2}"', full, *words)
    if result.returncode in (1, 77) and ("unshare:" in result.stderr or "mount:" in result.stderr):
        pytest.skip(result.stderr.strip())
    assert_user_error(result, "/dev/shm: No space left on device", "--shm-size")


@pytest.mark.fault(33)
@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_paths_that_are_not_utf_8_work_under_a_strict_locale(tiny_shards, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff$_^$"))
    odd.mkdir()
    shards, out = odd / "shards", odd / "run"
    shards.symlink_to(tiny_shards)
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    # In a process of its own, whose standard output is really strict.
    result = run("data_prep/verify_shards.py", str(shards), "--workers", "1", **strict)
    assert result.returncode == 0, result.stderr
    assert "is in every byte that its manifest says" in result.stdout
    for words in (
        [
            *("-m", "replica.train", "--data", shards, "--recipe", "mini", "--out", out),
            *("--steps", "2", "--device", "cpu", "--set", "crop_size=96"),
            *("--set", "fc6.num_units=64", "--set", "fc7.num_units=64"),
        ],
        ["-m", "replica.figures", "--run", out],
        ["-m", "replica.figures", "curves", out, "--picture", odd / "c.png"],
        ["-m", "replica.test", "--checkpoint", out / "best.pt"],
    ):
        result = run_here(*map(str, words))
        assert result.returncode == 0, result.stderr
    assert checkpoints_of(out)
    result = run_here("-m", "replica.test", "--checkpoint", str(odd / "none.pt"))
    assert_user_error(result, "none.pt", "found no file")


@pytest.mark.parametrize("name", ["x.xyz", "x", "directory.png", f"{'x' * 300}.png"])
def test_a_strange_picture_is_one_line_and_leaves_nothing(name, shards_dir, tmp_path):
    out = tmp_path / "run"
    assert run_here(*train_command(shards_dir, out, "--steps", "1")).returncode == 0
    place = tmp_path / "pictures"
    (place / "directory.png").mkdir(parents=True)
    figures = ("-m", "replica.figures", "curves", str(out), "--picture")
    result = run_here(*figures, str(place / name))
    assert_user_error(result, name)
    if name.endswith(".png"):
        sheet = ("data_prep/verify_shards.py", str(shards_dir), "--contact-sheet")
        assert_user_error(run_here(*sheet, str(place / name)), name)
    assert [path.name for path in place.iterdir()] == ["directory.png"]


@linux
@pytest.mark.fault(3)
@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs /sys")
def test_a_file_system_that_refuses_the_toy_set_is_one_line(tmp_path):
    words = ("--source", "toy", "--input", "/sys/kernel/toy", "--output", str(tmp_path / "out"))
    result = run_here("data_prep/build_shards.py", *words)
    assert_user_error(result, "/sys/kernel/toy")
    assert not list(tmp_path.iterdir())
