"""Tiny Image10: ten named classes of Tiny ImageNet, 400/50/50 pictures per class.

All three parts are cut from the training pictures, as the earlier project did whose results are
compared with it. `--classes FILE --per-class 400,50,50` does the same for other classes.
"""

from dataclasses import replace

from data_prep.sources import tiny_imagenet
from data_prep.sources.picture_set import PictureSet
from data_prep.sources.trees import Tree

LAYOUT = "ten classes of Tiny ImageNet, 400/50/50 per class; only by name"
PER_CLASS = (400, 50, 50)
NAMED_BY = "--source tiny-image10"
CLASSES = {
    "n01443537": "goldfish",
    "n01629819": "European fire salamander",
    "n01641577": "bullfrog",
    "n01644900": "tailed frog",
    "n01698640": "American alligator",
    "n01742172": "boa constrictor",
    "n01768244": "trilobite",
    "n01770393": "scorpion",
    "n01774384": "black widow",
    "n01774750": "tarantula",
}


def is_here(tree: Tree) -> bool:
    """Whether Tiny ImageNet is here, which is taken whole unless this source is named."""
    return tiny_imagenet.is_here(tree)


def find(tree: Tree) -> PictureSet:
    """Lists 400 train, 50 val and 50 test pictures of each of the ten classes."""
    whole = tiny_imagenet.find(tree)
    ten = whole.with_classes(CLASSES, by=NAMED_BY).cut_from_train(PER_CLASS, by=NAMED_BY)
    return replace(ten, source="tiny-image10")
