"""Two processes, a tower each: activations are exchanged before the layers that read both."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.profiler import record_function

from replica.distributed.heartbeat import beat
from replica.network.placement import one_copy, tower_slice


@dataclass(eq=False, kw_only=True)
class TwoDevices:
    """One tower in this process, the other one in a peer process.

    Attributes:
        tower: 0 or 1, the tower of this process.
        peer: the global rank of the process with the other tower.
        add_over_copies: as in `Placement`.
        sent: bytes that this process sent so far, by (layer, "forward" or "backward").
    """

    tower: int
    peer: int
    add_over_copies: Callable[[torch.Tensor], torch.Tensor] = one_copy
    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    towers_here: int = 1

    def own(self, width: int) -> slice:
        """The half of this tower."""
        return tower_slice(width, tower=self.tower, towers=2)

    def read_both(self, x: torch.Tensor, *, layer: str) -> torch.Tensor:
        """Exchanges halves; gradients of what the peer read come back and are added."""
        return _apply(_ReadBoth, x, self, layer)

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
        """Convolves the own half while the other one is on its way."""
        return _apply(_ConvolveBoth, x, weight, bias, stride, padding, self, layer)

    def join_logits(self, x: torch.Tensor, *, num_classes: int) -> torch.Tensor:
        """Exchanges the logits, whose halves differ in size where the number of classes is odd."""
        other = tower_slice(num_classes, tower=1 - self.tower, towers=2)
        return _apply(_JoinLogits, x, self, other.stop - other.start)

    def begin_swap(
        self, mine: torch.Tensor, *, layer: str, direction: str, channels: int | None = None
    ) -> Callable[[], torch.Tensor]:
        """Begins to send a tensor and to receive the peer's.

        Args:
            mine: (N, C, ...), what the peer gets.
            layer, direction: for the count of bytes, and for whoever asks where a process hangs.
            channels: of the peer's tensor, where it differs from `mine`.

        Returns:
            A function that waits for the end and returns what the peer sent.
        """
        beat(f"exchange before {layer}, {direction}")
        shape = list(mine.shape)
        if channels is not None:
            shape[1] = channels
        # Sent as it lies in memory; the peer's has the same format.
        is_last = mine.dim() == 4 and mine.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if is_last else torch.contiguous_format
        mine = mine.contiguous(memory_format=memory_format)
        theirs = torch.empty(
            shape, dtype=mine.dtype, device=mine.device, memory_format=memory_format
        )
        flat = [x.permute(0, 2, 3, 1) if is_last else x for x in (mine, theirs)]
        self.sent[layer, direction] += mine.numel() * mine.element_size()
        works = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, flat[0], self.peer), dist.P2POp(dist.irecv, flat[1], self.peer)]
        )

        def wait() -> torch.Tensor:
            for work in works:
                work.wait()
            beat(f"after the exchange before {layer}, {direction}")
            return theirs

        return wait

    def in_order(self, mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        """Both halves (N, C, ...) as the whole layer has them, tower 0 first."""
        return torch.cat((mine, theirs) if self.tower == 0 else (theirs, mine), dim=1)


def _apply(function: Any, *arguments: Any) -> torch.Tensor:
    """What an autograd function computes; PyTorch's own `apply` has no types."""
    y: torch.Tensor = function.apply(*arguments)
    return y


class _ReadBoth(torch.autograd.Function):
    """Both processes go on with both halves, so a half's gradient is the sum over both readers."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, placement: TwoDevices, layer: str) -> torch.Tensor:
        ctx.placement, ctx.layer, ctx.channels = placement, layer, x.shape[1]
        return placement.in_order(x, placement.begin_swap(x, layer=layer, direction="forward")())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        first, second = torch.split(gradient, ctx.channels, dim=1)
        own, others = (first, second) if ctx.placement.tower == 0 else (second, first)
        wait = ctx.placement.begin_swap(others, layer=ctx.layer, direction="backward")
        return own + wait(), None, None


class _ConvolveBoth(torch.autograd.Function):
    """A convolution over both halves, in which the exchange overlaps the own half's work.

    y = own weights * own half + the others' weights * the peer's half: the first product needs no
    exchange. Backward, the gradient that the peer waits for comes first, and the gradients of the
    own half and of all weights are computed while it travels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        stride: int,
        padding: int,
        placement: TwoDevices,
        layer: str,
    ) -> torch.Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        ctx.dtypes = (x.dtype, weight.dtype)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        wait = placement.begin_swap(x, layer=layer, direction="forward")
        own, others = _halves(weight, placement.tower)
        with record_function(f"{layer}, own half"):
            y = F.conv2d(x, own, bias, stride=stride, padding=padding)
        with record_function(f"{layer}, waiting for the other half"):
            theirs = wait()
        y += F.conv2d(theirs, others, stride=stride, padding=padding)
        ctx.save_for_backward(x, theirs, own, others)
        ctx.arguments = (stride, padding, placement, layer)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        x, theirs, own, others = ctx.saved_tensors
        stride, padding, placement, layer = ctx.arguments
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]

        def gradients(
            inputs: torch.Tensor, weight: torch.Tensor, mask: list[bool]
        ) -> list[torch.Tensor]:
            sizes, ones = [len(weight)], [1, 1]
            geometry = ([stride] * 2, [padding] * 2, ones, False, [0, 0], 1)
            computed: list[torch.Tensor] = torch.ops.aten.convolution_backward(
                gradient, inputs, weight, sizes, *geometry, mask
            )
            return computed

        wait = None
        if needs_x:
            of_theirs = gradients(theirs, others, [True, False, False])[0]
            wait = placement.begin_swap(of_theirs, layer=layer, direction="backward")
        with record_function(f"{layer}, own half, backward"):
            of_x, of_own, of_bias = gradients(x, own, [needs_x, needs_weight, needs_bias])
        of_weight: torch.Tensor | None = None
        if needs_weight:
            of_others = gradients(theirs, others, [False, True, False])[1]
            of_weight = placement.in_order(of_own, of_others).to(ctx.dtypes[1])
        if wait is not None:
            with record_function(f"{layer}, waiting for the gradient"):
                of_x = (of_x + wait()).to(ctx.dtypes[0])
        return (
            of_x if needs_x else None,
            of_weight,
            of_bias.to(ctx.dtypes[1]) if needs_bias else None,
            *[None] * 4,
        )


def _halves(weight: torch.Tensor, tower: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's weights for the own half of its inputs, and for the other half."""
    first, second = weight.chunk(2, dim=1)
    return (first, second) if tower == 0 else (second, first)


class _JoinLogits(torch.autograd.Function):
    """Both processes compute the same loss, so the gradient of the own half is already whole.

    A plain gather would add the peer's equal gradient to it and so double every gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, placement: TwoDevices, others: int) -> torch.Tensor:
        ctx.tower, ctx.num_logits, ctx.others = placement.tower, x.shape[1], others
        wait = placement.begin_swap(x, layer="loss", direction="forward", channels=others)
        return placement.in_order(x, wait())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        start = 0 if ctx.tower == 0 else ctx.others
        return gradient[:, start : start + ctx.num_logits], None, None
