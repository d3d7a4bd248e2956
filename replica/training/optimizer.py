"""The paper's stochastic gradient descent (paper 5)."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch

from cuda_ext import momentum_sgd_
from replica import paper


@torch.no_grad()
def sgd_step_(
    weights: list[torch.Tensor],
    velocities: list[torch.Tensor],
    gradients: list[torch.Tensor],
    *,
    learning_rates: list[float],
    momentum: float,
    weight_decays: list[float],
) -> None:
    """One update of all parameters, in place (paper 5).

        v <- momentum * v - weight_decay * learning_rate * w - learning_rate * gradient
        w <- w + v

    The learning rate is inside the velocity: after a drop the old, larger velocity lives on and
    fades with the momentum. `torch.optim.SGD` keeps the rate outside, so there a drop shrinks the
    velocity at once. A tensor with a rate of zero is frozen, velocity and all, as in the source:
    it neither moves on nor decays.

    Args:
        weights, velocities: changed; velocities are zero before the first step.
        gradients: of the loss averaged over the batch.
        learning_rates: epsilon of the paper, one number per parameter.
        momentum: 0.9 in the paper.
        weight_decays: one number per parameter: 0.0005 in the paper, 0 for biases.
    """
    for w, v, gradient, learning_rate, weight_decay in zip(
        weights, velocities, gradients, learning_rates, weight_decays, strict=True
    ):
        if learning_rate:
            momentum_sgd_(
                w,
                v,
                gradient,
                learning_rate=learning_rate,
                momentum=momentum,
                weight_decay=weight_decay,
            )


class PaperSGD(torch.optim.Optimizer):
    """The paper's update (`sgd_step_`) for other people's training loops (paper 5).

    Unlike `torch.optim.SGD` it keeps the learning rate inside the velocity, so the two differ once
    the rate changes. The state of a parameter is its `velocity`.

    Args:
        params: tensors, or groups with a `lr` or `weight_decay` of their own. The paper does not
            say whether biases decay; the 2012 source, and `replica.train`, give them 0.
        lr: epsilon of the paper; schedulers change it.
        momentum: of the velocity.
        weight_decay: multiplied by the rate, as in the paper.

    Raises:
        ValueError: a constant is negative.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float = paper.LEARNING_RATE,
        *,
        momentum: float = paper.MOMENTUM,
        weight_decay: float = paper.WEIGHT_DECAY,
    ) -> None:
        constants = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, constants)
        for group in self.param_groups:
            for name in constants:
                if not group[name] >= 0:
                    raise ValueError(f"PaperSGD: expected {name} of at least 0, got {group[name]}")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of all parameters that have a gradient.

        Args:
            closure: computes the gradients and returns the loss, which is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            for w in weights:
                self.state[w].setdefault("velocity", torch.zeros_like(w))
            sgd_step_(
                weights,
                [self.state[w]["velocity"] for w in weights],
                [w.grad for w in weights],
                learning_rates=[float(group["lr"])] * len(weights),
                momentum=group["momentum"],
                weight_decays=[group["weight_decay"]] * len(weights),
            )
        return loss
