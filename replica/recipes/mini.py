"""The recipe `mini`: a narrow member of the family for the demo and the tests.

Same 256 -> 224 pipeline, same layers, fewer channels. With the paper's standard deviation of 0.01 a
narrow network stays at ln(classes): each layer multiplies the size of its signal by about
sqrt(fan-in) * 0.01, and here fan-ins are small. So each layer keeps the *gain* that it has in
`paper`: std = 0.01 * sqrt(fan-in in paper / fan-in here).
"""

import dataclasses
import math

from replica import paper
from replica.recipes.paper import PAPER, paper_convs, paper_fully_connected
from replica.recipes.recipe import Recipe

CONV_KERNELS = (16, 32, 48, 48, 32)
FC_UNITS = (256, 256)
# The demo's data has ten classes; the logits' width follows the data (`num_classes` is None).
NUM_CLASSES = 10


def fan_ins(
    conv_kernels: tuple[int, ...], fc_units: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Inputs of one unit of each layer, for these widths: five convolutions, three others."""
    channels = (
        3,
        conv_kernels[0] // 2,
        conv_kernels[1],
        conv_kernels[2] // 2,
        conv_kernels[3] // 2,
    )
    convs = tuple(
        c * size * size for c, size in zip(channels, paper.CONV_KERNEL_SIZES, strict=True)
    )
    maps_side = 6  # pool5 gives 6 x 6 maps (paper, Figure 2)
    return convs, (conv_kernels[4] * maps_side**2, *fc_units)


def gain_keeping(ours: tuple[int, ...], papers: tuple[int, ...]) -> tuple[float, ...]:
    """Standard deviations that give each layer the gain that it has in `paper`."""
    return tuple(
        paper.WEIGHT_STANDARD_DEVIATION * math.sqrt(wide / narrow)
        for narrow, wide in zip(ours, papers, strict=True)
    )


_CONV_FAN_INS, _FC_FAN_INS = fan_ins(CONV_KERNELS, FC_UNITS)
_PAPER_CONV_FAN_INS, _PAPER_FC_FAN_INS = fan_ins(paper.CONV_KERNELS, paper.FC_UNITS)

MINI: Recipe = dataclasses.replace(
    PAPER,
    name="mini",
    claim="the demo: far below the 90 % error of chance on the embedded data set, in minutes on a "
    "laptop; the measured range is in REPRODUCE.md",
    convs=paper_convs(
        num_kernels=CONV_KERNELS,
        weight_standard_deviations=gain_keeping(_CONV_FAN_INS, _PAPER_CONV_FAN_INS),
    ),
    fully_connected=paper_fully_connected(
        num_units=(*FC_UNITS, NUM_CLASSES),
        weight_standard_deviations=gain_keeping(_FC_FAN_INS, _PAPER_FC_FAN_INS),
    ),
    # Small batches and half the rate: of the settings tried, these learn the demo's 1,500 images
    # fastest (REPRODUCE.md, "The demo").
    batch_size=32,
    learning_rate=0.005,
    epochs=32,
    drop_rule="epochs",
    drop_epochs=(28,),
)
