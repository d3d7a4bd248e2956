"""Checks a data set by reading all of it again: `python data_prep/verify_shards.py --help`."""

import sys
from pathlib import Path

# A script's own folder comes first on sys.path; the project's root is what imports need.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep import require_environment

require_environment(__name__)

import argparse
import secrets

from data_prep import contact_sheet, verification
from data_prep.arguments import (
    MOST_PROCESSES,
    MOST_SEED,
    nonempty_name,
    nonempty_path,
    whole_number,
)
from data_prep.errors import OneLineParser, UserError, command_for, print_line, run_command
from data_prep.shards import open_data_set
from data_prep.workers import num_cores


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog=command_for("data_prep.verify_shards"),
        description="Reads a data set again, compares all of it with its manifest, and finds "
        "images that are there twice; or draws some of its pictures.",
    )
    parser.add_argument(
        "data",
        type=nonempty_path,
        metavar="DIR",
        nargs="?",
        default=Path("shards"),
        help="default: %(default)s",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="look at sizes, labels and the form of the files only, not at the pixels",
    )
    parser.add_argument(
        "--workers",
        type=whole_number(1, MOST_PROCESSES),
        metavar="N",
        help="default: one per core",
    )
    parser.add_argument(
        "--contact-sheet",
        type=nonempty_path,
        metavar="FILE.png",
        help="draw random pictures with their labels, instead of comparing files",
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        type=nonempty_name,
        metavar="NAME",
        help="draw only this class: a wnid or a name",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0, MOST_SEED),
        help="of the drawing (default: another each time)",
    )
    arguments = parser.parse_args(argv)
    if arguments.contact_sheet is None:
        for option, value in (("class", arguments.class_name), ("seed", arguments.seed)):
            if value is not None:
                parser.error(f"--{option}: expected --contact-sheet beside it")
    elif arguments.quick:
        parser.error("--quick: expected no --contact-sheet beside it")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Checks or draws what the command line asks for."""
    data = open_data_set(arguments.data)
    if arguments.contact_sheet is not None:
        seed = secrets.randbelow(2**32) if arguments.seed is None else arguments.seed
        num_pictures = contact_sheet.draw(
            data, arguments.contact_sheet, seed=seed, class_name=arguments.class_name
        )
        print_line(f"{arguments.contact_sheet}: {num_pictures} pictures, seed {seed}")
        return
    faults = verification.stray_files(data)
    checks: list[verification.ShardCheck] = []
    if not arguments.quick:
        checks = verification.verify(data, num_workers=arguments.workers or num_cores())
        faults = [*verification.faults_of(data, checks), *faults]
    print("\n".join(verification.describe_parts(data)))
    if checks:
        duplicates = verification.find_duplicates(data, checks)
        for line in verification.describe_duplicates(data, duplicates):
            print_line(line)
    for fault in faults:
        print_line(f"fault: {fault}")
    if faults:
        raise UserError(
            f"{arguments.data}: {len(faults)} faults: remove the files that are named and build "
            "again; the others are kept"
        )
    how = "has the files, sizes and labels" if arguments.quick else "is in every byte"
    print_line(f"{arguments.data}: {how} that its manifest says")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command(
        "verify_shards",
        lambda: run(parse_arguments(argv)),
        when_interrupted="interrupted; nothing was changed",
    )


if __name__ == "__main__":
    sys.exit(main())
