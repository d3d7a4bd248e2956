"""The recipes of earlier projects that reproduced AlexNet, with what was wrong there mended.

`evidence_earlier_projects.py` says of each value where it stands. Two networks of each kind: one as
the project defined it, for a GPU, and one whose name ends in `-64`, a narrow member of the same
family for pictures of 64 x 64 pixels, which a processor trains in minutes. A claim names the
figure that the project published for its own training, and what is otherwise here.
"""

import dataclasses
import math

from replica import paper
from replica.recipes.changes import with_changes
from replica.recipes.expected import claim_of
from replica.recipes.geometry import geometry
from replica.recipes.other_systems import (
    PIXELS_OF_IMAGENET,
    TORCHVISION,
    with_deviations_of_pytorch,
)
from replica.recipes.paper import PAPER
from replica.recipes.recipe import Recipe, layer_names

NARROW = "-64"
_THEIRS = "not repeated here, for lack of a GPU; that project's own figure"
_NO_DROPS = ("drop_rule=epochs", "drop_epochs=none")
_NO_NORMALIZATION = ("conv1.normalization=none", "conv2.normalization=none")
_AS_THEY_ARE = ("random_crops=false", "random_flips=false", "color_noise=0")
_CROPS = ("random_crops=true",)
_CROPS_AND_FLIPS = (*_CROPS, "random_flips=true")
_DROPOUT = ("fc6.dropout=true", "fc7.dropout=true")
_BATCH_NORM = ("conv1.normalization=batch", "conv2.normalization=batch")
# Brightness, contrast, saturation and hue by torchvision's functions; of noise a document has the
# word and no code a number: one that is seen and hides nothing.
_NOISE = ("pixel_noise=5",)
_JITTER = ("color_jitter=0.2,0.2,0.2,0.02", *_NOISE)
# Without torchvision: the paper's own color noise in place of the jitter.
_NARROW_PIXELS = (f"color_noise={paper.COLOR_NOISE_STANDARD_DEVIATION}", *_NOISE)

# What makes a network a narrow one for pictures of 64 x 64: crops with the paper's share of them,
# kernels of 5 x 5 in the first layer, so that its maps are 28 x 28, and a quarter of the kernels.
_NARROW_CONVS = (
    *("crop_size=56", "conv1.kernel_size=5", "conv1.stride=2", "conv1.padding=2,2"),
    *("conv1.num_kernels=24", "conv2.num_kernels=64", "conv3.num_kernels=96"),
    *("conv4.num_kernels=96", "conv5.num_kernels=64"),
)
_NARROW_UNITS = ("fc6.num_units=512", "fc7.num_units=512")
# Few pictures and few epochs: a drop before the last ones shows where a run would end.
_NARROW_TRAINING = ("epochs=15", "drop_rule=epochs", "drop_epochs=13")


def _as(recipe: Recipe, name: str, what: str) -> Recipe:
    """The recipe under its name, with its claim."""
    return dataclasses.replace(recipe, name=name, claim=claim_of(name, what))


def _with_gain_of_one(recipe: Recipe) -> Recipe:
    """The recipe with deviations of sqrt(2 / fan-in), which keep the size of a ReLU's signal.

    The last layer has the paper's: with logits as large as the signal, the first steps end at
    chance for good.
    """
    deviations = {row.name: math.sqrt(2 / row.fan_in) for row in geometry(recipe)}
    deviations[layer_names(recipe)[-1]] = paper.WEIGHT_STANDARD_DEVIATION
    return with_changes(
        recipe, [f"{x}.weight_standard_deviation={value}" for x, value in deviations.items()]
    )


# --- The first: ImageNet on one GPU

_ONE_GPU = with_changes(
    PAPER,
    [
        "towers=1",
        *(f"{layer}.bias=0" for layer in paper.ONE_BIASES),
        f"lrn_alpha={paper.LRN_ALPHA / paper.LRN_N}",
        *("conv5.dropout=true", "fc7.dropout=false", "dropout_scale=training"),
        *PIXELS_OF_IMAGENET,
        "image_order=reshuffle",
        *("random_crops=false", "color_noise=0", "color_jitter=0.2,0.2,0.2,0.1"),
        *("batch_size=32", "decay_biases=true", "epochs=22"),
    ],
)
IMAGENET_ONE_GPU = _as(
    with_deviations_of_pytorch(_ONE_GPU),
    "imagenet-one-gpu",
    "ImageNet on one GPU with pictures squashed to 224 x 224 (build_shards.py --fit squash --size "
    "224), color jitter and batches of 32; mended: maps of 55 x 55, as conv1 is padded, validation "
    f"without jitter; {_THEIRS}",
)
IMAGENET_ONE_GPU_64 = _as(
    _with_gain_of_one(
        with_changes(
            _ONE_GPU,
            [
                *_NARROW_CONVS,
                *_NARROW_UNITS,
                # The whole of a squashed picture, as there.
                "crop_size=64",
                "color_jitter=none",
                f"color_noise={paper.COLOR_NOISE_STANDARD_DEVIATION}",
            ],
        )
    ),
    f"imagenet-one-gpu{NARROW}",
    "imagenet-one-gpu with a quarter of the kernels and an eighth of the units, for pictures "
    "squashed to 64 x 64 (build_shards.py --fit squash --size 64)",
)


# --- The second: ten classes of Tiny ImageNet

_TINY10 = with_changes(
    TORCHVISION,
    [
        "crop_size=150",
        *("resized_crops=none", "momentum=0.9", "learning_rate=0.001"),
        *("fc8.num_units=10", "batch_size=12", "weight_decay=0", "epochs=35"),
        *("drop_rule=plateau", "drop_factor=0.1", "plateau_improvement=0"),
    ],
)
TINY10 = _as(
    with_deviations_of_pytorch(_TINY10),
    "tiny10",
    "Tiny Image10, the best of a grid of twelve; mended: pictures scaled up to 150 pixels "
    "(build_shards.py --size 150) in place of a frame of zeros, as many logits as classes, rates "
    f"that drop by the validation error once an epoch; {_THEIRS}",
)
TINY10_64 = _as(
    _with_gain_of_one(
        with_changes(
            _TINY10,
            [
                *_NARROW_CONVS,
                *("conv1.num_kernels=16", "conv2.num_kernels=48", "conv4.num_kernels=64"),
                *_NARROW_UNITS,
            ],
        )
    ),
    f"tiny10{NARROW}",
    "tiny10 with a quarter of the kernels, for its 64 x 64 pictures as they are",
)


# --- The third: eight variants on Tiny ImageNet

_TINY = with_changes(
    PAPER,
    [
        *("towers=1", "crop_size=227", "conv1.padding=0,0", *_NO_NORMALIZATION),
        *(f"{layer}.bias=0" for layer in paper.ONE_BIASES),
        *("fc6.dropout=false", "fc7.dropout=false", "dropout_scale=training"),
        *PIXELS_OF_IMAGENET,
        *("image_order=reshuffle", *_AS_THEY_ARE),
        *("fc8.num_units=200", "batch_size=64", "decay_biases=true", "epochs=30", *_NO_DROPS),
    ],
)
_TINY_64 = with_changes(_TINY, [*_NARROW_CONVS, *_NARROW_UNITS, *_NARROW_TRAINING])
# ReduceLROnPlateau with a patience of 3, which the fourth epoch exceeds, down to 1e-6.
_HALVES = ("drop_rule=plateau", "drop_factor=0.5", "plateau_patience=4", "max_drops=13")
# After conv5, the mean over each of its maps, and the logits.
_AVERAGES = (
    "without=fc6,fc7",
    "conv5.pooling=average",
    "conv5.pool_stride=1",
    "conv5.dropout=true",
)

# Of each: what it is; the changes of the baseline; those of the narrow one where they differ.
_VARIANTS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...] | None]] = {
    "baseline": ("no regularization and no augmentation", (), None),
    "crop": ("random crops", _CROPS, None),
    "pixels": ("color jitter and noise of pixels", _JITTER, _NARROW_PIXELS),
    "dropout": ("dropout behind fc6 and fc7", _DROPOUT, None),
    "batch-norm": ("batch normalization behind conv1 and conv2", _BATCH_NORM, None),
    "large": (
        "crops, reflections, jitter, dropout and batch normalization together",
        (*_CROPS_AND_FLIPS, *_JITTER, *_DROPOUT, *_BATCH_NORM, *_HALVES),
        (*_CROPS_AND_FLIPS, *_NARROW_PIXELS, *_DROPOUT, *_BATCH_NORM),
    ),
    "small": (
        "tiny-large with one hidden layer of 2000 units",
        (
            *(*_CROPS_AND_FLIPS, *_JITTER, *_BATCH_NORM, *_HALVES),
            *("without=fc7", "fc6.num_units=2000", "fc6.dropout=true"),
        ),
        (
            *(*_CROPS_AND_FLIPS, *_NARROW_PIXELS, *_BATCH_NORM),
            *("without=fc7", "fc6.num_units=250", "fc6.dropout=true"),
        ),
    ),
    "average-pooling": (
        "tiny-large without fc6 and fc7, on the mean of each map of conv5 (there the last layer "
        "was applied twice)",
        (*_CROPS_AND_FLIPS, *_JITTER, *_BATCH_NORM, *_HALVES, *_AVERAGES, "conv5.pool_window=13"),
        (*_CROPS_AND_FLIPS, *_NARROW_PIXELS, *_BATCH_NORM, *_AVERAGES, "conv5.pool_window=6"),
    ),
}


def _variants() -> tuple[Recipe, ...]:
    wide, narrow = [], []
    for name, (what, changes, of_narrow) in _VARIANTS.items():
        wide.append(
            _as(
                with_deviations_of_pytorch(with_changes(_TINY, list(changes))),
                f"tiny-{name}",
                f"Tiny ImageNet at 227 of 256 pixels, {what}; mended: pixels are normalized; "
                f"{_THEIRS}",
            )
        )
        narrow.append(
            _as(
                _with_gain_of_one(
                    with_changes(_TINY_64, list(changes if of_narrow is None else of_narrow))
                ),
                f"tiny-{name}{NARROW}",
                f"tiny-{name} with a quarter of the kernels and an eighth of the units, for "
                "64 x 64 pictures as they are",
            )
        )
    return (*wide, *narrow)


TINY_VARIANTS = _variants()


# --- The fifth: CIFAR-10, from scratch and with a new head

_CIFAR10 = with_changes(
    TORCHVISION,
    ["fc7.num_units=1024", "fc8.num_units=10", "weight_decay=0", "epochs=40", *_NO_DROPS],
)
CIFAR10_TRANSFER = _as(
    with_deviations_of_pytorch(_CIFAR10),
    "cifar10-transfer",
    "CIFAR-10 scaled up to 256 pixels, torchvision's alexnet with 4096, 1024 and 10 units, from "
    "scratch; then --init --new-head --freeze; mended: the best epoch is chosen on val, not on "
    f"test; {_THEIRS}",
)
CIFAR10_TRANSFER_64 = _as(
    _with_gain_of_one(
        with_changes(
            _CIFAR10,
            [
                *_NARROW_CONVS,
                *("conv1.num_kernels=16", "conv2.num_kernels=48", "conv4.num_kernels=64"),
                *("fc6.num_units=512", "fc7.num_units=128", "batch_size=64"),
                *("resized_crops=none", *_CROPS, *_NARROW_TRAINING),
            ],
        )
    ),
    f"cifar10-transfer{NARROW}",
    "cifar10-transfer with a quarter of the kernels and an eighth of the units, for pictures "
    "scaled up to 64 pixels (build_shards.py --size 64); plain crops",
)

EARLIER_PROJECTS = (
    *(IMAGENET_ONE_GPU, IMAGENET_ONE_GPU_64, TINY10, TINY10_64),
    *TINY_VARIANTS,
    *(CIFAR10_TRANSFER, CIFAR10_TRANSFER_64),
)
