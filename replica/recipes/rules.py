"""What the values of a recipe's fields must be: in words, as a test, and of which fields."""

from collections.abc import Callable
from typing import Any

from replica import paper

ACTIVATIONS = ("relu", "tanh", "linear")
# Between channels of a tower (paper 3.3); between neighbors in one map, as the 2012 source has it;
# over the batch.
NORMALIZATIONS = ("lrn", "same-map", "batch")
POOLINGS = ("max", "average", "none")
# Which of several equal maxima of a window get its gradient.
POOL_TIES = ("first", "all")
# Where the last window of a pooling ends: on the map, or cut off by its border.
POOL_ROUNDINGS = ("down", "up")
# The one order of every epoch; a new one in each; a new one that stays within blocks of images.
IMAGE_ORDERS = ("cycle", "reshuffle", "block")
# What an alpha is multiplied by: the text's eigenvalue, or its root, as the 2012 source has it.
COLOR_SCALES = ("eigenvalues", "standard-deviations")
# Which part of the mean image is subtracted from a crop: that of its place, or the central one.
MEANS = ("place", "center")
# Whether a window of the normalization ends at the border of a tower, or at that of the layer.
LRN_SCOPES = ("tower", "layer")
# When dropout multiplies: what stays by the probability of it, or in training by its inverse.
DROPOUT_SCALES = ("test", "training")
CHANNELS = ("rgb", "bgr")
# The paper's update, or `torch.optim`'s of the name.
OPTIMIZERS = ("paper", "sgd", "adam")
# When the rates drop: by the validation error, at given epochs, or each so many epochs.
DROP_RULES = ("plateau", "epochs", "fixed")
# What may follow a layer's products, in the order of the alphabet.
PARTS = ("activation", "normalization", "pooling")

# More images per batch, epochs, kernels or classes than anybody has are a mistake, which would be
# found late.
MOST = 1_000_000
UP_TO_MOST = f"at most {MOST:,}"


# What values must be: in words, as a test, and of which fields of a recipe or a layer.
TABLE: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("1 or 2", lambda x: x in (1, 2), "towers"),
    ("1 to 256 pixels", lambda x: 1 <= x <= paper.IMAGE_SIZE, "crop_size"),
    (
        f"at least 2, {UP_TO_MOST}, or none for as many as the data has",
        lambda x: 2 <= x <= MOST,
        "num_classes",
    ),
    (f"at least 0, {UP_TO_MOST}", lambda x: 0 <= x <= MOST, "max_drops"),
    (
        f"at least 1, {UP_TO_MOST}",
        lambda x: 1 <= x <= MOST,
        "num_kernels kernel_size stride num_units batch_size epochs pool_window pool_stride "
        "plateau_patience drop_every stop_patience block_images shared_crops",
    ),
    (
        f"an odd number >= 1, {UP_TO_MOST}",
        lambda x: 1 <= x <= MOST and x % 2 == 1,
        "lrn_n same_map_n",
    ),
    ("a number > 0", lambda x: x > 0, "lrn_k same_map_k"),
    ("a number >= 0", lambda x: x >= 0, "lrn_alpha lrn_beta same_map_alpha same_map_beta"),
    ("a number >= 0", lambda x: x >= 0, "learning_rate bias_learning_rate weight_decay"),
    (
        "a number >= 0",
        lambda x: x >= 0,
        "color_noise pixel_noise plateau_improvement weight_standard_deviation",
    ),
    (
        "none or two shares of the area, more than 0, rising, at most 1",
        lambda x: not x or (len(x) == 2 and 0 < x[0] <= x[1] <= 1),
        "resized_crops",
    ),
    (
        "none or four numbers >= 0, the last (hue) at most 0.5",
        lambda x: not x or (len(x) == 4 and min(x) >= 0 and max(x) <= MOST and x[3] <= 0.5),
        "color_jitter",
    ),
    ("at least 0, less than 1", lambda x: 0 <= x < 1, "momentum"),
    ("more than 0, less than 1", lambda x: 0 < x < 1, "ema"),
    ("more than 0, at most 1", lambda x: 0 < x <= 1, "dropout_keep drop_factor"),
    (
        f"two numbers >= 0, {UP_TO_MOST}",
        lambda x: len(x) == 2 and min(x) >= 0 and max(x) <= MOST,
        "padding",
    ),
    (" or ".join(OPTIMIZERS), lambda x: x in OPTIMIZERS, "optimizer"),
    (" or ".join(DROP_RULES), lambda x: x in DROP_RULES, "drop_rule"),
    (" or ".join(ACTIVATIONS), lambda x: x in ACTIVATIONS, "activation"),
    (" or ".join(POOLINGS), lambda x: x in POOLINGS, "pooling"),
    (" or ".join(POOL_TIES), lambda x: x in POOL_TIES, "pool_ties"),
    (" or ".join(POOL_ROUNDINGS), lambda x: x in POOL_ROUNDINGS, "pool_rounding"),
    (" or ".join(IMAGE_ORDERS), lambda x: x in IMAGE_ORDERS, "image_order"),
    (" or ".join(COLOR_SCALES), lambda x: x in COLOR_SCALES, "color_scale"),
    (" or ".join(MEANS), lambda x: x in MEANS, "mean"),
    (" or ".join(LRN_SCOPES), lambda x: x in LRN_SCOPES, "lrn_scope"),
    (" or ".join(DROPOUT_SCALES), lambda x: x in DROPOUT_SCALES, "dropout_scale"),
    (" or ".join(CHANNELS), lambda x: x in CHANNELS, "channels"),
    (
        "none or three numbers of 0 to 255",
        lambda x: not x or (len(x) == 3 and min(x) >= 0 and max(x) <= 255),
        "pixel_mean",
    ),
    (
        f"none or three numbers > 0, {UP_TO_MOST}",
        lambda x: not x or (len(x) == 3 and min(x) > 0 and max(x) <= MOST),
        "pixel_divisor",
    ),
    (f"an order of {', '.join(PARTS)}", lambda x: sorted(x) == list(PARTS), "order"),
    (
        f"rising epochs, counted from 1, {UP_TO_MOST}",
        lambda x: (
            list(x) == sorted(set(x)) and min(x, default=1) >= 1 and max(x, default=1) <= MOST
        ),
        "drop_epochs",
    ),
)
RULES = {field: (rule, holds) for rule, holds, names in TABLE for field in names.split()}
