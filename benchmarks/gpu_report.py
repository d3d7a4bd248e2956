"""`python -m benchmarks.gpu_report`: everything that only a GPU can show, in one folder.

For a machine that has its own PyTorch with CUDA and no network: no virtual environment, no pip.
Each part is a few programs under a time limit; a part that fails does not stop the others, and a
part that passed is not run again on the same sources, device and versions. This process imports no
PyTorch, and so holds no GPU.
"""

if __name__ == "__main__":  # before the imports that it is about
    import sys

    if sys.version_info < (3, 11):  # noqa: UP036 (whatever Python is named runs this line)
        have = ".".join(map(str, sys.version_info[:2]))
        print(
            f"benchmarks.gpu_report: expected Python 3.11 or later, got {have}: name another, "
            "as in `make gpu-report PYTHON=python3.12`",
            file=sys.stderr,
        )
        sys.exit(2)

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_report_parts import NEEDS_GPU, Finding, Part, parts_for
from benchmarks.process_group import ending_on_sigterm, run_limited
from data_prep import ALREADY_TRIED, DEPENDENCIES, PROJECT_DIR
from data_prep.errors import EXIT_FAILURE, OneLineParser, UserError, run_command
from data_prep.files import locked, write_whole

PROGRAM = "benchmarks.gpu_report"
RECORD, LOG, LOCK, WORK = "report.json", "log.txt", ".lock", "work-"
RECORD_FORMAT = 1
DEFAULT_DIR, LIMIT_SECONDS = Path("gpu-report"), 480.0
PASSED, FAILED, TIMED_OUT, NOT_MEASURED = "passed", "failed", "timed out", "not measured"
FINISHED = (PASSED, NOT_MEASURED)
# What the results are a function of, besides the machine.
SOURCES = ("benchmarks", "cuda_ext", "data_prep", "replica", "tests", "setup.py", "pyproject.toml")
SUFFIXES = (".cpp", ".cu", ".cuh", ".h", ".inl", ".py", ".toml")
DESCRIBE = "from benchmarks.gpu_report import describe; import json; print(json.dumps(describe()))"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parts = parts_for("cuda")
    listed = "\n".join(f"  {name:<24}{part.about}" for name, part in parts.items())
    parser = OneLineParser(
        prog=f"python -m {PROGRAM}",
        description="Builds the operators, tests and measures them and training on this machine's "
        "GPU. A part that passed before, on the same sources, device and versions, is not run "
        "again unless it is named. Exit status 1 where a part failed.",
        epilog=f"parts, in the order in which they run:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_DIR,
        metavar="DIR",
        help=f"gets {RECORD} and {LOG} (default: %(default)s)",
    )
    parser.add_argument(
        "--part", nargs="+", choices=parts, metavar="NAME", help="run these alone (default: all)"
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu tries the same path where there is no GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=LIMIT_SECONDS,
        metavar="SECONDS",
        help="for each part (default: %(default)g)",
    )
    arguments = parser.parse_args(argv)
    if not 0 < arguments.limit < float("inf"):
        parser.error(f"--limit: expected a number of seconds above 0, got {arguments.limit:g}")
    return arguments


# --- The machine


def describe() -> dict[str, Any]:
    """Versions and hardware; in a process of its own, which takes the GPU with it as it ends."""
    import torch

    from replica.training.run_record import describe_machine

    described = describe_machine("cuda")
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "gpus": [
            {"name": p.name, "memory_bytes": p.total_memory, "capability": f"{p.major}.{p.minor}"}
            for p in properties
        ],
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **described["versions"],
        "cpu": described["hardware"]["cpu"],
        "cores": described["hardware"]["cores"],
        "revision": described["git_revision"],
    }


def _driver() -> str | None:
    """The version of NVIDIA's driver, or None."""
    program = shutil.which("nvidia-smi")
    if program is not None:
        command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0 and result.stdout.strip():
            return result.stdout.split()[0]
    loaded = Path("/proc/driver/nvidia/version")
    return loaded.read_text().splitlines()[0] if loaded.exists() else None


def lacking(modules: Sequence[str]) -> list[str]:
    """Those of these modules that this Python does not have."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def describe_here(environment: Mapping[str, str], device: str) -> dict[str, Any]:
    """What `describe` says of this machine, and which sources this is.

    Raises:
        UserError: this Python lacks a module, its PyTorch does not start, or it sees no GPU.
    """
    missing = lacking(["torch", *DEPENDENCIES])
    if missing:
        raise UserError(
            f"{sys.executable} lacks {', '.join(missing)}: install what is missing, or name "
            "another Python, as in `make gpu-report PYTHON=/usr/bin/python3`"
        )
    command = [sys.executable, "-c", DESCRIBE]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=PROJECT_DIR, env=environment
    )
    if result.returncode != 0:
        why = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
        raise UserError(f"{sys.executable}: its PyTorch does not start: {why}")
    described: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    if device == "cuda" and not described["gpus"]:
        raise UserError(
            f"--device cuda: PyTorch {described['torch']} sees no CUDA device: --device cpu tries "
            "the same path without one"
        )
    return {"device": device, **described, "sources": sources_digest()}


def sources_digest() -> str:
    """The SHA-256 of the files that the results are a function of, changed ones as they are."""
    digest = hashlib.sha256()
    for name in SOURCES:
        top = PROJECT_DIR / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.suffix in SUFFIXES and path.is_file():
                digest.update(f"{path.relative_to(PROJECT_DIR)}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def environment_for(device: str) -> dict[str, str]:
    """The variables of the parts' programs: this checkout and this Python, whatever is set."""
    paths = [str(PROJECT_DIR), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        # No program of a part goes on with the Python of .venv.
        ALREADY_TRIED: "1",
        # The tests need no plugin, and another's warning would fail one of them.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    if device == "cuda":
        return {**environment, "REQUIRE_GPU": "1"}
    return {**environment, "REQUIRE_GPU": "0", "CUDA_VISIBLE_DEVICES": ""}


# --- The record


@dataclass(frozen=True)
class Report:
    """The folder of a report, and the machine that it is about."""

    directory: Path
    machine: Mapping[str, Any]
    environment: Mapping[str, str]

    def parts(self) -> dict[str, Any]:
        """What is recorded of each part so far.

        Raises:
            UserError: the file is something else.
        """
        path = self.directory / RECORD
        if not path.exists():
            return {}
        try:
            record = json.loads(path.read_bytes())
            if record["format"] == RECORD_FORMAT:
                return dict(record["parts"])
        except (ValueError, TypeError, KeyError):
            pass
        raise UserError(
            f"{path}: expected the record of a report of this version, found something else: give "
            "another folder with --out"
        )

    def enter(self, name: str, record: dict[str, Any]) -> None:
        """Writes the record with one more part, whole or not at all."""
        parts = {**self.parts(), name: record}
        written = {"format": RECORD_FORMAT, "date": utc_now(), "machine": self.machine}
        text = json.dumps({**written, "parts": parts}, indent=1)
        write_whole(self.directory / RECORD, f"{text}\n".encode())

    def say(self, text: str) -> None:
        """Prints, and adds to the log; a reader that has left does not stop a part."""
        with (self.directory / LOG).open("a", encoding="utf-8") as log:
            log.write(text)
        with contextlib.suppress(BrokenPipeError):
            print(text, end="", flush=True)

    def is_finished(self, record: Mapping[str, Any] | None, part: Part) -> bool:
        """Whether a part need not be run again."""
        return (
            record is not None
            and record["status"] in FINISHED
            and record["machine"] == self.machine
            and part.still_holds(record["numbers"])
        )


def utc_now() -> str:
    """Date and time, such as 2026-01-31T12:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# --- The parts


def run_part(part: Part, report: Report, *, limit: float) -> dict[str, Any]:
    """Runs one part; whatever goes wrong in it becomes its record."""
    began, start = utc_now(), time.monotonic()
    commands: list[list[str]] = []
    status, finding = FAILED, Finding("")
    with tempfile.TemporaryDirectory(prefix=WORK, dir=report.directory.resolve()) as work:
        try:
            missing = lacking(part.modules)
            if missing:
                raise RuntimeError(f"{sys.executable} lacks {', '.join(missing)}")
            for command in part.commands(Path(work)):
                commands.append(command)
                report.say(f"$ {shlex.join(command)}\n")
                exit_status = run_limited(
                    command,
                    seconds=start + limit - time.monotonic(),
                    directory=PROJECT_DIR,
                    environment=report.environment,
                    echo=report.say,
                )
                if exit_status != 0:
                    break
            if exit_status in (0, *part.statuses_with_results):
                finding = part.read(Path(work))
            if exit_status != 0 and finding.problem is None:
                program = textwrap.shorten(shlex.join(commands[-1][1:3]), 60, placeholder=" ...")
                raise RuntimeError(f"exit status {exit_status} of python {program}")
            if finding.problem is None:
                status = PASSED if finding.is_measured else NOT_MEASURED
            problem = finding.problem
        except TimeoutError:
            status, problem = TIMED_OUT, f"ended after {limit:g} s"
        except Exception as error:
            problem = " ".join(f"{type(error).__name__}: {error}".split())
            problem = problem.removeprefix("RuntimeError: ")
    if finding.text:
        report.say(f"{finding.text}\n")
    return {
        "status": status,
        "seconds": round(time.monotonic() - start, 1),
        "began": began,
        "line": finding.line if finding.is_measured else NEEDS_GPU,
        "problem": problem,
        "commands": commands,
        "machine": report.machine,
        "numbers": finding.numbers,
    }


def run_parts(
    parts: Mapping[str, Part], report: Report, *, limit: float, named: Sequence[str] = ()
) -> int:
    """Runs those of the parts that are not finished, or those that are named.

    Returns:
        The exit status: 1 where one of them failed, now or, not named, before.
    """
    chosen = [name for name in parts if not named or name in named]
    for number, name in enumerate(chosen, 1):
        title = f"== {name} ({number} of {len(chosen)})"
        if name not in named and report.is_finished(report.parts().get(name), parts[name]):
            report.say(f"{title}: finished before, not run again\n")
            continue
        report.say(f"{title}, {utc_now()}, at most {limit:g} s: {parts[name].about}\n")
        record = run_part(parts[name], report, limit=limit)
        report.enter(name, record)
        report.say(f"== {name}: {record['status']} after {record['seconds']:g} s\n\n")
    records = report.parts()
    report.say(summary(parts, records, report.machine))
    passed = all(records[name]["status"] in FINISHED for name in chosen)
    return 0 if passed else EXIT_FAILURE


def summary(
    parts: Mapping[str, Part], records: Mapping[str, Any], machine: Mapping[str, Any]
) -> str:
    """One line a part, below what it ran on."""
    hardware = ", ".join(gpu["name"] for gpu in machine["gpus"])
    if machine["device"] == "cpu":
        hardware = f"{machine['cpu']}, standing in for a GPU"
    lines = [
        f"{hardware}, driver {machine['driver']}, CUDA {machine['cuda']}",
        f"PyTorch {machine['torch']}, Python {machine['python']}, revision {machine['revision']}",
        utc_now(),
    ]
    for name in parts:
        record = records.get(name, {"status": "not run", "seconds": 0, "line": "", "problem": None})
        is_old = record.get("machine", machine) != machine
        words = [record["problem"] or record["line"]]
        words += ["(other sources, device or versions)"] if is_old else []
        about = " ".join(filter(None, words))
        lines.append(f"{name:<24}{record['status']:<14}{record['seconds']:>7.1f} s  {about}")
    return "".join(f"{line.rstrip()}\n" for line in lines)


def make_report(arguments: argparse.Namespace) -> int:
    """Makes the report, or goes on with it, and returns the exit status."""
    environment = environment_for(arguments.device)
    machine = describe_here(environment, arguments.device)
    directory = arguments.out
    held = "another report is being written there: wait for it, or give another folder"
    with (
        locked(directory / LOCK, title=f"--out {directory}", when_held=held),
        ending_on_sigterm(),
    ):
        report = Report(directory, machine, environment)
        for left in directory.glob(f"{WORK}*"):  # by a report that was killed
            shutil.rmtree(left)
        parts = parts_for(arguments.device)
        status = run_parts(parts, report, limit=arguments.limit, named=arguments.part or ())
    print(f"{directory / RECORD} and {directory / LOG}")
    return status


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command(
        PROGRAM,
        lambda: make_report(parse_arguments(argv)),
        when_interrupted="interrupted; the same command goes on with the part that was stopped",
    )


if __name__ == "__main__":
    sys.exit(main())
