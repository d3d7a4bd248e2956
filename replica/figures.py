"""Figures of runs and networks: `python -m replica.figures --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from data_prep.arguments import nonempty_name, nonempty_path, whole_number
from data_prep.errors import (
    OneLineParser,
    UserError,
    command_for,
    print_aside,
    print_line,
    run_command,
)
from data_prep.files import check_can_write
from replica.network.own_network import without_model
from replica.predict import names_of
from replica.recipes import PAPER, find_recipe, with_changes
from replica.results.architecture import architecture_figure
from replica.results.augmentation import augmentation_figure
from replica.results.class_figures import classes_figure, confusion_figure
from replica.results.ensemble import EQUAL
from replica.results.evaluation import choose_data, test_network
from replica.results.held_out import predicted_images
from replica.results.mosaics import FirstKernels, activations_figure, first_kernels, kernels_figure
from replica.results.pictures import read_picture
from replica.results.plots import RUN_PICTURES, draw_curves, draw_run
from replica.results.prediction import checkpoint_file, load
from replica.results.prediction_figure import MOST_PICTURES, grid_figure, prediction_figure
from replica.results.style import check_picture, new_figure, save
from replica.training.run_directory import newest_run
from replica.training.run_record import RUN_FILE

MOST_IMAGES = 16  # of augmentation, a page
MOST_IN_GRID = 36  # a page
TOP = 5


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog=command_for("replica.figures"),
        description="Draws a run's loss curve and the kernels of conv1, or with one of the words "
        "below another figure, as PNG, SVG or PDF by the end of its file's name.",
    )
    parser.add_argument("--run", type=nonempty_path, metavar="DIR", help="default: the newest run")
    parser.add_argument(
        "--out", type=nonempty_path, metavar="DIR", help="default: the run's own figures/"
    )
    chosen = parser.add_subparsers(dest="what", metavar="FIGURE")
    _add_of_runs(chosen)

    kernels = chosen.add_parser("kernels", help="Figure 3: the first layer's, tower by tower")
    _add_checkpoint(kernels)
    kernels.add_argument("--gray", action="store_true", help="without their colors")
    kernels.add_argument(
        "--json", action="store_true", help="print the color energy of each kernel as one object"
    )
    _add_picture(kernels)

    architecture = chosen.add_parser("architecture", help="Figure 2: the network of a recipe")
    of_what = architecture.add_mutually_exclusive_group()
    of_what.add_argument("--recipe", type=nonempty_name, metavar="NAME", help="default: paper")
    _add_checkpoint(of_what, default="that of --recipe")
    architecture.add_argument(
        "--set",
        type=nonempty_name,
        action="append",
        default=[],
        dest="changes",
        metavar="FIELD=VALUE",
        help="change a value of the recipe",
    )
    _add_picture(architecture)

    activations = chosen.add_parser("activations", help="the outputs of each layer for a picture")
    activations.add_argument("path", type=nonempty_path, metavar="PATH", help="of the picture")
    _add_checkpoint(activations)
    _add_picture(activations)

    for name, default, most, what in (
        ("predictions", MOST_PICTURES, MOST_PICTURES, "Figure 4, left: held-out images with bars"),
        ("grid", 24, MOST_IN_GRID, "held-out images, right and wrong"),
    ):
        images = chosen.add_parser(name, help=what)
        _add_checkpoint(images)
        _add_data(images)
        images.add_argument(
            "--images",
            type=whole_number(1, most),
            default=default,
            metavar="N",
            help=f"held-out ones, evenly over all, at most {most} (default: %(default)s)",
        )
        _add_picture(images)
    for name, what in (
        ("classes", "errors of each class"),
        ("confusion", "which classes are taken for which"),
    ):
        tested = chosen.add_parser(name, help=what)
        _add_checkpoint(tested)
        _add_data(tested)
        _add_picture(tested)
    arguments = parser.parse_args(argv)
    if arguments.what == "architecture" and arguments.checkpoint and arguments.changes:
        parser.error("--set changes a --recipe: leave it out, or --checkpoint")
    return arguments


def _add_of_runs(chosen: Any) -> None:
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
    _add_data(before_after)
    before_after.add_argument(
        "--images",
        type=whole_number(1, MOST_IMAGES),
        default=4,
        metavar="N",
        help="the first ones of training, at most so many as a batch has (default: %(default)s)",
    )
    _add_picture(before_after)


def _add_checkpoint(parser: Any, default: str = "the best of --run") -> None:
    parser.add_argument(
        "--checkpoint",
        type=nonempty_path,
        metavar="FILE",
        help=f"of a run, or the run's directory, whose best one is meant (default: {default})",
    )


def _add_data(parser: Any) -> None:
    parser.add_argument(
        "--data", type=nonempty_path, metavar="DIR", help="shards (default: those of the run)"
    )


def _add_picture(parser: Any) -> None:
    parser.add_argument(
        "--picture",
        type=nonempty_path,
        metavar="FILE",
        help="default: a PNG in the run's own figures/, or here for a file of no run",
    )


def draw(arguments: argparse.Namespace) -> None:
    """Draws, and prints the names of the files."""
    new_figure()  # where matplotlib lacks, it does so before a test, not behind it
    what = arguments.what
    if what == "curves":
        draw_curves(arguments.runs, arguments.picture)
        print_line(f"wrote {arguments.picture}")
        return
    if what and arguments.picture:
        check_picture(arguments.picture)
    if what == "architecture" and not arguments.checkpoint:
        recipe = with_changes(find_recipe(arguments.recipe or PAPER.name), arguments.changes)
        out_dir = arguments.out or Path()
        check_out(arguments, out_dir)
        figure = architecture_figure(recipe, title=f"recipe {recipe.name}")
        write(figure, arguments, out_dir)
    elif what is None or what == "augmentation":
        run_dir = _chosen_run(arguments)
        out_dir = arguments.out or run_dir / "figures"
        check_out(arguments, out_dir)
        if what:
            count = arguments.images
            figure = augmentation_figure(run_dir, arguments.data, num_images=count)
            write(figure, arguments, out_dir)
        else:
            for path in draw_run(run_dir, out_dir):
                print_line(f"wrote {path}")
    else:
        path = checkpoint_file(arguments.checkpoint or _chosen_run(arguments))
        of_run = path.parent / "figures" if (path.parent / RUN_FILE).is_file() else Path()
        out_dir = arguments.out or of_run
        check_out(arguments, out_dir)
        is_tested = what in ("classes", "confusion")
        with without_model("replica.figures"):
            figure = (figure_of_test if is_tested else figure_of_network)(path, arguments)
        write(figure, arguments, out_dir)


def check_out(arguments: argparse.Namespace, out_dir: Path) -> None:
    """Refuses a directory that cannot take the figures, before they are made."""
    if arguments.what and arguments.picture:
        return
    for name in (file_of(arguments),) if arguments.what else RUN_PICTURES:
        title = f"--out {out_dir}" if arguments.out else str(out_dir / name)
        check_can_write(out_dir / name, title, makes_directories=True)


def file_of(arguments: argparse.Namespace) -> str:
    """The name of a figure for which no --picture was given."""
    return f"{arguments.what}{'-gray' if getattr(arguments, 'gray', False) else ''}.png"


def figure_of_network(path: Path, arguments: argparse.Namespace) -> Any:
    """What a checkpoint alone, or with a picture or data, makes."""
    what, network = arguments.what, load(path)
    title = f"{path}: recipe {network.recipe.name}"
    if what == "architecture":
        num_classes = network.module.num_classes
        return architecture_figure(network.recipe, num_classes=num_classes, title=title)
    if what == "kernels":
        kernels = first_kernels(network)
        print_color(path, kernels, is_json=arguments.json)
        of_layer = f"{kernels.layer} of {title.removeprefix(f'{path}: ')}, {path}"
        return kernels_figure(kernels, title=of_layer, gray=arguments.gray)
    names = names_of(network, path)
    if what == "activations":
        image = read_picture(arguments.path, len(network.mean_image))
        title = f"{arguments.path.name}, {title}"
        return activations_figure(network, image, class_names=names, title=title)
    data = choose_data(arguments.data, path, print_line)
    count, is_grid = arguments.images, what == "grid"
    top = 1 if is_grid else TOP
    predicted = predicted_images(network, names, data, count, path=path, top=top)
    return (grid_figure if is_grid else prediction_figure)(predicted)


def figure_of_test(path: Path, arguments: argparse.Namespace) -> Any:
    """What a test of a checkpoint on the held-out part of its data makes."""
    result, details = test_network(
        [path],
        arguments.data,
        None,
        views="center",
        device="auto",
        precision="float32",
        weights=None,
        weights_of=EQUAL,
        keeps=False,
        most_images=None,
        model_source=None,  # a figure runs no file
        say=print_line,
        share=None,
    )
    title = (
        f"{path}: recipe {result.recipe}, {result.num_images} {result.part} images, center crop, "
        f"top-1 error {result.top1_error:.1%}, top-5 {result.top5_error:.1%}"
    )
    if arguments.what == "classes":
        return classes_figure(details.rows("classes"), title=title)
    return confusion_figure(details, title=title)


def print_color(path: Path, kernels: FirstKernels, *, is_json: bool) -> None:
    """Prints the color energy of the kernels: of each, or of each tower in a line."""
    if is_json:
        towers = [
            {"tower": tower, "color_energy": float(own.mean()), "kernels": own.tolist()}
            for tower, own in enumerate(kernels.color)
        ]
        print(json.dumps({"checkpoint": str(path), "layer": kernels.layer, "towers": towers}))
        return
    for tower, own in enumerate(kernels.color):
        print_line(
            f"{kernels.layer}, tower {tower}: color energy {own.mean():.3f} on average, "
            f"{own.min():.3f} to {own.max():.3f} of {len(own)} kernels (0 gray, 2/3 random)"
        )


def _chosen_run(arguments: argparse.Namespace) -> Path:
    run_dir: Path | None = arguments.run
    if run_dir:
        if not run_dir.is_dir():
            raise UserError(f"--run {run_dir}: no such directory: expected that of a run")
        return run_dir
    run_dir = newest_run(purpose="draw")
    say(f"run: {run_dir} (no --run given: the newest)", arguments)
    return run_dir


def say(line: str, arguments: argparse.Namespace) -> None:
    """Prints a line, to standard error where standard output holds JSON alone."""
    (print_aside if getattr(arguments, "json", False) else print_line)(line)


def write(figure: Any, arguments: argparse.Namespace, out_dir: Path) -> None:
    """Writes a figure to where it was asked for, or to a directory, which it makes."""
    if not arguments.picture:
        out_dir.mkdir(parents=True, exist_ok=True)
    picture = arguments.picture or out_dir / file_of(arguments)
    save(figure, picture)
    say(f"wrote {picture}", arguments)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command("replica.figures", lambda: draw(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
