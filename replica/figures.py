"""Pictures of a run: `python -m replica.figures --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import sys
from pathlib import Path

from data_prep.arguments import nonempty_path, whole_number
from data_prep.errors import OneLineParser, command_for, print_line, run_command
from replica.results.augmentation import augmentation_figure
from replica.results.plots import draw_curves, draw_run
from replica.results.style import check_picture, save
from replica.training.run_directory import newest_run

MOST_IMAGES = 16  # a page


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog=command_for("replica.figures"),
        description="Draws a run's loss curve and the kernels of conv1; `curves RUN [RUN...]` "
        "draws several runs into one picture, `augmentation` what a run makes of its images.",
    )
    parser.add_argument("--run", type=nonempty_path, metavar="DIR", help="default: the newest run")
    parser.add_argument(
        "--out", type=nonempty_path, metavar="DIR", help="default: the run's own figures/"
    )
    chosen = parser.add_subparsers(dest="what", metavar="curves|augmentation")
    several = chosen.add_parser("curves", help="several runs in one picture")
    several.add_argument(
        "runs", type=nonempty_path, nargs="+", metavar="RUN", help="run directories"
    )
    several.add_argument(
        "--picture",
        type=nonempty_path,
        default=Path("curves.png"),
        metavar="FILE",
        help="default: %(default)s",
    )
    before_after = chosen.add_parser("augmentation", help="images before and after augmentation")
    before_after.add_argument(
        "--run",
        type=nonempty_path,
        default=argparse.SUPPRESS,  # else it would hide what stands before `augmentation`
        metavar="DIR",
        help="default: the newest run",
    )
    before_after.add_argument(
        "--data", type=nonempty_path, metavar="DIR", help="shards (default: those of the run)"
    )
    before_after.add_argument(
        "--images",
        type=whole_number(1, MOST_IMAGES),
        default=4,
        metavar="N",
        help="the first ones of training, at most so many as a batch has (default: %(default)s)",
    )
    before_after.add_argument(
        "--picture",
        type=nonempty_path,
        metavar="FILE",
        help="default: augmentation.png in the run's own figures/",
    )
    return parser.parse_args(argv)


def draw(arguments: argparse.Namespace) -> None:
    """Draws, and prints the names of the files."""
    if arguments.what == "curves":
        draw_curves(arguments.runs, arguments.picture)
        print_line(f"wrote {arguments.picture}")
        return
    run_dir = arguments.run or newest_run(purpose="draw")
    if arguments.run is None:
        print_line(f"run: {run_dir} (no --run given: the newest)")
    out_dir = arguments.out or run_dir / "figures"
    if arguments.what == "augmentation":
        if arguments.picture:
            check_picture(arguments.picture)
        figure = augmentation_figure(run_dir, arguments.data, num_images=arguments.images)
        if not arguments.picture:
            out_dir.mkdir(parents=True, exist_ok=True)
        picture = arguments.picture or out_dir / "augmentation.png"
        save(figure, picture)
        print_line(f"wrote {picture}")
        return
    for path in draw_run(run_dir, out_dir):
        print_line(f"wrote {path}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command("replica.figures", lambda: draw(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
