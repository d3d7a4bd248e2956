"""The training images nearest to some images: `python -m replica.neighbors --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
from data_prep.shards import DataSet
from replica.network.own_network import without_model
from replica.results.evaluation import choose_data
from replica.results.nearest_images import (
    Shown,
    evenly,
    features_of,
    hidden_layer,
    nearest_images,
    neighbors_figure,
)
from replica.results.neighbors import Neighbors
from replica.results.pictures import NamedPictures, read_ahead, with_a_picture
from replica.results.prediction import TrainedNetwork, load
from replica.results.style import check_picture, save
from replica.training.allocator import keep_large_blocks
from replica.training.run_directory import newest_run

MOST_QUERIES, MOST_NEIGHBORS = 1000, 100
MOST_ROWS = 8  # of the figure; the paper has five


@dataclass(frozen=True)
class Query:
    """An image whose neighbors are looked for.

    Attributes:
        name: its file, or its part and row.
        label: its class, where it is known.
        image: uint8 (H, W, 3).
    """

    name: str
    label: str | None
    image: np.ndarray


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog=command_for("replica.neighbors"),
        description="The training images whose features at the last hidden layer have the smallest "
        "Euclidean distance from those of some images, over the whole training set.",
    )
    add = parser.add_argument
    add(
        "paths",
        nargs="*",
        type=nonempty_name,
        metavar="PATH",
        help="pictures, folders of pictures, or - for paths on standard input (default: images "
        "that are held out)",
    )
    add(
        "--checkpoint",
        type=nonempty_path,
        metavar="FILE",
        help="of a run, or the run's directory, whose best one is meant (default: the newest run)",
    )
    add("--data", type=nonempty_path, metavar="DIR", help="shards (default: those of the run)")
    add(
        "--queries",
        type=whole_number(1, MOST_QUERIES),
        metavar="N",
        help="so many images that are held out, evenly over all (default: 5)",
    )
    add(
        "--neighbors",
        type=whole_number(1, MOST_NEIGHBORS),
        default=6,
        metavar="K",
        help="how many of each (default: %(default)s)",
    )
    add("--json", action="store_true", help="print one JSON array: query, class, neighbors of each")
    add(
        "--picture",
        type=nonempty_path,
        metavar="FILE",
        help=f"draw the first {MOST_ROWS} queries beside their neighbors, as the paper's Figure 4",
    )
    arguments = parser.parse_args(argv)
    if arguments.paths and arguments.queries:
        parser.error("--queries counts images of the data: leave it out, or the paths")
    return arguments


def named_queries(
    paths: list[str], network: TrainedNetwork, *, layer: str
) -> tuple[list[Query], torch.Tensor, int]:
    """Pictures that a user names, their features (Q, D), and how many could not be read."""
    queries: list[Query] = []
    features, num_failed = [], 0
    named = NamedPictures(paths)
    for found, image in read_ahead(with_a_picture(named), len(network.mean_image)):
        if image is None:
            print_aside(f"{found.path}: {found.problem}")
            num_failed += 1
            continue
        if len(queries) == MOST_QUERIES:
            raise UserError(f"expected at most {MOST_QUERIES} pictures, got more: name fewer")
        queries.append(Query(str(found.path), None, image))
        features.append(torch.from_numpy(network.features(image, layer=layer)))
    if named.passed_over:
        print_aside(
            f"{named.passed_over} files of folders passed over: their names are no pictures'"
        )
    if not queries:
        raise UserError("expected a picture that can be read, got none")
    return queries, torch.stack(features), num_failed


def held_out_queries(
    data: DataSet, count: int, network: TrainedNetwork, *, layer: str
) -> tuple[list[Query], torch.Tensor]:
    """Images that training does not see, evenly over all, and their features (Q, D)."""
    part = data.part(data.held_out)
    rows = evenly(len(part), count)
    queries = [
        Query(f"{data.held_out} {row}", data.class_names[part.labels[row]], part.image(row))
        for row in rows
    ]
    return queries, torch.cat(list(features_of(network, part, rows, layer=layer)))


def rows_of(data: DataSet, queries: list[Query], found: Neighbors) -> list[dict[str, Any]]:
    """The keys of `replica.neighbors --json`."""
    return [
        {
            "query": query.name,
            "class": query.label,
            "neighbors": [
                {
                    "row": int(row),
                    "picture": data.train.picture(int(row)),
                    "class": data.class_names[data.train.labels[row]],
                    "distance": float(distance),
                }
                for row, distance in zip(rows, distances, strict=True)
            ],
        }
        for query, rows, distances in zip(queries, found.rows, found.distances, strict=True)
    ]


def draw(data: DataSet, queries: list[Query], found: Neighbors, picture: Path) -> None:
    """Draws the first queries and their neighbors."""
    first = [Shown(one.image, one.label or Path(one.name).name) for one in queries[:MOST_ROWS]]
    labels = data.train.labels
    neighbors = [
        [Shown(data.train.image(int(row)), data.class_names[labels[row]]) for row in rows]
        for rows in found.rows[:MOST_ROWS]
    ]
    save(neighbors_figure(first, neighbors), picture)
    print_aside(f"wrote {picture} ({len(first)} of {len(queries)} queries)")


def search(arguments: argparse.Namespace) -> int:
    """Searches, prints, and returns the exit status."""
    keep_large_blocks()  # before the first tensor is read
    if arguments.picture:
        check_picture(arguments.picture)
    checkpoint = arguments.checkpoint or newest_run(purpose="search with")
    if not arguments.checkpoint:
        print_aside(f"checkpoint: the best of {checkpoint} (no --checkpoint given: the newest run)")
    with without_model("replica.neighbors"):
        network = load(checkpoint)
    layer = hidden_layer(network)
    at = checkpoint / "best.pt" if checkpoint.is_dir() else checkpoint
    data = choose_data(arguments.data, at, print_aside)
    num_failed = 0
    if arguments.paths:
        queries, features, num_failed = named_queries(arguments.paths, network, layer=layer)
    else:
        queries, features = held_out_queries(data, arguments.queries or 5, network, layer=layer)
    found = nearest_images(network, features, data.train, layer=layer, k=arguments.neighbors)
    rows = rows_of(data, queries, found)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        print_line(
            f"{layer}, {features.shape[1]} units: Euclidean distances, of all {len(data.train)} "
            "training images"
        )
        for row in rows:
            print_line(f"{row['query']}" + (f" ({row['class']})" if row["class"] else ""))
            for one in row["neighbors"]:
                print_line(f"  {one['distance']:10.4g}  {one['class']}  {one['picture']}")
    same = [
        one["class"] == row["class"] for row in rows if row["class"] for one in row["neighbors"]
    ]
    if same:
        print_aside(f"{sum(same)} of {len(same)} neighbors have the class of their query")
    if arguments.picture:
        draw(data, queries, found, arguments.picture)
    return EXIT_FAILURE if num_failed else 0


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command("replica.neighbors", lambda: search(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
