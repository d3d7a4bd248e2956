"""How the network is cut over devices (paper 3.5): tower t owns the t-th half of every layer.

The same model code runs with either of two placements: `OneDevice` holds both towers in one tensor
and exchanges nothing; `TwoDevices` holds one tower and exchanges activations with the process that
holds the other one, before the layers that read both towers.
"""

from typing import Any, Protocol

import torch
import torch.distributed as dist


def tower_slice(width: int, *, tower: int, towers: int) -> slice:
    """The channels of a layer that a tower owns; of an odd width the first has the smaller half."""
    bounds = [width * t // towers for t in range(towers + 1)]
    return slice(bounds[tower], bounds[tower + 1])


class Placement(Protocol):
    """What the model needs to know of where its towers are."""

    towers_here: int  # how many towers this process computes

    def own(self, width: int) -> slice:
        """Of a layer with `width` channels, those that this process holds."""

    def read_both(self, x: torch.Tensor) -> torch.Tensor:
        """Own activations (N, C here, ...) to those of both towers (N, C, ...)."""

    def join_logits(self, x: torch.Tensor, *, num_classes: int) -> torch.Tensor:
        """Own logits (N, K here) to all of them (N, K), of which each process computes the loss."""


class OneDevice:
    """All towers of the network in this process."""

    def __init__(self, towers: int) -> None:
        self.towers_here = towers

    def own(self, width: int) -> slice:
        """Everything."""
        return slice(0, width)

    def read_both(self, x: torch.Tensor) -> torch.Tensor:
        """The activations already are those of all towers."""
        return x

    def join_logits(self, x: torch.Tensor, *, num_classes: int) -> torch.Tensor:
        """The logits already are complete."""
        return x


class TwoDevices:
    """One tower in this process, the other one in a peer process.

    Args:
        tower: 0 or 1, the tower of this process.
        peer: the global rank of the process with the other tower.
    """

    towers_here = 1

    def __init__(self, *, tower: int, peer: int) -> None:
        self.tower = tower
        self.peer = peer

    def own(self, width: int) -> slice:
        """The half of this tower."""
        return tower_slice(width, tower=self.tower, towers=2)

    def read_both(self, x: torch.Tensor) -> torch.Tensor:
        """Exchanges halves; gradients of what the peer read come back and are added."""
        return _ReadBoth.apply(x, self.tower, self.peer)

    def join_logits(self, x: torch.Tensor, *, num_classes: int) -> torch.Tensor:
        """Exchanges the logits, whose halves differ in size where the number of classes is odd."""
        other = tower_slice(num_classes, tower=1 - self.tower, towers=2)
        return _JoinLogits.apply(x, self.tower, self.peer, other.stop - other.start)


def swap(mine: torch.Tensor, theirs: torch.Tensor, *, peer: int) -> torch.Tensor:
    """Sends `mine` to the peer and fills `theirs` with what the peer sends; returns `theirs`."""
    operations = [
        dist.P2POp(dist.isend, mine.contiguous(), peer),
        dist.P2POp(dist.irecv, theirs, peer),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return theirs


def _in_tower_order(mine: torch.Tensor, theirs: torch.Tensor, tower: int) -> torch.Tensor:
    return torch.cat((mine, theirs) if tower == 0 else (theirs, mine), dim=1)


class _ReadBoth(torch.autograd.Function):
    """Both processes go on with both halves, so a half's gradient is the sum over both readers."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, tower: int, peer: int) -> torch.Tensor:
        ctx.tower, ctx.peer, ctx.channels = tower, peer, x.shape[1]
        theirs = swap(x, torch.empty_like(x, memory_format=torch.contiguous_format), peer=peer)
        return _in_tower_order(x, theirs, tower)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        first, second = gradient.split(ctx.channels, dim=1)
        own, others = (first, second) if ctx.tower == 0 else (second, first)
        from_peer = torch.empty_like(own, memory_format=torch.contiguous_format)
        return own + swap(others, from_peer, peer=ctx.peer), None, None


class _JoinLogits(torch.autograd.Function):
    """Both processes compute the same loss, so the gradient of the own half is already whole.

    A plain gather would add the peer's equal gradient to it and so double every gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, tower: int, peer: int, others: int) -> torch.Tensor:
        ctx.tower, ctx.num_logits, ctx.others = tower, x.shape[1], others
        theirs = swap(x, x.new_empty(x.shape[0], others), peer=peer)
        return _in_tower_order(x, theirs, tower)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        start = 0 if ctx.tower == 0 else ctx.others
        return gradient[:, start : start + ctx.num_logits], None, None, None
