"""The convolution of a network in towers: schemas, checks, gradients, who multiplies (paper 3.5).

On the CPU the products are those of PyTorch's library, over blocks of pixels where that was
measured to win; on CUDA they are the library's, or those of the kernels in `csrc`.
"""

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from cuda_ext import library, reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ACTIVATIONS = ("none", "relu")
PRODUCTS = ("measured", "library", "own")
Activation = Literal["none", "relu"]
Products = Literal["measured", "library", "own"]


@dataclass(frozen=True)
class Measured:
    """For which passes blocks of pixels won over the library, on a family of processors.

    Attributes:
        forward, weight_gradient: whether they did.
        what: the measurement, conv1 of the paper's network.
    """

    forward: bool
    weight_gradient: bool
    what: str


# By vendor and family in /proc/cpuinfo, and whether there are matrix units; of conv1: 11 x 11,
# stride 4, 3 channels, 96 kernels, 224 x 224. A family that is not here has the library's way.
MEASURED_FAMILIES = {
    "AuthenticAMD 25": Measured(
        forward=False,
        weight_gradient=False,
        what="32 images, float32, channels last, one thread: 146 instead of 124 ms forward, 165 "
        "instead of 152 ms for the weight gradient",
    ),
    "GenuineIntel 6, AMX": Measured(
        forward=False,
        weight_gradient=True,
        what="128 images, float32: 215 instead of 337 ms for the weight gradient",
    ),
}


def split_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    towers: int = 1,
    activation: Activation = "none",
    products: Products = "measured",
) -> torch.Tensor:
    """Convolves each tower with its own kernels, both towers in one call (paper 3.5, Figure 2).

        y[k, r, q] = activation(bias[k] + sum over c, i, j of
            weight[k, c, i, j] * x[c of the tower of k, stride * r + i - before, ...])

    Kernels are not mirrored, as in `torch.nn.functional.conv2d`. Sums are in float32 at least.
    Under autocast the tensors are cast as for that function.

    Args:
        x: (N, C, H, W), float32, float64, bfloat16 or float16, any strides; tower t has the t-th of
            `towers` equal parts of the channels.
        weight: (K, C / towers, rows, columns), of the type of x; the t-th of `towers` equal parts
            of the kernels reads tower t. With `towers=1` every kernel reads everything.
        bias: (K,), or None.
        stride: between neighboring places, in both directions.
        padding: rows of zeros before the first and after the last, and columns; none is larger than
            the kernels.
        towers: number of groups of channels that do not see each other.
        activation: "relu", or "none".
        products: who multiplies. "library": PyTorch's convolution. "own": on the CPU blocks of
            pixels where the stride is larger than 1 and `towers` is 1, on CUDA the kernels of this
            package for float32; elsewhere the library. "measured": what was measured to win on this
            kind of processor (`way_of`), on CUDA the library.

    Returns:
        (N, K, H', W') of the type of x: channels last where x or weight is, else NCHW.

    Raises:
        ValueError: an argument is outside of these rules.
    """
    name = "split_conv2d"
    x, weight, bias = _cast(x, weight, bias)
    before, after = _check(name, x, weight, bias, stride, padding, towers, activation, products)
    result: torch.Tensor = torch.ops.replica.split_conv2d(
        x, weight, bias, stride, before, after, towers, activation == "relu", products
    )
    return result


def split_conv2d_add_(
    y: torch.Tensor,
    x_other: torch.Tensor,
    weight_other: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    towers: int = 1,
    activation: Activation = "none",
    products: Products = "measured",
) -> torch.Tensor:
    """Adds the other half of a layer's products to y, in place; then bias and activation.

        y <- activation(y + products of x_other and weight_other + bias)

    For a layer that reads both towers, each on a device of its own (paper 3.5): `split_conv2d`
    multiplies the own half while the other one travels, and this ends the layer, the sum, the bias
    and the activation in one pass. Without a gradient: `split_conv2d_backward` has it for a half.

    Args:
        y: (N, K, H', W'), dense, NCHW or channels last: what `split_conv2d` gave for the own half.
        x_other, weight_other: as `x` and `weight` of `split_conv2d`.
        bias, stride, padding, towers, activation, products: as there.

    Returns:
        `y`.

    Raises:
        ValueError: an argument is outside of these rules, or a gradient would be needed.
    """
    name = "split_conv2d_add_"
    before, after = _check(
        name, x_other, weight_other, bias, stride, padding, towers, activation, products
    )
    tensors = (y, x_other, weight_other, *([] if bias is None else [bias]))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise _expected(name, "tensors without a gradient", "one that requires it")
    shape = _output_shape(x_other, weight_other, stride, before, after)
    if y.shape != shape or y.dtype != x_other.dtype or y.device != x_other.device:
        raise _expected(
            name,
            f"y of {_kind(x_other.dtype, shape, x_other.device)}, as the other half gives",
            _kind(y.dtype, y.shape, y.device),
        )
    if not (y.is_contiguous() or y.is_contiguous(memory_format=torch.channels_last)):
        raise _expected(name, "a dense y", f"one of strides {y.stride()}")
    torch.ops.replica.split_conv2d_add_(
        y,
        x_other,
        weight_other,
        bias,
        stride,
        before,
        after,
        towers,
        activation == "relu",
        products,
    )
    return y


def split_conv2d_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    towers: int = 1,
    products: Products = "measured",
    needed: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The gradients of `split_conv2d` without an activation.

    Args:
        gradient: (N, K, H', W'), of y; of the type of x, any strides.
        x, weight, stride, padding, towers, products: as in `split_conv2d`.
        needed: which of the three.

    Returns:
        Those of x, weight and bias, each of the shape and type of what it is of; None for what is
        not needed.

    Raises:
        ValueError: an argument is outside of these rules.
    """
    name = "split_conv2d_backward"
    before, after = _check(name, x, weight, None, stride, padding, towers, "none", products)
    shape = _output_shape(x, weight, stride, before, after)
    if gradient.shape != shape or gradient.dtype != x.dtype or gradient.device != x.device:
        raise _expected(
            name,
            f"a gradient of {_kind(x.dtype, shape, x.device)}",
            _kind(gradient.dtype, gradient.shape, gradient.device),
        )
    computed = torch.ops.replica.split_conv2d_backward(
        gradient, x, weight, stride, before, after, towers, products, list(needed)
    )
    of_x, of_weight, of_bias = (
        one if is_needed else None for one, is_needed in zip(computed, needed, strict=True)
    )
    return of_x, of_weight, of_bias


@dataclass(frozen=True)
class Way:
    """How the products of a layer are made on the CPU.

    Attributes:
        forward, weight_gradient: "library", or "blocks of pixels".
        why: a reason, with the measurement where there is one.
    """

    forward: str
    weight_gradient: str
    why: str


def way_of(
    *, channels: int, stride: int, towers: int, products: Products = "measured", family: str = ""
) -> Way:
    """Which way a layer of `channels` goes on a family of processors, by default on this one."""
    if products == "library":
        return Way("library", "library", "asked for")
    if stride == 1 or towers > 1 or channels > MOST_CHANNELS:
        why = f"blocks of pixels are for a stride and at most {MOST_CHANNELS} channels"
        return Way("library", "library", why)
    if products == "own":
        return Way("blocks of pixels", "blocks of pixels", "asked for")
    family = family or processor_family()
    measured = MEASURED_FAMILIES.get(family)
    if measured is None:
        return Way("library", "library", f"nothing was measured on {family}")
    ways = ("library", "blocks of pixels")
    return Way(ways[measured.forward], ways[measured.weight_gradient], f"{family}: {measured.what}")


# With more channels the library's vectors are full without an arrangement: those of a register of
# AVX-512, by far more than an image has.
MOST_CHANNELS = 16


@cache
def processor_family() -> str:
    """Vendor and family of this processor, and whether it has matrix units; else its kind."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    values = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    if "vendor_id" not in values:
        return platform.machine()
    has_units = "amx_tile" in values.get("flags", "").split()
    return f"{values['vendor_id']} {values.get('cpu family')}{', AMX' if has_units else ''}"


def _cast(*tensors: torch.Tensor | None) -> tuple[Any, ...]:
    """As autocast does for the library's convolution, which leaves float64 as it is."""
    (first, *_) = tensors
    kind = first.device.type if first is not None else "cpu"
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def _check(
    name: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: int,
    padding: tuple[int, int],
    towers: int,
    activation: str,
    products: str,
) -> tuple[int, int]:
    """The padding; raises a ValueError where an argument is outside of the rules."""
    if library.SWITCH_PROBLEM:
        raise ValueError(library.SWITCH_PROBLEM)
    if x.dim() != 4:
        raise _expected(name, "x of (N, C, H, W)", tuple(x.shape))
    if x.dtype not in DTYPES:
        raise _expected(name, "float32, float64, bfloat16 or float16", x.dtype)
    if weight.dim() != 4 or 0 in weight.shape:
        raise _expected(name, "a weight of (K, C, rows, columns)", tuple(weight.shape))
    others = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    for other, tensor in others.items():
        if tensor.device != x.device:
            raise _expected(name, f"x and {other} on one device", f"{x.device}, {tensor.device}")
        if tensor.dtype != x.dtype:
            raise _expected(name, f"x and {other} of one type", f"{x.dtype}, {tensor.dtype}")
    num_kernels, channels, *sides = weight.shape
    if towers < 1 or num_kernels % towers:
        raise _expected(
            name, "kernels divisible by towers", f"{num_kernels} kernels and {towers} towers"
        )
    if x.shape[1] != towers * channels:
        raise _expected(
            name,
            f"x of {towers} x {channels} channels, as the weight reads",
            f"{x.shape[1]} channels",
        )
    if bias is not None and bias.shape != (num_kernels,):
        raise _expected(name, f"a bias of ({num_kernels},)", tuple(bias.shape))
    if stride < 1:
        raise _expected(name, "a stride of at least 1", stride)
    if len(padding) != 2 or not all(0 <= rows <= min(sides) for rows in padding):
        raise _expected(
            name, f"padding (before, after) of 0 to {min(sides)}, the kernels' side", padding
        )
    before, after = padding
    if any(size + before + after < side for size, side in zip(x.shape[2:], sides, strict=True)):
        raise _expected(
            name,
            f"at least {sides[0]} x {sides[1]} places, as the kernels have",
            f"{x.shape[2]} x {x.shape[3]} with padding of {tuple(padding)}",
        )
    if activation not in ACTIVATIONS:
        raise _expected(name, f"an activation of {' or '.join(ACTIVATIONS)}", repr(activation))
    if products not in PRODUCTS:
        raise _expected(name, f"products of {', '.join(PRODUCTS)}", repr(products))
    return before, after


def _kind(*of_a_tensor: Any) -> str:
    dtype, shape, device = of_a_tensor
    return f"{dtype}, {tuple(shape)}, {device}"


def _expected(name: str, rule: str, got: object) -> ValueError:
    return ValueError(f"{name}: expected {rule}, got {got}")


def _output_shape(
    x: torch.Tensor, weight: torch.Tensor, stride: int, before: int, after: int
) -> tuple[int, ...]:
    sides = zip(x.shape[2:], weight.shape[2:], strict=True)
    places = ((size + before + after - side) // stride + 1 for size, side in sides)
    return x.shape[0], weight.shape[0], *places


def _is_last(x: torch.Tensor) -> bool:
    """Whether one value of a pixel's channels is beside the next in memory."""
    return x.stride(1) == 1 and x.shape[1] > 1 and not x.is_contiguous()


def _format(x: torch.Tensor, weight: torch.Tensor) -> torch.memory_format:
    """Channels last where one of the two is, as the library decides."""
    return torch.channels_last if _is_last(x) or _is_last(weight) else torch.contiguous_format


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
    places = _output_shape(x, weight, stride, before, after)[2:]
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
    memory_format = _format(x, weight)
    x, weight = (t.contiguous(memory_format=memory_format) for t in (x, weight))
    if _is_own_on_cuda(x, products):
        y = _empty(x, _output_shape(x, weight, stride, before, after), memory_format)
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
    return _empty(x, _output_shape(x, weight, stride, before, after), _format(x, weight))


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
    memory_format = _format(x, weight)
    gradient, x, weight = (t.contiguous(memory_format=memory_format) for t in (gradient, x, weight))
    results = [x.new_empty(0) for _ in range(3)]
    if _is_own_on_cuda(x, products):
        if needed[0]:
            results[0] = _empty(x, x.shape, memory_format)
            torch.ops.replica_cuda.split_conv2d_data_gradient(
                results[0], gradient, weight, stride, before, towers
            )
        if needed[1]:
            results[1] = _empty(x, weight.shape, memory_format)
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
        results[1] = _as_promised(of_weight.contiguous(), memory_format)
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
            results[1] = _as_promised(of_weight, memory_format)
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
        _empty(x, weight.shape, memory_format) if needed[1] else x.new_empty(0),
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
