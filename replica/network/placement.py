"""Which channels of each layer a process holds (paper 3.5): tower t owns the t-th half.

The same model code runs with either of two placements: `OneDevice` holds both towers in one tensor
and exchanges nothing; `replica.distributed.exchange.TwoDevices` holds one tower and exchanges
activations with the process that holds the other one, before the layers that read both towers.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F


def tower_slice(width: int, *, tower: int, towers: int) -> slice:
    """The channels of a layer that a tower owns; of an odd width the first has the smaller half."""
    bounds = [width * t // towers for t in range(towers + 1)]
    return slice(bounds[tower], bounds[tower + 1])


class Placement(Protocol):
    """What the model needs to know of where its towers are."""

    towers_here: int  # how many towers this process computes

    @property
    def add_over_copies(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The sum of a tensor over the data-parallel copies of the network; it has a gradient."""

    def own(self, width: int) -> slice:
        """Of a layer with `width` channels, those that this process holds."""

    def read_both(self, x: torch.Tensor, *, layer: str) -> torch.Tensor:
        """Own activations (N, C here, ...) to those of both towers (N, C, ...)."""

    def convolve_both(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        *,
        stride: int,
        padding: int,
        layer: str,
    ) -> torch.Tensor:
        """A convolution that reads both towers, of own activations (N, C here, H, W)."""

    def join_logits(self, x: torch.Tensor, *, num_classes: int) -> torch.Tensor:
        """Own logits (N, K here) to all of them (N, K), of which each process computes the loss."""


def one_copy(x: torch.Tensor) -> torch.Tensor:
    """The sum over the copies where there is one."""
    return x


class OneDevice:
    """All towers of the network in this process.

    Args:
        towers: how many.
        add_over_copies: as in `Placement`.
    """

    def __init__(
        self, towers: int, *, add_over_copies: Callable[[torch.Tensor], torch.Tensor] = one_copy
    ) -> None:
        self.towers_here = towers
        self.add_over_copies = add_over_copies

    def own(self, width: int) -> slice:
        """Everything."""
        return slice(0, width)

    def read_both(self, x: torch.Tensor, *, layer: str) -> torch.Tensor:
        """The activations already are those of all towers."""
        return x

    def convolve_both(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        *,
        stride: int,
        padding: int,
        layer: str,
    ) -> torch.Tensor:
        """An ordinary convolution."""
        return F.conv2d(x, weight, bias, stride=stride, padding=padding)

    def join_logits(self, x: torch.Tensor, *, num_classes: int) -> torch.Tensor:
        """The logits already are complete."""
        return x
