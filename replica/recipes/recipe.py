"""What a recipe is: a frozen record of one network and its training, and the rules for its values.

A layer's entry says what that layer does, so an ablation is a changed field. Where an entry says
None, what the recipe says of all layers holds. `rules.py` has the words and numbers that a field
may have.
"""

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.errors import UserError
from replica.recipes.geometry import geometry_problems
from replica.recipes.rules import MOST, NORMALIZATIONS, RULES, UP_TO_MOST

# What follows a layer's products; `order` says in which order.
FOLLOWING = ("activation", "normalization", "pooling")


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """What convolutional and fully connected layers have in common.

    Attributes:
        name: of the layer, and of its parameters.
        reads_both_towers: whether its inputs are those of both towers or of its own; the first
            layer reads the image, and every tower reads all of it.
        weight_standard_deviation: of the zero-mean Gaussian that the first weights are drawn from.
        bias: the first value of every bias.
        activation: of `ACTIVATIONS`; the last layer gives the logits and has none.
        learning_rate: of its weights, and of its biases where nothing is said of those; drops
            change it with the others.
        bias_learning_rate: of its biases; drops do not change it.
        weight_decay: of its weights.
    """

    name: str
    weight_standard_deviation: float
    bias: float
    reads_both_towers: bool
    activation: str | None = None
    learning_rate: float | None = None
    bias_learning_rate: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True, kw_only=True)
class Conv(_Layer):
    """A convolutional layer; channels are those of the whole layer, all towers together.

    Attributes:
        num_kernels, kernel_size, stride: of the layer.
        padding: rows and columns of zeros before and after, in both directions.
        is_local: whether each place has kernels of its own (a locally connected layer).
        normalization: of `NORMALIZATIONS`, one after the other; empty for none.
        pooling: of `POOLINGS`.
        pool_window, pool_stride: of its pooling.
        pool_ties: of `POOL_TIES`, of maximum pooling.
        order: of `FOLLOWING`, all three.
        dropout: whether what leaves it, after all three, is dropped in training, as other projects
            have it before their first fully connected layer.
    """

    num_kernels: int
    kernel_size: int
    stride: int
    padding: tuple[int, int]
    is_local: bool = False
    normalization: tuple[str, ...] = ()
    pooling: str = "none"
    pool_window: int | None = None
    pool_stride: int | None = None
    pool_ties: str | None = None
    order: tuple[str, ...] | None = None
    dropout: bool = False


@dataclass(frozen=True, kw_only=True)
class FullyConnected(_Layer):
    """A fully connected layer; units are those of the whole layer, all towers together.

    The last one of a network gives the logits; its `num_units` is the number of classes.

    Attributes:
        num_units: of the layer.
        dropout: whether its outputs are dropped in training (paper 4.2).
        normalization: `batch`, or empty for none; before the activation.
    """

    num_units: int
    dropout: bool
    reads_both_towers: bool = True
    normalization: tuple[str, ...] = ()


Layer = Conv | FullyConnected


@dataclass(frozen=True)
class EpochChange:
    """A value that is set before the first step of an epoch, and stays until it is set again.

    Attributes:
        epoch: counted from 1.
        target: `learning_rate` (every layer that is not frozen), `bias_learning_rate` (every bias),
            a layer (`conv1`), one of its tensors (`conv1.bias`), or `color_noise`.
        value: the rate, 0 freezes; or the standard deviation of the alphas.
    """

    epoch: int
    target: str
    value: float

    def __str__(self) -> str:
        return f"{self.epoch}:{self.target}={self.value:g}"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One network and its training. Field comments name the section that decides the value."""

    name: str
    claim: str  # what the recipe tests: expected figure, where it stands, what it costs

    # --- The network (paper 3)
    towers: int
    num_classes: int | None  # None: as many as the data has
    crop_size: int
    convs: tuple[Conv, ...]
    fully_connected: tuple[FullyConnected, ...]
    activation: str = "relu"
    order: tuple[str, ...] = FOLLOWING
    lrn_n: int
    lrn_k: float
    lrn_alpha: float
    lrn_beta: float
    lrn_scope: str = "tower"  # where its windows end; layer: the text's N (D7)
    # The same-map normalization of the 2012 source, where a layer has it: windows of n x n, and
    # alpha on the plain sum (the source divides its 0.001 by 5 * 5).
    same_map_n: int = 5
    same_map_k: float = 1.0
    same_map_alpha: float = 0.001 / 25
    same_map_beta: float = 0.75
    pool_window: int
    pool_stride: int
    pool_ties: str = "first"
    pool_rounding: str = "down"  # of the number of windows; up: the last is cut off at the border
    dropout_keep: float
    dropout_scale: str = "test"  # when outputs are multiplied: by it at test, by 1 / it in training
    # Whether `--set` keeps the gain of each layer of `paper` where it changes a layer's inputs.
    keeps_gain: bool = False

    # --- The images (paper 2, 4.1)
    image_order: str = "cycle"
    block_images: int | None = None  # of `image_order=block`, in a block; None: a shard is a block
    random_crops: bool
    random_flips: bool
    shared_crops: int = 1  # so many images, one after the other, have one crop and reflection
    color_noise: float  # standard deviation of each alpha; 0 adds none
    color_scale: str = "eigenvalues"
    color_division: bool = False  # whether images with noise are divided by 1 + `color_noise`
    mean: str = "place"
    # Of other projects, as 0..255: what is subtracted instead of the mean image, and what the rest
    # is divided by, red first; in which order the first layer reads the channels.
    pixel_mean: tuple[float, ...] = ()
    pixel_divisor: tuple[float, ...] = ()
    channels: str = "rgb"
    # Of other projects, before the above: `replica/feed/variants.py` (not in the paper).
    vertical_flips: bool = False
    resized_crops: tuple[float, ...] = ()  # least and most share of the area
    color_jitter: tuple[float, ...] = ()  # brightness, contrast, saturation, hue
    pixel_noise: float = 0.0  # standard deviation in pixel values of 0..255

    # --- The optimizer (paper 5)
    batch_size: int
    momentum: float
    optimizer: str = "paper"  # of `OPTIMIZERS`; of Adam, `momentum` is the first beta
    ema: float | None = None  # D of average <- D * average + (1 - D) * weight; None keeps none
    weight_decay: float
    decay_biases: bool
    learning_rate: float
    bias_learning_rate: float | None  # None: as the weights; a number: drops do not change it

    # --- The schedule (paper 5)
    epochs: int
    # "plateau": validation error stops improving; "epochs": at `drop_epochs`; "fixed": each so
    # many epochs.
    drop_rule: str
    drop_factor: float
    drop_epochs: tuple[int, ...]  # a drop acts before the first step of its epoch, counted from 1
    plateau_patience: int  # epochs without a new best top-1 error after which the rate drops
    plateau_improvement: float  # by how much (fraction) an error must be lower to be a new best
    max_drops: int
    # Of other projects: epochs from one drop to the next, of "fixed"; epochs without a new best
    # top-1 error after which the run ends.
    drop_every: int | None = None
    stop_patience: int | None = None
    changes: tuple[EpochChange, ...]  # values that are set at the beginning of an epoch

    def __post_init__(self) -> None:
        if problems := list(_problems(self)) or geometry_problems(self):
            raise UserError(f"recipe {self.name}: {'; '.join(problems)}")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All of them, in the order of the network."""
        return (*self.convs, *self.fully_connected)

    def layer(self, name: str) -> Layer:
        """The layer of this name."""
        return next(layer for layer in self.layers if layer.name == name)

    def activation_of(self, layer: Layer) -> str:
        """What a layer's outputs go through."""
        if layer is self.fully_connected[-1]:
            return "linear"
        return self.activation if layer.activation is None else layer.activation

    def order_of(self, conv: Conv) -> tuple[str, ...]:
        """In which order a layer's activation, normalization and pooling follow its products."""
        return self.order if conv.order is None else conv.order

    def pooling_of(self, conv: Conv) -> tuple[int, int]:
        """Window and stride of a layer's pooling."""
        window = self.pool_window if conv.pool_window is None else conv.pool_window
        stride = self.pool_stride if conv.pool_stride is None else conv.pool_stride
        return window, stride

    def pool_ties_of(self, conv: Conv) -> str:
        """Which of equal maxima get the gradient in a layer's pooling."""
        return self.pool_ties if conv.pool_ties is None else conv.pool_ties


def shown(value: Any) -> str:
    """A field's value as `--set` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return str(value)


def _value_problems(record: Recipe | Layer, of: str = "") -> Iterator[str]:
    """Which values break the rule of their field; where it may be None, that breaks none."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        is_left_open = value is None and type(None) in typing.get_args(field.type)
        if field.name in RULES and not is_left_open:
            rule, holds = RULES[field.name]
            if not holds(value):
                yield f"{of}{field.name}: expected {rule}, got {shown(value)}"


def _problems(recipe: Recipe) -> Iterator[str]:
    """What is wrong with a recipe's values, and with how they fit each other."""
    yield from _value_problems(recipe)
    if recipe.resized_crops and recipe.random_crops:
        yield "resized_crops: expected random_crops=false beside it, as it cuts crops itself"
    for change in recipe.changes:
        if not 1 <= change.epoch <= MOST:
            yield f"changes: expected epochs from 1, {UP_TO_MOST}, got {change}"
        if problem := target_problem(recipe, change.target, change.value):
            yield f"changes: {problem}"
    if recipe.block_images is not None and recipe.image_order != "block":
        got = f"{recipe.block_images} with image_order={recipe.image_order}"
        yield f"block_images: expected none, or image_order=block, got {got}"
    if (recipe.drop_rule == "fixed") != (recipe.drop_every is not None):
        got = f"{shown(recipe.drop_every).lower()} with drop_rule={recipe.drop_rule}"
        yield f"drop_every: expected a number of epochs with drop_rule=fixed, else none, got {got}"
    names = layer_names(recipe)
    if not recipe.convs or not recipe.fully_connected:
        yield "expected a convolutional layer and a fully connected one, the last of which is last"
    if len(set(names)) < len(names):
        yield f"expected layers with names of their own, got {', '.join(names)}"
    for layer in recipe.layers:
        if not layer.name.isalnum():
            yield f"expected names of layers of letters and digits, got {layer.name}"
        yield from _value_problems(layer, of=f"{layer.name}.")
        if isinstance(layer, Conv) and max(layer.padding, default=0) > layer.kernel_size:
            rule = f"at most the {layer.kernel_size} of its kernels"
            yield f"{layer.name}.padding: expected {rule}, got {shown(layer.padding)}"
        yield from _problems_of_normalization(layer)
        if isinstance(layer, Conv) and layer.pooling != "none" and recipe.pool_rounding == "up":
            window, stride = recipe.pooling_of(layer)
            if stride > window:  # a window beyond the map would have nothing in it
                yield f"{layer.name}: expected a pool_stride of at most its window, got {stride}"
    if recipe.towers == 2:
        for layer in recipe.layers[:-1]:
            width = layer.num_kernels if isinstance(layer, Conv) else layer.num_units
            if width % 2:
                yield f"{layer.name}: expected an even width for two towers, got {width}"
    for last in recipe.fully_connected[-1:]:
        if recipe.towers == 2 and not last.reads_both_towers:
            yield f"{last.name}.reads_both_towers: expected true, as each logit needs both towers"
        if last.normalization or last.dropout:
            yield f"{last.name}: expected logits without normalization and dropout"


def _problems_of_normalization(layer: Layer) -> Iterator[str]:
    known = NORMALIZATIONS if isinstance(layer, Conv) else ("batch",)
    given = layer.normalization
    if not set(given) <= set(known) or len(set(given)) < len(given):
        yield (
            f"{layer.name}.normalization: expected none or {', '.join(known)}, each once, "
            f"got {shown(given)}"
        )


def layer_of(parameter: str) -> str:
    """The layer that a parameter belongs to: `conv1` of `conv1.weight` and `conv1_batch.bias`."""
    return parameter.split(".")[0].split("_")[0]


def layer_names(recipe: Recipe) -> list[str]:
    """`conv1`, ..., `fc8`, in the order of the network."""
    return [layer.name for layer in recipe.layers]


def target_problem(recipe: Recipe, target: str, value: float) -> str | None:
    """Why a target cannot be set to a value, or None; `EpochChange` lists the targets."""
    layer, _, tensor = target.partition(".")
    is_known = target in ("learning_rate", "bias_learning_rate", "color_noise") or (
        layer in layer_names(recipe) and tensor in ("", "weight", "bias")
    )
    if not is_known:
        return (
            f"{target}: expected learning_rate, bias_learning_rate, color_noise, or one of the "
            f"layers {', '.join(layer_names(recipe))}, also with .weight or .bias"
        )
    if not 0 <= value < float("inf"):
        return f"{target}: expected a number >= 0, got {value}"
    return None
