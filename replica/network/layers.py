"""What the network is composed of: modules that hooks, `torch.fx` and export see.

A convolution and a linear layer of two towers ask the placement for what the other tower has; the
rest works on the channels that this process holds. N images, C channels, H rows, W columns.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cuda_ext import local_response_norm, max_pool2d, reference, same_map_norm, split_conv2d
from cuda_ext.convolution_ways import Products
from cuda_ext.split_conv2d import Activation
from replica.network.dropout_masks import DropoutMask
from replica.network.placement import Placement
from replica.recipes.geometry import LayerGeometry

# Of batch normalization, as in PyTorch.
BATCH_EPSILON, BATCH_MOMENTUM = 1e-5, 0.1
# What drops outputs of each layer with dropout, by the layer's name.
Masks = dict[str, DropoutMask]
_has_plain_operators = False  # set by `plain_operators`; PyTorch's compiler reads it


@contextmanager
def plain_operators() -> Iterator[None]:
    """Within it a network is computed with PyTorch's operators alone, for test and not training.

    So a graph that is made of it needs nothing of this project where it runs.
    """
    global _has_plain_operators
    before, _has_plain_operators = _has_plain_operators, True
    try:
        yield
    finally:
        _has_plain_operators = before


def _is_plain() -> bool:
    # PyTorch's exporter to ONNX does not know the operators either.
    return _has_plain_operators or torch.onnx.is_in_onnx_export()


class _Products(nn.Module):
    """A layer's weight and bias; of a process with one tower, its half along dimension 0."""

    def __init__(self, row: LayerGeometry, placement: Placement) -> None:
        super().__init__()
        own = placement.own(row.weight_shape[0])
        num_own = own.stop - own.start
        self.weight = nn.Parameter(torch.empty(num_own, *row.weight_shape[1:]))
        self.bias = nn.Parameter(torch.empty(num_own, *row.bias_shape[1:]))
        self.row, self.placement = row, placement
        self.reads_both_towers = row.reads == "both towers"
        self.groups = placement.towers_here if row.reads == "own tower" else 1

    def extra_repr(self) -> str:
        """Shape of the weight, and what the layer reads."""
        return f"{' x '.join(map(str, self.weight.shape))}, reads {self.row.reads}"


class SplitConv2d(_Products):
    """A convolution over own maps, or over those of both towers (paper 3.5, Figure 2).

    `products` says who multiplies, as in `cuda_ext.split_conv2d`.
    """

    products: Products = "measured"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C here, H, W) to (N, kernels here, H', W')."""
        return self.products_of(x)

    def products_of(self, x: Tensor, *, activation: Activation = "none") -> Tensor:
        """What `forward` gives, or the same with an activation in its last pass."""
        stride, padding = self.row.stride, self.row.padding
        if _is_plain():
            before, after = padding
            padded = F.pad(x, (before, after, before, after))
            return F.conv2d(padded, self.weight, self.bias, stride, groups=self.groups)
        how: dict[str, Any] = {"stride": stride, "padding": padding, "products": self.products}
        how["activation"] = activation
        if self.reads_both_towers:
            name = self.row.name
            return self.placement.convolve_both(x, self.weight, self.bias, layer=name, **how)
        return split_conv2d(x, self.weight, self.bias, towers=self.groups, **how)

    def extra_repr(self) -> str:
        """What `_Products` says, with stride and padding, and what computes it."""
        row = self.row
        place = f"stride={row.stride}, padding={row.padding}"
        how = f"split_conv2d of towers={self.groups}, products={self.products}"
        return f"{super().extra_repr()}, {place}, {how}"


class SplitLocal2d(SplitConv2d):
    """A convolution whose kernels and biases are other ones at each place."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C here, H, W) to (N, kernels here, H', W')."""
        if self.reads_both_towers:
            x = self.placement.read_both(x, layer=self.row.name)
        before, after = self.row.padding
        x = F.pad(x, (before, after, before, after))
        num_kernels, _, side, _, rows, columns = self.weight.shape
        # (N, groups, C read * side * side, places); of each place its own products.
        patches = F.unfold(x, side, stride=self.row.stride)
        patches = patches.view(x.shape[0], self.groups, -1, rows * columns)
        weight = self.weight.view(self.groups, num_kernels // self.groups, -1, rows * columns)
        y = torch.einsum("ngil,gkil->ngkl", patches, weight)
        return y.reshape(x.shape[0], num_kernels, rows, columns) + self.bias

    def extra_repr(self) -> str:
        """What `_Products` says, with stride and padding."""
        place = f"stride={self.row.stride}, padding={self.row.padding}"
        return f"{_Products.extra_repr(self)}, {place}"


class SplitLinear(_Products):
    """A fully connected layer, over the outputs of both towers or of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) to (N, units here)."""
        if self.reads_both_towers:
            x = self.placement.read_both(x, layer=self.row.name)
        x = x.flatten(1)
        if self.groups == 1:
            return F.linear(x, self.weight, self.bias)
        # Channels stand tower by tower, so the first part of the inputs is the first tower's.
        parts = zip(x.chunk(self.groups, 1), self.weight.chunk(self.groups), strict=True)
        return torch.cat([F.linear(part, weight) for part, weight in parts], dim=1) + self.bias


class _ResponseNorm(nn.Module):
    """The letters of the paper's formula."""

    def __init__(self, *, n: int, k: float, alpha: float, beta: float) -> None:
        super().__init__()
        self.n, self.k, self.alpha, self.beta = n, k, alpha, beta

    def extra_repr(self) -> str:
        """The letters."""
        return f"n={self.n}, k={self.k}, alpha={self.alpha}, beta={self.beta}"


class Input(nn.Module):
    """What other projects make of the pixels before the first layer.

    Args:
        divisor: of the channels, red first; of none where it is empty.
        channels: `rgb`, or `bgr` to hand blue on first.
    """

    divisor: Tensor

    def __init__(self, *, divisor: Sequence[float], channels: str) -> None:
        super().__init__()
        values = torch.tensor(divisor or (1.0,) * 3).view(-1, 1, 1)
        self.register_buffer("divisor", values, persistent=False)
        self.divides, self.channels = bool(divisor), channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), red first and less the mean, the same shape back."""
        y = x / self.divisor if self.divides else x
        return y.flip(1) if self.channels == "bgr" else y

    def extra_repr(self) -> str:
        """The divisor, and which channel is first."""
        return f"divisor={self.divisor.flatten().tolist()}, channels={self.channels}"


class LocalResponseNorm(_ResponseNorm):
    """Local response normalization between the channels of a tower (paper 3.3)."""

    def __init__(self, *, towers: int, scope: str = "tower", **letters: Any) -> None:
        super().__init__(**letters)
        self.towers = towers if scope == "tower" else 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, C here, H, W), the same shape back."""
        normalize = reference.local_response_norm if _is_plain() else local_response_norm
        # DEVIATION D7: the text's N is the whole layer; on two devices a window that crosses the
        # towers would need an exchange, and the source has none: `lrn_scope=layer` on one device.
        return normalize(
            x, n=self.n, k=self.k, alpha=self.alpha, beta=self.beta, towers=self.towers
        )

    def extra_repr(self) -> str:
        """The letters, and the towers."""
        return f"{super().extra_repr()}, towers={self.towers}"


class SameMapNorm(_ResponseNorm):
    """The 2012 source's unpublished normalization between neighbors in one map.

    y = x / (k + alpha * sum over the n x n window around the place of x ** 2) ** beta, windows cut
    off at the border (layers-145.cfg, `cnorm2`).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C here, H, W), the same shape back."""
        normalize = reference.same_map_norm if _is_plain() else same_map_norm
        return normalize(x, n=self.n, k=self.k, alpha=self.alpha, beta=self.beta)


class TiedMaxPool2d(nn.MaxPool2d):
    """Max pooling in which each of several equal maxima gets the gradient, as in the 2012 source.

    `kernel_size` and `stride` are integers. With `ceil_mode`, the last window of a row or column
    is cut off at the border, else all lie wholly on the map.
    """

    kernel_size: int
    stride: int

    def forward(self, x: Tensor) -> Tensor:
        """(N, C here, H, W) to (N, C here, H', W')."""
        if _is_plain():
            y: Tensor = super().forward(x)
            return y
        if self.ceil_mode:  # nothing is less than what stands beyond the border
            down, right = self._beyond(x.shape[2]), self._beyond(x.shape[3])
            x = F.pad(x, (0, right, 0, down), value=-math.inf)
        return max_pool2d(x, window=self.kernel_size, stride=self.stride, ties="all")

    def _beyond(self, side: int) -> int:
        """How far the last window reaches beyond the map."""
        return -(side - self.kernel_size) % self.stride

    def extra_repr(self) -> str:
        """Window and stride, and who gets the gradient."""
        return f"{super().extra_repr()}, ties=all"


class BatchNorm(nn.Module):
    """Batch normalization, over the whole batch in every placement; a channel has a tower's maps.

    In training, the statistics are those of the batch, all copies together, and the running ones,
    which serve at test, follow them. `channels` are those of the whole layer, and what is
    normalized has 4 dimensions, or 2 after a fully connected layer.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, num_dimensions: int, placement: Placement) -> None:
        super().__init__()
        own = placement.own(channels)
        self.placement = placement
        self.others = [0, *range(2, num_dimensions)]
        self.shape = [1, -1, *[1] * (num_dimensions - 2)]
        self.weight = nn.Parameter(torch.ones(own.stop - own.start))
        self.bias = nn.Parameter(torch.zeros(own.stop - own.start))
        self.register_buffer("running_mean", torch.zeros_like(self.weight.data))
        self.register_buffer("running_var", torch.ones_like(self.weight.data))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C here, ...), the same shape back."""
        mean, var = self.running_mean, self.running_var
        if self.training:
            num_here = x.new_full((1,), x.numel() // x.shape[1])
            num = self.placement.add_over_copies(num_here)
            mean = self.placement.add_over_copies(x.sum(self.others)) / num
            squares = ((x - mean.view(self.shape)) ** 2).sum(self.others)
            var = self.placement.add_over_copies(squares) / num
            with torch.no_grad():
                unbiased = var * num / (num - 1).clamp(min=1)
                self.running_mean.lerp_(mean.to(self.running_mean), BATCH_MOMENTUM)
                self.running_var.lerp_(unbiased.to(self.running_var), BATCH_MOMENTUM)
        scale = self.weight * (var + BATCH_EPSILON).rsqrt()
        return x * scale.view(self.shape) + (self.bias - mean * scale).view(self.shape)

    def extra_repr(self) -> str:
        """How many channels."""
        return f"{len(self.weight)}"


class Dropout(nn.Module):
    """Dropout as in the paper (4.2): zeros in training, a multiplication at test.

    Unlike `torch.nn.Dropout`, what stays is not scaled in training, unless `scale` says so. Of the
    masks, that of `layer` is taken; `keep` is the probability of staying.
    """

    def __init__(self, layer: str, *, keep: float, scale: str = "test") -> None:
        super().__init__()
        self.layer, self.keep, self.scale = layer, keep, scale

    def forward(self, x: Tensor, masks: Masks | None = None) -> Tensor:
        """(N, ...), the units here, the same shape back; `AlexNet.forward` says what masks are."""
        y = drop(x, masks, self.layer, self.keep, self.training)
        return y / self.keep if self.scale == "training" else y

    def extra_repr(self) -> str:
        """The probability of staying, and when is multiplied."""
        return f"keep={self.keep}, scale={self.scale}"


def drop(x: Tensor, masks: Masks | None, layer: str, keep: float, is_training: bool) -> Tensor:
    """The outputs that stay; all of them, multiplied, where there is no mask at test time."""
    if masks is not None:
        return masks[layer](x.flatten(1)).view(x.shape)
    if is_training:
        return x * (torch.rand_like(x) < keep)
    return x * keep


# Each is one node of a traced graph, which looks at its arguments when it runs.
torch.fx.wrap("drop")
torch.fx.wrap("local_response_norm")
torch.fx.wrap("max_pool2d")
torch.fx.wrap("split_conv2d")
torch.fx.wrap("same_map_norm")
