"""ILSVRC 2012 as image-net.org gives it out: the official tars and the devkit, read in place.

In one directory: `ILSVRC2012_img_train.tar`, `ILSVRC2012_img_val.tar` and
`ILSVRC2012_devkit_t12.tar.gz` (or the devkit unpacked).
"""

from data_prep.sources.devkit import numbered_pictures, one_of, read_devkit, train_pictures
from data_prep.sources.picture_set import PictureSet
from data_prep.sources.trees import Tree

LAYOUT = "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and the devkit: the official files"
TREE = """\
ILSVRC2012_img_train.tar
ILSVRC2012_img_val.tar
ILSVRC2012_devkit_t12.tar.gz"""
TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"


def is_here(tree: Tree) -> bool:
    """Whether the tree looks like this layout."""
    return tree.is_file(TRAIN_TAR)


def find(tree: Tree) -> PictureSet:
    """Lists the train and val pictures with their labels."""
    devkit = read_devkit(tree, year=2012)
    train_tar = one_of(tree, TRAIN_TAR, TRAIN_TAR)
    val_tar = one_of(tree, VAL_TAR, VAL_TAR)
    labels = devkit.validation_labels()
    return PictureSet(
        "ilsvrc2012",
        tree.title,
        devkit.wnids,
        devkit.class_names,
        {
            "train": train_pictures(tree, train_tar, devkit),
            "val": numbered_pictures(tree, val_tar, "ILSVRC2012_val", labels, "the ground truth"),
        },
        notes=("validation labels come from the devkit, by ILSVRC2012_ID and meta.mat",),
    )
