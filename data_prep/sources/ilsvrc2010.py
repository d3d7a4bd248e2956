"""ILSVRC 2010, whose test labels are public: the set of the paper's 37.5 and 17.0 % (paper 6).

In one directory: the tars of the training, validation and test pictures
(`ILSVRC2010_images_train.tar`, ...), the devkit, and `ILSVRC2010_test_ground_truth.txt`, beside
them or in the devkit. Its 1000 classes are not those of 2012.
"""

import re

from data_prep.errors import UserError
from data_prep.manifest import PARTS
from data_prep.sources.devkit import numbered_pictures, one_of, read_devkit, train_pictures
from data_prep.sources.picture_set import PictureSet
from data_prep.sources.trees import Tree, visible_names

LAYOUT = "ILSVRC2010_*train*.tar, *val*.tar, *test*.tar, the devkit and the public test labels"
TAR = r"ILSVRC2010_.*{}.*\.tar"  # of a part
TEST_LABELS = "ILSVRC2010_test_ground_truth.txt"


def is_here(tree: Tree) -> bool:
    """Whether the tree looks like this layout."""
    return any(re.fullmatch(TAR.format("train"), name) for name in visible_names(tree, ""))


def find(tree: Tree) -> PictureSet:
    """Lists the train, val and test pictures with their labels."""
    devkit = read_devkit(tree, year=2010)
    tars = {
        part: one_of(tree, TAR.format(part), f"the {part} pictures (ILSVRC2010_images_{part}.tar)")
        for part in PARTS
    }
    if tree.is_file(TEST_LABELS):
        test_labels = devkit.labels(tree, TEST_LABELS)
    elif devkit.tree.is_file(f"{devkit.directory}{TEST_LABELS}"):
        test_labels = devkit.labels(devkit.tree, f"{devkit.directory}{TEST_LABELS}")
    else:
        raise UserError(
            f"{tree.title}: expected the public test labels, {TEST_LABELS}, there or in the "
            "development kit, found none"
        )
    return PictureSet(
        "ilsvrc2010",
        tree.title,
        devkit.wnids,
        devkit.class_names,
        {
            "train": train_pictures(tree, tars["train"], devkit),
            "val": numbered_pictures(
                tree, tars["val"], "ILSVRC2010_val", devkit.validation_labels(), "the ground truth"
            ),
            "test": numbered_pictures(
                tree, tars["test"], "ILSVRC2010_test", test_labels, TEST_LABELS
            ),
        },
        notes=("validation and test labels come by ILSVRC2010_ID and the devkit's meta.mat",),
    )
