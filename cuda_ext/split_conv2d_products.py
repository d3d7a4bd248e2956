"""The registered operators of the split convolution: products, shapes and gradients.

On the CPU the products are those of PyTorch's library, over blocks of pixels where
`convolution_ways` says so; on CUDA they are the library's, or those of the kernels in `csrc`.
"""

from typing import Any

import torch
import torch.nn.functional as F

from cuda_ext import library, reference
from cuda_ext.convolution_ways import way_of


def output_shape(
    x: torch.Tensor, weight: torch.Tensor, stride: int, before: int, after: int
) -> tuple[int, ...]:
    """(N, K, H', W') of a convolution."""
    sides = zip(x.shape[2:], weight.shape[2:], strict=True)
    places = ((size + before + after - side) // stride + 1 for size, side in sides)
    return x.shape[0], weight.shape[0], *places


def _is_last(x: torch.Tensor) -> bool:
    """Whether one value of a pixel's channels is beside the next in memory."""
    return x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous()


def _format(*tensors: torch.Tensor) -> torch.memory_format:
    """Channels last where one of them is, as the library decides."""
    return torch.channels_last if any(map(_is_last, tensors)) else torch.contiguous_format


def _empty(like: torch.Tensor, shape: Any, memory_format: torch.memory_format) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _as_promised(values: torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
    """A result with the strides that `_empty` has: where a side is 1 a library has others."""
    promised = _empty(values, values.shape, memory_format)
    return values if values.stride() == promised.stride() else promised.copy_(values)


# --- Products


def _needs_float32(x: torch.Tensor) -> bool:
    """Whether the library would sum in float16: on a CPU without products of it."""
    return x.dtype == torch.float16 and x.device.type == "cpu"


def _is_own_on_cuda(x: torch.Tensor, products: str) -> bool:
    return (
        products == "own"
        and x.is_cuda
        and x.dtype == torch.float32
        and library.compiled_cuda_state().is_live
    )


def _blocks_win(x: torch.Tensor, stride: int, towers: int, products: Any) -> tuple[bool, bool]:
    """Whether forward and weight gradient go over blocks of pixels."""
    if x.device.type != "cpu" or not library.compiled_state().is_live:
        return False, False
    way = way_of(channels=x.shape[1], stride=stride, towers=towers, products=products)
    return way.forward != "library", way.weight_gradient != "library"


def _padded(x: torch.Tensor, before: int, after: int) -> tuple[torch.Tensor, int]:
    """x, and the same padding on both sides, which is all that the library has."""
    if before == after:
        return x, before
    return F.pad(x, (before, after, before, after)), 0


def _libraries_products(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: int,
    before: int,
    after: int,
    towers: int,
) -> torch.Tensor:
    padded, padding = _padded(x, before, after)
    return F.conv2d(padded, weight, bias, stride=stride, padding=padding, groups=towers)


def _block_sides(weight: torch.Tensor, stride: int) -> tuple[int, int]:
    """Rows and columns of a kernel in blocks of stride x stride pixels."""
    return -(-weight.shape[2] // stride), -(-weight.shape[3] // stride)


def _image_in_blocks(
    x: torch.Tensor, weight: torch.Tensor, stride: int, before: int, after: int
) -> torch.Tensor:
    """(N, stride * stride * C, rows, columns): channels of a block: its pixels' (i, j, c)."""
    places = output_shape(x, weight, stride, before, after)[2:]
    rows, columns = (
        number - 1 + side for number, side in zip(places, _block_sides(weight, stride), strict=True)
    )
    blocks: torch.Tensor = torch.ops.replica_cpu.pixel_blocks(x, stride, before, rows, columns)
    return blocks


def _kernels_in_blocks(
    weight: torch.Tensor, stride: int, memory_format: torch.memory_format
) -> torch.Tensor:
    """The same of the kernels, with zeros behind them up to whole blocks."""
    num_kernels, channels, height, width = weight.shape
    rows, columns = _block_sides(weight, stride)
    whole = F.pad(weight, (0, columns * stride - width, 0, rows * stride - height))
    pixels = whole.reshape(num_kernels, channels, rows, stride, columns, stride)
    blocks = pixels.permute(0, 3, 5, 1, 2, 4).reshape(num_kernels, -1, rows, columns)
    return blocks.contiguous(memory_format=memory_format)


def _kernels_of_blocks(blocks: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """Back from blocks, of the shape of `weight`."""
    num_kernels, channels, height, width = weight.shape
    rows, columns = _block_sides(weight, stride)
    pixels = blocks.reshape(num_kernels, stride, stride, channels, rows, columns)
    whole = pixels.permute(0, 3, 4, 1, 5, 2)
    return whole.reshape(num_kernels, channels, rows * stride, -1)[:, :, :height, :width]


_TAGS = (torch.Tag.pt2_compliant_tag,)
_FORWARD, _ADD = "replica::split_conv2d", "replica::split_conv2d_add_"
_BACKWARD = "replica::split_conv2d_backward"
_GEOMETRY = "int stride, int before, int after, int towers"
torch.library.define(
    _FORWARD,
    f"(Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}, bool relu, str products) -> Tensor",
    tags=_TAGS,
)
torch.library.define(
    _ADD,
    f"(Tensor(a!) y, Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}, bool relu, "
    "str products) -> ()",
    tags=_TAGS,
)
torch.library.define(
    _BACKWARD,
    f"(Tensor gradient, Tensor x, Tensor weight, {_GEOMETRY}, str products, bool[] needed) "
    "-> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)


def _forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: int,
    before: int,
    after: int,
    towers: int,
    relu: bool,
    products: str,
) -> torch.Tensor:
    if _needs_float32(x):
        wide = (x.float(), weight.float(), None if bias is None else bias.float())
        return _forward(*wide, stride, before, after, towers, relu, products).half()
    memory_format, bias = _format(x, weight), None if bias is None else bias.contiguous()
    x, weight = (t.contiguous(memory_format=memory_format) for t in (x, weight))
    if _is_own_on_cuda(x, products):
        y = _empty(x, output_shape(x, weight, stride, before, after), memory_format)
        torch.ops.replica_cuda.split_conv2d(y, x, weight, bias, stride, before, towers, relu, False)
        return y
    if _blocks_win(x, stride, towers, products)[0]:
        blocks = _image_in_blocks(x, weight, stride, before, after)
        y = F.conv2d(blocks, _kernels_in_blocks(weight, stride, memory_format), bias)
    else:
        y = _libraries_products(x, weight, bias, stride, before, after, towers)
    y = _as_promised(y, memory_format)
    return y.relu_() if relu else y


@torch.library.register_fake(_FORWARD)
def _forward_shape(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: int,
    before: int,
    after: int,
    *others: Any,
) -> torch.Tensor:
    return _empty(x, output_shape(x, weight, stride, before, after), _format(x, weight))


def _add(
    y: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: int,
    before: int,
    after: int,
    towers: int,
    relu: bool,
    products: str,
) -> None:
    bias = None if bias is None else bias.contiguous()
    is_last = not y.is_contiguous()
    memory_format = torch.channels_last if is_last else torch.contiguous_format
    x, weight = (t.contiguous(memory_format=memory_format) for t in (x, weight))
    if _is_own_on_cuda(x, products):
        torch.ops.replica_cuda.split_conv2d(y, x, weight, bias, stride, before, towers, relu, True)
        return
    others = _forward(x, weight, None, stride, before, after, towers, False, products)
    others = others.contiguous(memory_format=memory_format)
    if y.device.type == "cpu" and library.compiled_state().is_live:
        torch.ops.replica_cpu.finish_products_(y, others, bias, relu)
        return
    y.copy_(reference.finish_products(y, others, bias, relu))


@torch.library.register_fake(_ADD)
def _add_shape(*arguments: Any) -> None:
    pass


def _backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: int,
    before: int,
    after: int,
    towers: int,
    products: str,
    needed: list[bool],
) -> tuple[torch.Tensor, ...]:
    if _needs_float32(x):
        wide = (gradient.float(), x.float(), weight.float())
        computed = _backward(*wide, stride, before, after, towers, products, needed)
        return tuple(one.half() for one in computed)
    memory_format, format_of_weight = _format(x, weight), _format(weight)
    gradient, x, weight = (t.contiguous(memory_format=memory_format) for t in (gradient, x, weight))
    results = [x.new_empty(0) for _ in range(3)]
    if _is_own_on_cuda(x, products):
        if needed[0]:
            results[0] = _empty(x, x.shape, memory_format)
            torch.ops.replica_cuda.split_conv2d_data_gradient(
                results[0], gradient, weight, stride, before, towers
            )
        if needed[1]:
            results[1] = _empty(x, weight.shape, format_of_weight)
            torch.ops.replica_cuda.split_conv2d_weight_gradient(
                results[1], gradient, x, stride, before, towers
            )
        if needed[2]:
            results[2] = gradient.sum((0, 2, 3))
        return tuple(results)
    by_library = list(needed)
    if needed[1] and _blocks_win(x, stride, towers, products)[1]:
        blocks = _image_in_blocks(x, weight, stride, before, after)
        kernels = _kernels_in_blocks(weight, stride, memory_format)
        _, of_kernels, of_bias = _libraries_gradients(
            gradient, blocks, kernels, 1, 0, 1, [False, True, needed[2]]
        )
        of_weight = _kernels_of_blocks(of_kernels, weight, stride)
        results[1] = _as_promised(of_weight.contiguous(), format_of_weight)
        if needed[2]:
            results[2] = of_bias
        by_library = [needed[0], False, False]
    if any(by_library):
        padded, padding = _padded(x, before, after)
        of_x, of_weight, of_bias = _libraries_gradients(
            gradient, padded, weight, stride, padding, towers, by_library
        )
        if by_library[0]:
            if padded is not x:
                height, width = x.shape[2:]
                of_x = of_x[:, :, before : before + height, before : before + width]
            results[0] = _as_promised(of_x, memory_format)
        if by_library[1]:
            results[1] = _as_promised(of_weight, format_of_weight)
        if by_library[2]:
            results[2] = of_bias
    return tuple(results)


def _libraries_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: int,
    padding: int,
    towers: int,
    needed: list[bool],
) -> tuple[torch.Tensor, ...]:
    geometry = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], towers)
    computed: tuple[torch.Tensor, ...] = torch.ops.aten.convolution_backward(
        gradient, x, weight, [len(weight)], *geometry, needed
    )
    return computed


@torch.library.register_fake(_BACKWARD)
def _backward_shape(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, ...]:
    *_, needed = others
    memory_format = _format(x, weight)
    return (
        _empty(x, x.shape, memory_format) if needed[0] else x.new_empty(0),
        _empty(x, weight.shape, _format(weight)) if needed[1] else x.new_empty(0),
        x.new_empty(len(weight) if needed[2] else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, _, *geometry, relu, products = inputs
    # The sign of y says where the gradient passes.
    ctx.save_for_backward(x, weight, *([output] if relu else []))
    ctx.arguments = (*geometry, products)


def _gradient(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    x, weight, *outputs = ctx.saved_tensors
    for y in outputs:
        gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
    needed = list(ctx.needs_input_grad[:3])
    computed = torch.ops.replica.split_conv2d_backward(gradient, x, weight, *ctx.arguments, needed)
    given = (one if is_needed else None for one, is_needed in zip(computed, needed, strict=True))
    return *given, *[None] * 6


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    gradient, x, weight, *geometry, _, needed = inputs
    ctx.save_for_backward(gradient, x, weight)
    ctx.geometry, ctx.needed = geometry, needed


def _second_gradient(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
    # Rare, so the library's own derivatives serve.
    stride, before, after, towers = ctx.geometry
    with torch.enable_grad():
        incoming, x, weight = inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        bias = weight.new_zeros(len(weight)).requires_grad_()
        y = _libraries_products(x, weight, bias, stride, before, after, towers)
        first = torch.autograd.grad(y, (x, weight, bias), incoming, create_graph=True)
        pairs = [pair[:2] for pair in zip(first, gradients, ctx.needed, strict=True) if pair[2]]
        total = sum((one * weight_of).sum() for one, weight_of in pairs)
        second = torch.autograd.grad(total, inputs, allow_unused=True)
    return *second, *[None] * 6


for _name, _compute in ((_FORWARD, _forward), (_ADD, _add), (_BACKWARD, _backward)):
    torch.library.impl(_name, "default", _compute)
torch.library.register_autograd(_FORWARD, _gradient, setup_context=_save)
torch.library.register_autograd(_BACKWARD, _second_gradient, setup_context=_save_backward)
