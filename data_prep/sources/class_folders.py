"""Class folders alone: <class>/*, all of them train until a build divides them."""

from data_prep.errors import UserError
from data_prep.manifest import PARTS
from data_prep.sources.picture_set import PictureSet, class_pictures, is_picture_name
from data_prep.sources.trees import Tree, visible_names

LAYOUT = "<class>/*: class folders alone, with --val-fraction 0.2 or --per-class"
TREE = """\
<class>/
  1.jpg
  2.jpg
<another class>/
  3.jpg"""


def is_here(tree: Tree) -> bool:
    """Whether the tree looks like this layout: two folders or more, each with pictures."""
    names = visible_names(tree, "")
    folders = [name for name in names if tree.is_dir(name)]
    return (
        len(folders) > 1
        and not set(folders) & set(PARTS)
        and all(any(map(is_picture_name, visible_names(tree, name))) for name in folders)
    )


def find(tree: Tree) -> PictureSet:
    """Lists the pictures of all class folders, in the order of their names."""
    names = visible_names(tree, "")
    wnids = tuple(name for name in names if tree.is_dir(name))
    others = [name for name in names if name not in wnids]
    loose = [name for name in others if is_picture_name(name)]
    empty = [name for name in wnids if not visible_names(tree, name)]
    if len(wnids) < 2 or loose or empty:
        problem = f"{len(wnids)} folders"
        if loose:
            problem = f"{len(loose)} pictures outside of them (such as {loose[0]})"
        elif empty:
            problem = f"{len(empty)} without any (such as {empty[0]})"
        raise UserError(
            f"{tree.title}: expected two class folders or more, each with pictures, found {problem}"
        )
    pictures = class_pictures(tree, ((name, label) for label, name in enumerate(wnids)))
    notes: tuple[str, ...] = ()
    if others:
        notes = (f"{len(others)} files beside the folders are not read (such as {others[0]})",)
    return PictureSet("class-folders", tree.title, wnids, wnids, {"train": pictures}, notes=notes)
