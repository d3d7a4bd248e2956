"""The official ILSVRC tars and their development kit: what 2010 and 2012 have in common.

A picture's id in `ILSVRC20xx_validation_ground_truth.txt` is the ILSVRC20xx_ID of `meta.mat`, in an
order of its own. A label here is the position of the wnid in sorted order, as everywhere else;
`meta.mat` is what leads from one to the other.
"""

import faulthandler
import io
import multiprocessing
import re
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from scipy.io import loadmat

from data_prep.errors import UserError
from data_prep.sources.archives import compressed_tar_files, nested_tar_files
from data_prep.sources.picture_set import WNID, Picture, Pictures
from data_prep.sources.places import Place
from data_prep.sources.text import read_bytes, text_lines
from data_prep.sources.trees import Archive, Tree, visible_names

NUM_CLASSES = 1000


@dataclass(frozen=True)
class Devkit:
    """The classes of a year, and the labels of its numbered pictures."""

    year: int
    wnids: tuple[str, ...]  # sorted; a label is an index into them
    class_names: tuple[str, ...]
    label_of_id: dict[int, int]  # by ILSVRC20xx_ID
    tree: Tree  # where the text files are, in this directory of it
    directory: str

    def labels(self, tree: Tree, path: str) -> list[int]:
        """The labels of the pictures 1, 2, ... from a file with one id per line."""
        labels = []
        for number, line in text_lines(tree, path, "one class id per line"):
            word = line.strip()
            if not word.isascii() or not word.isdigit() or int(word) not in self.label_of_id:
                raise UserError(
                    f"{tree.title}/{path} line {number}: expected an ILSVRC{self.year}_ID of "
                    f"meta.mat (1 to {len(self.wnids)}), got {word[:20]!r}"
                )
            labels.append(self.label_of_id[int(word)])
        return labels

    def validation_labels(self) -> list[int]:
        """The labels of the validation pictures 1, 2, ..."""
        name = f"ILSVRC{self.year}_validation_ground_truth.txt"
        return self.labels(self.tree, f"{self.directory}{name}")


def one_of(tree: Tree, pattern: str, what: str) -> str:
    """The one entry at the top of a tree whose whole name matches; else a UserError."""
    found = [name for name in visible_names(tree, "") if re.fullmatch(pattern, name)]
    if len(found) != 1:
        raise UserError(
            f"{tree.title}: expected {what} there, found {', '.join(found[:3]) or 'none'}"
        )
    return found[0]


def read_devkit(tree: Tree, *, year: int) -> Devkit:
    """Reads the development kit, a .tar.gz or unpacked, that lies beside the tars.

    Raises:
        UserError: it is missing or damaged, or does not name 1000 classes with ids 1 to 1000.
    """
    name = one_of(
        tree, rf"(ILSVRC{year}_)?devkit.*", f"the development kit (ILSVRC{year}_devkit*.tar.gz)"
    )
    kit: Tree = tree
    if tree.is_file(name):
        kit = Archive(f"{tree.title}/{name}", _kit_files(tree, name))
        bases = ["", *(f"{top}/" for top in kit.names(""))]
    else:
        bases = [f"{name}/", *(f"{name}/{top}/" for top in kit.names(name))]
    for base in bases:
        for directory in (f"{base}data/", base):
            if kit.is_file(f"{directory}meta.mat"):
                wnids, names, ids = _read_meta(kit, f"{directory}meta.mat", year)
                return Devkit(year, wnids, names, ids, kit, directory)
    raise UserError(f"{tree.title}/{name}: expected data/meta.mat in the development kit")


def _kit_files(tree: Tree, name: str) -> Mapping[str, Place]:
    place = tree.place(name)
    if isinstance(place, str) and not name.endswith(".tar"):
        return dict(compressed_tar_files(Path(place)))
    return dict(nested_tar_files(f"{tree.title}/{name}", place))


def _read_meta(
    tree: Tree, path: str, year: int
) -> tuple[tuple[str, ...], tuple[str, ...], dict[int, int]]:
    title = f"{tree.title}/{path}"
    data = read_bytes(tree, path, "the classes")
    # SciPy's reader crashes on some damaged files: it runs in a process of its own.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:
        try:
            classes = process.submit(classes_of_meta, data, year).result()
        except BrokenProcessPool:
            classes = "a file on which its reader crashes"
    if isinstance(classes, str):
        raise UserError(f"{title}: expected the synsets of ILSVRC{year}, got {classes}")
    ids = {id_: wnid for wnid, (id_, _) in classes.items()}
    odd = [wnid for wnid in classes if not WNID.fullmatch(wnid)]
    if odd or sorted(ids) != list(range(1, NUM_CLASSES + 1)):
        raise UserError(
            f"{title}: expected {NUM_CLASSES} classes without children, with the ids 1 to "
            f"{NUM_CLASSES}, got {len(classes)} with {len(ids)} ids"
        )
    wnids = tuple(sorted(classes))
    label = {wnid: i for i, wnid in enumerate(wnids)}
    names = tuple(classes[wnid][1] for wnid in wnids)
    return wnids, names, {id_: label[wnid] for id_, wnid in ids.items()}


def classes_of_meta(data: bytes, year: int) -> dict[str, tuple[int, str]] | str:
    """In a process of its own: wnid -> (id, words) of the classes, or what is wrong."""
    # What a damaged file makes of the process shows in its exit status, not in its output.
    faulthandler.disable()
    try:
        synsets = loadmat(io.BytesIO(data), variable_names=["synsets"])["synsets"].ravel()
        return {
            str(entry["WNID"].item()): (
                int(entry[f"ILSVRC{year}_ID"].item()),
                str(entry["words"].item()),
            )
            for entry in synsets
            if int(entry["num_children"].item()) == 0
        }
    except Exception as error:  # whatever a damaged file leads to
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def train_pictures(tree: Tree, tar: str, devkit: Devkit) -> Pictures:
    """The pictures of the training tar, which holds one tar for each class and nothing else.

    Raises:
        UserError: it does not hold exactly one tar for each class of the development kit.
    """
    title = f"{tree.title}/{tar}"
    inner = {
        path.rpartition("/")[2].removesuffix(".tar"): (path, place)
        for path, place in nested_tar_files(title, tree.place(tar))
    }
    missing, unknown = set(devkit.wnids) - set(inner), set(inner) - set(devkit.wnids)
    if missing or unknown:
        shown = [f"lacks {sorted(missing)[0]}"] if missing else []
        shown += [f"has {sorted(unknown)[0]}"] if unknown else []
        raise UserError(
            f"{title}: expected one tar for each of {len(devkit.wnids)} classes, got "
            f"{len(inner)}: {len(missing)} are missing, {len(unknown)} are no classes of the "
            f"development kit (it {' and '.join(shown)})"
        )
    return tuple(
        Picture(f"{tar}/{path}/{name}", label, span)
        for label, (path, place) in enumerate(inner[wnid] for wnid in devkit.wnids)
        for name, span in nested_tar_files(f"{title}/{path}", place)
    )


def numbered_pictures(
    tree: Tree, tar: str, prefix: str, labels: list[int], origin: str
) -> Pictures:
    """The pictures of a flat tar, numbered from 1 without a gap, with the labels of their numbers.

    `origin` is what messages call the list of labels.

    Raises:
        UserError: a picture has no number or no label, or a number is missing.
    """
    title = f"{tree.title}/{tar}"
    places: dict[int, tuple[str, Place]] = {}
    for name, place in nested_tar_files(title, tree.place(tar)):
        match = re.fullmatch(rf"{prefix}_(\d{{8}})\.JPEG", name.rpartition("/")[2])
        if match is None or int(match[1]) in places:
            raise UserError(
                f"{title}: expected pictures named {prefix}_00000001.JPEG and on, each once, got "
                f"{name[:80]!r}"
            )
        places[int(match[1])] = (name, place)
    if set(places) != set(range(1, len(labels) + 1)):
        raise UserError(
            f"{title}: expected the pictures 1 to {len(labels)}, one for each line of {origin}, "
            f"got {len(places)}"
        )
    return tuple(
        Picture(f"{tar}/{name}", labels[number - 1], place)
        for number, (name, place) in sorted(places.items())
    )
