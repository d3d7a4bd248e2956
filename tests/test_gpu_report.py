"""The report of a GPU machine: its parts, its record, and what stops it; a CPU stands in."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PROJECT_DIR, assert_user_error, is_running, run, run_here
from runs import wait_until_ended

from benchmarks.gpu_report import LOG, RECORD, Report, environment_for, run_parts
from benchmarks.gpu_report_parts import (
    FIRST_LOSS_TOLERANCE,
    TEST_PARTS,
    Finding,
    Part,
    parts_for,
    pytest_arguments,
    read_rows,
    read_tests,
    read_training,
)
from data_prep.errors import UserError

COMMAND = ("-m", "benchmarks.gpu_report")
MACHINE = {
    "device": "cpu",
    **{"gpus": [], "cpu": "a CPU", "driver": None, "cuda": None},
    **{"torch": "2.11.0", "python": "3.12.3", "revision": None},
}


def part_of(program, *, line="done", **more):
    """A part that runs a line of Python, given its directory."""
    return Part(
        "a part",
        lambda work: [[sys.executable, "-c", program, str(work)]],
        lambda work: Finding(line, {"left": sorted(path.name for path in work.iterdir())}),
        **more,
    )


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path, MACHINE, environment_for("cpu"))


def record_in(directory):
    return json.loads((directory / RECORD).read_bytes())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of one part, made as a user does."""
    out = tmp_path_factory.mktemp("a report")
    (out / "work-of-one-that-was-killed").mkdir()
    return out, run(*COMMAND, "--device", "cpu", "--part", "bench-operator", "--out", str(out))


def test_a_part_leaves_a_record_and_a_log(made):
    out, result = made
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == [".lock", LOG, RECORD]
    record = record_in(out)
    assert record["machine"]["device"] == "cpu"
    assert record["machine"]["gpus"] == []
    assert {"torch", "python", "cuda", "driver", "revision"} <= record["machine"].keys()
    assert record["date"].endswith("Z")
    (part,) = record["parts"].values()
    assert part["status"] == "not measured"
    assert all(row["value"] is None for row in part["numbers"]["rows"])
    # What the program printed is shown, and in the log.
    assert "(PyTorch sees no CUDA device)" in result.stdout
    assert (out / LOG).read_text() in result.stdout
    assert "\nbench-operator          not measured" in result.stdout
    assert "not measured: needs a GPU\n" in result.stdout
    assert "\nbuild                   not run" in result.stdout


def test_without_a_gpu_one_line_says_so(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = run_here(*COMMAND, "--out", str(tmp_path))
    assert_user_error(result, "--device cuda: PyTorch", "sees no CUDA device", "--device cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--part", "speed"), "argument --part: invalid choice: 'speed' (choose from 'build',"),
        (("--limit", "0"), "--limit: expected a number of seconds above 0, got 0"),
        (("--device", "tpu"), "argument --device: invalid choice: 'tpu'"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, line):
    assert_user_error(run_here(*COMMAND, *arguments), f"benchmarks.gpu_report: {line}")


def test_a_python_that_lacks_modules_is_told_which():
    """Even where .venv has them: the report is about the Python that was named."""
    result = run("-S", *COMMAND, PYTHONPATH=str(PROJECT_DIR))
    assert_user_error(result, f"{sys.executable} lacks torch, numpy, PIL, h5py, scipy")


def test_a_foreign_record_is_refused_and_kept(report):
    path = report.directory / RECORD
    for text in ("[]", "{}", '{"format": 0, "parts": {}}', "no JSON"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"report\.json: expected the record of a report"):
            run_parts({"a": part_of("")}, report, limit=60)
        assert path.read_text() == text


def test_a_part_that_fails_is_named_and_does_not_stop_the_others(report, capsys):
    parts = {
        "first": part_of("print('hello'); import sys; sys.exit(3)"),
        "second": part_of("import sys; open(sys.argv[1] + '/file', 'w')"),
        "third": part_of("", modules=("no_such_module",)),
    }
    assert run_parts(parts, report, limit=60) == 1
    records = record_in(report.directory)["parts"]
    assert [records[name]["status"] for name in parts] == ["failed", "passed", "failed"]
    assert records["first"]["problem"].startswith("exit status 3 of python -c ")
    assert records["second"]["numbers"] == {"left": ["file"]}
    assert records["third"]["problem"] == f"{sys.executable} lacks no_such_module"
    printed = capsys.readouterr().out
    assert printed == (report.directory / LOG).read_text()
    assert "\nhello\n" in printed
    assert "\nfirst                   failed" in printed
    # What the parts used is gone.
    assert sorted(path.name for path in report.directory.iterdir()) == [LOG, RECORD]


def test_a_part_over_its_limit_is_ended_with_all_it_started(report):
    program = (
        "import subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print('child', child.pid, flush=True); time.sleep(600)"
    )
    parts = {"slow": part_of(program), "next": part_of("")}
    began = time.monotonic()
    assert run_parts(parts, report, limit=2) == 1
    assert time.monotonic() - began < 30
    records = record_in(report.directory)["parts"]
    assert records["slow"]["status"] == "timed out"
    assert records["slow"]["problem"] == "ended after 2 s"
    assert records["slow"]["seconds"] >= 2
    assert records["next"]["status"] == "passed"
    pid = int((report.directory / LOG).read_text().split("child ")[2].split()[0])
    assert not is_running(pid)


def test_a_part_that_passed_is_not_run_again_unless_it_is_named(report, tmp_path):
    runs = tmp_path / "runs"
    count = f"open({str(runs)!r}, 'a').write('x')"
    broken = f"import sys; {count}; sys.exit(not len(open({str(runs)!r}).read()) > 3)"
    parts = {"good": part_of(count), "bad": part_of(broken)}
    assert run_parts(parts, report, limit=60) == 1
    assert runs.read_text() == "xx"
    assert run_parts(parts, report, limit=60) == 1  # only the one that failed
    assert runs.read_text() == "xxx"
    assert run_parts(parts, report, limit=60, named=["good"]) == 0
    assert runs.read_text() == "xxxx"
    assert run_parts(parts, report, limit=60) == 0
    assert runs.read_text() == "xxxxx"
    assert run_parts(parts, report, limit=60) == 0
    assert runs.read_text() == "xxxxx"
    # Elsewhere, or of other sources, nothing has passed yet.
    for changed in ({"device": "cuda"}, {"torch": "2.12.0"}, {"sources": "others"}):
        other = Report(report.directory, {**MACHINE, **changed}, report.environment)
        assert run_parts({"good": parts["good"]}, other, limit=60) == 0
    assert runs.read_text() == "x" * 8
    # What has been built may be gone.
    gone = part_of(count, still_holds=lambda numbers: numbers["left"] != [])
    assert run_parts({"good": gone}, other, limit=60) == 0
    assert runs.read_text() == "x" * 9


def test_a_report_that_is_ended_ends_its_programs(tmp_path):
    options = ("--device", "cpu", "--out", str(tmp_path), "--part", "training-paper")
    process = subprocess.Popen(
        [sys.executable, *COMMAND, *options],
        cwd=PROJECT_DIR,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.time() + 60
    while not (children := children_of(process.pid, "toy.draw")):
        assert time.time() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    wait_until_ended(children)  # a kill takes a moment
    assert [path.name for path in tmp_path.iterdir()] == [LOG]


def children_of(pid, word):
    """The processes that this one has started whose command has a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and word in (path.parent / "cmdline").read_text():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_every_gpu_test_is_in_one_part():
    """Collected without what only other tests need, as on a machine that lacks it."""
    program = (
        "import json, sys, pytest\n"
        "sys.modules.update(hypothesis=None, xdist=None, matplotlib=None, tensorboard=None)\n"
        "class Names:\n"
        "    def pytest_collection_finish(self, session):\n"
        "        self.names = [item.nodeid for item in session.items]\n"
        "collected = []\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    plugin = Names()\n"
        "    options = ['-qq', '--collect-only', '-p', 'no:cacheprovider', *arguments]\n"
        "    assert pytest.main(options, plugins=[plugin]) == 0\n"
        "    collected.append(plugin.names)\n"
        "print(json.dumps(collected))\n"
    )
    with_gpu = sorted(
        str(path.relative_to(PROJECT_DIR))
        for path in (PROJECT_DIR / "tests").glob("test_*.py")
        if "pytest.mark.gpu" in path.read_text() and path.name != Path(__file__).name
    )
    wanted = [["-m", "gpu", *with_gpu]]
    wanted += [pytest_arguments(*selected) for selected in TEST_PARTS.values()]
    result = run("-c", program, json.dumps(wanted), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert result.returncode == 0, result.stdout + result.stderr
    everything, *of_parts = json.loads(result.stdout.splitlines()[-1])
    assert len(everything) > 30
    assert sorted(name for names in of_parts for name in names) == sorted(everything)
    assert all(of_parts)


TESTS = """<testsuites><testsuite>
<testcase classname="m" name="a"/>
<testcase classname="m" name="b"><skipped message="no compute-sanitizer here"/></testcase>
<testcase classname="m" name="c"><failure message="assert 1 == 2&#10;more"/></testcase>
</testsuite></testsuites>"""


def test_a_skipped_test_is_a_failure_where_there_is_a_gpu(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text(TESTS)
    found = read_tests(path, "cuda")
    assert found.line == "1 of 3 tests passed"
    assert found.problem == (
        "1 of 3 tests failed: m::c; 1 of 3 tests were skipped: no compute-sanitizer here"
    )
    assert found.numbers["failed"] == {"m::c": "assert 1 == 2"}
    assert read_tests(path, "cpu").problem == "1 of 3 tests failed: m::c"
    path.write_text("<testsuites/>")
    assert read_tests(path, "cpu").problem == "no test was found"


def test_figures_that_are_missing_are_a_failure_where_there_is_a_gpu(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"machine": {}, "rows": [{"value": None}, {"value": None}]}))
    assert read_rows(path, "cuda").problem == "nothing was measured"
    found = read_rows(path, "cpu")
    assert (found.problem, found.is_measured) == (None, False)
    path.write_text(json.dumps({"machine": {}, "rows": [{"value": None}, {"value": 2.0}]}))
    found = read_rows(path, "cuda")
    assert (found.problem, found.line) == (None, "1 of 2 figures measured")


def test_losses_stand_side_by_side_and_the_first_ones_agree(tmp_path):
    def write(name, losses):
        (tmp_path / name).mkdir(exist_ok=True)
        steps = [{"kind": "step", "loss": x, "images_per_second": 10 * x} for x in losses]
        lines = [*steps, {"kind": "val", "loss": 99.0}]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))

    write("device", [2.0, 4.0, 6.0])
    write("cpu", [2.0, 4.0, 5.0])
    found = read_training(tmp_path, "cuda")
    assert found.problem is None
    assert found.numbers["losses"] == {"device": [2.0, 4.0, 6.0], "cpu": [2.0, 4.0, 5.0]}
    assert found.numbers["largest_relative_difference"] == pytest.approx(0.2)
    assert found.numbers["images_per_second"] == {"device": 50.0, "cpu": 45.0}
    assert "   3  6.000000000       5.000000000   2.0e-01" in found.text
    write("device", [2.0 * (1 + 2 * FIRST_LOSS_TOLERANCE), 4.0, 5.0])
    assert (
        "the first losses are 2.004 and, on the CPU, 2:" in read_training(tmp_path, "cuda").problem
    )
    write("device", [2.0, 4.0, float("nan")])
    assert "losses are not finite" in read_training(tmp_path, "cuda").problem
    write("device", [2.0, 4.0])
    with pytest.raises(ValueError, match="longer than argument 1"):
        read_training(tmp_path, "cuda")


def test_with_a_gpu_the_same_parts_run_and_training_is_on_it(tmp_path):
    parts = parts_for("cuda")
    assert list(parts) == list(parts_for("cpu"))
    *_, on_gpu, on_cpu = parts["training-paper"].commands(tmp_path)
    assert on_gpu[on_gpu.index("--device") + 1] == "cuda"
    assert on_cpu[on_cpu.index("--device") + 1] == "cpu"
    assert on_gpu[on_gpu.index("--gpus") + 1] == "1"
    (command,) = parts["bench-training-bf16"].commands(tmp_path)
    assert "--device" not in command  # the benchmark's own default is the GPU
    assert environment_for("cuda")["REQUIRE_GPU"] == "1"
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == environment_for("cuda").get(
        "CUDA_VISIBLE_DEVICES"
    )
