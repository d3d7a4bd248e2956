"""Runs side by side in one table: `python -m replica.compare --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import json
import sys
from dataclasses import asdict

from data_prep.arguments import nonempty_path
from data_prep.errors import OneLineParser, command_for, print_aside, printable, run_command
from replica.results.comparison import compared_run, comparison
from replica.results.details import as_csv, as_markdown, as_text

PROGRAM = "replica.compare"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog=command_for(PROGRAM),
        description="One table of runs, a row for each variant over its seeds: loss, top-1 and "
        "top-5 error (fractions) on the held-out images at the validation with the lowest top-1 "
        "error, which is chosen on these images; the epoch of it, the seconds of a run, and its "
        "devices. Epochs with ... behind them are of a run that has not come to its end.",
    )
    parser.add_argument(
        "runs", type=nonempty_path, nargs="+", metavar="RUN", help="the directory of a run"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json", action="store_true", help="print one JSON object: the rows, and each run"
    )
    form.add_argument("--csv", action="store_true", help="print CSV")
    form.add_argument("--markdown", action="store_true", help="print a table of Markdown")
    return parser.parse_args(argv)


def show(arguments: argparse.Namespace) -> None:
    """Prints the table."""
    runs = [compared_run(path) for path in arguments.runs]
    rows = comparison(runs, [*map(str, arguments.runs)])
    if len({run.data for run in runs}) > 1:
        print_aside("data: the runs are on several data sets, whose errors cannot be compared")
    if arguments.json:
        print(json.dumps({"variants": rows, "runs": [asdict(run) for run in runs]}, indent=1))
        return
    rows = [row | {"loss": "not finite"} if row["loss"] is None else row for row in rows]
    write = as_csv if arguments.csv else as_markdown if arguments.markdown else as_text
    print("\n".join(map(printable, write(rows).split("\n"))))


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command(PROGRAM, lambda: show(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
