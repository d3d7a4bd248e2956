"""The recipe `paper`: the text, read literally; where it is silent or impossible, the source."""

import dataclasses

from replica import paper
from replica.recipes.recipe import Conv, FullyConnected, Recipe

# 3.5 says nothing of padding. These keep 27 x 27 and 13 x 13 maps, as Figure 2 has them. conv1:
# DEVIATION D2: 224 -> 55 needs three zero pixels on the right and at the bottom; the source rounds
# the number of positions up and reads zeros there.
_PADDINGS = ((0, 3), (2, 2), (1, 1), (1, 1), (1, 1))


def paper_convs(*, num_kernels: tuple[int, ...] = paper.CONV_KERNELS) -> tuple[Conv, ...]:
    """The five convolutional layers of 3.5 with these widths (paper 3.5, 5)."""
    return tuple(
        Conv(
            name=f"conv{i + 1}",
            num_kernels=num_kernels[i],
            kernel_size=paper.CONV_KERNEL_SIZES[i],
            stride=paper.CONV_STRIDES[i],
            padding=_PADDINGS[i],
            reads_both_towers=f"conv{i + 1}" in paper.READS_BOTH_TOWERS,
            weight_standard_deviation=paper.WEIGHT_STANDARD_DEVIATION,
            bias=1.0 if f"conv{i + 1}" in paper.ONE_BIASES else 0.0,
            normalization=("lrn",) if f"conv{i + 1}" in paper.LRN_AFTER else (),
            pooling="max" if f"conv{i + 1}" in paper.POOL_AFTER else "none",
        )
        for i in range(5)
    )


def paper_fully_connected(
    *, num_units: tuple[int, ...] = (*paper.FC_UNITS, paper.NUM_CLASSES)
) -> tuple[FullyConnected, ...]:
    """The three fully connected layers of 3.5 with these widths (paper 3.5, 4.2, 5)."""
    return tuple(
        FullyConnected(
            name=f"fc{i + 6}",
            num_units=num_units[i],
            weight_standard_deviation=paper.WEIGHT_STANDARD_DEVIATION,
            bias=1.0 if f"fc{i + 6}" in paper.ONE_BIASES else 0.0,
            reads_both_towers=f"fc{i + 6}" in paper.READS_BOTH_TOWERS,
            dropout=f"fc{i + 6}" in paper.DROPOUT_AFTER,
        )
        for i in range(3)
    )


# DEVIATION D14: 6 adds "a sixth convolutional layer over the last pooling layer" and no number of
# it; these are the source's, but for the standard deviation, which 5 gives for every layer.
CONV6 = Conv(
    name="conv6",
    num_kernels=256,
    kernel_size=3,
    stride=1,
    padding=(1, 1),
    reads_both_towers=True,
    weight_standard_deviation=paper.WEIGHT_STANDARD_DEVIATION,
    bias=1.0,
)

PAPER = Recipe(
    name="paper",
    claim="40.7 % top-1 and 18.2 % top-5 error, ten-crop, on ILSVRC-2012 validation (Table 2, "
    "1 CNN); five to six days on two GTX 580 in 2012",
    towers=paper.NUM_TOWERS,
    num_classes=None,
    crop_size=paper.CROP_SIZE,
    convs=paper_convs(),
    fully_connected=paper_fully_connected(),
    lrn_n=paper.LRN_N,
    lrn_k=paper.LRN_K,
    lrn_alpha=paper.LRN_ALPHA,
    lrn_beta=paper.LRN_BETA,
    pool_window=paper.POOL_WINDOW,
    pool_stride=paper.POOL_STRIDE,
    dropout_keep=paper.DROPOUT_KEEP,
    random_crops=True,
    random_flips=True,
    color_noise=paper.COLOR_NOISE_STANDARD_DEVIATION,
    batch_size=paper.BATCH_SIZE,
    momentum=paper.MOMENTUM,
    weight_decay=paper.WEIGHT_DECAY,
    decay_biases=False,  # DEVIATION D3: the text does not say; the source has none
    learning_rate=paper.LEARNING_RATE,
    bias_learning_rate=None,  # 5: "an equal learning rate for all layers"
    epochs=paper.NUM_EPOCHS,
    # DEVIATION D4: "when the validation error stopped improving" was judged by hand; here it is a
    # rule in numbers. The recorded drops of the source's run 145 are the alternative.
    drop_rule="plateau",
    drop_factor=paper.LEARNING_RATE_FACTOR,
    drop_epochs=(25, 51, 79),
    plateau_patience=5,
    plateau_improvement=0.001,
    max_drops=paper.NUM_DROPS,
    changes=(),
)

PAPER_CONV6 = dataclasses.replace(
    PAPER,
    name="paper-conv6",
    claim="39.0 % top-1 and 16.6 % top-5 error, ten-crop, on ILSVRC-2012 validation, trained on "
    "ImageNet Fall 2011 and fine-tuned on ILSVRC-2012 (Table 2, 1 CNN*)",
    convs=(*PAPER.convs, CONV6),
)
