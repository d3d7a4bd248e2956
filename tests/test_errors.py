"""A command's mistakes are one line and an exit status, and a closed pipe is none."""

import importlib
import os
import signal
import subprocess
import sys

import pytest
from conftest import PROJECT_DIR

from data_prep.errors import UserError, run_command


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("--x 1: expected 2"), 2, "program: --x 1: expected 2"),
        (OSError(28, "No space left", "a file"), 2, "program: a file: No space left: make room"),
        (RuntimeError("rank 1 died"), 1, "program: rank 1 died"),
        (KeyboardInterrupt(), 130, "program: nothing was changed"),
    ],
    ids=["user", "disk", "failure", "Ctrl-C"],
)
def test_an_expected_error_is_one_line_and_a_status(error, status, line, capsys):
    def command():
        raise error

    got = run_command("program", command, when_interrupted="nothing was changed")
    assert got == status
    written = capsys.readouterr().err
    assert written.startswith(line)
    assert written.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command("program", lambda: 1 // 0)


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_a_command_has_its_own_status(returned, status):
    assert run_command("program", lambda: returned) == status


def test_output_that_nobody_reads_changes_no_exit_status():
    """Whether the pipe is seen to be closed while the command writes, or when it ends."""
    for lines in (1, 100_000):
        script = (
            "import sys; from data_prep.errors import run_command\n"
            "def command():\n"
            "    for i in range(int(sys.argv[1])): print(i)\n"
            "    return 3\n"
            "sys.exit(run_command('program', command))"
        )
        reader, writer = os.pipe()
        os.close(reader)
        result = subprocess.run(
            [sys.executable, "-c", script, str(lines)],
            cwd=PROJECT_DIR,
            stdout=writer,
            stderr=subprocess.PIPE,
        )
        os.close(writer)
        assert (result.returncode, result.stderr) == (3, b"")


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("replica.train --epoch 3", ": did you mean --epochs?: see --help"),
        ("replica.train --gpu 2", ": did you mean --gpus?: see --help"),
        ("replica.train --recipe mini --new", ": did you mean --new-head or --new-layers?: see"),
        ("replica.test --ten", ": did you mean --ten-crop?: see --help"),
        ("replica.figures --rum=x", ": did you mean --run?: see --help"),
        ("data_prep.build_shards --sorce toy", ": did you mean --source?: see --help"),
        ("data_prep.verify_shards --colors", "unrecognized arguments: --colors: see --help"),
    ],
)
def test_an_abbreviated_option_is_refused_and_the_whole_one_named(command, meant, capsys):
    module, *arguments = command.split()
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "unrecognized arguments: --" in line
    assert meant in line


# Program -> module, and what it is asked to print.
COMMANDS = {
    "build_shards": ("data_prep.build_shards", ["--help"]),
    "verify_shards": ("data_prep.verify_shards", ["--help"]),
    "replica": ("replica.__main__", []),
    "replica.train": ("replica.train", ["--help"]),
    "replica.test": ("replica.test", ["--help"]),
    "replica.predict": ("replica.predict", ["--help"]),
    "replica.neighbors": ("replica.neighbors", ["--help"]),
    "replica.export": ("replica.export", ["--help"]),
    "replica.control": ("replica.control", ["--help"]),
    "replica.info": ("replica.info", ["--json"]),
    "replica.recipes": ("replica.recipes.__main__", []),
    "replica.compare": ("replica.compare", ["--help"]),
    "replica.figures": ("replica.figures", ["--help"]),
    "replica.demo": ("replica.demo", ["--help"]),
    "replica.reproduce": ("replica.reproduce", ["--list"]),
    "replica.sweep": ("replica.sweep", ["--help"]),
    "benchmarks": ("benchmarks.__main__", []),
}
INTERRUPTED = {
    "build_shards": "interrupted; run the same command again to continue after the last whole "
    "shard",
    "verify_shards": "interrupted; nothing was changed",
    "replica.train": "stopped at once; the last checkpoint is kept",
    "replica.control": "interrupted; the request may still act",
    "replica.demo": "interrupted; run it again, what is drawn and built is kept",
    "replica.reproduce": "interrupted; the same command goes on",
    "replica.sweep": "interrupted; the same command goes on",
}


@pytest.fixture(params=COMMANDS)
def command(request, monkeypatch):
    """A command's program and module, as if its module had been started with the arguments."""
    name, arguments = COMMANDS[request.param]
    monkeypatch.setattr(sys, "argv", [request.param, *arguments])
    return request.param, importlib.import_module(name)


@pytest.mark.fault(45)
def test_no_command_minds_that_nobody_reads_its_output(command, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed_pipe:
        monkeypatch.setattr(sys, "stdout", closed_pipe)
        try:
            status = command[1].main()
        except SystemExit as end:  # after --help
            status = end.code
    assert status == 0
    assert capsys.readouterr().err == ""


def test_ctrl_c_ends_every_command_in_one_line(command, monkeypatch, capsys):
    program, module = command

    def interrupt(*_):
        raise KeyboardInterrupt

    first = "parse_arguments" if hasattr(module, "parse_arguments") else "show"
    monkeypatch.setattr(module, first, interrupt)
    assert module.main() == 128 + signal.SIGINT
    assert capsys.readouterr().err == f"{program}: {INTERRUPTED.get(program, 'interrupted')}\n"
