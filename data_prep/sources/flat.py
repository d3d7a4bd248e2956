"""A flat folder of nXXXXXXXX_name.JPEG files, as samples of ImageNet come."""

import re

from data_prep.errors import UserError
from data_prep.sources.picture_set import WNID, Picture, PictureSet, is_picture_name
from data_prep.sources.trees import Tree, visible_names

LAYOUT = "nXXXXXXXX_name.JPEG: pictures that name their class, with --val-fraction 0.2"
TREE = """\
n01440764_tench.JPEG
n01443537_goldfish.JPEG"""
# The name of a class, perhaps with a number behind it, or a number alone as in ImageNet.
NAME = re.compile(rf"({WNID.pattern})_(.*?)_?\d*\.\w+")


def is_here(tree: Tree) -> bool:
    """Whether the tree looks like this layout: all its pictures are named so."""
    pictures = [name for name in visible_names(tree, "") if is_picture_name(name)]
    return bool(pictures) and all(map(NAME.fullmatch, pictures))


def find(tree: Tree) -> PictureSet:
    """Lists the pictures; where those of a class agree on a name, the class has it."""
    names = visible_names(tree, "")
    matches = {name: NAME.fullmatch(name) for name in names if is_picture_name(name)}
    wrong = [name for name, match in matches.items() if match is None]
    if wrong or not matches:
        raise UserError(
            f"{tree.title}: expected pictures named nXXXXXXXX_name.JPEG, found "
            + (f"{len(wrong)} others (such as {wrong[0]})" if wrong else "none")
        )
    named: dict[str, set[str]] = {}
    for match in filter(None, matches.values()):
        named.setdefault(match[1], set()).add(match[2].replace("_", " "))
    wnids = tuple(sorted(named))
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    class_names = []
    for wnid in wnids:
        name, *more = named[wnid]
        class_names.append(wnid if more or not name else name)
    pictures = tuple(
        Picture(name, labels[match[1]], tree.place(name))
        for name, match in matches.items()
        if match
    )
    others = [name for name in names if name not in matches]
    notes = (f"{len(others)} other entries are not read (such as {others[0]})",) if others else ()
    return PictureSet(
        "flat", tree.title, wnids, tuple(class_names), {"train": pictures}, notes=notes
    )
