"""One table of a recipe's geometry: what each layer reads, holds and gives, worked out once.

The network makes its parameters from it; `info`, the dry run and the rules of a recipe read it.
C channels, H rows, W columns.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replica import paper

if TYPE_CHECKING:
    from replica.recipes.recipe import Conv, Layer, Recipe

IMAGE_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class LayerGeometry:
    """One layer of the whole network, all towers together.

    Attributes:
        reads: "image", "own tower", "both towers"; "all" where there is one tower.
        input_shape: (C, H, W) or (units,), all that the layer is given.
        weight_shape: (kernels, C read, side, side), with (H, W) behind them where each place has
            its own; (units, inputs read) of a fully connected layer.
        bias_shape: (kernels,), or (kernels, H, W); (units,).
        kernel_size, stride: 0 for fully connected layers.
        padding: rows and columns of zeros before and after, in both directions.
        output_shape: (C, H, W) or (units,), before pooling.
        handed_on: (C, H, W) or (units,), after pooling.
        receptive_field: side of the square of the crop, in pixels, that one output before pooling
            depends on; no more than the crop.
    """

    name: str
    reads: str
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    bias_shape: tuple[int, ...]
    kernel_size: int = 0
    stride: int = 0
    padding: tuple[int, int] = (0, 0)
    output_shape: tuple[int, ...]
    handed_on: tuple[int, ...]
    receptive_field: int

    @property
    def num_inputs(self) -> int:
        """How many values the layer is given for one image."""
        return math.prod(self.input_shape)

    @property
    def fan_in(self) -> int:
        """How many values one output is a sum over."""
        return math.prod(self.weight_shape[1:4])

    @property
    def parameters(self) -> int:
        """How many weights and biases there are."""
        return math.prod(self.weight_shape) + math.prod(self.bias_shape)

    @property
    def neurons(self) -> int:
        """How many outputs there are, before pooling."""
        return math.prod(self.output_shape)

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return self.fan_in * self.neurons


class _TooSmallError(ValueError):
    """Maps are smaller than what goes over them."""


def geometry(
    recipe: "Recipe", *, num_classes: int | None = None, channels: int = IMAGE_CHANNELS
) -> list[LayerGeometry]:
    """The layers of a recipe's network, in its order, on images with so many channels.

    There are `num_classes` logits; by default what the recipe says, else what its last layer has.
    """
    return list(_layers(recipe, recipe.crop_size, num_classes, channels))


def geometry_problems(recipe: "Recipe") -> list[str]:
    """Why the recipe's layers do not fit onto its crops, with the smallest crop that works."""

    def too_small(crop_size: int) -> str | None:
        try:
            list(_layers(recipe, crop_size, None))
        except _TooSmallError as error:
            return str(error)
        return None

    problem = too_small(recipe.crop_size)
    if problem is None:
        return []
    larger = range(recipe.crop_size + 1, paper.IMAGE_SIZE + 1)
    works = next((size for size in larger if too_small(size) is None), None)
    if works is None:
        return [f"{problem}; no crop of up to {paper.IMAGE_SIZE} pixels works"]
    return [f"{problem}; the smallest crop that works is crop_size={works}"]


def _layers(
    recipe: "Recipe", crop_size: int, num_classes: int | None, channels: int = IMAGE_CHANNELS
) -> Iterator[LayerGeometry]:
    towers = recipe.towers
    shape: tuple[int, ...] = (channels, crop_size, crop_size)
    # The side of what one value depends on, and the distance between neighbors, in pixels.
    field = distance = 1
    for conv in recipe.convs:
        reads = "image" if conv is recipe.convs[0] else _reads(conv, towers)
        read = shape[0] // towers if reads == "own tower" else shape[0]
        side = pooled = _conv_side(conv, shape[1], crop_size)
        field, distance = field + (conv.kernel_size - 1) * distance, distance * conv.stride
        receptive_field = min(field, crop_size)
        own_places = (side, side) if conv.is_local else ()
        if conv.pooling != "none":
            window, stride = recipe.pooling_of(conv)
            if side < window:
                raise _TooSmallError(
                    f"{conv.name}: its pooling has windows of {window} x {window}, its maps are "
                    f"{side} x {side} at crops of {crop_size}"
                )
            beyond = stride - 1 if recipe.pool_rounding == "up" else 0
            pooled = (side - window + beyond) // stride + 1
            field, distance = field + (window - 1) * distance, distance * stride
        yield LayerGeometry(
            name=conv.name,
            reads=reads,
            input_shape=shape,
            weight_shape=(conv.num_kernels, read, *[conv.kernel_size] * 2, *own_places),
            bias_shape=(conv.num_kernels, *own_places),
            kernel_size=conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            output_shape=(conv.num_kernels, side, side),
            handed_on=(conv.num_kernels, pooled, pooled),
            receptive_field=receptive_field,
        )
        shape = (conv.num_kernels, pooled, pooled)
    num_classes = num_classes or recipe.num_classes
    for fc in recipe.fully_connected:
        is_last = fc is recipe.fully_connected[-1]
        units = (num_classes or fc.num_units) if is_last else fc.num_units
        reads = _reads(fc, towers)
        inputs = math.prod(shape) // (towers if reads == "own tower" else 1)
        yield LayerGeometry(
            name=fc.name,
            reads=reads,
            input_shape=shape,
            weight_shape=(units, inputs),
            bias_shape=(units,),
            output_shape=(units,),
            handed_on=(units,),
            receptive_field=crop_size,
        )
        shape = (units,)


def _reads(layer: "Layer", towers: int) -> str:
    if towers == 1:
        return "all"
    return "both towers" if layer.reads_both_towers else "own tower"


def _conv_side(conv: "Conv", side: int, crop_size: int) -> int:
    padded = side + sum(conv.padding)
    if padded < conv.kernel_size:
        raise _TooSmallError(
            f"{conv.name}: its kernels are {conv.kernel_size} x {conv.kernel_size}, its input "
            f"{padded} x {padded} with padding, at crops of {crop_size}"
        )
    return (padded - conv.kernel_size) // conv.stride + 1
