"""Which source reads a tree: the table of all, and how a layout is recognized."""

import difflib
from pathlib import Path
from types import ModuleType

from data_prep.errors import UserError
from data_prep.sources import (
    cifar10,
    class_folders,
    class_tars,
    flat,
    folder,
    ilsvrc2010,
    ilsvrc2012,
    kaggle,
    path_csv,
    tiny_image10,
    tiny_imagenet,
)
from data_prep.sources.trees import Tree, visible_names

# What --input may hold, in the order in which it is recognized.
SOURCES: dict[str, ModuleType] = {
    "kaggle": kaggle,
    "ilsvrc2012": ilsvrc2012,
    "ilsvrc2010": ilsvrc2010,
    "class-tars": class_tars,
    "tiny-imagenet": tiny_imagenet,
    "tiny-image10": tiny_image10,
    "cifar10": cifar10,
    "folder": folder,
    "csv": path_csv,
    "flat": flat,
    "class-folders": class_folders,
}
MOST_NAMES_COMPARED = 50
# How alike a name is to one that may be any; two names of one length share a third by chance.
LIKE_ANY_NAME = 0.4


def recognize(tree: Tree, path: Path) -> tuple[str, Tree]:
    """The first source whose layout is in a tree, or in the one folder at its top.

    Raises:
        UserError: there is none, or only a piece of an official set.
    """
    for candidate in (tree, *only_folder(tree)):
        for name, module in SOURCES.items():
            if module.is_here(candidate):
                if module is class_tars and path.name.startswith("ILSVRC"):
                    raise UserError(
                        f"--input {path}: expected the directory that holds the validation "
                        "pictures and the devkit, too, got the training pictures alone: give that "
                        "directory, or --source class-tars to cut each class in half"
                    )
                return name, candidate
    seen = visible_names(tree, "")
    if seen:
        raise _unknown_layout(tree, path, seen)
    layouts = "; ".join(f"{name}: {module.LAYOUT}" for name, module in SOURCES.items())
    raise UserError(f"--input {path}: expected one of these, found nothing: {layouts}")


def _unknown_layout(tree: Tree, path: Path, seen: list[str]) -> UserError:
    """The error that draws the layout most like a tree, in at most ten lines."""
    inner = [(below, visible_names(below, "")) for below in only_folder(tree)]
    drawn = {name: module.TREE for name, module in SOURCES.items() if hasattr(module, "TREE")}
    # Of equals the last one: people's own pictures stand at the end of the table.
    nearest = max(
        reversed(drawn),
        key=lambda name: max(_likeness(drawn[name], *at) for at in ((tree, seen), *inner)),
    )
    shown = ", ".join(seen[:4]) + (", ..." if len(seen) > 4 else "")
    return UserError(
        f"--input {path}: expected a layout that is known (--help lists them), found {shown}; the "
        f"nearest is {nearest}:",
        below=(f"  {path.name or path}/", *(f"    {line}" for line in drawn[nearest].split("\n"))),
    )


def _likeness(drawn: str, tree: Tree, names: list[str]) -> float:
    """How alike the top of a drawn tree and that of a tree are, 0 to 1."""
    top = [line.split(" (")[0] for line in drawn.split("\n") if not line.startswith(" ")]
    here = [f"{name}/" if tree.is_dir(name) else name for name in names[:MOST_NAMES_COMPARED]]

    def alike(wanted: str, name: str) -> float:
        if wanted.endswith("/") != name.endswith("/"):
            return 0.0
        if wanted.startswith("<"):
            return LIKE_ANY_NAME
        first, second = (text.lower().rstrip("/") for text in (wanted, name))
        return difflib.SequenceMatcher(None, first, second).ratio()

    most = [max((alike(wanted, name) for name in here), default=0.0) for wanted in top]
    return sum(most) / len(top)


def only_folder(tree: Tree) -> list[Tree]:
    """The one folder at the top of a tree, into which archives often put everything."""
    names = visible_names(tree, "")
    return [tree.below(names[0])] if len(names) == 1 and tree.is_dir(names[0]) else []
