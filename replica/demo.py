"""The whole path on the embedded data set: `make demo`, or `python -m replica.demo --help`.

Runs the three commands in directories below `demo/`: draws the pictures and builds the shards,
trains the two towers in two processes, tests with ten crops. Then it compares the error rate with
chance and with the range that this demo is expected to reach.
"""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from data_prep.arguments import nonempty_path
from data_prep.errors import (
    EXIT_FAILURE,
    EXIT_USER_ERROR,
    OneLineParser,
    UserError,
    command_for,
    print_line,
    printable,
    run_command,
)
from replica import train
from replica.recipes import MINI
from replica.results.plots import draw_run
from replica.training.run import recipe_of

DEFAULT_OUT = Path("demo")
CHANCE_TOP1_ERROR = 0.9  # ten classes
CHANCE_TOP5_ERROR = 0.5
# Ten-crop top-1 error that the demo reaches; REPRODUCE.md, "The demo", has the runs.
EXPECTED_TOP1_ERROR = (0.0, 0.136)


def run_shown(module: str, *arguments: str) -> str:
    """Runs one of the commands, shows it, and returns its standard output.

    Raises:
        subprocess.CalledProcessError: it failed; its own message has been shown.
    """
    print(printable(f"$ {command_for(module)} {shlex.join(arguments)}"), flush=True)
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def judge(top1_error: float) -> tuple[bool, str]:
    """Whether an error rate is in the expected range, and the sentence that says so."""
    low, high = EXPECTED_TOP1_ERROR
    is_inside = low <= top1_error <= high
    verdict = "inside" if is_inside else "OUTSIDE"
    return is_inside, (
        f"top-1 error {top1_error:.1%} is {verdict} the expected range {low:.1%} to {high:.1%} "
        f"(chance: {CHANCE_TOP1_ERROR:.0%})"
    )


def run_demo(out: Path, train_arguments: list[str]) -> dict[str, Any]:
    """Runs the path and returns what result.json holds."""
    began = time.time()
    shards, run_dir = out / "shards", out / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    build = ["--source", "toy", "--input", str(out / "toy"), "--output", str(shards)]
    print(run_shown("data_prep.build_shards", *build))
    begin = ["--gpus", "2", "--device", "cpu", "--data", str(shards), "--out", str(run_dir)]
    print(run_shown("replica.train", *begin, *train_arguments))
    checkpoint = sorted(run_dir.glob("checkpoint-*.pt"))[-1]
    test = ["--ten-crop", "--json", "--device", "cpu", "--checkpoint", str(checkpoint)]
    tested = json.loads(run_shown("replica.test", *test))
    try:
        figures = draw_run(run_dir, out)
    except UserError as error:  # matplotlib is not installed
        print_line(f"no pictures: {error}")
        figures = []
    is_inside, sentence = judge(tested["top1_error"])
    return {
        **tested,
        "chance_top1_error": CHANCE_TOP1_ERROR,
        "chance_top5_error": CHANCE_TOP5_ERROR,
        "expected_top1_error": EXPECTED_TOP1_ERROR,
        "is_as_expected": is_inside,
        "verdict": sentence,
        "figures": [str(path) for path in figures],
        "seconds": round(time.time() - began),
    }


def parse_arguments(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Reads the command line: the demo's own options, and those of `replica.train`."""
    parser = OneLineParser(
        prog=command_for("replica.demo"),
        description="Draws, builds, trains on two CPU processes, tests with ten crops, and judges.",
        epilog="Further options go to replica.train, such as --seed 1 or --lr 0.",
    )
    parser.add_argument(
        "--out", type=nonempty_path, metavar="DIR", default=DEFAULT_OUT, help="default: %(default)s"
    )
    arguments, rest = parser.parse_known_args(argv)
    options = train.parse_arguments(rest)  # before anything is drawn
    if options.resume or options.dry_run:
        parser.error("--resume and --dry-run: expected a new run")
    recipe_of(options.recipe or MINI.name, options)
    return arguments, rest


def demo(arguments: argparse.Namespace, train_arguments: list[str]) -> int:
    """Runs the demo and prints what came of it; returns 1 where the error is outside the range."""
    try:
        result = run_demo(arguments.out, train_arguments)
    except subprocess.CalledProcessError as error:
        is_users = error.returncode == EXIT_USER_ERROR
        return EXIT_USER_ERROR if is_users else EXIT_FAILURE
    path = arguments.out / "result.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for name in ("top1", "top5"):
        low, high = result[f"{name}_interval"]
        print(
            f"ten-crop {name[:3]}-{name[3]} error: {result[f'{name}_error']:.1%} (95 % interval "
            f"{low:.1%} to {high:.1%}; chance {result[f'chance_{name}_error']:.0%})"
        )
    print(result["verdict"])
    print_line(f"wrote {', '.join([str(path), *result['figures']])} in {result['seconds']} s")
    return 0 if result["is_as_expected"] else EXIT_FAILURE


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command(
        "replica.demo",
        lambda: demo(*parse_arguments(argv)),
        when_interrupted="interrupted; run it again, what is drawn and built is kept",
    )


if __name__ == "__main__":
    sys.exit(main())
