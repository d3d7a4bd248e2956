"""Modules in one pass over memory, where nobody looks at what lies between them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from cuda_ext import compiled_cuda_state, compiled_state, relu_lrn_pool
from cuda_ext.relu_lrn_pool import LARGEST_WINDOW
from replica.network.layers import LocalResponseNorm, SplitConv2d, TiedMaxPool2d

_ORDERS: dict[tuple[type[nn.Module], ...], str] = {
    (nn.ReLU, LocalResponseNorm, nn.MaxPool2d): "relu-norm-pool",
    (LocalResponseNorm, nn.MaxPool2d, nn.ReLU): "norm-pool-relu",
    (nn.ReLU, LocalResponseNorm, TiedMaxPool2d): "relu-norm-pool",
    (LocalResponseNorm, TiedMaxPool2d, nn.ReLU): "norm-pool-relu",
}
# How many modules `fuse` looks at: a convolution, and the three that may follow it.
LENGTH = 4


def fuse(modules: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, int] | None:
    """What the first of the modules make of x, one after the other, and how many they are.

    The same bits, forward; the gradient differs by roundings at most, in float32 not even so. None
    where they must run themselves: where they are something else, where one of them has a hook,
    where a graph of them is made, and where the operator is not compiled for the device of x.
    """
    if _is_traced(x):
        return None
    if (y := _rectified(modules, x)) is not None:
        return y, 2
    y = _pooled(modules[:3], x)
    return None if y is None else (y, 3)


def _rectified(modules: Sequence[nn.Module], x: Tensor) -> Tensor | None:
    """A convolution that ends with its ReLU, where that is not the first of three."""
    if len(modules) < 2 or type(modules[1]) is not nn.ReLU or any(map(_has_hooks, modules[:2])):
        return None
    if type(modules[0]) is not SplitConv2d or tuple(map(type, modules[1:4])) in _ORDERS:
        return None
    return modules[0].products_of(x, activation="relu")


def _pooled(modules: Sequence[nn.Module], x: Tensor) -> Tensor | None:
    """ReLU, normalization and pooling, in the order of the paper or of the source."""
    order = _ORDERS.get(tuple(map(type, modules)))
    if order is None or any(map(_has_hooks, modules)) or not _is_compiled(x):
        return None
    norm = next(module for module in modules if isinstance(module, LocalResponseNorm))
    pool = next(module for module in modules if isinstance(module, nn.MaxPool2d))
    window, stride = pool.kernel_size, pool.stride
    others = (pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices)
    if not isinstance(window, int) or not isinstance(stride, int) or others != (0, 1, False, False):
        return None
    if x.dim() != 4 or window > min(LARGEST_WINDOW, *x.shape[2:]):
        return None
    return relu_lrn_pool(
        x,
        n=norm.n,
        k=norm.k,
        alpha=norm.alpha,
        beta=norm.beta,
        towers=norm.towers,
        window=window,
        stride=stride,
        order=order,
        ties="all" if isinstance(pool, TiedMaxPool2d) else "first",
    )


def _is_traced(x: Tensor) -> bool:
    return (
        torch.compiler.is_compiling()
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()
        or isinstance(x, torch.fx.Proxy)
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _has_any_global_hook()
    )


def _is_compiled(x: Tensor) -> bool:
    state = compiled_cuda_state if x.device.type == "cuda" else compiled_state
    return x.device.type in ("cpu", "cuda") and state().is_live
