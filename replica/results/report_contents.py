"""What a report tells of a run: its records, and what its best network says now.

What cannot be had any more is `Missing`, with the reason; only a run without its record is none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from data_prep.errors import UserError
from data_prep.shards import DataSet, open_data_set
from replica import paper
from replica.network.own_network import without_model
from replica.recipes import Recipe
from replica.recipes.geometry import geometry
from replica.results.details import Details
from replica.results.evaluation import choose_data, test_network
from replica.results.nearest_images import (
    Shown,
    evenly,
    features_of,
    hidden_layer,
    nearest_images,
)
from replica.results.plots import History, read_history
from replica.results.prediction import load
from replica.results.test_result import TestResult
from replica.training.allocator import keep_large_blocks
from replica.training.checkpoint import (
    BEST,
    Checkpoint,
    last_whole_checkpoint,
    load_checkpoint,
    weights_in,
    with_weights,
)
from replica.training.control_log import Request, read_log
from replica.training.options import Say
from replica.training.run_record import RUN_FILE, RunRecord, read_run_json, read_run_record

# Multiply-adds for the images that are tested, and as many for those that are searched, so that a
# report takes no minutes: one core makes 12e9 in a second with `mini64` and 27e9 with `paper` (AMD
# EPYC with AVX-512). A GPU is given a hundred times as many (not measured).
MOST_MACS = {"cpu": 150_000_000_000, "cuda": 15_000_000_000_000}
LAST_SECOND = 4e9  # of a date that may be right: in the year 2096
NUM_MISTAKES, NUM_QUERIES, NUM_NEIGHBORS = 12, 6, 6

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Missing:
    """Why a part of a report cannot be shown."""

    why: str


@dataclass(frozen=True)
class Mistake:
    """An image that a network is wrong about: uint8 (H, W, 3), and what it says of it.

    Attributes:
        image: as it is stored.
        picture: the file that it came from.
        label, chosen: names of its class, and of the most probable one.
        probabilities: of the latter, and of its own class.
    """

    image: np.ndarray
    picture: str
    label: str
    chosen: str
    probabilities: tuple[float, float]


@dataclass(frozen=True)
class Tested:
    """What a test found, and the mistakes of which the network is most certain.

    Attributes:
        num_held_out: how many images there are, of which some may not have been tested.
        is_data_of_run: whether the data's manifest is the one that the run was trained with.
    """

    result: TestResult
    details: Details
    mistakes: list[Mistake]
    num_held_out: int
    is_data_of_run: bool


@dataclass(frozen=True)
class Neighbor:
    """A training image: uint8 (H, W, 3), its class, and whether that is the query's."""

    image: np.ndarray
    label: str
    distance: float
    is_same: bool


@dataclass(frozen=True)
class Nearest:
    """Held-out images and the training images nearest to them, at a layer.

    Attributes:
        rows: each image with its class, and its neighbors, the nearest first.
        class_names: of all classes.
        num_searched: of the training images.
    """

    layer: str
    rows: list[tuple[Shown, list[Neighbor]]]
    class_names: list[str]
    num_searched: int
    num_train: int


@dataclass(frozen=True)
class Contents:
    """All of a run.

    Attributes:
        begun: seconds since 1970.
        checkpoint: the best one, or the last whole one, with the weights that are tested.
    """

    run_dir: Path
    record: RunRecord
    begun: float
    recipe: Recipe | Missing
    history: History | Missing
    requests: list[Request] | Missing
    checkpoint: tuple[Path, Checkpoint] | Missing
    tested: Tested | Missing
    nearest: Nearest | Missing


def gather(
    run_dir: Path, data_dir: Path | None, *, num_images: int | None, device: str, say: Say
) -> Contents:
    """Reads the records of a run, and tests its best network.

    Args:
        run_dir: of the run.
        data_dir: None for the data of the run.
        num_images: so many held-out images are tested, with ten crops; None for what `MOST_MACS`
            allows: ten crops of all, or else the central crops of as many.
        device: `auto`, `cpu` or `cuda`.
        say: called with a line for each thing that a user may want to know meanwhile.

    Raises:
        UserError: there is no run, its record is damaged, or data that were named are none or do
            not fit the network.
    """
    keep_large_blocks()  # before the first tensor is read
    record, begun = read_record(run_dir)
    checkpoint = _attempt(lambda: _checkpoint_of(run_dir))
    data: DataSet | Missing
    if data_dir is None:
        data = _attempt(lambda: choose_data(None, run_dir / BEST, say))
    else:
        data = open_data_set(data_dir)
        if not isinstance(checkpoint, Missing):
            _check_fits(checkpoint[1], data)
    tested: Tested | Missing
    nearest: Nearest | Missing
    if isinstance(checkpoint, Missing):
        tested = nearest = checkpoint
    elif isinstance(data, Missing):
        tested = nearest = Missing(f"the data of the run cannot be read: {data.why}")
    else:
        path, network = checkpoint
        kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        macs = sum(x.macs for x in geometry(network.recipe, num_classes=network.num_classes))
        most = max(1, MOST_MACS[kind] // macs)
        tested = _attempt(
            lambda: _tested(path, data, record, most, num_images=num_images, device=device, say=say)
        )
        nearest = _attempt(lambda: _nearest(path, data, most, kind=kind))
    return Contents(
        run_dir,
        record,
        begun,
        _attempt(lambda: record.recipe),
        _attempt(lambda: _history(run_dir)),
        _attempt(lambda: read_log(run_dir)),
        checkpoint,
        tested,
        nearest,
    )


def read_record(run_dir: Path) -> tuple[RunRecord, float]:
    """The record of a run, and when it was begun, in seconds since 1970.

    Raises:
        UserError: there is no run, or what a report shows of its record is damaged.
    """
    record, begun = read_run_record(run_dir), float(read_run_json(run_dir)["begun"])
    data, versions, hardware = record.data, record.machine["versions"], record.machine["hardware"]
    counts = (data.train_images, data.val_images, data.test_images)
    problems = {
        "begun": not 0 <= begun < LAST_SECOND,
        "recipe": not isinstance(record.recipe_record, dict),
        "num_classes": type(record.num_classes) is not int or record.num_classes < 1,
        "command": not isinstance(record.command, list),
        "data": not isinstance(data.directory, str) or any(type(x) is not int for x in counts),
        "versions": not isinstance(versions, dict),
        "hardware": not isinstance(hardware, dict),
    }
    if wrong := [name for name, is_wrong in problems.items() if is_wrong]:
        raise UserError(f"{run_dir / RUN_FILE}: damaged: {', '.join(wrong)}: restore the file")
    return record, begun


def _attempt(get: Callable[[], _Part]) -> _Part | Missing:
    try:
        return get()
    except UserError as error:
        return Missing(str(error))
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        return Missing(f"{place}{error.strerror or error}")


def _history(run_dir: Path) -> History:
    history = read_history(run_dir)
    if not history.steps:
        raise UserError(f"{run_dir}: the run has made no step")
    return history


def _checkpoint_of(run_dir: Path) -> tuple[Path, Checkpoint]:
    """The best checkpoint, or the last whole one before there is a best."""
    path = run_dir / BEST
    if path.exists():
        checkpoint = load_checkpoint(path)
    else:
        path, checkpoint, _ = last_whole_checkpoint(run_dir)
    return path, with_weights(checkpoint, weights_in(checkpoint, None, path=path))


def _check_fits(network: Checkpoint, data: DataSet) -> None:
    """Refuses data that the user named and that are not of this network's kind."""
    side = network.mean_image.shape[0]
    if side != data.image_size:
        raise UserError(
            f"--data {data.directory}: expected images of {side} pixels, on which the run was "
            f"trained, got {data.image_size}: name such data, or leave --data out"
        )
    if network.wnids and not set(network.wnids) & set(data.wnids):
        raise UserError(
            f"--data {data.directory}: expected classes of the run, such as {network.wnids[0]}, "
            f"got {data.wnids[0]}: name data with them, or leave --data out"
        )


@without_model("replica.report")
def _tested(
    path: Path,
    data: DataSet,
    record: RunRecord,
    most: int,
    *,
    num_images: int | None,
    device: str,
    say: Say,
) -> Tested:
    part = data.part(data.held_out)
    views = "ten" if num_images or paper.TEST_VIEWS * len(part) <= most else "center"
    result, details = test_network(
        [path],
        data.directory,
        None,
        views=views,
        device=device,
        precision="float32",
        weights=None,
        weights_of="equal",
        keeps=True,
        most_images=num_images or most,
        model_source=None,  # a report runs no file
        say=say,
        share=None,
    )
    is_data_of_run = data.manifest_sha256 == record.data.manifest_sha256
    return Tested(result, details, _mistakes(details, data), len(part), is_data_of_run)


def _mistakes(details: Details, data: DataSet) -> list[Mistake]:
    """The images whose most probable class is wrong, the most probable first."""
    probabilities_NK, labels_N = (torch.cat(one) for one in zip(*details.kept, strict=True))
    highest_N, chosen_N = probabilities_NK.max(dim=1)
    is_wrong_N = (chosen_N != labels_N) & highest_N.isfinite()
    order = highest_N.argsort(descending=True, stable=True)
    part, mistakes = data.part(data.held_out), []
    for place in order[is_wrong_N[order]][:NUM_MISTAKES].tolist():
        row, label, chosen = details.images[place], int(labels_N[place]), int(chosen_N[place])
        mistakes.append(
            Mistake(
                part.image(row),
                part.picture(row),
                details.class_names[label],
                details.class_names[chosen],
                (float(highest_N[place]), float(probabilities_NK[place, label])),
            )
        )
    return mistakes


@without_model("replica.report")
def _nearest(path: Path, data: DataSet, most: int, *, kind: str) -> Nearest:
    network = load(path, device=kind)
    layer = hidden_layer(network)
    held_out, train = data.part(data.held_out), data.train
    rows = evenly(len(held_out), NUM_QUERIES)
    features = torch.cat(list(features_of(network, held_out, rows, layer=layer)))
    among = evenly(len(train), most)
    found = nearest_images(network, features, train, layer=layer, k=NUM_NEIGHBORS, among=among)
    names, labels = data.class_names, train.labels
    shown = []
    for row, others, distances in zip(rows, found.rows, found.distances, strict=True):
        label = held_out.labels[row]
        neighbors = [
            Neighbor(
                train.image(int(other)),
                names[labels[other]],
                float(distance),
                bool(labels[other] == label),
            )
            for other, distance in zip(others, distances, strict=True)
        ]
        shown.append((Shown(held_out.image(row), names[label]), neighbors))
    return Nearest(layer, shown, names, len(among), len(train))
