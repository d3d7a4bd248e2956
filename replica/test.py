"""Tests a network: `python -m replica.test --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import json
import re
import sys
from dataclasses import asdict

from data_prep.arguments import nonempty_path
from data_prep.errors import OneLineParser, command_for, printable, run_command
from data_prep.manifest import PARTS
from replica.results.evaluation import test_network
from replica.training.checkpoint import WEIGHTS
from replica.training.numerics import PRECISIONS

# A batch holds all views of an image: 2 * 8 * 8 are the paper's 128.
MOST_PER_SIDE = 8


def named_views(text: str) -> str:
    """Reads which crops of an image are averaged."""
    if text not in ("center", "ten") and not re.fullmatch(rf"grid:[1-{MOST_PER_SIDE}]", text):
        raise argparse.ArgumentTypeError(
            f"expected center, ten or grid:K with K of 1 to {MOST_PER_SIDE}, got {text!r}"
        )
    return text


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog=command_for("replica.test"),
        description="Top-1 and top-5 error of a checkpoint on the held-out part of its data.",
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        type=nonempty_path,
        metavar="FILE",
        help="default: the last one of the newest run",
    )
    add("--data", type=nonempty_path, metavar="DIR", help="shards (default: those of the run)")
    views = parser.add_mutually_exclusive_group()
    views.add_argument(
        "--ten-crop",
        action="store_const",
        dest="views",
        const="ten",
        help="average the softmax over the four corners, the center, and their reflections; "
        "without it, the central crop alone",
    )
    views.add_argument(
        "--views",
        type=named_views,
        metavar="center|ten|grid:K",
        help="crops that are averaged: the central one, ten as above, or K x K evenly spaced ones "
        f"(K of 1 to {MOST_PER_SIDE}) and their reflections (default: center)",
    )
    add(
        "--part",
        choices=PARTS,
        help="which images (default: val, or test in a data set without val)",
    )
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    add(
        "--weights",
        choices=WEIGHTS,
        help="those of a run with --ema, or those of the last update (default: averaged where the "
        "checkpoint has them)",
    )
    add("--precision", choices=PRECISIONS, default="float32", help="default: %(default)s")
    return parser.parse_args(argv)


def test(arguments: argparse.Namespace) -> None:
    """Tests and prints."""

    def say(line: str) -> None:
        # With --json, standard output holds the result alone.
        print(printable(line), file=sys.stderr if arguments.json else sys.stdout)

    result = test_network(
        arguments.checkpoint,
        arguments.data,
        arguments.part,
        views=arguments.views or "center",
        device=arguments.device,
        precision=arguments.precision,
        weights=arguments.weights,
        say=say,
    )
    print(json.dumps(asdict(result), indent=1) if arguments.json else result)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command("replica.test", lambda: test(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
