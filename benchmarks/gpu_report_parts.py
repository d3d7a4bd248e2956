"""What the parts of a GPU report run, and what they read from what is left."""

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from data_prep import PROJECT_DIR
from data_prep.files import sha256_of_file

NEEDS_GPU = "not measured: needs a GPU"
# Tests marked gpu: modules, and an expression for pytest's -k that divides the first one.
OPERATOR_MODULE, OTHER_MODULES = "tests/test_gpu.py", ("tests/test_numerics.py",)
TEST_PARTS = {
    "test-operators": ((OPERATOR_MODULE,), "not sanitizer and not training"),
    "test-training": ((OPERATOR_MODULE,), "training and not sanitizer"),
    "test-numerics": (OTHER_MODULES, ""),
    "sanitizer": ((OPERATOR_MODULE,), "sanitizer"),
}
SOME_TESTS_FAILED = 1  # pytest's exit status
PRECISIONS = ("float32", "tf32", "bf16")
# Of a recipe's run, beside the CPU's: few enough for two cores. `paper` takes 128 images a step.
STEPS = {"mini": 12, "paper": 3}
TRAIN_PER_CLASS, VAL_PER_CLASS, SEED = 32, 2, 7
# Of the first losses, which the same weights, images and masks give: what the tests allow between
# two processors. Later ones drift apart as roundings add up, and are recorded.
FIRST_LOSS_TOLERANCE = 1e-3
DRAW = (
    "import sys; from pathlib import Path; from data_prep.sources import toy; "
    f"size = toy.ToySize({SEED}, {TRAIN_PER_CLASS}, {VAL_PER_CLASS}); "
    "toy.draw(Path(sys.argv[1]), size=size, num_workers=1)"
)


@dataclass(frozen=True)
class Finding:
    """What a part found.

    Attributes:
        line: for the summary.
        numbers: for the record.
        text: for the log, where the programs did not print it themselves.
        problem: why the part failed although its programs ended well, or which of them failed.
        is_measured: False where everything in it needs a GPU, and there is none.
    """

    line: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    problem: str | None = None
    is_measured: bool = True


@dataclass(frozen=True)
class Part:
    """A part of the report.

    Attributes:
        about: what it does.
        commands: the programs, one after the other, given a directory that is removed afterwards.
        read: what they found, given the same directory.
        modules: what it needs beside the project's own dependencies.
        statuses_with_results: with which the programs may end and still have left results.
        still_holds: whether what it recorded is still so.
    """

    about: str
    commands: Callable[[Path], list[list[str]]]
    read: Callable[[Path], Finding]
    modules: tuple[str, ...] = ()
    statuses_with_results: tuple[int, ...] = ()
    still_holds: Callable[[Mapping[str, Any]], bool] = lambda _: True


def parts_for(device: str) -> dict[str, Part]:
    """All parts by name, in the order in which they run; `device` is cuda or cpu."""
    abouts = {
        "test-operators": "the operators on the GPU against the formula",
        "test-training": "training twice on the GPU, in each precision",
        "test-numerics": "a step on the GPU, in each way to compute, against the oracle's",
        "sanitizer": "compute-sanitizer's memcheck and racecheck over the operators",
    }
    return {
        "build": _build(device),
        **{name: _tests(abouts[name], *TEST_PARTS[name], device) for name in TEST_PARTS},
        "bench-operator": _benchmark(
            "the operator's speed on the GPU", device, "local_response_norm_gpu"
        ),
        "bench-convolution": _benchmark(
            "the convolutions of paper on the GPU, own and the library's",
            device,
            *("split_conv2d", "--device", device),
            *(
                ("--recipe", "mini", "--batch-size", "1", "--rounds", "3")
                if device == "cpu"
                else ()
            ),
        ),
        **{
            f"bench-training-{precision}": _benchmark(
                f"the speed of training steps, {precision}",
                device,
                *("training_gpu", "--precision", precision),
                # The script itself can be tried without a GPU.
                *(("--device", "cpu", "--recipe", "mini") if device == "cpu" else ()),
                *(("--batch-size", "4", "--steps", "1") if device == "cpu" else ()),
            )
            for precision in PRECISIONS
        },
        **{f"training-{recipe}": _training(recipe, device) for recipe in STEPS},
    }


# --- Building


def _build(device: str) -> Part:
    return Part(
        "the operators' libraries, for this Python and its PyTorch",
        lambda _: [
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            [sys.executable, "-m", "cuda_ext"],
        ],
        lambda _: _what_is_built(device),
        modules=("setuptools",),
        still_holds=lambda numbers: numbers["files"] == _libraries(),
    )


def _libraries() -> dict[str, str]:
    """The SHA-256 of each library that lies in the checkout."""
    files = sorted((PROJECT_DIR / "cuda_ext").glob("*.so"))
    return {path.name: sha256_of_file(path) for path in files}


def _what_is_built(device: str) -> Finding:
    command = [sys.executable, "-m", "cuda_ext", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT_DIR)
    built = json.loads(result.stdout)
    if built["nvcc"]:
        command = [built["nvcc"], "--version"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        built["nvcc_version"] = result.stdout.strip().splitlines()[-1]
    libraries = built["libraries"]
    needed = ("cpu", "cuda") if device == "cuda" else ("cpu",)
    problems = [
        f"{name}: {libraries[name]['reason']}" for name in needed if not is_live(libraries[name])
    ]
    line = "; ".join(
        f"{name} {library['built_for'] if is_live(library) else library['reason']}"
        for name, library in libraries.items()
    )
    return Finding(line, {**built, "files": _libraries()}, problem="; ".join(problems) or None)


def is_live(library: Mapping[str, Any]) -> bool:
    """Whether `python -m cuda_ext --json` says that it is loaded."""
    return bool(library["is_live"])


# --- Tests


def pytest_arguments(modules: tuple[str, ...], expression: str) -> list[str]:
    """What chooses the tests of a part."""
    return ["-m", "gpu", *(("-k", expression) if expression else ()), *modules]


def _tests(about: str, modules: tuple[str, ...], expression: str, device: str) -> Part:
    return Part(
        about,
        lambda work: [
            [
                *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
                *(f"--junitxml={work / 'tests.xml'}", f"--basetemp={work / 'tests'}"),
                *pytest_arguments(modules, expression),
            ]
        ],
        lambda work: read_tests(work / "tests.xml", device),
        modules=("pytest",),
        statuses_with_results=(SOME_TESTS_FAILED,),
    )


def read_tests(path: Path, device: str) -> Finding:
    """What pytest's record says: on a GPU a skip is a failure."""
    failed: dict[str, str] = {}
    skipped: dict[str, str] = {}
    count = 0
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        count += 1
        for outcome in case:
            if outcome.tag in ("failure", "error"):
                failed[name] = (outcome.get("message") or "").split("\n")[0]
            elif outcome.tag == "skipped":
                skipped[name] = outcome.get("message") or ""
    problems = []
    if not count:
        problems.append("no test was found")
    if failed:
        problems.append(f"{len(failed)} of {count} tests failed: {', '.join(failed)}")
    if skipped and device == "cuda":
        reasons = ", ".join(sorted(set(skipped.values())))
        problems.append(f"{len(skipped)} of {count} tests were skipped: {reasons}")
    num_passed = count - len(failed.keys() | skipped.keys())
    return Finding(
        f"{num_passed} of {count} tests passed",
        {"tests": count, "passed": num_passed, "failed": failed, "skipped": skipped},
        problem="; ".join(problems) or None,
        is_measured=bool(num_passed or failed),
    )


# --- Speed


def _benchmark(about: str, device: str, *arguments: str) -> Part:
    return Part(
        about,
        lambda work: [
            [sys.executable, "-m", "benchmarks", *arguments, "--save", str(work / "rows.json")]
        ],
        lambda work: read_rows(work / "rows.json", device),
    )


def read_rows(path: Path, device: str) -> Finding:
    """What a benchmark saved: on a GPU something must have been measured."""
    saved = json.loads(path.read_bytes())
    rows = saved["rows"]
    measured = [row for row in rows if row["value"] is not None]
    return Finding(
        f"{len(measured)} of {len(rows)} figures measured",
        {"machine": saved["machine"], "rows": rows},
        problem="nothing was measured" if device == "cuda" and not measured else None,
        is_measured=bool(measured),
    )


# --- Training


def _training(recipe: str, device: str) -> Part:
    def commands(work: Path) -> list[list[str]]:
        toy, shards = str(work / "toy"), str(work / "shards")
        build = ["data_prep/build_shards.py", "--source", "kaggle", "--input", toy]
        train = ["-m", "replica.train", "--gpus", "1", "--recipe", recipe, "--data", shards]
        train += ["--steps", str(STEPS[recipe]), "--seed", str(SEED), "--no-tensorboard"]
        ways = (("device", device), ("cpu", "cpu"))
        return [
            [sys.executable, "-c", DRAW, toy],
            [sys.executable, *build, "--output", shards, "--workers", "1"],
            *(
                [sys.executable, *train, "--device", kind, "--out", str(work / name)]
                for name, kind in ways
            ),
        ]

    return Part(
        f"{STEPS[recipe]} steps of `{recipe}` with --gpus 1, and the same on the CPU",
        commands,
        lambda work: read_training(work, device),
    )


def read_training(work: Path, device: str) -> Finding:
    """Losses of both runs side by side; the first ones must agree."""
    steps = {name: _steps(work / name) for name in ("device", "cpu")}
    losses = {name: [step["loss"] for step in of_run] for name, of_run in steps.items()}
    # The first step of a run also sets up what the others use.
    speeds = {
        name: statistics.median(step["images_per_second"] for step in of_run[1:])
        for name, of_run in steps.items()
    }
    pairs = list(zip(losses["device"], losses["cpu"], strict=True))
    differences = [abs(ours - cpus) / abs(cpus) for ours, cpus in pairs]
    title = "GPU" if device == "cuda" else "stand-in"
    lines = [f"step  loss, {title:<12}loss, CPU     relative difference"]
    lines += [
        f"{step:>4}  {ours:<18.9f}{cpus:<14.9f}{difference:.1e}"
        for step, ((ours, cpus), difference) in enumerate(zip(pairs, differences, strict=True), 1)
    ]
    speed = f"{speeds['device']:.0f} images/s on the {title}, {speeds['cpu']:.0f} on the CPU"
    problem = None
    if not all(math.isfinite(loss) for pair in pairs for loss in pair):
        problem = f"losses are not finite: {losses}"
    elif differences[0] > FIRST_LOSS_TOLERANCE:
        problem = (
            f"the first losses are {pairs[0][0]:.6g} and, on the CPU, {pairs[0][1]:.6g}: expected "
            f"a relative difference of at most {FIRST_LOSS_TOLERANCE:g}"
        )
    return Finding(
        f"losses differ by at most {max(differences):.1e} of their size; {speed}",
        {
            "losses": losses,
            "largest_relative_difference": max(differences),
            "images_per_second": speeds,
        },
        text="\n".join([*lines, speed]),
        problem=problem,
    )


def _steps(run_dir: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "step"]
