"""Two processes, a tower each: activations are exchanged before the layers that read both."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from cuda_ext import split_conv2d, split_conv2d_add_, split_conv2d_backward
from cuda_ext.convolution_ways import Products
from cuda_ext.split_conv2d import Activation
from replica.distributed.heartbeat import beat
from replica.network.placement import Placement, one_copy, tower_slice


class TwoDevices(Placement):
    """Tower 0 or 1 in this process, the other one in the process whose global rank is `peer`.

    `sent` counts the bytes that this process sent so far, by (layer, "forward" or "backward").
    """

    def __init__(
        self, *, tower: int, peer: int, add_over_copies: Callable[[Tensor], Tensor] = one_copy
    ) -> None:
        super().__init__(1, add_over_copies=add_over_copies)
        self.tower, self.peer = tower, peer
        self.sent: Counter[tuple[str, str]] = Counter()

    def own(self, width: int) -> slice:
        """The half of this tower."""
        return tower_slice(width, tower=self.tower, towers=2)

    def read_both(self, x: Tensor, *, layer: str) -> Tensor:
        """Exchanges halves; gradients of what the peer read come back and are added."""
        return _apply(_ReadBoth, x, self, layer)

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
        """Convolves the own half while the other one is on its way."""
        how = {"stride": stride, "padding": padding, "products": products}
        return _apply(_ConvolveBoth, x, weight, bias, how, activation, self, layer)

    def join_logits(self, x: Tensor, *, num_classes: int) -> Tensor:
        """Exchanges the logits, whose halves differ in size where the number of classes is odd."""
        return _apply(_JoinLogits, x, self, num_classes)

    def begin_swap(
        self, mine: Tensor, *, layer: str, direction: str, num_logits: int | None = None
    ) -> Callable[[], Tensor]:
        """Begins to send a tensor (N, C, ...) and to receive the peer's, of the same shape.

        Args:
            mine: what the peer gets.
            layer, direction: for the count of bytes, and for whoever asks where a process hangs.
            num_logits: the peer's, where logits are exchanged.

        Returns:
            A function that waits for the end and returns what the peer sent.
        """
        beat(f"exchange before {layer}, {direction}")
        # Sent as it lies in memory; the peer's has the same format.
        is_last = mine.dim() == 4 and mine.is_contiguous(memory_format=torch.channels_last)
        mine = mine if is_last else mine.contiguous()
        theirs = torch.empty_like(mine)
        if num_logits is not None:
            theirs = mine.new_empty(len(mine), num_logits)
        flat = [x.permute(0, 2, 3, 1) if is_last else x for x in (mine, theirs)]
        self.sent[layer, direction] += mine.nbytes
        works = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, flat[0], self.peer), dist.P2POp(dist.irecv, flat[1], self.peer)]
        )

        def wait() -> Tensor:
            for work in works:
                work.wait()
            beat(f"after the exchange before {layer}, {direction}")
            return theirs

        return wait

    def ordered(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """The own and the other half as those of tower 0 and tower 1, or back."""
        return (one, other) if self.tower == 0 else (other, one)

    def joined(self, mine: Tensor, theirs: Tensor) -> Tensor:
        """Both halves (N, C, ...) as the whole layer has them, tower 0 first."""
        return torch.cat(self.ordered(mine, theirs), dim=1)


def _apply(function: Any, *arguments: Any) -> Tensor:
    """What an autograd function computes; PyTorch's own `apply` has no types."""
    y: Tensor = function.apply(*arguments)
    return y


class _ReadBoth(torch.autograd.Function):
    """Both processes go on with both halves, so a half's gradient is the sum over both readers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, placement: TwoDevices, layer: str) -> Tensor:
        ctx.placement, ctx.layer = placement, layer
        return placement.joined(x, placement.begin_swap(x, layer=layer, direction="forward")())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        own, others = ctx.placement.ordered(*gradient.chunk(2, dim=1))
        wait = ctx.placement.begin_swap(others, layer=ctx.layer, direction="backward")
        return own + wait(), None, None


class _ConvolveBoth(torch.autograd.Function):
    """A convolution over both halves, in which the exchange overlaps the own half's work.

    y = own weights * own half + the others' weights * the peer's half + bias: the first product
    needs no exchange. An activation is part of the last pass. Backward, the gradient that the peer
    waits for comes first, and the gradients of the own half and of all weights are computed while
    it travels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        how: dict[str, Any],
        activation: Activation,
        placement: TwoDevices,
        layer: str,
    ) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        wait = placement.begin_swap(x, layer=layer, direction="forward")
        own, others = placement.ordered(*weight.chunk(2, dim=1))
        with record_function(f"{layer}, own half"):
            y = split_conv2d(x, own, None, **how)
        with record_function(f"{layer}, waiting for the other half"):
            theirs = wait()
        split_conv2d_add_(y, theirs, others, bias, **how, activation=activation)
        # The sign of y says where the gradient passes.
        ctx.save_for_backward(x, theirs, own, others, *([y] if activation == "relu" else []))
        ctx.arguments = (how, placement, layer)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, theirs, own, others, *outputs = ctx.saved_tensors
        for y in outputs:
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
        how, placement, layer = ctx.arguments
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]

        def gradients(x: Tensor, weight: Tensor, of_x: bool, of_w: bool, of_bias: bool) -> Any:
            """Of the inputs, the weight and the bias; None for what is not needed."""
            needed = (of_x, of_w, of_bias)
            return split_conv2d_backward(gradient, x, weight, **how, needed=needed)

        if needs_x:
            of_theirs = gradients(theirs, others, True, False, False)[0]
            wait = placement.begin_swap(of_theirs, layer=layer, direction="backward")
        with record_function(f"{layer}, own half, backward"):
            of_x, of_weight, of_bias = gradients(x, own, needs_x, needs_weight, needs_bias)
        if needs_weight:
            of_others = gradients(theirs, others, False, True, False)[1]
            of_weight = placement.joined(of_weight, of_others)
        if needs_x:
            with record_function(f"{layer}, waiting for the gradient"):
                of_x = of_x + wait()
        return of_x, of_weight, of_bias, *[None] * 4


class _JoinLogits(torch.autograd.Function):
    """Both processes compute the same loss, so the gradient of the own half is already whole.

    A plain gather would add the peer's equal gradient to it and so double every gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, placement: TwoDevices, num_classes: int) -> Tensor:
        ctx.own, others = placement.own(num_classes), num_classes - x.shape[1]
        wait = placement.begin_swap(x, layer="loss", direction="forward", num_logits=others)
        return placement.joined(x, wait())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return gradient[:, ctx.own], None, None
