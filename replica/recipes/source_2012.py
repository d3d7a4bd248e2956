"""The recipes of the authors' own source: what ran in 2012, where it differs from the text, too.

`source-2012` is the source's configuration 145, the paper's network by its recorded errors; the
others are the runs behind the paper's comparisons. `evidence.py` says of each value where it
stands, and `python -m replica.recipes diff paper source-2012` lists the differences.
"""

import dataclasses

from replica import paper
from replica.recipes.changes import with_changes
from replica.recipes.expected import claim_of
from replica.recipes.paper import CONV6, PAPER
from replica.recipes.recipe import FullyConnected, Recipe

# Where there is a ReLU behind a pooling, it is a part of the pooling layer in the source.
_POOLED_FIRST = "normalization,pooling,activation"
# The deviation of the source's third to sixth convolutions; the text has 0.01 for every layer.
_WIDER = 0.03
_NUM_CLASSES_2011 = 21_843


def _member(base: Recipe, name: str, what: str, *changes: str) -> Recipe:
    """Another recipe of the family, changed as `--set` changes one."""
    changed = with_changes(base, list(changes))
    return dataclasses.replace(changed, name=name, claim=claim_of(name, what))


SOURCE_2012 = _member(
    PAPER,
    "source-2012",
    "what ran: configuration 145 of the authors' source",
    f"conv1.order={_POOLED_FIRST}",
    "conv2.normalization=lrn,same-map",
    *(f"{layer}.weight_standard_deviation={_WIDER}" for layer in ("conv3", "conv4", "conv5")),
    f"conv5.order={_POOLED_FIRST}",
    f"lrn_alpha={paper.LRN_ALPHA / paper.LRN_N}",
    "pool_ties=all",
    "pool_rounding=up",
    "shared_crops=32",
    "color_scale=standard-deviations",
    "color_division=true",
    "mean=center",
    "bias_learning_rate=0.02",
    "epochs=91",
    "drop_rule=epochs",
    "drop_epochs=25,51,79",
    "changes=67:conv1.weight=0.00001,67:color_noise=0,72:conv1=0",
)

# DEVIATION D19: when the biases' rate fell is recorded for another run alone: with the first drop
# of the weights'. Nor are the half net's last drop and the schedule of the net of Fall 2011.
SOURCE_2010 = _member(
    SOURCE_2012,
    "source-2010",
    "the same network on ILSVRC-2010",
    "epochs=93",
    "drop_epochs=23,51,78",
    "changes=23:bias_learning_rate=0.002,68:conv1.weight=0.00001,68:color_noise=0,72:conv1=0",
)

SOURCE_2012_HALF = _member(
    SOURCE_2010,
    "source-2012-half",
    "one tower with half of the kernels, but for conv5 (paper 3.2); trained on ILSVRC-2010",
    "towers=1",
    *("conv1.num_kernels=48", "conv2.num_kernels=128"),
    *("conv3.num_kernels=192", "conv4.num_kernels=192"),
    "epochs=96",
    "drop_epochs=20,48,79",
    "changes=20:bias_learning_rate=0.002,66:conv1.weight=0.00001,66:color_noise=0,72:conv1=0",
)

# 55 -> 28 -> 26 -> 13 -> 13 -> 13 -> 11 -> 6: other paddings keep the shapes.
SOURCE_2012_NO_OVERLAP = _member(
    SOURCE_2012,
    "source-2012-no-overlap",
    "pooling without overlap (paper 3.4)",
    *("pool_window=2", "conv2.padding=1,1", "conv5.padding=0,0"),
    "epochs=90",
    "drop_epochs=23,51,79",
    "changes=79:conv1=0",
)

SOURCE_2012_NO_NORM = _member(
    SOURCE_2012,
    "source-2012-no-norm",
    "without local response normalization (paper 3.3), and without the same-map one",
    *("conv1.normalization=none", "conv2.normalization=none"),
    "epochs=97",
    "drop_epochs=22,44,86",
    "changes=69:conv1.weight=0.00001,69:color_noise=0,73:conv1=0",
)

SOURCE_2012_NO_COMMUNICATION = _member(
    SOURCE_2012,
    "source-2012-no-communication",
    "two towers that meet in the logits alone, with a wider conv2, fc6 and fc7",
    "conv2.num_kernels=320",
    *(f"{fc}.num_units={2 * paper.FC_UNITS[0]}" for fc in ("fc6", "fc7")),
    *(f"{layer}.reads_both_towers=false" for layer in ("conv3", "fc6", "fc7")),
    "epochs=92",
    "drop_epochs=25,49,79",
    "changes=66:conv1.weight=0.00001,66:color_noise=0,72:conv1=0",
)

_SIX_CONVOLUTIONS = (
    *SOURCE_2012.convs,
    dataclasses.replace(CONV6, weight_standard_deviation=_WIDER),
)
_BOTTLENECK = FullyConnected(
    name="bottleneck",
    num_units=2048,
    dropout=False,
    reads_both_towers=True,
    activation="linear",
    weight_standard_deviation=paper.WEIGHT_STANDARD_DEVIATION,
    bias=0.0,
)
_HIDDEN, _LOGITS = SOURCE_2012.fully_connected[:-1], SOURCE_2012.fully_connected[-1]

SOURCE_2011_CONV6 = _member(
    dataclasses.replace(
        SOURCE_2012,
        convs=_SIX_CONVOLUTIONS,
        fully_connected=(*_HIDDEN, _BOTTLENECK, _LOGITS),
    ),
    "source-2011-conv6",
    "the sixth convolutional layer, and a linear layer of 2,048 before the logits of 21,843 "
    "classes: to be trained on ImageNet Fall 2011, as a start for source-2012-conv6; no schedule "
    "of it is on record, so it has that of source-2012",
    f"fc8.num_units={_NUM_CLASSES_2011}",
)

# DEVIATION D18: the source set fc8's rate at training file 300; here it is from the first step.
SOURCE_2012_CONV6 = _member(
    dataclasses.replace(SOURCE_2012, convs=_SIX_CONVOLUTIONS),
    "source-2012-conv6",
    "the sixth convolutional layer, fine-tuned from source-2011-conv6 (--init, --new-head)",
    f"learning_rate={paper.LEARNING_RATE / 10}",
    f"conv1.learning_rate={paper.LEARNING_RATE / 100}",
    f"fc8.learning_rate={paper.LEARNING_RATE}",
    "bias_learning_rate=0.002",
    "epochs=54",
    "drop_epochs=22,42",
    "changes=5:conv1.weight=0.00001,7:conv1=0,9:fc8.weight=0.001,38:color_noise=0",
)

SOURCE_RECIPES = (
    *(SOURCE_2012, SOURCE_2010, SOURCE_2012_HALF, SOURCE_2012_NO_OVERLAP, SOURCE_2012_NO_NORM),
    *(SOURCE_2012_NO_COMMUNICATION, SOURCE_2011_CONV6, SOURCE_2012_CONV6),
)
