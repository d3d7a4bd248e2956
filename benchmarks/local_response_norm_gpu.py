"""The operator on a GPU: bytes per second against a copy on the device in the same run.

Forward reads x and writes y; backward reads the gradient and x and writes a gradient. The aim is at
most 1.3 times the time of a copy of as many bytes. Channels last is also measured with tensors that
begin beside a multiple of 16 bytes, which the kernels read and write value by value. Without a GPU
the rows say "not measured".
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.local_response_norm import LAYOUTS, NUMBERS, SHAPES, Candidates, parse_shape
from benchmarks.measure import Row, interleaved

GPU_SHAPES = (*SHAPES[1:], "1024,96,55,55")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
REPEATS = 10  # between two readings of the clock, so that the calls' own time hides
# Tensors that each must read or write once.
MOVED = {"copy": 2, "forward": 2, "backward": 3}
BY_VALUE = ", value by value"
AIM = f"aim: at least {1 / 1.3:.2f}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--shape",
        action="append",
        metavar="N,C,H,W",
        help=f"one or more; default: {' and '.join(GPU_SHAPES)}",
    )
    parser.add_argument("--rounds", type=int, default=51, help="default: %(default)s")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows."""
    rows = []
    for text in arguments.shape or GPU_SHAPES:
        shape = parse_shape(text)
        for layout, memory_format in LAYOUTS.items():
            for name, dtype in DTYPES.items():
                prefix = f"{'x'.join(map(str, shape))} {layout} {name}: "
                if torch.cuda.is_available():
                    x = (torch.randn(shape, device="cuda") * 30).to(dtype)
                    x = x.contiguous(memory_format=memory_format)
                    rows += _rows(prefix, x, arguments.rounds)
                else:
                    why = "PyTorch sees no CUDA device"
                    works = [*MOVED, *_by_value(layout == "channels last")]
                    rows += [Row(prefix + work, None, "GB/s", note=why) for work in works]
    return rows


def _by_value(is_last: bool) -> list[str]:
    return [work + BY_VALUE for work in ("forward", "backward") if is_last]


def _beside(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, one value beyond the beginning of a block of memory."""
    memory = tensor.new_empty(tensor.numel() + 1)[1:]
    return memory.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def _rows(prefix: str, x: torch.Tensor, rounds: int) -> list[Row]:
    operators = torch.ops.replica
    gradient, out = torch.randn_like(x), torch.empty_like(x)
    works: Candidates = {
        "copy": lambda: out.copy_(x),
        "forward": lambda: operators.local_response_norm_out(x, *NUMBERS, out=out),
        "backward": lambda: operators.local_response_norm_backward_out(
            gradient, x, *NUMBERS, out=out
        ),
    }
    for work in _by_value(x.stride(1) == 1):
        inputs = [_beside(t) for t in ([x] if work.startswith("forward") else [gradient, x])]
        name = "local_response_norm" + ("_backward" if len(inputs) == 2 else "")
        operator = getattr(operators, f"{name}_out")
        works[work] = partial(operator, *inputs, *NUMBERS, out=_beside(out))

    def repeated(work: Callable[[], Any]) -> Callable[[], None]:
        def call() -> None:
            for _ in range(REPEATS):
                work()

        return call

    medians = interleaved(
        {name: repeated(work) for name, work in works.items()},
        rounds=rounds,
        seconds=2.0,
        wait=torch.cuda.synchronize,
    )
    rates = {
        name: REPEATS
        * MOVED[name.removesuffix(BY_VALUE)]
        * x.numel()
        * x.element_size()
        / seconds
        / 1e9
        for name, seconds in medians.items()
    }
    return [
        Row(
            prefix + name,
            rate,
            "GB/s",
            None if name == "copy" else prefix + "copy",
            None if name == "copy" else rate / rates["copy"],
            AIM if name in MOVED and name != "copy" else "",
        )
        for name, rate in rates.items()
    ]
