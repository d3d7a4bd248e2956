"""Tiny ImageNet: 64 x 64 pictures of up to 200 ImageNet classes, in its own layout.

In the directory, zip or tar: `wnids.txt` (one class per line), `words.txt` (wnid, tab, names),
`train/<wnid>/images/*.JPEG`, and all validation pictures in one folder, `val/images`, with their
classes in `val/val_annotations.txt` (name, wnid and a box, between tabs). A label is the position
of the wnid in sorted order. The test pictures have no labels and are left out.
"""

from data_prep.errors import UserError
from data_prep.sources.picture_set import (
    WNID,
    Pictures,
    PictureSet,
    class_pictures,
    validation_pictures,
)
from data_prep.sources.text import read_class_names, read_table
from data_prep.sources.trees import Tree, visible_names

LAYOUT = "wnids.txt and train/<wnid>/images: Tiny ImageNet"
TREE = """\
wnids.txt
words.txt
train/
  n01443537/images/
val/
  images/
  val_annotations.txt"""
CLASSES_FILE = "wnids.txt"
NAMES_FILE = "words.txt"
ANNOTATIONS_FILE = "val/val_annotations.txt"
VAL_DIR = "val/images"


def is_here(tree: Tree) -> bool:
    """Whether the tree looks like this layout."""
    return tree.is_file(CLASSES_FILE) and tree.is_dir("train")


def find(tree: Tree) -> PictureSet:
    """Lists the train and val pictures with their labels."""
    wnids = read_classes(tree, CLASSES_FILE)
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    train = _train_pictures(tree, labels)
    if not tree.is_dir(VAL_DIR):
        raise UserError(
            f"{tree.title}/{VAL_DIR}: expected the validation pictures, found no folder"
        )
    annotations = f"{tree.title}/{ANNOTATIONS_FILE}"
    val_wnids = read_annotations(tree, ANNOTATIONS_FILE)
    val, notes = validation_pictures(
        tree, VAL_DIR, val_wnids, labels, origin=annotations, classes_file=CLASSES_FILE
    )
    if tree.is_dir("test"):
        notes.append("the test pictures have no labels and are left out")
    class_names = read_names(tree, NAMES_FILE, wnids)
    parts = {"train": train, "val": val}
    return PictureSet("tiny-imagenet", tree.title, wnids, class_names, parts, notes=tuple(notes))


def _train_pictures(tree: Tree, labels: dict[str, int]) -> Pictures:
    folders = visible_names(tree, "train")
    problems = []
    unknown = [name for name in folders if name not in labels]
    if unknown:
        problems.append(f"{len(unknown)} names are no class (such as {unknown[0]})")
    missing = sorted(set(labels) - set(folders))
    if missing:
        problems.append(f"{len(missing)} classes have no folder (such as {missing[0]})")
    flat = [n for n in folders if n in labels and not tree.is_dir(f"train/{n}/images")]
    if flat:
        problems.append(f"{len(flat)} classes have no folder images (such as {flat[0]})")
    if problems:
        raise UserError(
            f"{tree.title}/train: expected <wnid>/images for each class of {CLASSES_FILE}; got: "
            f"{'; '.join(problems)}"
        )
    return class_pictures(tree, ((f"train/{wnid}/images", i) for wnid, i in labels.items()))


def read_classes(tree: Tree, path: str) -> tuple[str, ...]:
    """Reads `wnids.txt`: the wnids, sorted."""
    what, pattern = "one wnid per line", rf"\s*({WNID.pattern})()\s*"
    wnids = read_table(tree, path, what, form="nXXXXXXXX", pattern=pattern)
    if not wnids:
        raise UserError(f"{tree.title}/{path}: expected {what}, got an empty file")
    return tuple(sorted(wnids))


def read_names(tree: Tree, path: str, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """Reads the classes' names from `words.txt`, which holds those of all of WordNet."""
    names = read_class_names(tree, path)
    missing = [wnid for wnid in wnids if not names.get(wnid)]
    if missing:
        raise UserError(
            f"{tree.title}/{path}: expected a name for each class of {CLASSES_FILE}, got none for "
            f"{len(missing)} (such as {missing[0]})"
        )
    return tuple(names[wnid] for wnid in wnids)


def read_annotations(tree: Tree, path: str) -> dict[str, str]:
    """Reads `val_annotations.txt`: the name of a picture -> its wnid."""
    what, pattern = "the classes of the validation pictures", r"([\w.-]+)\t([^\t]*).*"
    table = read_table(tree, path, what, form="name<tab>wnid<tab>box", pattern=pattern)
    return {name: wnid.strip() for name, wnid in table.items()}
