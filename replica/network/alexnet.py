"""The network of a recipe (paper 3): its layers one after the other, for any placement.

N images, C channels, H rows, W columns, K classes.
"""

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from cuda_ext.convolution_ways import Products
from replica.network import fusion
from replica.network.dropout_masks import DropoutMask
from replica.network.layers import (
    BatchNorm,
    Dropout,
    Input,
    LocalResponseNorm,
    Masks,
    SameMapNorm,
    SplitConv2d,
    SplitLinear,
    SplitLocal2d,
    TiedMaxPool2d,
)
from replica.network.placement import Placement
from replica.recipes import Conv, FullyConnected, Recipe
from replica.recipes.geometry import LayerGeometry, geometry

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


class AlexNet(nn.Module):
    """The network of a recipe, or one tower of it; by default, all towers are in this process.

    Its children stand in the order in which they are run: `conv1` (the products alone),
    `conv1_activation`, `conv1_lrn`, `conv1_pooling`, ..., `fc6`, `fc6_activation`, `fc6_dropout`,
    ..., `fc8`; before them `input`, where the recipe divides pixels or reads blue first. Parameters
    are named `conv1.weight`, `conv1.bias`, ..., `fc8.bias`. A process with
    one tower holds the tower's half of each along dimension 0.

    Where ReLU, local response normalization and max pooling follow each other, as in the paper or
    as in the first layer of the source, `cuda_ext.relu_lrn_pool` does the work of the three: the
    same bits, in one pass; any other ReLU behind a convolution is done as that ends. Where one of
    them has a hook, or a graph is traced, they run themselves; with `fused=False` they always do.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        num_classes: int,
        placement: Placement | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.fused = fused
        self.recipe = recipe
        self.num_classes = num_classes
        self.placement = placement or Placement(recipe.towers)
        table = {row.name: row for row in geometry(recipe, num_classes=num_classes)}
        self._num_outputs = {row.name: math.prod(row.handed_on) for row in table.values()}
        if recipe.pixel_divisor or recipe.channels != "rgb":
            self.input = Input(divisor=recipe.pixel_divisor, channels=recipe.channels)
        for conv in recipe.convs:
            self._add_conv(conv, table[conv.name])
        for layer in recipe.fully_connected:
            self._add_fully_connected(layer, table[layer.name])

    def _add_conv(self, conv: Conv, row: LayerGeometry) -> None:
        kind = SplitLocal2d if conv.is_local else SplitConv2d
        self.add_module(conv.name, kind(row, self.placement))
        for following in self.recipe.order_of(conv):
            if following == "activation":
                self._add_activation(conv)
            elif following == "normalization":
                for kind_of_norm in conv.normalization:
                    norm = self._normalization(kind_of_norm, conv.num_kernels, num_dimensions=4)
                    self.add_module(f"{conv.name}_{kind_of_norm.replace('-', '_')}", norm)
            elif conv.pooling != "none":
                pool = nn.MaxPool2d if conv.pooling == "max" else nn.AvgPool2d
                # DEVIATION D8: of equal maxima the first gets the gradient, in the source all do.
                if conv.pooling == "max" and self.recipe.pool_ties_of(conv) == "all":
                    pool = TiedMaxPool2d
                window, stride = self.recipe.pooling_of(conv)
                reach = (row.handed_on[-1] - 1) * stride + window
                is_cut_off = reach > row.output_shape[-1]
                module = pool(window, stride, ceil_mode=is_cut_off)
                self.add_module(f"{conv.name}_pooling", module)
        self._add_dropout(conv)

    def _add_fully_connected(self, layer: FullyConnected, row: LayerGeometry) -> None:
        self.add_module(layer.name, SplitLinear(row, self.placement))
        for kind in layer.normalization:
            norm = self._normalization(kind, layer.num_units, num_dimensions=2)
            self.add_module(f"{layer.name}_{kind}", norm)
        self._add_activation(layer)
        self._add_dropout(layer)

    def _add_dropout(self, layer: Conv | FullyConnected) -> None:
        if layer.dropout:
            keep, scale = self.recipe.dropout_keep, self.recipe.dropout_scale
            self.add_module(f"{layer.name}_dropout", Dropout(layer.name, keep=keep, scale=scale))

    def _add_activation(self, layer: Conv | FullyConnected) -> None:
        activation = self.recipe.activation_of(layer)
        if activation != "linear":
            self.add_module(f"{layer.name}_activation", ACTIVATIONS[activation]())

    def _normalization(self, kind: str, channels: int, *, num_dimensions: int) -> nn.Module:
        recipe = self.recipe
        if kind == "lrn":
            return LocalResponseNorm(
                n=recipe.lrn_n,
                k=recipe.lrn_k,
                alpha=recipe.lrn_alpha,
                beta=recipe.lrn_beta,
                towers=self.placement.towers_here,
                scope=recipe.lrn_scope,
            )
        if kind == "same-map":
            return SameMapNorm(
                n=recipe.same_map_n,
                k=recipe.same_map_k,
                alpha=recipe.same_map_alpha,
                beta=recipe.same_map_beta,
            )
        return BatchNorm(channels, num_dimensions=num_dimensions, placement=self.placement)

    @property
    def products(self) -> dict[str, Products]:
        """Who multiplies in each convolution, as in `cuda_ext.split_conv2d`, by its name."""
        return {x: m.products for x, m in self.named_children() if type(m) is SplitConv2d}

    def set_products_(self, products: Mapping[str, Products]) -> None:
        """Sets them; a layer that is not named stays as it is."""
        for name, module in self.named_children():
            if type(module) is SplitConv2d and name in products:
                module.products = products[name]

    def dropout_masks(self, rows: Tensor, *, seed: int, step: int | Tensor) -> Masks:
        """Which outputs stay in a training step, by the layer's name (paper 4.2).

        Args:
            rows: int64 (N,), places in the whole batch.
            seed: of the run.
            step: of training, from 0; as a tensor int64 (1,), on the device of the weights.
        """
        device = next(self.parameters()).device
        rows = rows.to(device)
        at_step = step if isinstance(step, Tensor) else torch.full((1,), step, device=device)
        recipe = self.recipe
        mask = partial(DropoutMask, seed=seed, step=at_step, rows=rows, keep=recipe.dropout_keep)
        masks = {
            layer.name: mask(
                layer=number,
                units=self.placement.own(layer.num_units),
            )
            for number, layer in enumerate(recipe.fully_connected)
            if layer.dropout
        }
        for number, conv in enumerate(recipe.convs, start=len(recipe.fully_connected)):
            if conv.dropout:
                units = self.placement.own(self._num_outputs[conv.name])
                masks[conv.name] = mask(layer=number, units=units)
        return masks

    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        """Computes the logits.

        Args:
            x: (N, 3, crop_size, crop_size), pixels 0..255 minus the mean image.
            masks: which outputs stay, of `dropout_masks`, so that any cut over processes gives the
                same. Without them, PyTorch's generator draws them in training mode; in evaluation
                mode outputs are multiplied by the probability of staying (paper 4.2).

        Returns:
            (N, K), the same in every process of a pair.
        """
        modules = list(self.children())
        while modules:
            following = modules[: fusion.LENGTH]
            if self.fused and (done := fusion.fuse(following, x)) is not None:
                x, num_modules = done
                del modules[:num_modules]
                continue
            module = modules.pop(0)
            x = module(x, masks) if isinstance(module, Dropout) else module(x)
        return self.placement.join_logits(x, num_classes=self.num_classes)


def whole_shapes(
    recipe: Recipe, *, num_classes: int, statistics: bool = False
) -> dict[str, torch.Size]:
    """Name and shape of every parameter of the whole network, in the order of the layers.

    With `statistics`, the running statistics of batch normalization are among them.
    """
    with torch.device("meta"):
        whole = AlexNet(recipe, num_classes=num_classes)
    tensors = whole.state_dict() if statistics else dict(whole.named_parameters())
    return {name: tensor.shape for name, tensor in tensors.items()}
