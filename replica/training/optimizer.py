"""The paper's stochastic gradient descent (paper 5)."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch

from cuda_ext import momentum_sgd_
from replica import paper


class PaperSGD(torch.optim.Optimizer):
    """The paper's update, `cuda_ext.momentum_sgd_`, for other people's training loops (paper 5).

    The learning rate is inside the velocity: after a drop the old, larger velocity lives on and
    fades with the momentum. `torch.optim.SGD` keeps the rate outside, so there a drop shrinks the
    velocity at once. The state of a parameter is its `velocity`, zero before the first step. A
    rate of zero freezes a group, velocity and all, as in the source.

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
            momentum_sgd_(
                weights,
                [self.state[w]["velocity"] for w in weights],
                [w.grad for w in weights],
                learning_rates=[float(group["lr"])] * len(weights),
                momentum=group["momentum"],
                weight_decays=[group["weight_decay"]] * len(weights),
            )
        return loss
