"""One page that tells of a run: `python -m replica.report --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import sys
from pathlib import Path

from data_prep.arguments import nonempty_path, whole_number
from data_prep.errors import (
    OneLineParser,
    UserError,
    command_for,
    print_aside,
    print_line,
    run_command,
)
from data_prep.files import check_can_write, write_whole
from replica.results.report import missing_parts, report
from replica.results.report_contents import gather, read_record

REPORT_FILE = "report.html"
MOST_IMAGES = 10_000_000


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog=command_for("replica.report"),
        description="Writes one HTML file that tells of a run, or of several side by side: what "
        "was run, curves, error rates beside the paper's, kernels, confusions, mistakes, "
        "neighbors, differences from the paper, and how to repeat it. The file needs no network.",
    )
    add = parser.add_argument
    add("runs", type=nonempty_path, nargs="+", metavar="RUN", help="run directories")
    add(
        "--output",
        type=nonempty_path,
        metavar="FILE",
        help=f"default: {REPORT_FILE} in the directory of the first run",
    )
    add("--data", type=nonempty_path, metavar="DIR", help="shards (default: those of the run)")
    add(
        "--images",
        type=whole_number(1, MOST_IMAGES),
        metavar="N",
        help="test so many held-out images, with ten crops (default: all, or the central crops of "
        "as many as take seconds; the report says which)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    return parser.parse_args(argv)


def output_of(arguments: argparse.Namespace) -> Path:
    """Where the report goes.

    Raises:
        UserError: it cannot be written there.
    """
    path: Path = arguments.output or arguments.runs[0] / REPORT_FILE
    if path.suffix.lower() not in (".html", ".htm") or not path.parent.is_dir() or path.is_dir():
        raise UserError(
            f"--output {path}: expected a file that ends in .html, in a directory that exists"
        )
    check_can_write(path, f"--output {path}")
    return path


def write(arguments: argparse.Namespace) -> None:
    """Writes the report, and says what it lacks."""
    for run_dir in arguments.runs:
        read_record(run_dir)  # before anything is tested
    path = output_of(arguments)
    runs = []
    for run_dir in arguments.runs:
        print_aside(f"{run_dir}: reading its records, then testing its best network")
        run = gather(
            run_dir,
            arguments.data,
            num_images=arguments.images,
            device=arguments.device,
            say=print_aside,
        )
        for what, why in missing_parts(run):
            print_aside(f"{run_dir}: {what}: not shown: {why}")
        runs.append(run)
    content = report(runs).encode()
    write_whole(path, content)
    print_line(f"wrote {path} ({len(content) / 1e6:.1f} MB)")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command("replica.report", lambda: write(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
