"""Which source reads a tree: the table of all, and how a layout is recognized."""

from pathlib import Path
from types import ModuleType

from data_prep.errors import UserError
from data_prep.sources import (
    cifar10,
    class_tars,
    folder,
    ilsvrc2010,
    ilsvrc2012,
    kaggle,
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
}


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
    shown = ", ".join(seen[:4]) + (", ..." if len(seen) > 4 else "")
    layouts = "; ".join(f"{name}: {module.LAYOUT}" for name, module in SOURCES.items())
    raise UserError(f"--input {path}: expected one of these, found {shown or 'nothing'}: {layouts}")


def only_folder(tree: Tree) -> list[Tree]:
    """The one folder at the top of a tree, into which archives often put everything."""
    names = visible_names(tree, "")
    return [tree.below(names[0])] if len(names) == 1 and tree.is_dir(names[0]) else []
