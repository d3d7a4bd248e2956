"""The convolutions of a recipe: `split_conv2d` against PyTorch's own convolution with groups.

Each layer with the padding that PyTorch has (a copy of the image where the two sides differ), in
one run with the same allocator. The gradient of the image is not asked for, as in training. On a
CPU "own" is blocks of pixels where the layer has a stride, on a GPU this project's kernels in
float32.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.local_response_norm import LAYOUTS, Candidates
from benchmarks.measure import Row, interleaved, rows_of, say
from cuda_ext import split_conv2d
from cuda_ext.convolution_ways import Products
from data_prep.errors import UserError
from replica.recipes import find_recipe
from replica.recipes.geometry import LayerGeometry, geometry
from replica.training.allocator import keep_large_blocks

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OURS: tuple[Products, ...] = ("measured", "own")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--recipe", default="paper", metavar="NAME", help="default: %(default)s")
    parser.add_argument(
        "--layer", action="append", metavar="NAME", help="one or more; default: all"
    )
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=11, help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="default: one per core")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s"
    )


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows.

    Raises:
        UserError: a layer that the recipe does not have.
    """
    recipe = find_recipe(arguments.recipe)
    layers = {row.name: row for row in geometry(recipe) if row.kernel_size}
    names = arguments.layer or list(layers)
    for name in names:
        if name not in layers:
            raise UserError(f"--layer {name}: expected one of {', '.join(layers)}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = False
    works = [
        f"{name} {layout} {dtype}: {who} {passes}"
        for name in names
        for layout in LAYOUTS
        for dtype in DTYPES
        for who in ("library", *OURS)
        for passes in ("forward", "forward + backward")
    ]
    if arguments.device == "cuda" and not torch.cuda.is_available():
        return [Row(work, None, "ms", note="PyTorch sees no CUDA device") for work in works]
    if arguments.device == "cpu":
        say(f"memory: {keep_large_blocks()}")
    rows = []
    for name in names:
        towers = recipe.towers if layers[name].reads == "own tower" else 1
        for layout, memory_format in LAYOUTS.items():
            for kind, dtype in DTYPES.items():
                prefix = f"{name} {layout} {kind}: "
                say(prefix)
                to: dict[str, Any] = {"dtype": dtype, "memory_format": memory_format}
                candidates = _candidates(layers[name], towers, arguments, to)
                wait = torch.cuda.synchronize if arguments.device == "cuda" else _nothing
                medians = interleaved(candidates, rounds=arguments.rounds, seconds=8.0, wait=wait)
                named = {prefix + work: seconds for work, seconds in medians.items()}
                baselines = {
                    f"{prefix}{who} {passes}": f"{prefix}library {passes}"
                    for who in OURS
                    for passes in ("forward", "forward + backward")
                }
                rows += rows_of(named, baselines=baselines)
    return rows


def _nothing() -> None:
    """A CPU does not run ahead."""


def _candidates(
    layer: LayerGeometry, towers: int, arguments: argparse.Namespace, to: dict[str, Any]
) -> Candidates:
    torch.manual_seed(0)
    device = arguments.device
    x = torch.randn(arguments.batch_size, *layer.input_shape).to(device, **to)
    weight = (torch.randn(layer.weight_shape) / layer.fan_in**0.5).to(device, **to)
    bias = torch.randn(layer.bias_shape).to(device, to["dtype"])
    gradient = torch.randn(arguments.batch_size, *layer.output_shape).to(device, **to)
    leaves = [t.requires_grad_() for t in (x, weight, bias)[layer.reads == "image" :]]
    before, after = layer.padding

    def library() -> torch.Tensor:
        padded, padding = x, before
        if before != after:
            padded, padding = F.pad(x, (before, after, before, after)), 0
        return F.conv2d(padded, weight, bias, layer.stride, padding, groups=towers)

    def ours(products: Products) -> Callable[[], torch.Tensor]:
        return lambda: split_conv2d(
            x,
            weight,
            bias,
            stride=layer.stride,
            padding=layer.padding,
            towers=towers,
            products=products,
        )

    candidates: Candidates = {}
    functions = {"library": library, **{products: ours(products) for products in OURS}}
    for name, function in functions.items():

        def forward(function: Callable[[], torch.Tensor] = function) -> None:
            with torch.no_grad():
                function()

        def both(function: Callable[[], torch.Tensor] = function) -> None:
            torch.autograd.grad(function(), leaves, gradient)

        candidates[f"{name} forward"] = forward
        candidates[f"{name} forward + backward"] = both
    return candidates
