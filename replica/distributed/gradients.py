"""Gradients of data-parallel copies, whose sums travel while backward still runs.

A bucket is what one exchange adds up: a large gradient as it lies in memory, or small ones one
after the other. The buckets leave in the order of a layout that names and sizes decide, not the
moment at which a gradient is ready, so that all processes exchange the same in the same order.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from replica.distributed import heartbeat

# Smaller gradients share a bucket: of `paper` all biases and conv1, which together have 182 kB.
SMALL_BYTES = 1 << 20
# What the profiler calls the time in which backward has ended and a sum is still on its way.
WAITING = "gradients, waiting for the other copies"

Layout = Sequence[Sequence[str]]


def bucket_layout(weights: Mapping[str, Tensor], *, num_copies: int) -> list[list[str]]:
    """Which gradients travel together, in the order in which they leave.

    Two numbers have one sum, so gradients of two copies may lie anywhere in a buffer. The order in
    which an exchange adds more than two depends on where they lie in it: there each gradient is a
    bucket, and its sum has the bits of an exchange of that gradient alone.

    Args:
        weights: what is trained, by name, in the order of the layers.
        num_copies: how many processes add up.

    Returns:
        Names by bucket. Backward ends with the first layer, so the last one's leave first, and the
        small ones after all others.
    """
    small = [name for name, w in weights.items() if num_copies == 2 and w.nbytes < SMALL_BYTES]
    large = [[name] for name in weights if name not in small]
    return [*reversed(large), *([small[::-1]] if small else [])]


class _Sums:
    """The sums of one step: which gradients are ready, and which buckets have left."""

    def __init__(self, buckets: Layout, group: dist.ProcessGroup) -> None:
        self._next, self._group = deque(buckets), group
        self._ready: dict[str, Tensor] = {}
        self._left: list[tuple[list[Tensor], Tensor, dist.Work]] = []
        self._names: list[str] = []

    def add(self, name: str, gradient: Tensor) -> None:
        """One more gradient is ready; the buckets leave that are next and whole."""
        self._ready[name] = gradient
        while self._next and all(name in self._ready for name in self._next[0]):
            names = self._next.popleft()
            parts = [self._ready.pop(name) for name in names]
            # Values are added as they lie in memory: an accumulated gradient lies as its weight
            # does, also that of a copy without images.
            flat = parts[0]
            if len(parts) > 1:
                flat = torch.cat([part.flatten() for part in parts])
            heartbeat.beat("sum of gradients over the copies")
            work = dist.all_reduce(flat, group=self._group, async_op=True)
            self._left.append((parts, flat, work))
            self._names += names

    def wait(self) -> dict[str, Tensor]:
        """The sums by name."""
        sums = []
        for parts, flat, work in self._left:
            heartbeat.beat("waiting for a sum of gradients over the copies")
            with record_function(WAITING):
                work.wait()
            pieces = flat.view(-1).split([part.numel() for part in parts])
            sums += [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]
        return dict(zip(self._names, sums, strict=True))


def summed_gradients(
    loss: Tensor, weights: Mapping[str, Tensor], *, buckets: Layout, group: dist.ProcessGroup
) -> list[Tensor]:
    """The gradients of a loss, each summed over the copies; all of them must call it.

    Args:
        loss: of this copy's images.
        weights: leaves that the gradients are of, by name; they keep no `grad`.
        buckets: of `bucket_layout`; of those that are not in `weights` nothing is sent.
        group: the processes that add up.

    Returns:
        In the order of `weights`, of their shapes and types.
    """
    trained = [[name for name in names if name in weights] for names in buckets]
    sums = _Sums([names for names in trained if names], group)

    def hook(name: str, weight: Tensor) -> None:
        gradient, weight.grad = weight.grad, None
        assert gradient is not None  # it was accumulated just now
        sums.add(name, gradient)

    handles = []
    try:
        for name, weight in weights.items():
            call = partial(hook, name)
            handles.append(weight.register_post_accumulate_grad_hook(call))
        torch.autograd.backward(loss, inputs=list(weights.values()))
    finally:
        for handle in handles:
            handle.remove()
    by_name = sums.wait()
    return [by_name[name] for name in weights]
