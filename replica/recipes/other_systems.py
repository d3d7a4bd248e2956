"""The recipes of other systems that call a network AlexNet, as their own files define them.

`evidence_other_systems.py` says of each value where it stands, and `python -m replica.recipes diff
paper caffenet` lists the differences. `replica.load` and `--init` read the weights that those
systems published.

DEVIATION D20: what no field of a recipe can say is as in `paper`. torchvision draws first weights
and biases evenly between two bounds; here weights are Gaussian with the same deviation, and biases
zero. Its rate is not a part of the velocity, and it cuts from whole pictures. Caffe squeezed
pictures to squares, and its rate falls every 100,000 steps, which are 19.98 epochs.
"""

import dataclasses
import math

from replica import paper
from replica.recipes.changes import with_changes
from replica.recipes.expected import claim_of
from replica.recipes.geometry import geometry
from replica.recipes.paper import PAPER
from replica.recipes.recipe import Recipe

# 255 times torchvision's mean of 0.485, 0.456, 0.406, and its deviation of 0.229, 0.224, 0.225.
PIXELS_OF_IMAGENET = ("pixel_mean=123.675,116.28,103.53", "pixel_divisor=58.395,57.12,57.375")


def _of_system(base: Recipe, name: str, what: str, *changes: str) -> Recipe:
    changed = with_changes(base, list(changes))
    return dataclasses.replace(changed, name=name, claim=claim_of(name, what))


def with_deviations_of_pytorch(recipe: Recipe) -> Recipe:
    """The deviation of even draws between -1 / sqrt(fan-in) and 1 / sqrt(fan-in)."""
    deviations = {row.name: 1 / math.sqrt(3 * row.fan_in) for row in geometry(recipe)}
    return with_changes(
        recipe, [f"{x}.weight_standard_deviation={value}" for x, value in deviations.items()]
    )


TORCHVISION = with_deviations_of_pytorch(
    _of_system(
        PAPER,
        "torchvision",
        "torchvision's alexnet, the one-tower network of a later paper, with its training",
        "towers=1",
        *("conv1.num_kernels=64", "conv2.num_kernels=192", "conv4.num_kernels=256"),
        "conv1.padding=2,2",
        *("conv1.normalization=none", "conv2.normalization=none"),
        *(f"{layer}.bias=0" for layer in paper.ONE_BIASES),
        # Its dropout is before fc6 and fc7, not behind fc6 and fc7.
        *("conv5.dropout=true", "fc7.dropout=false", "dropout_scale=training"),
        *PIXELS_OF_IMAGENET,
        "image_order=reshuffle",
        *("random_crops=false", "resized_crops=0.08,1", "color_noise=0"),
        *("batch_size=256", "weight_decay=0.0001", "decay_biases=true"),
        *("drop_rule=epochs", "drop_epochs=31,61"),
    )
)

CAFFE_ALEXNET = _of_system(
    PAPER,
    "caffe-alexnet",
    "Caffe's bvlc_alexnet",
    *("channels=bgr", "crop_size=227", "conv1.padding=0,0", "color_noise=0"),
    # Two groups of channels, but windows of the normalization cross them.
    *("lrn_scope=layer", "lrn_k=1", f"lrn_alpha={paper.LRN_ALPHA / paper.LRN_N}"),
    "pool_rounding=up",
    "dropout_scale=training",
    *(f"{layer}.bias=0.1" for layer in paper.ONE_BIASES),
    *(f"{layer}.weight_standard_deviation=0.005" for layer in ("fc6", "fc7")),
    "batch_size=256",
    "bias_learning_rate=0.02",
    *("drop_rule=epochs", "drop_epochs=21,41,61,81"),
    # Twice the weights' rate, all the way.
    "changes=" + ",".join(f"{1 + 20 * i}:bias_learning_rate={0.02 / 10**i:g}" for i in range(1, 5)),
)

CAFFENET = _of_system(
    CAFFE_ALEXNET,
    "caffenet",
    "Caffe's bvlc_reference_caffenet, which pools before it normalizes",
    "order=activation,pooling,normalization",
    *(f"{layer}.bias=1" for layer in paper.ONE_BIASES),
)

OTHER_SYSTEMS = (TORCHVISION, CAFFE_ALEXNET, CAFFENET)
