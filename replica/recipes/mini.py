"""The recipe `mini`: a narrow member of the family for the demo and the tests.

Same 256 -> 224 pipeline, same layers, fewer channels. Each layer keeps the gain that it has in
`paper` (`with_gain_of_paper` says why), also where `--set` changes what it reads.
"""

import dataclasses
import math
from typing import Any

from replica.recipes.changes import with_gain_of_paper
from replica.recipes.geometry import geometry
from replica.recipes.paper import PAPER, paper_convs, paper_fully_connected
from replica.recipes.recipe import Recipe, layer_names

CONV_KERNELS = (16, 32, 48, 48, 32)
# With 256 units, half of them dropped, seed 2012 tells the demo's stripes from
# its checks fourteen epochs later (REPRODUCE.md, "The demo").
FC_UNITS = (1024, 1024)
# The demo's data has ten classes; the logits' width follows the data (`num_classes` is None).
NUM_CLASSES = 10

MINI: Recipe = with_gain_of_paper(
    dataclasses.replace(
        PAPER,
        name="mini",
        claim="the demo: far below the 90 % error of chance on the embedded data set, in minutes "
        "on a laptop; the measured range is in REPRODUCE.md",
        convs=paper_convs(num_kernels=CONV_KERNELS),
        fully_connected=paper_fully_connected(num_units=(*FC_UNITS, NUM_CLASSES)),
        keeps_gain=True,
        # Small batches and half the rate: of the settings tried, these learn the demo's 1,500
        # images fastest (REPRODUCE.md, "The demo").
        batch_size=32,
        learning_rate=0.005,
        epochs=22,
        drop_rule="epochs",
        drop_epochs=(19,),
    ),
    layer_names(PAPER),
)

# For pictures of 64 x 64, such as Tiny ImageNet's: crops have the paper's share of them, and the
# first layer has smaller kernels, so that its maps are 28 x 28.
_FIRST_KERNEL_SIZE, _FIRST_STRIDE, _FIRST_PADDING = 5, 2, (2, 2)
_FIRST, *_OTHERS = MINI.convs
MINI64_UNITS = (256, 256)


def _with_gain_of_one(recipe: Recipe) -> Recipe:
    """The recipe with deviations of sqrt(2 / fan-in) in all layers but the first and the last.

    The gains of `paper` shrink a signal; what they do in this network, with dropout and without,
    is in REPRODUCE.md, "Does the text train?".
    """
    fan_in = {row.name: row.fan_in for row in geometry(recipe)}
    between = layer_names(recipe)[1:-1]

    def changed(layers: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            dataclasses.replace(x, weight_standard_deviation=math.sqrt(2 / fan_in[x.name]))
            if x.name in between
            else x
            for x in layers
        )

    return dataclasses.replace(
        recipe,
        convs=changed(recipe.convs),
        fully_connected=changed(recipe.fully_connected),
        keeps_gain=False,
    )


MINI64: Recipe = _with_gain_of_one(
    with_gain_of_paper(
        dataclasses.replace(
            MINI,
            name="mini64",
            claim="the paper's ablations at small scale: signs of effects of some points, within a "
            "minute a run on one core; not their size, nor what needs many epochs, 11 x 11 "
            "kernels, the paper's first weights, a wide network, or dropout beside it",
            crop_size=56,
            convs=(
                dataclasses.replace(
                    _FIRST,
                    kernel_size=_FIRST_KERNEL_SIZE,
                    stride=_FIRST_STRIDE,
                    padding=_FIRST_PADDING,
                ),
                *_OTHERS,
            ),
            fully_connected=paper_fully_connected(num_units=(*MINI64_UNITS, NUM_CLASSES)),
            # With 0.5 it was hardly below chance after twelve epochs.
            dropout_keep=1.0,
            # Of the rates and batches tried, the fastest in the first epochs.
            batch_size=64,
            learning_rate=0.003,
            epochs=12,
            drop_epochs=(11,),
        ),
        layer_names(PAPER),
    )
)
