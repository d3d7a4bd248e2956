"""The network (paper 3): convolutions, ReLU, normalisation, pooling, dropout, for any recipe.

N images, C channels, H rows, W columns, K classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from cuda_ext import local_response_norm
from replica.network.draws import UINT32_RANGE, key_of, normal_entries, philox
from replica.network.placement import OneDevice, Placement
from replica.recipes import Conv, FullyConnected, Recipe


@dataclass(frozen=True)
class DropoutKeys:
    """What the dropout masks of one training step are a function of (paper 4.2).

    Attributes:
        seed: of the run.
        step: counted from 0.
        rows: int64 (N,), the rows that this process has of the whole batch.
    """

    seed: int
    step: int
    rows: torch.Tensor


def dropout_mask(
    keys: DropoutKeys, *, layer: int, units: slice, keep: float, device: torch.device
) -> torch.Tensor:
    """Which outputs stay: bool (N, units), True with probability `keep`.

    Any cut of the batch or of the units over processes gives the same masks.
    """
    first_word, last_word = units.start // 4, (units.stop + 3) // 4
    words = torch.arange(first_word, last_word, device=device)[None, :]
    rows = keys.rows.to(device)[:, None]
    step, number = torch.full_like(rows, keys.step), torch.full_like(rows, layer)
    draws = philox(key_of(keys.seed, "dropout"), (step, number, rows, words))
    in_order = torch.stack(draws, dim=-1).flatten(1)
    offset = units.start - 4 * first_word
    length = units.stop - units.start
    return in_order[:, offset : offset + length] < round(keep * UINT32_RANGE)


class AlexNet(nn.Module):
    """The network of a recipe, or one tower of it.

    Args:
        recipe: what to build.
        num_classes: how many logits.
        placement: which towers this process holds; all of them by default.

    Parameters are named `conv1.weight`, `conv1.bias`, ..., `fc8.bias`. A process with one tower
    holds the tower's half of each along dimension 0.
    """

    def __init__(
        self, recipe: Recipe, *, num_classes: int, placement: Placement | None = None
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.num_classes = num_classes
        self.placement = placement or OneDevice(recipe.towers)
        channels = 3
        side = recipe.crop_size
        for conv in recipe.convs:
            groups = self._groups(conv)
            here = self.placement.own(conv.num_kernels)
            inputs = channels // recipe.towers if self._reads_own_tower(conv) else channels
            shape = (here.stop - here.start, inputs, conv.kernel_size, conv.kernel_size)
            self.add_module(conv.name, _Parameters(shape))
            assert shape[0] % groups == 0
            side = output_side(recipe, conv, side)
            channels = conv.num_kernels
        width = channels * side * side
        for layer in self._fully_connected():
            here = self.placement.own(layer.num_units)
            self.add_module(layer.name, _Parameters((here.stop - here.start, width)))
            width = layer.num_units

    def _reads_own_tower(self, conv: Conv) -> bool:
        is_first = conv is self.recipe.convs[0]  # the image is read by every tower
        return not is_first and not conv.reads_both_towers

    def _groups(self, conv: Conv) -> int:
        return self.placement.towers_here if self._reads_own_tower(conv) else 1

    def _fully_connected(self) -> tuple[FullyConnected, ...]:
        *hidden, last = self.recipe.fully_connected
        with_classes = FullyConnected(
            last.name,
            self.num_classes,
            last.weight_standard_deviation,
            last.bias,
            last.dropout,
        )
        return (*hidden, with_classes)

    def dropout_masks(self, keys: DropoutKeys) -> dict[str, torch.Tensor]:
        """Which outputs of each layer with dropout stay in a training step (paper 4.2).

        Returns:
            Layer -> bool (N, units that this process holds), on the device of the network.
        """
        device = next(self.parameters()).device
        return {
            layer.name: dropout_mask(
                keys,
                layer=number,
                units=self.placement.own(layer.num_units),
                keep=self.recipe.dropout_keep,
                device=device,
            )
            for number, layer in enumerate(self.recipe.fully_connected)
            if layer.dropout
        }

    def forward(
        self, x: torch.Tensor, *, masks: dict[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Computes the logits.

        Args:
            x: (N, 3, crop_size, crop_size), pixels 0..255 minus the mean image.
            masks: which outputs stay, of `dropout_masks`; None at test time, where outputs are
                multiplied by the probability of staying instead (paper 4.2).

        Returns:
            (N, K), the same in every process of a pair.
        """
        recipe, placement = self.recipe, self.placement
        for conv in recipe.convs:
            weight, bias = self._parameters_of(conv)
            before, after = conv.padding
            if before != after:
                x = F.pad(x, (before, after, before, after))
            padding = before if before == after else 0
            if conv.reads_both_towers:
                x = placement.convolve_both(
                    x, weight, bias, stride=conv.stride, padding=padding, layer=conv.name
                )
            else:
                groups = self._groups(conv)
                x = F.conv2d(x, weight, bias, stride=conv.stride, padding=padding, groups=groups)
            x = F.relu(x)
            if conv.normalised:
                # DEVIATION D7: the text's N is the whole layer; on two devices a window that
                # crosses the towers would need an exchange, and the source has none.
                x = local_response_norm(
                    x,
                    n=recipe.lrn_n,
                    k=recipe.lrn_k,
                    alpha=recipe.lrn_alpha,
                    beta=recipe.lrn_beta,
                    towers=placement.towers_here,
                )
            if conv.pooled:
                # DEVIATION D8: of equal maxima the first gets the gradient, in the source all do.
                x = F.max_pool2d(x, recipe.pool_window, recipe.pool_stride)
        for layer in self._fully_connected():
            x = placement.read_both(x, layer=layer.name).flatten(1)
            x = F.linear(x, *self._parameters_of(layer))
            if layer.name != recipe.fully_connected[-1].name:
                x = F.relu(x)
            if layer.dropout:
                x = x * (recipe.dropout_keep if masks is None else masks[layer.name])
        return placement.join_logits(x, num_classes=self.num_classes)

    def _parameters_of(self, layer: Conv | FullyConnected) -> tuple[torch.Tensor, torch.Tensor]:
        name = layer.name
        return self.get_parameter(f"{name}.weight"), self.get_parameter(f"{name}.bias")


class _Parameters(nn.Module):
    """The weight and the bias of one layer."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape[0]))


def output_side(recipe: Recipe, conv: Conv, side: int) -> int:
    """Side of the maps that a convolutional layer hands on, after pooling where it has one."""
    side = (side + sum(conv.padding) - conv.kernel_size) // conv.stride + 1
    if conv.pooled:
        side = (side - recipe.pool_window) // recipe.pool_stride + 1
    return side


def whole_shapes(recipe: Recipe, *, num_classes: int) -> dict[str, torch.Size]:
    """Name and shape of every parameter of the whole network, in the order of the layers."""
    with torch.device("meta"):
        whole = AlexNet(recipe, num_classes=num_classes)
    return {name: parameter.shape for name, parameter in whole.named_parameters()}


@torch.no_grad()
def initialise_(model: AlexNet, *, seed: int) -> None:
    """Draws the weights from a zero-mean Gaussian and sets the biases (paper 5).

    Every draw is a function of the seed and its place in the whole tensor, so a process with one
    tower gets its half of what a process with both gets.
    """
    all_layers: tuple[Conv | FullyConnected, ...] = (
        *model.recipe.convs,
        *model.recipe.fully_connected,
    )
    layers = {layer.name: layer for layer in all_layers}
    whole = whole_shapes(model.recipe, num_classes=model.num_classes)
    for number, (name, parameter) in enumerate(model.named_parameters()):
        layer_name, kind = name.split(".")
        layer = layers[layer_name]
        if kind == "bias":
            parameter.fill_(layer.bias)
            continue
        first_row = model.placement.own(whole[name][0]).start
        entries = normal_entries(
            seed=seed,
            parameter=number,
            first=first_row * parameter[0].numel(),
            count=parameter.numel(),
        )
        draws = torch.from_numpy(entries).view(parameter.shape)
        parameter.copy_(draws * layer.weight_standard_deviation)
