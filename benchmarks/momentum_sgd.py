"""The update of a recipe's parameters on the CPU: `momentum_sgd_` against PyTorch's own.

`torch._foreach_*` follows the paper's formula; `torch.optim.SGD` has its learning rate outside of
the velocity, the same bytes to move and, with `fused=True`, one pass over them as well.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import Row, interleaved, rows_of, say
from cuda_ext import momentum_sgd_
from replica import build
from replica.recipes import find_recipe
from replica.training.allocator import keep_large_blocks

OURS = "momentum_sgd_"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--recipe", default="paper", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=21, help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="default: one per core")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows."""
    recipe = find_recipe(arguments.recipe)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    say(f"memory: {keep_large_blocks()}")
    shapes = [p.shape for p in build(arguments.recipe).parameters()]
    candidates: dict[str, Callable[[], object]] = {
        OURS: _ours(shapes, recipe.learning_rate, recipe.momentum, recipe.weight_decay),
        "torch._foreach_*": _foreach(
            shapes, recipe.learning_rate, recipe.momentum, recipe.weight_decay
        ),
    }
    for kind in ("fused", "foreach"):
        parameters = [torch.nn.Parameter(w) for w in _tensors(shapes)]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer = torch.optim.SGD(
            parameters,
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            **{kind: True},
        )
        candidates[f"torch.optim.SGD({kind}=True)"] = optimizer.step
    medians = interleaved(candidates, rounds=arguments.rounds, seconds=10.0)
    return rows_of(medians, baselines={name: OURS for name in medians if name != OURS})


def _tensors(shapes: list[torch.Size]) -> list[torch.Tensor]:
    return [torch.randn(shape) * 0.01 for shape in shapes]


def _ours(shapes: list[torch.Size], rate: float, momentum: float, decay: float) -> Any:
    weights, velocities, gradients = (_tensors(shapes) for _ in range(3))
    number = len(weights)

    def step() -> None:
        momentum_sgd_(
            weights,
            velocities,
            gradients,
            learning_rates=[rate] * number,
            momentum=momentum,
            weight_decays=[decay] * number,
        )

    return step


def _foreach(shapes: list[torch.Size], rate: float, momentum: float, decay: float) -> Any:
    weights, velocities, gradients = (_tensors(shapes) for _ in range(3))

    def step() -> None:
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, weights, alpha=-decay * rate)
        torch._foreach_add_(velocities, gradients, alpha=-rate)
        torch._foreach_add_(weights, velocities)

    return step
