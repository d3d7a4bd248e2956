"""What a network sees in pictures: `python -m replica.predict --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.arguments import nonempty_name, nonempty_path, whole_number
from data_prep.errors import (
    EXIT_FAILURE,
    OneLineParser,
    UserError,
    command_for,
    print_aside,
    print_line,
    run_command,
)
from replica.results.pictures import Found, NamedPictures, read_ahead, with_a_picture

if TYPE_CHECKING:
    from replica.results.prediction import TrainedNetwork

MOST_CLASSES = 1_000_000
BAR_CELLS = 20
# A cell that is filled by eighths; where the terminal has no such letters, whole ones alone.
EIGHTHS, FULL, PLAIN = " ▏▎▍▌▋▊▉", "█", "#"


@dataclass(frozen=True)
class Answer:
    """What a network says of a file: the keys of `replica.predict --json`.

    Attributes:
        file: its path.
        top: (class, probability), the most probable first; none where there is an error.
        error: why there is no answer.
    """

    file: str
    top: list[tuple[str, float]]
    error: str | None = None


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog=command_for("replica.predict"),
        description="The most probable classes of pictures, averaged over ten crops. The exit "
        "status is 1 where a picture could not be read; the others are done.",
    )
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        type=nonempty_name,
        metavar="PATH",
        help="a picture, a folder of pictures, or - for paths on standard input, one a line",
    )
    add(
        "--checkpoint",
        type=nonempty_path,
        metavar="FILE",
        help="of a run, or the run's directory, whose best one is meant (default: the newest run)",
    )
    add(
        "--top",
        type=whole_number(1, MOST_CLASSES),
        default=5,
        metavar="N",
        help="how many classes (default: %(default)s)",
    )
    add(
        "--model",
        type=nonempty_name,
        metavar="FILE:FUNCTION",
        help="of a checkpoint with your own network: the file that it was trained with, which is "
        "run",
    )
    add("--json", action="store_true", help="print one JSON array: file, top, error of each")
    add(
        "--picture",
        type=nonempty_path,
        metavar="FILE",
        help="draw the first eight pictures with bars, as the paper's Figure 4; where a picture's "
        "folder is named after its class, that bar has a color of its own",
    )
    return parser.parse_args(argv)


def names_of(network: "TrainedNetwork", checkpoint: Path) -> list[str]:
    """A name for each class that no other has; without names in the checkpoint, a number.

    Raises:
        UserError: the checkpoint has another number of names than of classes.
    """
    num_classes = network.module.num_classes
    names, wnids = network.class_names, network.wnids
    if not names:
        print_aside(f"{checkpoint}: has no class names: classes are shown by their numbers, from 0")
        return [f"class {label}" for label in range(num_classes)]
    for kind, known in (("names", names), ("identifiers", wnids)):
        if len(known) != num_classes:
            raise UserError(
                f"{checkpoint}: has {len(known)} class {kind} for {num_classes} classes: use "
                "another checkpoint of the run"
            )
    # ImageNet has two classes that are called crane.
    counts = Counter(names)
    return [
        f"{name} ({wnid})" if counts[name] > 1 else name
        for name, wnid in zip(names, wnids, strict=True)
    ]


def bar(probability: float, *, is_plain: bool) -> str:
    """A bar of `BAR_CELLS` cells; in whole ones where the terminal has no parts of them."""
    if is_plain:
        return (PLAIN * round(probability * BAR_CELLS)).ljust(BAR_CELLS)
    cells, eighths = divmod(round(8 * probability * BAR_CELLS), 8)
    return (FULL * cells + (EIGHTHS[eighths] if eighths else "")).ljust(BAR_CELLS)


def show(answer: Answer) -> None:
    """Prints an answer as text."""
    if answer.error is not None:
        print_aside(f"{answer.file}: {answer.error}")
        return
    print_line(answer.file)
    try:
        (EIGHTHS + FULL).encode(sys.stdout.encoding or "ascii")
        is_plain = False
    except UnicodeEncodeError:
        is_plain = True
    for name, probability in answer.top:
        print_line(f"  {probability:6.1%}  {bar(probability, is_plain=is_plain)}  {name}")


def answers(
    network: "TrainedNetwork", names: list[str], found: Iterator[Found], *, top: int
) -> Iterator[tuple[Answer, np.ndarray | None]]:
    """The answer to each picture, and the picture: uint8 (H, W, 3)."""
    for one, image in read_ahead(found, len(network.mean_image)):
        file = str(one.path)
        if image is None:
            yield Answer(file, [], one.problem), None
            continue
        probabilities = network.probabilities(image)
        if not np.isfinite(probabilities).all():
            error = "the network's output is no number: use another checkpoint"
            yield Answer(file, [], error), None
            continue
        order = np.argsort(-probabilities, kind="stable")[:top]
        best = [(names[label], float(probabilities[label])) for label in order]
        yield Answer(file, best), image


def label_of(path: str, network: "TrainedNetwork", names: list[str]) -> str | None:
    """The class that a picture's folder is named after, if it is."""
    folder = Path.cwd().joinpath(path).parent.name
    for known in (network.wnids, network.class_names):
        if known.count(folder) == 1:
            return names[known.index(folder)]
    return None


def predict(arguments: argparse.Namespace) -> int:
    """Predicts, prints, and returns the exit status."""
    named = NamedPictures(arguments.paths)
    found = with_a_picture(named)
    # PyTorch is imported when there is something to do.
    from replica.results.prediction import load
    from replica.training.run_directory import newest_run

    if arguments.picture:
        from replica.results.prediction_figure import MOST_PICTURES, Predicted, prediction_figure
        from replica.results.style import check_picture, save

        check_picture(arguments.picture)
    checkpoint = arguments.checkpoint or newest_run(purpose="predict with")
    if not arguments.checkpoint:
        print_aside(f"checkpoint: the best of {checkpoint} (no --checkpoint given: the newest run)")
    network = load(checkpoint, model=arguments.model)
    names = names_of(network, checkpoint)
    num_pictures = num_failed = 0
    drawn: list[Predicted] = []
    for answer, image in answers(network, names, found, top=arguments.top):
        num_pictures += 1
        num_failed += image is None
        if arguments.json:
            row = json.dumps(vars(answer))
            print(f"{',' if num_pictures > 1 else '['}\n{row}", end="")
        else:
            show(answer)
        if arguments.picture and image is not None and len(drawn) < MOST_PICTURES:
            label = label_of(answer.file, network, names)
            caption = label or Path(answer.file).name
            drawn.append(Predicted(image, caption, answer.top, label))
    if arguments.json:
        print("\n]")
    if named.passed_over:
        print_aside(
            f"{named.passed_over} files of folders passed over: their names are no pictures'"
        )
    if num_failed:
        print_aside(f"{num_failed} of {num_pictures} pictures failed")
    if drawn:
        save(prediction_figure(drawn), arguments.picture)
        print_aside(f"wrote {arguments.picture} ({len(drawn)} of {num_pictures} pictures)")
    return EXIT_FAILURE if num_failed else 0


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command("replica.predict", lambda: predict(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
