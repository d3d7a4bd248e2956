"""Which channels of each layer a process holds (paper 3.5): tower t owns the t-th half.

The same model code runs with either of two placements: `Placement` itself holds all towers in one
tensor and exchanges nothing; `replica.distributed.exchange.TwoDevices` holds one tower and
exchanges activations with the process that holds the other one, before the layers that read both.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cuda_ext import split_conv2d
from cuda_ext.convolution_ways import Products
from cuda_ext.split_conv2d import Activation


def tower_slice(width: int, *, tower: int, towers: int) -> slice:
    """The channels of a layer that a tower owns; of an odd width the first has the smaller half."""
    bounds = [width * t // towers for t in range(towers + 1)]
    return slice(bounds[tower], bounds[tower + 1])


def one_copy(x: Tensor) -> Tensor:
    """The sum over the copies where there is one."""
    return x


class Placement:
    """All towers of the network in this process, which are `towers_here`.

    `add_over_copies` is the sum of a tensor over the data-parallel copies; it has a gradient.
    """

    def __init__(
        self, towers_here: int, *, add_over_copies: Callable[[Tensor], Tensor] = one_copy
    ) -> None:
        self.towers_here, self.add_over_copies = towers_here, add_over_copies

    def own(self, width: int) -> slice:
        """Of a layer with `width` channels, those that this process holds."""
        return slice(0, width)

    def read_both(self, x: Tensor, *, layer: str) -> Tensor:
        """Own activations (N, C here, ...) to those of both towers (N, C, ...)."""
        return x

    def convolve_both(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        *,
        stride: int,
        padding: tuple[int, int],
        products: Products,
        activation: Activation,
        layer: str,
    ) -> Tensor:
        """A convolution that reads both towers, of own activations (N, C here, H, W)."""
        return split_conv2d(
            x,
            weight,
            bias,
            stride=stride,
            padding=padding,
            products=products,
            activation=activation,
        )

    def join_logits(self, x: Tensor, *, num_classes: int) -> Tensor:
        """Own logits (N, K here) to all of them (N, K), of which each process computes the loss."""
        return x


# One node of a traced graph, which looks at its arguments when it runs.
torch.fx.wrap("split_conv2d")
