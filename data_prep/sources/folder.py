"""Class folders: train/<class>/* and val/<class>/* or test/<class>/*; train names the classes."""

from data_prep.errors import UserError
from data_prep.manifest import PARTS
from data_prep.sources.picture_set import PictureSet, class_pictures
from data_prep.sources.trees import Tree, visible_names

LAYOUT = "train/<class>/* and val/<class>/* or test/<class>/*"
TREE = """\
train/
  <class>/
    1.jpg
  <another class>/
val/
  <class>/
  <another class>/"""


def is_here(tree: Tree) -> bool:
    """Whether the tree looks like this layout."""
    return tree.is_dir("train")


def find(tree: Tree) -> PictureSet:
    """Lists the pictures below `train`, `val` and `test`."""
    problems = []
    classes: dict[str, list[str]] = {}
    for part in PARTS:
        if not tree.is_dir(part):
            continue
        entries = visible_names(tree, part)
        classes[part] = [name for name in entries if tree.is_dir(f"{part}/{name}")]
        loose = [name for name in entries if not tree.is_dir(f"{part}/{name}")]
        if loose:
            problems.append(
                f"{part}/ holds {len(loose)} files outside of class folders (such as {loose[0]}), "
                "so they have no labels"
            )
    if "train" not in classes or len(classes) < 2:
        found = ", ".join(f"{part}/" for part in classes) or "neither"
        raise UserError(
            f"{tree.title}: expected the folders train/<class>/ and val/<class>/ or "
            f"test/<class>/, found {found}"
        )
    for part in list(classes)[1:]:
        for one, other in (("train", part), (part, "train")):
            missing = sorted(set(classes[other]) - set(classes[one]))
            if missing:
                problems.append(
                    f"{one}/ lacks {len(missing)} classes of {other}/ (such as {missing[0]})"
                )
    for part, names in classes.items():
        problems.extend(
            f"{part}/{name} is empty" for name in names if not visible_names(tree, f"{part}/{name}")
        )
    if not classes["train"]:
        problems.append("train/ holds no class folder")
    if problems:
        raise UserError(
            f"{tree.title}: expected train/<class>/* and val/<class>/* with the same classes, "
            f"none of them empty; got: {'; '.join(problems)}"
        )
    wnids = tuple(classes["train"])
    parts = {
        part: class_pictures(tree, ((f"{part}/{name}", i) for i, name in enumerate(wnids)))
        for part in classes
    }
    return PictureSet("folder", tree.title, wnids, wnids, parts)
