"""One tar per class, as ImageNet of Fall 2009 and Fall 2011 come: n*.tar, up to 21,843 of them.

The tars lie in a directory, or in one large tar. Nothing is cut into parts there, so this source
cuts each class in half by a seeded rule: one half train, the other test (paper 6, on Fall 2009).
The classes' names come from `words.txt` (wnid, tab, names), where it lies beside the tars.
"""

import re

from data_prep.errors import UserError
from data_prep.sources.archives import nested_tar_files
from data_prep.sources.picture_set import WNID, Picture, PictureSet, halves
from data_prep.sources.text import read_class_names
from data_prep.sources.trees import Tree, visible_names

LAYOUT = "nXXXXXXXX.tar: one tar per class, as ImageNet of Fall 2009 and 2011"
TREE = """\
n01440764.tar
n01443537.tar
words.txt"""
NAMES_FILE = "words.txt"
HALVES_SEED = 2012


def _tars(tree: Tree) -> list[str]:
    return [n for n in visible_names(tree, "") if re.fullmatch(rf"{WNID.pattern}\.tar", n)]


def is_here(tree: Tree) -> bool:
    """Whether the tree looks like this layout."""
    return bool(_tars(tree))


def find(tree: Tree) -> PictureSet:
    """Lists the pictures of all classes, one half train, one half test."""
    tars = _tars(tree)
    if not tars:
        raise UserError(f"{tree.title}: expected tars named nXXXXXXXX.tar, found none")
    wnids = tuple(name.removesuffix(".tar") for name in tars)
    pictures = tuple(
        Picture(f"{name}/{member}", label, place)
        for label, name in enumerate(tars)
        for member, place in nested_tar_files(f"{tree.title}/{name}", tree.place(name))
    )
    names = read_class_names(tree, NAMES_FILE) if tree.is_file(NAMES_FILE) else {}
    unnamed = sum(wnid not in names for wnid in wnids)
    notes = [f"each class is cut in half by a rule with seed {HALVES_SEED}: train and test"]
    if unnamed:
        notes.append(
            f"{unnamed} classes have no name, so their wnid stands for it: {NAMES_FILE} beside "
            "the tars would name them"
        )
    train, test = halves(pictures, seed=HALVES_SEED)
    return PictureSet(
        "class-tars",
        tree.title,
        wnids,
        tuple(names.get(wnid) or wnid for wnid in wnids),
        {"train": train, "test": test},
        notes=tuple(notes),
    )
