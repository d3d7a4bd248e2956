"""The paper's stochastic gradient descent (paper 5)."""

import torch

from cuda_ext import momentum_sgd_


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
