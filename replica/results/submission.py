"""The ILSVRC submission: a line for each picture, five class ids, the most probable first.

Its ids are those of the development kit's meta.mat, 1 to 1000, in an order of its own. Pictures
need no labels, so they are read from a folder, and prepared as those of shards are.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.errors import UserError
from data_prep.files import write_whole
from data_prep.progress import progress_bar, write_line
from data_prep.sources.devkit import read_devkit
from data_prep.sources.trees import Folder
from replica.results.ensemble import SEARCH, read_weights
from replica.results.members import places_of
from replica.results.pictures import Found, NamedPictures, read_ahead
from replica.results.prediction import TrainedNetwork, load
from replica.training.checkpoint import last_whole_checkpoint
from replica.training.options import Say
from replica.training.run_directory import newest_run

NUM_GUESSES = 5
# Of a picture that cannot be read: no class has it.
NO_GUESS = 0
_NUMBER = re.compile(r"(?:.*_)?([0-9]{1,8})\.[A-Za-z]+")


def submit(
    checkpoints: Sequence[Path],
    pictures: Path,
    devkit: Path,
    output: Path,
    *,
    views: str,
    device: str,
    weights: str | None,
    model: str | None,
    weights_of: str,
    say: Say,
) -> int:
    """Writes the submission for a folder of pictures.

    Args:
        checkpoints: of networks whose probabilities are averaged; none for the last one of the
            newest run.
        pictures: the folder; their names end with their numbers, 1 and on.
        devkit: the directory that has the development kit.
        output: the file.
        views: of a picture, which are averaged: a name that `view_places` knows.
        device: `auto`, `cpu` or `cuda`.
        weights: of `WEIGHTS`; None for the averaged ones where a checkpoint has them.
        model: `FILE:FUNCTION` of a user's own network, as `replica.load` takes it.
        weights_of: what each checkpoint counts: `equal` or numbers between commas.
        say: called with lines on what is done.

    Returns:
        How many pictures could not be read; the others are in the file.

    Raises:
        UserError: there is no such thing, or the networks have other classes.
    """
    if not checkpoints:
        checkpoints = [last_whole_checkpoint(newest_run(purpose="test"))[0]]
        say(f"checkpoint: {checkpoints[0]} (no --checkpoint given: the last one of the newest run)")
    if weights_of == SEARCH:
        raise UserError(
            f"--weights-of {SEARCH}: expected equal or numbers with --submission, whose pictures "
            "have no labels: search them on val without it"
        )
    shares = read_weights(weights_of, len(checkpoints))
    ids = class_ids(devkit)
    found = numbered_pictures(pictures)
    chosen = None if device == "auto" else device
    networks = [load(path, device=chosen, weights=weights, model=model) for path in checkpoints]
    # Of each network, the id of each of its classes.
    ids_of = [_ids_of(*x, ids) for x in zip(checkpoints, networks, strict=True)]
    side = len(networks[0].mean_image)
    for path, network in zip(checkpoints, networks, strict=True):
        places_of(views, side, network.recipe.crop_size)
        if len(network.mean_image) != side:
            raise UserError(
                f"{path}: was trained on images of {len(network.mean_image)} pixels, "
                f"{checkpoints[0]} on {side}: test them one by one"
            )
    lines: list[str] = []
    num_failed = 0
    with progress_bar(len(found), " images") as progress:
        for one, image in read_ahead(found, side):
            guesses = np.full(NUM_GUESSES, NO_GUESS)
            if image is None:
                num_failed += 1
                write_line(f"{one.path}: {one.problem}: its line has no class")
            else:
                total = np.zeros(len(ids))
                for network, own_ids, share in zip(networks, ids_of, shares, strict=True):
                    total[own_ids - 1] += share * network.probabilities_of_views(image, views=views)
                if not np.isfinite(total).all():
                    raise UserError("the network's output is no number: use another checkpoint")
                guesses = np.argsort(-total, kind="stable")[:NUM_GUESSES] + 1
            lines.append(" ".join(map(str, guesses)))
            progress.update(1)
    write_whole(output, "".join(f"{line}\n" for line in lines).encode())
    say(f"wrote {output}: {len(lines)} lines, {num_failed} of them without a class")
    return num_failed


def class_ids(devkit: Path) -> dict[str, int]:
    """Identifier of a class -> its id, 1 to 1000, by the kit of 2010 or 2012 in a directory.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not devkit.is_dir():
        raise UserError(f"--devkit {devkit}: expected the directory that has the development kit")
    is_2012 = any(path.name.startswith("ILSVRC2012_devkit") for path in devkit.iterdir())
    kit = read_devkit(Folder(devkit), year=2012 if is_2012 else 2010)
    return {kit.wnids[label]: number for number, label in kit.label_of_id.items()}


def numbered_pictures(folder: Path) -> list[Found]:
    """The pictures of a folder in the order of their numbers, 1 and on without a gap.

    Raises:
        UserError: there are none, or a number is missing or twice: lines have no names.
    """
    found = list(NamedPictures([str(folder)]))
    if not folder.is_dir() or found[0].problem is not None:
        raise UserError(f"--pictures {folder}: expected a folder of pictures")
    numbers: dict[int, Found] = {}
    for one in found:
        match = _NUMBER.fullmatch(one.path.name)
        if match is None or int(match[1]) in numbers:
            raise UserError(
                f"--pictures {folder}: expected names such as ILSVRC2012_test_00000001.JPEG, each "
                f"number once, got {one.path.name}"
            )
        numbers[int(match[1])] = one
    if set(numbers) != set(range(1, len(found) + 1)):
        lacking = next(x for x in range(1, len(found) + 1) if x not in numbers)
        raise UserError(
            f"--pictures {folder}: expected the pictures 1 to {max(numbers)}, each for its line, "
            f"lacks {lacking}"
        )
    return [numbers[number] for number in sorted(numbers)]


def _ids_of(path: Path, network: TrainedNetwork, ids: dict[str, int]) -> np.ndarray:
    if sorted(network.wnids) != sorted(ids):
        unknown = next((x for x in network.wnids if x not in ids), None)
        which = f", among them {unknown}, which has no id there" if unknown else ""
        raise UserError(
            f"{path}: expected a network of the {len(ids)} classes of the development kit, got "
            f"{len(network.wnids)}{which}"
        )
    return np.array([ids[wnid] for wnid in network.wnids])
