"""Tests a network: `python -m replica.test --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import contextlib
import json
import re
import sys
from dataclasses import asdict

from data_prep.arguments import MOST_PROCESSES, nonempty_name, nonempty_path, whole_number
from data_prep.errors import (
    EXIT_FAILURE,
    OneLineParser,
    UserError,
    command_for,
    printable,
    run_command,
)
from data_prep.files import check_can_write
from data_prep.manifest import PARTS
from data_prep.signals import interrupt
from replica.distributed.launch import run_processes
from replica.distributed.mesh import Mesh, Rank
from replica.distributed.worker import StopRequest
from replica.results.details import (
    MOST_SHOWN,
    TABLES,
    Details,
    as_csv,
    as_markdown,
    as_text,
)
from replica.results.ensemble import EQUAL
from replica.results.evaluation import NothingCountedError, devices_of_test, test_network
from replica.results.members import Share
from replica.results.test_result import TestResult
from replica.training.checkpoint import WEIGHTS
from replica.training.numerics import PRECISIONS
from replica.training.options import Say, say_nothing

# A batch holds all views of an image: 2 * 8 * 8 are the paper's 128.
MOST_PER_SIDE = 8
# A rank without a sign of life for so long has hung.
TIMEOUT_SECONDS = 600.0


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
        action="append",
        default=[],
        metavar="FILE",
        help="of a run, or the run's directory, whose best one is meant, or an export as "
        ".safetensors; more than once: the mean of their probabilities (default: the last one of "
        "the newest run)",
    )
    add(
        "--weights-of",
        type=nonempty_name,
        default=EQUAL,
        metavar="equal|search|NUMBERS",
        help="what each of several --checkpoint counts: the same, the multiples of 0.05 with the "
        "lowest top-5 error on val, or numbers between commas (default: %(default)s)",
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
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    form.add_argument(
        "--csv", action="store_true", help="print CSV: of the error rates, or of one --table alone"
    )
    form.add_argument("--markdown", action="store_true", help="print tables of Markdown")
    add(
        "--table",
        choices=TABLES,
        action="append",
        default=[],
        help="print this, too: errors of each class, pairs of classes that are confused, how often "
        "the network is right where it is so sure, or each network beside their mean and the "
        "paper's; may be given more than once",
    )
    add(
        "--save-probabilities",
        type=nonempty_path,
        metavar="FILE",
        help="write probabilities, labels and wnids to an .npz file",
    )
    add(
        "--submission",
        type=nonempty_path,
        metavar="FILE",
        help="of pictures without labels, write ILSVRC's submission: five class ids a line",
    )
    add(
        "--pictures",
        type=nonempty_path,
        metavar="DIR",
        help="for --submission: the pictures, with their numbers at the end of their names",
    )
    add(
        "--devkit",
        type=nonempty_path,
        metavar="DIR",
        help="for --submission: the directory that has ILSVRC's development kit, whose meta.mat "
        "numbers the classes",
    )
    add(
        "--gpus",
        type=whole_number(1, MOST_PROCESSES),
        metavar="N",
        help="devices that share the images; CPU processes where there is no GPU (default: 1)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    add(
        "--weights",
        choices=WEIGHTS,
        help="those of a run with --ema, or those of the last update (default: averaged where the "
        "checkpoint has them)",
    )
    add(
        "--model",
        type=nonempty_name,
        metavar="FILE:FUNCTION",
        help="of a checkpoint with your own network: the file that it was trained with, which is "
        "run",
    )
    add("--precision", choices=PRECISIONS, default="float32", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if arguments.csv and len(set(arguments.table)) > 1:
        parser.error("--csv prints one table: give --table once")
    check_submission(parser, arguments)
    return arguments


def check_submission(parser: OneLineParser, arguments: argparse.Namespace) -> None:
    """Refuses what does not belong together with --submission, or lacks it."""
    beside = {"--pictures": arguments.pictures, "--devkit": arguments.devkit}
    given = [name for name, value in beside.items() if value]
    lacking = [name for name, value in beside.items() if not value]
    if not arguments.submission:
        if given:
            parser.error(f"{given[0]} is for --submission: give that, too")
        return
    if lacking:
        parser.error(f"--submission needs {' and '.join(lacking)}")
    others = ("data", "part", "table", "save_probabilities", "json", "csv", "markdown", "gpus")
    given = [f"--{name.replace('_', '-')}" for name in others if getattr(arguments, name)]
    if arguments.precision != parser.get_default("precision"):
        given.append("--precision")
    if given:
        parser.error(f"--submission has no error rates: leave out {', '.join(given)}")


def test(arguments: argparse.Namespace) -> int:
    """Tests, prints, and returns the exit status."""
    if arguments.submission:
        return write_submission(arguments)
    saved = arguments.save_probabilities
    if saved:
        if saved.suffix != ".npz" or not saved.parent.is_dir() or saved.is_dir():
            raise UserError(
                f"--save-probabilities {saved}: expected a file that ends in .npz, in a directory "
                "that exists"
            )
        check_can_write(saved, f"--save-probabilities {saved}")
    devices = devices_of_test(arguments.gpus, arguments.device, say=teller(arguments))
    if devices.num_processes == 1:
        test_share(arguments, None)
        return 0
    sys.stdout.flush()
    status = run_processes(run_rank, arguments, devices, timeout=TIMEOUT_SECONDS, unit="batch")
    if status:  # 128 and the signal; `run_command` says that it was interrupted
        interrupt(status - 128)
    return 0


def write_submission(arguments: argparse.Namespace) -> int:
    """Writes the submission and returns the exit status."""
    # SciPy's reader of the development kit takes half a second to import.
    from replica.results.submission import submit

    check_can_write(arguments.submission, f"--submission {arguments.submission}")
    num_failed = submit(
        arguments.checkpoint,
        arguments.pictures,
        arguments.devkit,
        arguments.submission,
        views=arguments.views or "center",
        device=arguments.device,
        weights=arguments.weights,
        model=arguments.model,
        weights_of=arguments.weights_of,
        say=teller(arguments),
    )
    return EXIT_FAILURE if num_failed else 0


def run_rank(rank: Rank, arguments: argparse.Namespace, stop: StopRequest) -> None:
    """One of several ranks that test together."""
    with contextlib.suppress(NothingCountedError):
        test_share(arguments, Share(rank, Mesh(rank), stop))


def teller(arguments: argparse.Namespace) -> Say:
    """Says lines beside the result."""
    is_text = not (arguments.json or arguments.csv or arguments.markdown)

    def say(line: str) -> None:
        # Else standard output holds the result alone.
        print(printable(line), file=sys.stdout if is_text else sys.stderr)

    return say


def test_share(arguments: argparse.Namespace, share: Share | None) -> None:
    """Tests what is a rank's, or all; rank 0 prints."""
    saved = arguments.save_probabilities
    say = teller(arguments) if share is None or share.rank.index == 0 else say_nothing
    result, details = test_network(
        arguments.checkpoint,
        arguments.data,
        arguments.part,
        views=arguments.views or "center",
        device=arguments.device,
        precision=arguments.precision,
        weights=arguments.weights,
        weights_of=arguments.weights_of,
        keeps=saved is not None,
        most_images=None,
        model_source=arguments.model,
        say=say,
        share=share,
    )
    print(shown(result, details, arguments))
    if saved:
        details.save(saved)
        say(f"wrote {saved}")


def shown(result: TestResult, details: Details, arguments: argparse.Namespace) -> str:
    """The result and the tables that were asked for, in the form that was asked for."""
    tables = {name: details.rows(name) for name in dict.fromkeys(arguments.table)}
    if arguments.json:
        return json.dumps({**asdict(result), **tables}, indent=1)
    if arguments.csv:
        return as_csv(next(iter(tables.values())) if tables else [asdict(result)])
    if arguments.markdown:
        summary = [{"": name, "value": value} for name, value in asdict(result).items()]
        chosen = list(tables.values()) or [summary]
        return "\n\n".join(printable_lines(as_markdown(rows)) for rows in chosen)
    parts = [str(result)]
    for rows in tables.values():
        more = f"\n(the first {MOST_SHOWN} of {len(rows)})" if len(rows) > MOST_SHOWN else ""
        parts.append(as_text(rows[:MOST_SHOWN]) + more)
    return "\n\n".join(map(printable_lines, parts))


def printable_lines(text: str) -> str:
    """Lines in which names of unknown origin may stand, as `printable` shows them."""
    return "\n".join(map(printable, text.split("\n")))


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command("replica.test", lambda: test(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
