"""ReLU, normalization and pooling in one pass on the CPU, against PyTorch's three operators.

As called in a training step: tensors are allocated on the way, by the same allocator for all
candidates. PyTorch's pooling without any normalization is what the one pass should not exceed.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.local_response_norm import ALPHA, BETA, LAYOUTS, K, N, parse_shape
from benchmarks.measure import Row, interleaved, rows_of, say
from cuda_ext import local_response_norm, max_pool2d, relu_lrn_pool, same_map_norm
from replica import paper
from replica.recipes import PAPER
from replica.training.allocator import keep_large_blocks

SHAPES = ("16,96,55,55", "16,256,27,27")
WINDOW, STRIDE = paper.POOL_WINDOW, paper.POOL_STRIDE
LETTERS: dict[str, Any] = {"n": N, "k": K, "alpha": ALPHA, "beta": BETA}
Function = Callable[[torch.Tensor], torch.Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--shape",
        action="append",
        metavar="N,C,H,W",
        help=f"one or more; default: {' and '.join(SHAPES)}",
    )
    parser.add_argument("--rounds", type=int, default=21, help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="default: one per core")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    say(f"memory: {keep_large_blocks()}")
    rows = []
    for shape in [parse_shape(text) for text in arguments.shape or SHAPES]:
        for layout, memory_format in LAYOUTS.items():
            for dtype in (torch.float32, torch.bfloat16):
                kind = f"{'x'.join(map(str, shape))} {layout} {str(dtype).split('.')[1]}: "
                say(kind)
                x = (torch.randn(shape) * 30).to(dtype).contiguous(memory_format=memory_format)
                rows += _rows(kind, x, arguments.rounds)
    return rows


def _functions(x: torch.Tensor) -> dict[str, Function]:
    towers = paper.NUM_TOWERS if x.shape[1] % paper.NUM_TOWERS == 0 else 1

    def three(x: torch.Tensor) -> torch.Tensor:
        y = local_response_norm(x.relu(), **LETTERS, towers=towers)
        return F.max_pool2d(y, WINDOW, STRIDE)

    def pytorchs(x: torch.Tensor) -> torch.Tensor:
        # torch divides alpha by n, and knows no towers.
        y = F.local_response_norm(x.relu(), N, alpha=ALPHA * N, beta=BETA, k=K)
        return F.max_pool2d(y, WINDOW, STRIDE)

    def same_map(x: torch.Tensor) -> torch.Tensor:
        return same_map_norm(
            x,
            n=PAPER.same_map_n,
            k=PAPER.same_map_k,
            alpha=PAPER.same_map_alpha,
            beta=PAPER.same_map_beta,
        )

    functions: dict[str, Function] = {
        "one pass": lambda x: relu_lrn_pool(
            x, **LETTERS, towers=towers, window=WINDOW, stride=STRIDE
        ),
        "three modules": three,
        "PyTorch without LRN": lambda x: F.max_pool2d(x.relu(), WINDOW, STRIDE),
        "max_pool2d": lambda x: max_pool2d(x, window=WINDOW, stride=STRIDE),
        "same_map_norm": same_map,
    }
    if x.dtype == torch.float32:  # the only type of the two that PyTorch's own has on a CPU
        functions["PyTorch"] = pytorchs
    return functions


def _rows(kind: str, x: torch.Tensor, rounds: int) -> list[Row]:
    leaf = x.detach().requires_grad_()
    candidates: dict[str, Callable[[], object]] = {}
    for name, function in _functions(x).items():
        with torch.no_grad():
            gradient = torch.randn_like(function(x))

        def forward(function: Function = function) -> None:
            with torch.no_grad():
                function(x)

        def both(function: Function = function, gradient: torch.Tensor = gradient) -> None:
            torch.autograd.grad(function(leaf), leaf, gradient)

        candidates[f"{kind}{name} forward"] = forward
        candidates[f"{kind}{name} forward + backward"] = both
    medians = interleaved(candidates, rounds=rounds, seconds=4.0)
    baselines = {
        name: f"{kind}one pass forward{' + backward' if name.endswith('backward') else ''}"
        for name in medians
        if not name.startswith(f"{kind}one pass")
    }
    return rows_of(medians, baselines=baselines)
