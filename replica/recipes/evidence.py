"""Where the values of the recipes stand: sections of the paper, lines of the 2012 source.

The one home of that; `differences.py` reads it. Files without a folder are those of the source as
the Computer History Museum released it; C1 is cuda-convnet as of July 2012, which has the kernels
that the release lacks. Lines are of the revisions 2f8b81f and e4ac0c1. What stands in the files of
torchvision and Caffe is in `evidence_other_systems.py`, in those of earlier projects in
`evidence_earlier_projects.py`.
"""

from fnmatch import fnmatchcase

from replica.recipes.evidence_earlier_projects import (
    EARLIER_PROJECTS_EVIDENCE,
    EARLIER_PROJECTS_MADE_FROM,
)
from replica.recipes.evidence_other_systems import OTHER_SYSTEMS_EVIDENCE
from replica.recipes.recipe import Recipe

# The recipe that another one was made from: what is not said of it is said of that one.
_MADE_FROM = {
    "paper-conv6": "paper",
    "source-2010": "source-2012",
    "source-2012-half": "source-2010",
    "source-2012-no-overlap": "source-2012",
    "source-2012-no-norm": "source-2012",
    "source-2012-no-communication": "source-2012",
    "source-2011-conv6": "source-2012",
    "source-2012-conv6": "source-2011-conv6",
    "caffenet": "caffe-alexnet",
    **EARLIER_PROJECTS_MADE_FROM,
}

# Fields of this project, off in both: what they do is in neither.
_NEITHER = dict.fromkeys(
    (
        *("vertical_flips", "resized_crops", "color_jitter", "pixel_noise", "ema"),
        *("block_images", "keeps_gain", "*.is_local", "pixel_mean", "pixel_divisor"),
        *("drop_every", "stop_patience"),
    ),
    "nothing of the kind",
)

_PAPER = {
    **_NEITHER,
    "towers": "3.2, Figure 2",
    "num_classes": "3.5: 1000; here as many as the data has",
    "crop_size": "3.5, 4.1: 224 x 224",
    "*.kernel_size": "3.5",
    "*.stride": "3.5",
    "activation": "3.1",
    "order": "3.3 to 3.5: ReLU, normalization, pooling",
    "conv*.num_kernels": "3.5",
    "fc*.num_units": "3.5",
    "conv*.padding": "silent; Figure 2 needs 27 x 27 and 13 x 13 maps",
    "*.reads_both_towers": "3.5, Figure 2",
    "*.normalization": "3.3, 3.5: one, after conv1 and conv2",
    "lrn_alpha": "3.3: 10^-4 on the plain sum",
    "lrn_scope": "3.3: N is the whole layer; here the tower (D7)",
    "lrn_*": "3.3",
    "same_map_*": "not in the paper",
    "*.pooling": "3.4, 3.5",
    "pool_window": "3.4: z = 3",
    "pool_stride": "3.4: s = 2",
    "pool_ties": "silent (D8)",
    "pool_rounding": "silent; windows divide the maps exactly",
    "dropout_keep": "4.2",
    "dropout_scale": "4.2: at test time their outputs are multiplied by 0.5",
    "*.dropout": "4.2: behind the first two fully connected layers",
    "image_order": "silent (D10)",
    "random_*": "4.1",
    "shared_crops": "4.1: of each image (D5)",
    "color_noise": "4.1: 0.1",
    "color_scale": "4.1: eigenvalues (D6)",
    "color_division": "4.1: none (D6)",
    "mean": "2: each pixel less its mean over the training set (D11)",
    "channels": "2: raw RGB values of the pixels",
    "batch_size": "5",
    "momentum": "5",
    "optimizer": "5: the rate is in the velocity",
    "weight_decay": "5",
    "decay_biases": "silent (D3)",
    "learning_rate": "5: 0.01",
    "*.learning_rate": "5: equal for all layers",
    "bias_learning_rate": "5: an equal learning rate for all layers",
    "epochs": "5: roughly 90 cycles",
    "drop_rule": "5: when the validation error stopped improving (D4)",
    "drop_factor": "5: by ten",
    "max_drops": "5: three times",
    "plateau_*": "5: judged by hand (D4)",
    "drop_epochs": "silent; those of the source, for drop_rule=epochs (D4)",
    "changes": "5: none but the drops, by ten, three times",
    "*.weight_standard_deviation": "5: 0.01 in each layer",
    "*.bias": "5",
}

_SOURCE_2012 = {
    **_NEITHER,
    "towers": "layers-145.cfg: columns a and b, on GPU 0 and 1",
    "num_classes": "layers-145.cfg:294-299; here as many as the data has",
    "crop_size": "convdata_jpeg.py:73, shownet.py:464",
    "*.kernel_size": "layers-145.cfg:9-218",
    "*.stride": "layers-145.cfg:9-218",
    "activation": "layers-145.cfg:9-299",
    "order": "layers-145.cfg:65-133",
    "conv*.num_kernels": "layers-145.cfg:9-218, per column half of it",
    "fc*.num_units": "layers-145.cfg:238-299, per column half of it",
    "conv*.padding": "layers-145.cfg:9-218; layer.py:1004 rounds up",
    "*.reads_both_towers": "layers-145.cfg:135-161 and 238-299",
    "conv1.order": "layers-145.cfg:9-20, 35-39, 47-54: the ReLU is the pooling layer's",
    "conv5.order": "layers-145.cfg:192-218, 220-236: the ReLU is the pooling layer's",
    "conv1.normalization": "layers-145.cfg:35-45",
    "conv2.normalization": (
        "layers-145.cfg:95-105, and 107-117: cnorm2, in one map, not in the paper; its letters: "
        "layer-params-145.cfg:157-163, C1 src/cudaconv2/conv_util.cu:802"
    ),
    "*.normalization": "layers-145.cfg: none",
    "lrn_alpha": "layer.py:1183: the scale of 1e-4 is divided by the size, 5",
    "lrn_scope": "layers-145.cfg:35-45: one of each column",
    "lrn_*": "layers-145.cfg:35-45",
    "same_map_*": "layers-145.cfg:107-117, layer-params-145.cfg:157-163",
    "*.pooling": "layers-145.cfg:47-236",
    "pool_window": "layers-145.cfg:47-63",
    "pool_stride": "layers-145.cfg:47-63",
    "pool_ties": "C1 src/cudaconv2/conv_util.cu:1559: every maximum that ties",
    "pool_rounding": "layer.py:1164",
    "dropout_keep": "layers-145.cfg:256-264, src/layer.cu:1126-1134: halves outputs at test",
    "dropout_scale": "src/layer.cu:1126-1134",
    "*.dropout": "layers-145.cfg:256-264, 284-292",
    "image_order": "convdata_jpeg.py:262, C1 data.py:92-93: the same in every epoch",
    "random_*": "convdata_jpeg.py:238-246",
    "shared_crops": "convdata_jpeg.py:77, 238-246: one draw for 32 consecutive images",
    "color_noise": "layer-params-*.cfg, notes: 0.1",
    "color_scale": "convdata_jpeg.py:57-66",
    "color_division": "convdata_jpeg.py:155-179: by 1 + 0.1",
    "mean": "convdata_jpeg.py:95, 203-211: the central part, whatever the crop",
    "channels": "convdata_jpeg.py:34",
    "batch_size": "convnet.py:177",
    "momentum": "layer-params-145.cfg",
    "optimizer": "src/layer.cu:565: the rate is in the velocity",
    "weight_decay": "layer-params-145.cfg",
    "decay_biases": "src/layer.cu:565",
    "learning_rate": "layer-params-153.cfg:1-128",
    "*.learning_rate": "layer-params-153.cfg:1-128",
    "bias_learning_rate": "layer-params-153.cfg:1-128; 0.02 at the end of 145, too",
    "epochs": "layer-params-145.cfg, notes: stopped by hand",
    "drop_rule": "layer-params-145.cfg, notes: by hand, when is on record",
    "drop_factor": "layer-params-145.cfg, notes",
    "max_drops": "of drop_rule=plateau, which layer-params-145.cfg has not",
    "plateau_*": "of drop_rule=plateau, which layer-params-145.cfg has not",
    "drop_epochs": "layer-params-145.cfg, notes",
    "changes": "layer-params-145.cfg, notes",
    "conv3.weight_standard_deviation": "layers-145.cfg:145, 159",
    "conv4.weight_standard_deviation": "layers-145.cfg:172, 186",
    "conv5.weight_standard_deviation": "layers-145.cfg:200, 214",
    "*.weight_standard_deviation": "layers-145.cfg:9-299",
    "*.bias": "layers-145.cfg:9-299",
}


def _schedule(where: str) -> dict[str, str]:
    return dict.fromkeys(("epochs", "drop_epochs", "changes"), where)


_EVIDENCE: dict[str, dict[str, str]] = {
    **OTHER_SYSTEMS_EVIDENCE,
    **EARLIER_PROJECTS_EVIDENCE,
    "paper": _PAPER,
    "paper-conv6": {"conv6": "6: a sixth convolutional layer over the last pooling layer (D14)"},
    "source-2012": _SOURCE_2012,
    "source-2010": {
        **_schedule("layer-params-145-2010.cfg, notes"),
        "changes": (
            "layer-params-145-2010.cfg, notes; its biases end at 0.002, and when they fell is not "
            "recorded: with the first drop, as in run4.sh and layer-params-120-4gpu*.cfg"
        ),
    },
    "source-2012-half": {
        "towers": "layers-145-half.cfg: all on GPU 0",
        "conv*.num_kernels": "layers-145-half.cfg",
        **_schedule("layer-params-145-half.cfg, notes"),
        "drop_epochs": (
            "layer-params-145-half.cfg, notes; its last file has 1e-5, and when that began is not "
            "recorded: here as in source-2012"
        ),
        "changes": "layer-params-145-half.cfg, notes; of biases as in source-2010",
    },
    "source-2012-no-overlap": {
        "pool_window": "layers-147.cfg",
        "conv*.padding": "layers-147.cfg: so that fc6 still reads 6 x 6 maps",
        **_schedule("layer-params-147.cfg, notes; the color noise stayed"),
    },
    "source-2012-no-norm": {
        "conv*.normalization": "layers-148.cfg: neither of them",
        **_schedule("layer-params-148.cfg, notes"),
    },
    "source-2012-no-communication": {
        "conv*.num_kernels": "layers-150.cfg: 160 per column",
        "fc*.num_units": "layers-150.cfg: 4096 per column",
        "*.reads_both_towers": "layers-150.cfg",
        **_schedule("layer-params-150.cfg, notes"),
    },
    "source-2011-conv6": {
        "conv6": "layers-146-2009.cfg: per column 128 of 3 x 3 over both, 0.03, biases of 1",
        "bottleneck": (
            "layers-146-2011.cfg: fc1a, fc1b, 1024 each, linear; deviation and wiring are not "
            "recorded here: as of the other fully connected layers"
        ),
        "fc8.num_units": "layers-146-2011.cfg: 10921 + 10922",
        **_schedule("not recorded: those of source-2012"),
    },
    "source-2012-conv6": {
        "*learning_rate": (
            "layer-params-146-2012-2011.cfg, notes: fc8's was set at training file 300, here it "
            "is from the first step; the biases' is not recorded: that of source-2010 at 0.001"
        ),
        "fc8.num_units": "layers-146-2012-2011.cfg",
        **_schedule("layer-params-146-2012-2011.cfg, notes"),
    },
}


def evidence_of(recipe: Recipe, field: str) -> str | None:
    """Where the value of a field stands, such as `lrn_alpha`, `conv1.order` or a layer, `conv6`.

    Where nothing is said of a layer, it is what is said of all of them. None where it is on no
    record: of `mini`.
    """
    for asked in (field, field.rpartition(".")[2]):
        name: str | None = recipe.name
        while name is not None:
            known = _EVIDENCE.get(name, {})
            if (pattern := next((x for x in known if fnmatchcase(asked, x)), None)) is not None:
                return known[pattern]
            name = _MADE_FROM.get(name)
    return None
