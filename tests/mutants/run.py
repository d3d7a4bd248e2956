"""Puts each mistake of table.toml into a copy of the project and sees whether the tests notice.

    python tests/mutants/run.py                  all of them, into benchmarks/results/mutants.json
    python tests/mutants/run.py --sample 10      ten, chosen by the revision; writes nothing
    python tests/mutants/run.py alpha-over-n     those that are named; writes nothing
    python tests/mutants/run.py --map            which test module runs which function, anew

The tests that cover the changed function run, the one that saw the mistake last time first, then
module by module, the fastest first, up to the first failure. Only tests that `make test` runs
count. A verdict stands until the product, the test module that noticed, or the mutant changes, so a
run that was stopped goes on where it was. Exit status 0: all were noticed; 1: some were not; 2: the
table does not fit the code.
"""

import argparse
import ast
import contextlib
import functools
import hashlib
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

HERE = Path(__file__).resolve().parent
PROJECT_DIR = HERE.parent.parent
TABLE, WAITING, COVERAGE = HERE / "table.toml", HERE / "waiting.toml", HERE / "coverage.json"
RECORD = PROJECT_DIR / "benchmarks" / "results" / "mutants.json"
PRODUCT = ("cuda_ext", "data_prep", "replica")
# What coverage cannot say of compiled code.
COMPILED = {
    "cuda_vectors.cuh": ["tests/test_cuda_kernels.py"],
    "local_response_norm.cuh": ["tests/test_cuda_kernels.py"],
    "local_response_norm_powers.cuh": ["tests/test_cuda_kernels.py"],
    "local_response_norm_vectors.cuh": ["tests/test_cuda_kernels.py"],
    "local_response_norm_kernels.inl": ["tests/test_operators.py", "tests/test_pooling.py"],
    "momentum_sgd.cpp": ["tests/test_optimizer.py"],
    "momentum_sgd_kernels.inl": ["tests/test_optimizer.py"],
    "momentum_sgd.cuh": ["tests/test_optimizer.py"],
    "philox_dropout.cpp": ["tests/test_philox_dropout.py"],
    "philox_dropout.cuh": ["tests/test_philox_dropout.py"],
    "pooling.cuh": ["tests/test_pooling.py"],
    "pooling_kernels.inl": ["tests/test_pooling.py"],
    "same_map_norm.cuh": ["tests/test_same_map_norm.py"],
    "same_map_norm_kernels.inl": ["tests/test_same_map_norm.py"],
    "vectors_any.inl": ["tests/test_pooling.py"],
    "split_conv2d.cpp": ["tests/test_split_conv2d.py"],
    "split_conv2d.cuh": ["tests/test_cuda_split_conv2d.py"],
    "large_blocks.cpp": ["tests/test_allocator.py"],
}
# Goldens compare the product with itself, and others do not have the real pictures.
NOT_COUNTED = ("tests/test_goldens.py", "tests/test_real_data.py", "tests/test_mutants.py")
MODULE_LEVEL = "<module>"
PYTEST = ("-m", "pytest", "-q", "-x", "-rfE", "-m", "not slow", "-p", "no:cacheprovider")
# A mistake may make a test wait for ever: so many times its usual seconds, and some more.
PATIENCE, LEAST_SECONDS = 4, 90


@dataclass(frozen=True)
class Mutant:
    """A mistake: `new` in place of `old`, which stands once in a file; `breaks` says what."""

    name: str
    file: str
    old: str
    new: str
    breaks: str

    @property
    def path(self) -> Path:
        """Of the file to change, in this project."""
        return PROJECT_DIR / self.file

    def problem(self) -> str | None:
        """Why it does not fit the code, or None."""
        if not self.path.is_file():
            return f"{self.name}: {self.file} is gone"
        count = self.path.read_text().count(self.old)
        if count != 1:
            return f"{self.name}: its old text stands {count} times in {self.file}, expected once"
        if self.old == self.new:
            return f"{self.name}: changes nothing"
        if self.file.endswith(".py"):
            try:
                ast.parse(self.changed())
            except SyntaxError as error:
                return f"{self.name}: is no Python: {error}"
        return None

    def changed(self) -> str:
        """The file with the mistake in it."""
        return self.path.read_text().replace(self.old, self.new)

    def function(self) -> str:
        """`file:function` that the mistake is in, as the map names it."""
        text = self.path.read_text()
        line = text[: text.index(self.old)].count("\n") + 1
        last = line + self.old.rstrip("\n").count("\n")
        names = [name for name, first, end in functions(text) if first <= last and line <= end]
        return f"{self.file}:{names[-1] if names else MODULE_LEVEL}"


def functions(text: str) -> Iterator[tuple[str, int, int]]:
    """Name, first and last line of each function's body, outer ones first."""

    def within(node: ast.AST, prefix: str) -> Iterator[tuple[str, int, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{prefix}{child.name}"
                yield name, child.body[0].lineno, child.end_lineno or child.lineno
                yield from within(child, f"{name}.")
            elif isinstance(child, ast.ClassDef):
                yield from within(child, f"{prefix}{child.name}.")
            else:
                yield from within(child, prefix)

    yield from within(ast.parse(text), "")


def read_table(*tables: Path) -> list[Mutant]:
    """All mutants of some tables, by default of the one that whole runs try, checked.

    Raises:
        ValueError: some do not fit the code; all are named.
    """
    texts = [table.read_text() for table in tables or (TABLE,)]
    mutants = [Mutant(**entry) for text in texts for entry in tomllib.loads(text)["mutant"]]
    problems = [problem for mutant in mutants if (problem := mutant.problem())]
    names = [mutant.name for mutant in mutants]
    problems += [f"{name}: stands there twice" for name in {n for n in names if names.count(n) > 1}]
    if problems:
        raise ValueError("\n".join(problems))
    return mutants


def read_record() -> dict:
    """What the last whole run found."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {"mutants": {}}


def modules_for(mutant: Mutant, coverage: dict) -> list[str]:
    """The test modules that cover a mutant, the fastest first."""
    if mutant.file.startswith("cuda_ext/csrc/"):
        return COMPILED.get(mutant.path.name, [])
    function = mutant.function()
    if function.endswith(MODULE_LEVEL):
        found = [
            m
            for m, entry in coverage.items()
            if any(name.split(":")[0] == mutant.file for name in entry["functions"])
        ]
    else:
        found = [m for m, entry in coverage.items() if function in entry["functions"]]
    return sorted(found, key=lambda module: coverage[module]["seconds"])


class Copy:
    """A copy of the project in which tests run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=PROJECT_DIR, capture_output=True, check=True).stdout
        built = [path.relative_to(PROJECT_DIR) for path in PROJECT_DIR.glob("cuda_ext/*.so")]
        for name in [*filter(None, names.decode().split("\0")), *map(str, built)]:
            if (PROJECT_DIR / name).is_file():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(PROJECT_DIR / name, directory / name)
        if (PROJECT_DIR / ".venv").exists():
            (directory / ".venv").symlink_to(PROJECT_DIR / ".venv")
        where = self.run("-c", "import replica; print(replica.__file__)")[1]
        if not where.startswith(str(directory)):
            raise RuntimeError(f"expected the copy's own code in {directory}, got {where}")

    def run(self, *command: str, seconds: float = 600) -> tuple[int | None, str]:
        """Runs Python in the copy: its exit status (None: it took too long) and its output."""
        scratch = self.directory / ".scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(scratch)}
        environment.pop("REPLICA_REAL_DATA", None)
        with (scratch / "output").open("w+") as output:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.directory,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
            try:
                status: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(0)
            return status, output.read()

    def test(self, tests: list[str], seconds: float) -> str | None:
        """The first test that fails, or None; the first one's module where Python itself ends.

        Raises:
            RuntimeError: pytest did not run them.
        """
        status, output = self.run(*PYTEST, *tests, seconds=seconds)
        if status == 0:
            return None
        pattern = r"^(?:FAILED|ERROR) (tests/\S+?\.py(?:::.*?)?)(?: - .*)?$"
        failed = re.findall(pattern, output, re.MULTILINE)
        if status in (1, 2) and failed:  # 2: the product cannot even be imported
            return failed[0]
        if status is None or status < 0:  # it takes too long, or has crashed
            return tests[0].split("::")[0]
        raise RuntimeError(f"pytest ended with {status}:\n{output[-2000:]}")

    def build(self) -> None:
        """Compiles the extension anew, in place.

        Raises:
            RuntimeError: it does not compile.
        """
        status, output = self.run("setup.py", "-q", "build_ext", "--inplace")
        if status != 0:
            raise RuntimeError(f"the extension does not compile:\n{output[-2000:]}")

    def try_mutant(self, mutant: Mutant, coverage: dict, earlier: str | None) -> tuple:
        """Which test noticed a mutant (None: no one), and after how many seconds."""
        began, place = time.monotonic(), self.directory / mutant.file
        is_built = mutant.file.startswith("cuda_ext/csrc") and not mutant.file.endswith(".cuh")
        modules = modules_for(mutant, coverage)
        if not modules:
            return None, 0.0
        right = place.read_text()
        place.write_text(right.replace(mutant.old, mutant.new))
        try:
            if is_built:
                self.build()
            for module in ([earlier] if earlier else []) + modules:
                usual = coverage.get(module.split("::")[0], {"seconds": 60})["seconds"]
                killer = self.test([module], LEAST_SECONDS + PATIENCE * usual)
                if killer:
                    return killer, time.monotonic() - began
            return None, time.monotonic() - began
        finally:
            place.write_text(right)
            if is_built:
                for library in PROJECT_DIR.glob("cuda_ext/*.so"):
                    shutil.copy2(library, self.directory / "cuda_ext" / library.name)


@functools.cache
def digest_of_the_files() -> str:
    """Of the product, and of what test modules share."""
    digest = hashlib.sha256()
    for folder in (*PRODUCT, "tests"):
        for path in sorted((PROJECT_DIR / folder).rglob("*")):
            is_code = path.suffix in (".py", ".cpp", ".cuh", ".inl", ".h")
            if is_code and path.parent != HERE and not path.name.startswith("test_"):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def state_of(mutant: Mutant, killer: str) -> str:
    """A digest of everything that a verdict depends on."""
    module = (PROJECT_DIR / killer.split("::")[0]).read_text()
    texts = (digest_of_the_files(), module, mutant.file, mutant.old, mutant.new)
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def revision() -> str:
    """The commit of this checkout."""
    command = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def machine() -> dict:
    """Where this ran."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {"cpu": names[0], "cores": os.cpu_count(), "python": platform.python_version()}


def run_all(mutants: list[Mutant], arguments: argparse.Namespace) -> int:
    """Tries mutants, several at once, and says what survived."""
    coverage = read_map()
    record = read_record()
    earlier = {name: entry["killed_by"] for name, entry in record["mutants"].items()}
    is_whole = len(mutants) == len(read_table())
    results = {}
    if is_whole:
        for mutant in mutants:
            entry = record["mutants"].get(mutant.name, {})
            if entry.get("killed_by") and entry.get("state") == state_of(
                mutant, entry["killed_by"]
            ):
                results[mutant.name] = entry
        print(f"{len(results)} of {len(mutants)} verdicts stand: nothing has changed for them")
    left = [mutant for mutant in mutants if mutant.name not in results]
    began, tried = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(arguments.workers):
            (Path(directory) / str(number)).mkdir()
            copies.put(Copy(Path(directory) / str(number)))

        def attempt(mutant: Mutant) -> tuple[Mutant, str | None, float]:
            copy = copies.get()
            try:
                return mutant, *copy.try_mutant(mutant, coverage, earlier.get(mutant.name))
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(arguments.workers) as pool:
            try:
                for future in as_completed([pool.submit(attempt, mutant) for mutant in left]):
                    mutant, killer, seconds = future.result()
                    tried += 1
                    results[mutant.name] = {
                        "killed_by": killer,
                        "seconds": round(seconds, 1),
                        "state": killer and state_of(mutant, killer),
                    }
                    survivors = [name for name, entry in results.items() if not entry["killed_by"]]
                    minutes = (time.monotonic() - began) / tried * (len(left) - tried) / 60
                    verdict = f"noticed by {killer}" if killer else f"SURVIVES: {mutant.breaks}"
                    print(
                        f"{tried}/{len(left)} {mutant.name}: {verdict} ({seconds:.0f} s); "
                        f"{len(survivors)} survive, {minutes:.0f} min left",
                        flush=True,
                    )
                    if is_whole:
                        write_record(results)
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                print("stopped; the same command goes on from here")
                return 130
        # A test that fails without any mistake would seem to notice everything.
        killers = sorted({entry["killed_by"] for entry in results.values() if entry["killed_by"]})
        wrong = copies.get().test(killers, 3600) if killers else None
    if wrong:
        print(f"{wrong} fails without any mutant: its verdicts mean nothing")
        return 1
    survivors = [name for name, entry in results.items() if not entry["killed_by"]]
    print(f"{len(results) - len(survivors)} of {len(results)} mutants are noticed by the tests")
    if survivors:
        print("not noticed: " + ", ".join(survivors))
    return 1 if survivors else 0


def write_record(results: dict) -> None:
    """The record, sorted, so that two runs can be compared."""
    content = {
        "what": "make mutants",
        "revision": revision(),
        "machine": machine(),
        "noticed": sum(bool(entry["killed_by"]) for entry in results.values()),
        "mutants": dict(sorted(results.items())),
    }
    partial = RECORD.with_name(RECORD.name + ".part")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(RECORD)


def make_map(workers: int) -> int:
    """Runs every test module under coverage, processes that it starts included."""
    modules = sorted(path.relative_to(PROJECT_DIR) for path in HERE.parent.glob("test_*.py"))
    modules = [module for module in modules if str(module) not in NOT_COUNTED]
    began, done = time.monotonic(), 0
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory(prefix="coverage-") as scratch:

        def measure(module: Path) -> tuple[str, dict]:
            place = Path(scratch) / module.stem
            place.mkdir()
            settings = place / "coveragerc"
            settings.write_text(
                "[run]\nparallel = true\npatch = subprocess, _exit\nsigterm = true\n"
                f"data_file = {place}/data\nsource = \n"
                + "".join(f"    {PROJECT_DIR / folder}\n" for folder in PRODUCT)
            )
            command = [sys.executable, "-m", "coverage", "run", f"--rcfile={settings}"]
            command += ["-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
            start = time.monotonic()
            subprocess.run(
                [*command, str(module)], cwd=PROJECT_DIR, capture_output=True, check=False
            )
            return str(module), {
                "seconds": round(time.monotonic() - start, 1),
                "functions": executed_functions(place, settings),
            }

        with ThreadPoolExecutor(workers) as pool:
            for name, entry in pool.map(measure, modules):
                done += 1
                found[name] = entry
                minutes = (time.monotonic() - began) / done * (len(modules) - done) / 60
                print(f"{done}/{len(modules)} {name}: {entry['seconds']} s, {minutes:.0f} min left")
    write_map(found)
    return 0


def write_map(found: dict[str, dict]) -> None:
    """Writes modules with their seconds, and for each function the numbers of its modules."""
    modules, functions_of = sorted(found), {}
    for number, module in enumerate(modules):
        for function in found[module]["functions"]:
            functions_of.setdefault(function, []).append(number)
    content = {
        "modules": [[module, found[module]["seconds"]] for module in modules],
        "functions": {
            name: " ".join(map(str, numbers)) for name, numbers in sorted(functions_of.items())
        },
    }
    COVERAGE.write_text(json.dumps(content, indent=0) + "\n")


def read_map() -> dict[str, dict]:
    """Test module -> its seconds, and the functions that it runs."""
    content = json.loads(COVERAGE.read_text())
    found = {m: {"seconds": s, "functions": set()} for m, s in content["modules"]}
    for function, numbers in content["functions"].items():
        for number in numbers.split():
            found[content["modules"][int(number)][0]]["functions"].add(function)
    return found


def executed_functions(place: Path, settings: Path) -> list[str]:
    """`file:function` of each function of which a line ran."""
    from coverage import Coverage

    coverage = Coverage(config_file=str(settings))
    coverage.combine([str(place)])
    data = coverage.get_data()
    found = set()
    for name in data.measured_files():
        path = Path(name)
        if not path.is_file():
            continue
        lines, relative = set(data.lines(name) or ()), path.relative_to(PROJECT_DIR)
        for function, first, last in functions(path.read_text()):
            if any(first <= line <= last for line in lines):
                found.add(f"{relative}:{function}")
        if lines:
            found.add(f"{relative}:{MODULE_LEVEL}")
    return sorted(found)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python tests/mutants/run.py", description=__doc__.split("\n")[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of mutants; default: all")
    parser.add_argument("--sample", type=int, metavar="N", help="N, chosen by the revision")
    parser.add_argument("--map", action="store_true", help="measure what the modules cover, anew")
    parser.add_argument("--workers", type=int, default=2, help="at a time; default: %(default)s")
    arguments = parser.parse_args(argv)
    if arguments.map:
        return make_map(arguments.workers)
    try:
        mutants = read_table()
        known = {mutant.name: mutant for mutant in read_table(TABLE, WAITING)}
        unknown = [name for name in arguments.names if name not in known]
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)}: expected names of {TABLE.name} or {WAITING.name}"
            )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.names:
        mutants = [known[name] for name in arguments.names]
    if arguments.sample is not None:
        mutants = random.Random(revision()).sample(mutants, arguments.sample)
    return run_all(mutants, arguments)


if __name__ == "__main__":
    sys.exit(main())
