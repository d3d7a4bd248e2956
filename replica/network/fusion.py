"""Three modules in one pass over memory, where nobody looks at what lies between them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from cuda_ext import compiled_cuda_state, compiled_state, relu_lrn_pool
from cuda_ext.relu_lrn_pool import LARGEST_WINDOW
from replica.network.layers import LocalResponseNorm, TiedMaxPool2d

_ORDERS: dict[tuple[type[nn.Module], ...], str] = {
    (nn.ReLU, LocalResponseNorm, nn.MaxPool2d): "relu-norm-pool",
    (LocalResponseNorm, nn.MaxPool2d, nn.ReLU): "norm-pool-relu",
    (nn.ReLU, LocalResponseNorm, TiedMaxPool2d): "relu-norm-pool",
    (LocalResponseNorm, TiedMaxPool2d, nn.ReLU): "norm-pool-relu",
}
LENGTH = 3


def fuse(modules: Sequence[nn.Module], x: Tensor) -> Tensor | None:
    """What the modules make of x one after the other, or None where they must run themselves.

    The same bits, forward; the gradient differs by roundings at most, in float32 not even so. They
    must run where they are something else, where one of them has a hook, where a graph of them is
    made, and where the operator is not compiled for the device of x.
    """
    if _is_traced(x):
        return None
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
