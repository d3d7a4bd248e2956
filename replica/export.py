"""A trained network for other programs: `python -m replica.export --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import sys
from pathlib import Path

from data_prep.arguments import nonempty_path
from data_prep.errors import OneLineParser, UserError, command_for, print_line, run_command
from data_prep.files import check_can_write, write_whole
from replica.results.exports import FORMATS, export
from replica.training.checkpoint import BEST, WEIGHTS, last_whole_checkpoint

CARD = ".md"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog=command_for("replica.export"),
        description="Writes a network as a file of other programs, with a model card in it.",
    )
    add = parser.add_argument
    add(
        "checkpoint",
        type=nonempty_path,
        metavar="CHECKPOINT",
        help="of a run, or the run's directory, whose best one is meant; or any file that "
        "replica.load reads",
    )
    add(
        "--format",
        choices=FORMATS,
        required=True,
        help="safetensors: weights, recipe, class names and mean image, for replica.load and "
        "--init; onnx: the network for ONNX Runtime and others; pt2: a program for "
        "torch.export.load",
    )
    add("--output", type=nonempty_path, required=True, metavar="FILE", help="what is written")
    add(
        "--card", type=nonempty_path, metavar="FILE", help="write the model card to a .md file, too"
    )
    add(
        "--weights",
        choices=WEIGHTS,
        help="those of a run with --ema, or those of the last update (default: averaged where the "
        "checkpoint has them)",
    )
    return parser.parse_args(argv)


def check_place(option: str, path: Path, suffix: str) -> None:
    """Refuses a file that could not be written, or whose name says something else."""
    if path.suffix.lower() != suffix or not path.parent.is_dir() or path.is_dir():
        raise UserError(
            f"{option} {path}: expected a file that ends in {suffix}, in a directory that exists"
        )
    check_can_write(path, f"{option} {path}")


def write(arguments: argparse.Namespace) -> None:
    """Writes the file, and the card where that was asked for."""
    check_place("--output", arguments.output, FORMATS[arguments.format])
    if arguments.card:
        check_place("--card", arguments.card, CARD)
    path = arguments.checkpoint
    if path.is_dir():
        best = path / BEST
        path = best if best.exists() else last_whole_checkpoint(path)[0]
    made = export(path, arguments.format, output=arguments.output.name, weights=arguments.weights)
    write_whole(arguments.output, made.data)
    print_line(f"wrote {arguments.output} ({len(made.data) / 1e6:.1f} MB): {made.what}")
    if arguments.card:
        write_whole(arguments.card, made.card.encode())
        print_line(f"wrote {arguments.card}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command("replica.export", lambda: write(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
